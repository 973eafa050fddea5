//! Adapters that PEFT wrote, against what transformers computed with them.

mod naive;

use std::{fs, path::Path, sync::Arc};

use candle_core::Tensor;
use luthier_core::{Batch, Model, Param, Policy, Result, StateDict, io, model::gather_logp};
use luthier_params::{Bound, peft};
use luthier_testkit::{assert_close, assert_same_bits, batch, golden, gradients, load_tensors};
use naive::Naive;
use serde_json::{Value, json};

const VARIANTS: [&str; 7] = ["", "rslora", "patterns", "embeddings", "bias", "layers", "regex"];

/// The folder of the base that PEFT wrote into the adapter.
fn base(variant: &str) -> String {
    let config: Value =
        io::read_json(&golden(Path::new("lora").join(variant)).join(peft::CONFIG)).unwrap();
    config["base_model_name_or_path"].as_str().unwrap().to_string()
}

fn model(variant: &str) -> Arc<dyn Model> {
    Arc::new(Naive::golden(&base(variant)))
}

fn adapter(variant: &str) -> Bound {
    let dir = golden(Path::new("lora").join(variant));
    peft::load(&dir, &model(variant), None).unwrap_or_else(|e| panic!("{variant}: {e}"))
}

fn values(variant: &str) -> StateDict {
    load_tensors(Path::new("lora").join(variant).join("golden.safetensors"))
}

fn logits(policy: &Policy, batch: &Batch) -> Tensor {
    policy.logits(&batch.ids_n, batch.rows.clone()).unwrap()
}

/// Our name of a variable under PEFT's.
fn key(model: &dyn Model, name: &str) -> String {
    let cut = name.find(".lora_").expect("a LoRA variable");
    let (site, part) = name.split_at(cut);
    let module = model.sites().get(site).unwrap().module.as_deref().unwrap();
    let suffix = match part {
        ".lora_A" | ".lora_B" => ".weight",
        _ => "",
    };
    format!("base_model.model.{module}{part}{suffix}")
}

#[test]
fn the_naive_model_is_transformers_model() {
    for variant in ["", "bias"] {
        let want = load_tensors(format!("{}/golden.safetensors", base(variant)));
        let got = logits(&Policy::plain(model(variant)), &batch(&want, ""));
        assert_close(variant, &got, want.get("logits_nv").unwrap(), 1e-5, 1e-6);
    }
}

#[test]
fn loaded_adapters_compute_what_peft_computes() {
    for variant in VARIANTS {
        let (bound, want) = (adapter(variant), values(variant));
        let batch = batch(&want, "");
        let got = logits(&bound.policy, &batch);
        assert_close(variant, &got, want.get("logits_nv").unwrap(), 1e-4, 1e-5);
        let folded: Arc<dyn Model> =
            Arc::new(Naive::golden(&base(variant)).folded(&[], &bound.policy.hooks).unwrap());
        let merged = logits(&Policy::plain(folded), &batch);
        assert_close(variant, &merged, want.get("merged_logits_nv").unwrap(), 1e-4, 1e-5);
    }
}

#[test]
fn gradients_are_those_of_torch() -> Result<()> {
    for variant in VARIANTS {
        let (bound, want) = (adapter(variant), values(variant));
        let batch = batch(&want, "");
        let logp_n = gather_logp(&logits(&bound.policy, &batch), &batch.targets_n)?;
        let share: Vec<f32> = batch.weights_n.iter().map(|w| -w / batch.weight() as f32).collect();
        let loss = (logp_n * Tensor::from_vec(share, batch.n(), &candle_core::Device::Cpu)?)?;
        let grads = loss.sum_all()?.backward()?;
        let mut seen = 0;
        for Param { name, var, .. } in &bound.params {
            let key = format!("grad.{}", key(&*bound.policy.model, name));
            let got = grads.get(var).unwrap_or_else(|| panic!("{variant} {name}: no gradient"));
            assert_close(&key, got, want.get(&key).unwrap_or_else(|| panic!("{key}")), 1e-4, 1e-6);
            seen += 1;
        }
        assert_eq!(seen, gradients(&want).count(), "{variant}");
    }
    Ok(())
}

/// What PEFT wrote and what we write after reading it: the same tensors, the same meaning.
#[test]
fn what_peft_wrote_can_be_written_again() {
    for variant in VARIANTS {
        let bound = adapter(variant);
        let dir = tempfile::tempdir().unwrap();
        let base = peft::Base { name: base(variant), sha256: Some("b".repeat(64)) };
        let sites = bound.policy.model.sites();
        let write = |name: &str| {
            let dir = dir.path().join(name);
            peft::save(&dir, &bound, sites, &base).unwrap();
            dir
        };
        let (first, second) = (write("first"), write("second"));
        for file in [peft::CONFIG, peft::WEIGHTS, "README.md"] {
            let read = |dir: &Path| fs::read(dir.join(file)).unwrap();
            assert_eq!(read(&first), read(&second), "{variant} {file}");
        }

        let theirs = load_tensors(Path::new("lora").join(variant).join(peft::WEIGHTS));
        let ours = StateDict::load(&first.join(peft::WEIGHTS)).unwrap();
        let adapted: Vec<(&str, &Tensor)> =
            theirs.iter().filter(|(key, _)| !key.contains("base_layer")).collect();
        for ((key, want), (name, got)) in adapted.iter().zip(ours.iter()) {
            let key = *key;
            assert_eq!(key, name);
            assert_same_bits(key, got, want);
        }
        assert_eq!(adapted.len(), ours.len(), "{variant}");

        // Key by key what PEFT wrote, but for what can be said in several ways.
        let config = |dir: &Path| -> Value { io::read_json(&dir.join(peft::CONFIG)).unwrap() };
        let (want, got) = (config(&golden(Path::new("lora").join(variant))), config(&first));
        let order = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut keys = order(&got);
        keys.retain(|key| key != "luthier");
        assert_eq!(keys, order(&want), "{variant}");
        for key in keys {
            let several_ways =
                ["target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"];
            if !several_ways.contains(&key.as_str()) {
                assert_eq!(got[&key], want[&key], "{variant} {key}");
            }
        }
        if matches!(variant, "" | "rslora" | "patterns" | "embeddings" | "bias") {
            assert_eq!(got["target_modules"], want["target_modules"], "{variant}");
        }
        assert_eq!(got["luthier"]["base_sha256"], json!("b".repeat(64)));

        let again = peft::load(&first, &model(variant), base.sha256.as_deref()).unwrap();
        assert_eq!(again.form, bound.form, "{variant}");
        for (want, got) in bound.params.iter().zip(&again.params) {
            assert_eq!(got.name, want.name);
            assert_same_bits(&want.name, &got.var, &want.var);
        }
    }
}

#[test]
fn targets_are_a_list_or_an_exact_regex() {
    let saved = |variant: &str| -> Value {
        let bound = adapter(variant);
        let dir = tempfile::tempdir().unwrap();
        let sites = bound.policy.model.sites();
        peft::save(dir.path(), &bound, sites, &peft::Base::default()).unwrap();
        io::read_json(&dir.path().join(peft::CONFIG)).unwrap()
    };
    assert_eq!(
        saved("layers")["target_modules"],
        json!(r"model\.layers\.1\.(?:mlp\.up_proj|self_attn\.q_proj)")
    );
    let patterns = saved("patterns");
    assert_eq!(patterns["rank_pattern"], json!({ "model.layers.1.mlp.down_proj": 6, "q_proj": 2 }));
    assert_eq!(
        patterns["alpha_pattern"],
        json!({
            "model.layers.1.mlp.down_proj": 5, "model.layers.0.self_attn.o_proj": 10, "q_proj": 3
        })
    );
}

/// A copy of the plain golden adapter with an edited config or edited tensors.
fn edited(config: &[(&str, Value)], tensors: impl FnOnce(&mut StateDict)) -> Result<Bound> {
    let (dir, from) = (tempfile::tempdir().unwrap(), golden("lora"));
    let mut json: Value = io::read_json(&from.join(peft::CONFIG)).unwrap();
    for (key, value) in config {
        json[*key] = value.clone();
    }
    io::write_json(&dir.path().join(peft::CONFIG), &json).unwrap();
    let mut state = StateDict::load(&from.join(peft::WEIGHTS)).unwrap();
    tensors(&mut state);
    state.save(&dir.path().join(peft::WEIGHTS), &[]).unwrap();
    peft::load(dir.path(), &model(""), Some("cafe"))
}

#[test]
fn adapters_that_mean_something_else_are_refused_by_their_key() {
    let refused = |config: &[(&str, Value)], want: &str| {
        let err = edited(config, |_| ()).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{want}: {err}");
        assert_eq!(err.exit_code(), 2);
    };
    refused(&[("peft_type", json!("ADALORA"))], "adapter_config.json: peft_type");
    refused(&[("peft_type", json!("ADALORA"))], "convert_to_lora");
    refused(&[("peft_type", json!("P_TUNING"))], "run it with PEFT");
    refused(
        &[("peft_type", json!(null))],
        "expected LORA, IA3, LN_TUNING, TRAINABLE_TOKENS, PROMPT_TUNING or PREFIX_TUNING",
    );
    refused(&[("peft_type", json!("IA3"))], "lora_A.weight: is not part of an IA3 adapter");
    refused(&[("use_dora", json!(true))], "lora_magnitude_vector: is missing");
    refused(&[("use_qalora", json!(true))], "use_qalora: true is not supported");
    refused(&[("modules_to_save", json!(["lm_head"]))], "modules_to_save: names \"lm_head\"");
    refused(&[("trainable_token_indices", json!([3]))], "trainable_token_indices: names tokens");
    refused(&[("init_lora_weights", json!("loftq"))], "init_lora_weights: \"loftq\" belongs to");
    refused(&[("init_lora_weights", json!("corda"))], "path_initial_model_for_weight_conversion");
    refused(&[("bias", json!("lora_only"))], "adapter_config.json: bias");
    refused(&[("init_lora_weights", json!("pissa_niter_4"))], "init_lora_weights");
    refused(&[("r", json!(0))], "expected a rank above 0");
    refused(&[("r", json!(8))], "gives this module rank 8");
    refused(&[("lora_bias", json!(true))], "lora_B.bias: is missing");
    refused(&[("rank_pattern", json!({ "(": 4 }))], "rank_pattern: `(`");
    refused(&[("luthier", json!({ "base_sha256": "beef" }))], "SHA-256 beef, got cafe");
    assert!(edited(&[("luthier", json!({ "base_sha256": "cafe" }))], |_| ()).is_ok());
    assert!(edited(&[("eva_config", json!({ "rho": 2.0 }))], |_| ()).is_ok());
}

#[test]
fn adapters_of_another_base_are_refused_by_their_tensor() {
    let zeros = |dims: &[usize]| {
        Tensor::zeros(dims, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
    };
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let refused = |name: String, dims: &[usize], want: &str| {
        let err = edited(&[], |state| state.insert(name, zeros(dims))).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{want}: {err}");
        assert_eq!(err.exit_code(), 2);
    };
    refused(
        format!("{q}.lora_A.weight"),
        &[4, 64],
        "q_proj.lora_A.weight: has shape [4, 64], expected [4, 32]",
    );
    refused(
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight".into(),
        &[4, 32],
        "no module model.layers.2.self_attn.q_proj",
    );
    refused(format!("{q}.lora_magnitude_vector"), &[32], "is there, but use_dora is false");
    refused(format!("{q}.lora_E"), &[4, 1], "lora_E: is not part of a LORA adapter");
    refused("base_model.model.lm_head.weight".into(), &[96, 32], "lm_head.weight: is not part");
    refused(
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".into(),
        &[1, 32],
        "trainable_token_indices: is missing",
    );
    refused(format!("{q}.lora_embedding_A"), &[4, 32], "does not fit layers.0.attn.q");
    let table = "base_model.model.model.embed_tokens.base_layer.weight";
    refused(table.into(), &[96, 32], "is not the weight of embed");
    let missing = edited(&[], |state| drop(state.remove(&format!("{q}.lora_B.weight"))));
    assert!(missing.map(|_| ()).unwrap_err().to_string().contains("q_proj.lora_B.weight: is miss"));
}
