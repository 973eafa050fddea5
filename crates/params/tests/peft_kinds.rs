//! Adapters of PEFT other than plain LoRA, against what transformers computed with them.

mod naive;

use std::{fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use luthier_core::{Batch, Model, Policy, Result, StateDict, io, model::gather_logp};
use luthier_params::{Bound, LoraInit, peft};
use luthier_testkit::{assert_close, assert_same_bits, batch, golden, gradients, load_tensors};
use naive::{Naive, leave_for_peft};
use serde_json::{Value, json};

/// Of the rows in the golden files.
const LENGTHS: [usize; 3] = [23, 9, 1];

const VARIANTS: [&str; 22] = [
    "dora",
    "dora-embeddings",
    "dora-rslora",
    "eva",
    "ia3",
    "ia3-bias",
    "ia3-whole",
    "ln_tuning",
    "lora-tokens",
    "lora-tokens-head",
    "lora-tokens-tied",
    "lora-whole",
    "lora-whole-biased",
    "lora-whole-tied",
    "olora",
    "olora-converted",
    "orthogonal",
    "pissa",
    "pissa-converted",
    "pissa-dora",
    "tokens",
    "tokens-tied",
];

fn folder(variant: &str) -> std::path::PathBuf {
    golden(Path::new("peft").join(variant))
}

fn config(dir: &Path) -> Value {
    io::read_json(&dir.join(peft::CONFIG)).unwrap()
}

fn naive(variant: &str) -> Naive {
    Naive::golden(config(&folder(variant))["base_model_name_or_path"].as_str().unwrap())
}

fn adapter(variant: &str) -> Bound {
    let model: Arc<dyn Model> = Arc::new(naive(variant));
    peft::load(&folder(variant), &model, None).unwrap_or_else(|e| panic!("{variant}: {e}"))
}

/// Conversions compute the same as what they were made of, whose values were recorded.
fn values(variant: &str) -> StateDict {
    let variant = variant.trim_end_matches("-converted");
    load_tensors(Path::new("peft").join(variant).join("golden.safetensors"))
}

fn logits(policy: &Policy, batch: &Batch) -> Tensor {
    policy.logits(&batch.ids_n, batch.rows.clone()).unwrap()
}

#[test]
fn every_recorded_variant_is_tested() {
    let mut found: Vec<String> = fs::read_dir(golden("peft"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, VARIANTS);
}

#[test]
fn loaded_adapters_compute_what_peft_computes() {
    for variant in VARIANTS {
        let (bound, want) = (adapter(variant), values(variant));
        let batch = batch(&want, "");
        let want_nv = want.get("logits_nv").unwrap();
        // PEFT decomposes in single precision, which is here 1.5e-5 off the value in double; ours is
        // 1e-7 off.
        let rel = if variant == "pissa-dora" { 3e-5 } else { 1e-5 };
        assert_close(variant, &logits(&bound.policy, &batch), want_nv, rel, 1e-6);
        let merged_nv = want.get("merged_logits_nv").unwrap();
        let folded = naive(variant).folded(&bound.params, &bound.policy.hooks).unwrap();
        let folded = logits(&Policy::plain(Arc::new(folded)), &batch);
        assert_close(&format!("{variant} merged"), &folded, merged_nv, rel, 1e-6);
    }
}

/// The key under which the gradient of one of our variables was recorded.
fn key(bound: &Bound, want: &StateDict, name: &str) -> String {
    let sites = bound.policy.model.sites();
    let site = sites.iter().find(|s| {
        let module = s.module.as_deref().unwrap_or("?");
        [&s.name, module].iter().any(|place| name.starts_with(&format!("{place}.")))
    });
    let site = site.unwrap_or_else(|| panic!("{name} belongs to no site"));
    let part = name
        .strip_prefix(&format!("{}.", site.name))
        .or_else(|| name.strip_prefix(&format!("{}.", site.module.as_deref()?)));
    let part = part.unwrap();
    // A table that is the head was recorded under the head's name.
    let modules = [site.module.as_deref().unwrap(), "lm_head"];
    let parts = [
        part.to_string(),
        format!("{part}.weight"),
        format!("ln_tuning_layers.{part}"),
        format!("token_adapter.{part}"),
    ];
    let mut keys = modules.iter().flat_map(|module| {
        parts.iter().map(move |part| format!("grad.base_model.model.{module}.{part}"))
    });
    keys.find(|key| want.get(key).is_some()).unwrap_or_else(|| panic!("{name} was not recorded"))
}

#[test]
fn gradients_are_those_of_torch() -> Result<()> {
    for variant in VARIANTS.iter().filter(|variant| !variant.ends_with("-converted")) {
        let (bound, want) = (adapter(variant), values(variant));
        let batch = batch(&want, "");
        let logp_n = gather_logp(&logits(&bound.policy, &batch), &batch.targets_n)?;
        let share: Vec<f32> = batch.weights_n.iter().map(|w| -w / batch.weight() as f32).collect();
        let loss = (logp_n * Tensor::from_vec(share, batch.n(), &Device::Cpu)?)?;
        let grads = loss.sum_all()?.backward()?;
        for param in &bound.params {
            let (key, name) = (key(&bound, &want, &param.name), &param.name);
            let got = grads.get(&param.var).unwrap_or_else(|| panic!("{variant} {name}"));
            assert_close(&format!("{variant} {key}"), got, want.get(&key).unwrap(), 1e-4, 1e-6);
        }
        assert_eq!(bound.params.len(), gradients(&want).count(), "{variant}");
    }
    Ok(())
}

/// What PEFT wrote and what we write after reading it: the same tensors, the same meaning. What
/// needs a changed base is written as PEFT's conversion of it.
#[test]
fn what_peft_wrote_can_be_written_again() {
    for variant in VARIANTS {
        let (bound, dir) = (adapter(variant), tempfile::tempdir().unwrap());
        let name = config(&folder(variant))["base_model_name_or_path"].as_str().unwrap().into();
        let base = peft::Base { name, sha256: Some("b".repeat(64)) };
        let write = |name: &str| {
            let dir = dir.path().join(name);
            peft::save(&dir, &bound, bound.policy.model.sites(), &base).unwrap();
            dir
        };
        let (first, second) = (write("first"), write("second"));
        for file in [peft::CONFIG, peft::WEIGHTS, "README.md"] {
            let read = |dir: &Path| fs::read(dir.join(file)).unwrap();
            assert_eq!(read(&first), read(&second), "{variant} {file}");
        }
        let want = match variant {
            "pissa" | "olora" => folder(&format!("{variant}-converted")),
            _ => folder(variant),
        };
        let theirs = StateDict::load(&want.join(peft::WEIGHTS)).unwrap();
        let theirs: Vec<(&str, &Tensor)> =
            theirs.iter().filter(|(key, _)| !key.contains("base_layer")).collect();
        let ours = StateDict::load(&first.join(peft::WEIGHTS)).unwrap();
        assert_eq!(theirs.len(), ours.len(), "{variant}");
        let half = |key: &str, x: &Tensor| {
            let along = usize::from(key.contains("lora_B"));
            x.narrow(along, 0, x.dims()[along] / 2).unwrap().contiguous().unwrap()
        };
        for ((key, want), (name, got)) in theirs.into_iter().zip(ours.iter()) {
            assert_eq!(key, name);
            match variant {
                // The other half is a decomposition, whose signs are free.
                "pissa" | "olora" => assert_same_bits(key, &half(key, got), &half(key, want)),
                "pissa-dora" if !key.contains("magnitude") => {
                    assert_same_bits(key, &half(key, got), want);
                }
                _ => assert_same_bits(key, got, want),
            }
        }
        same_config(variant, config(&first), config(&want));

        let model: Arc<dyn Model> = Arc::new(naive(variant));
        let again = peft::load(&first, &model, base.sha256.as_deref()).unwrap();
        let removes = |bound: &Bound| {
            let init = bound.form.lora.as_ref().map(|lora| lora.init);
            matches!(init, Some(LoraInit::Pissa | LoraInit::Olora))
        };
        assert!(!removes(&again));
        if !removes(&bound) {
            assert_eq!(again.form, bound.form, "{variant}");
            for (want, got) in bound.params.iter().zip(&again.params) {
                assert_eq!(got.name, want.name);
                assert_same_bits(&want.name, &got.var, &want.var);
            }
        }
        let batch = batch(&values(variant), "");
        let (got, want) = (logits(&again.policy, &batch), logits(&bound.policy, &batch));
        assert_close(variant, &got, &want, 1e-5, 1e-6);
        leave_for_peft(variant, &base.name, &bound, &batch.ids_n, &LENGTHS);
    }
}

/// Key by key what PEFT wrote, but for what can be said in several ways.
fn same_config(variant: &str, got: Value, want: Value) {
    let order = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut keys = order(&got);
    keys.retain(|key| key != "luthier");
    assert_eq!(keys, order(&want), "{variant}");
    let pissa_dora = ["r", "lora_alpha", "init_lora_weights"];
    for key in keys {
        let several_ways = match key.as_str() {
            "rank_pattern" | "alpha_pattern" => true,
            "target_modules" => variant.starts_with("tokens"),
            "modules_to_save" => variant == "lora-whole-tied",
            key => variant == "pissa-dora" && pissa_dora.contains(&key),
        };
        if !several_ways {
            assert_eq!(got[&key], want[&key], "{variant} {key}");
        }
    }
    if variant == "lora-whole-tied" {
        assert_eq!(got["modules_to_save"], json!(["embed_tokens"]));
    }
    if variant == "pissa-dora" {
        assert_eq!(pissa_dora.map(|key| &got[key]), [&json!(8), &json!(32), &json!(true)]);
    }
}

#[test]
fn the_part_taken_off_is_the_one_that_peft_takes_off() {
    for variant in ["pissa", "olora"] {
        let (bound, dir) = (adapter(variant), tempfile::tempdir().unwrap());
        let sites = bound.policy.model.sites();
        peft::save(dir.path(), &bound, sites, &peft::Base::default()).unwrap();
        let ours = StateDict::load(&dir.path().join(peft::WEIGHTS)).unwrap();
        let converted = folder(&format!("{variant}-converted"));
        let theirs = StateDict::load(&converted.join(peft::WEIGHTS)).unwrap();
        for (key, a_ri) in ours.iter().filter(|(key, _)| key.contains("lora_A")) {
            let product = |state: &StateDict| {
                let a_ri = state.get(key).unwrap();
                state.get(&key.replace("lora_A", "lora_B")).unwrap().matmul(a_ri).unwrap()
            };
            assert_eq!(a_ri.dims(), theirs.get(key).unwrap().dims());
            assert_close(key, &product(&ours), &product(&theirs), 1e-5, 1e-6);
        }
    }
}

/// A copy of a golden adapter with an edited config or edited tensors.
fn edited(
    variant: &str,
    config: &[(&str, Value)],
    tensors: impl FnOnce(&mut StateDict),
) -> Result<Bound> {
    let (dir, from) = (tempfile::tempdir().unwrap(), folder(variant));
    let mut json: Value = io::read_json(&from.join(peft::CONFIG)).unwrap();
    for (key, value) in config {
        json[*key] = value.clone();
    }
    io::write_json(&dir.path().join(peft::CONFIG), &json).unwrap();
    let mut state = StateDict::load(&from.join(peft::WEIGHTS)).unwrap();
    tensors(&mut state);
    state.save(&dir.path().join(peft::WEIGHTS), &[]).unwrap();
    let model: Arc<dyn Model> = Arc::new(naive(variant));
    peft::load(dir.path(), &model, None)
}

#[test]
fn what_does_not_fit_is_refused_by_its_key() {
    let refused = |found: Result<Bound>, want: &str| {
        let err = found.map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{want}: {err}");
        assert_eq!(err.exit_code(), 2);
    };
    let put = |key: &'static str, dims: &'static [usize]| {
        move |state: &mut StateDict| {
            let zeros = Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
            state.insert(format!("base_model.model.{key}"), zeros);
        }
    };
    let l = "model.layers.0.self_attn.k_proj.ia3_l";
    refused(edited("ia3", &[], put(l, &[32, 1])), "expected [16, 1] or [1, 32]");
    refused(edited("ia3", &[("fan_in_fan_out", json!(true))], |_| ()), "fan_in_fan_out");
    refused(edited("ia3", &[], put("lm_head.weight", &[96, 32])), "is not part of an IA3 adapter");
    let norm = "model.layers.0.mlp.up_proj.ln_tuning_layers.weight";
    refused(edited("ln_tuning", &[], put(norm, &[64])), "which is no norm");
    let scale = "model.norm.ln_tuning_layers.weight";
    refused(edited("ln_tuning", &[], put(scale, &[64])), "has shape [64], expected [32]");
    refused(edited("tokens", &[("token_indices", json!([1, 2]))], |_| ()), "expected [2, 32]");
    refused(edited("tokens", &[("token_indices", json!([1, 2, 3, 96]))], |_| ()), "below 96");
    refused(edited("tokens", &[("token_indices", json!([1, 2, 3, 2]))], |_| ()), "token 2 twice");
    let other = put("lm_head.trainable_tokens_delta", &[4, 32]);
    refused(edited("tokens-tied", &[], other), "has other rows than the embedding");
    let differing = json!({ "embed_tokens": [1, 2, 3, 4], "lm_head": [5, 6, 7, 8] });
    let differing = [("trainable_token_indices", differing)];
    refused(edited("lora-tokens-head", &differing, |_| ()), "different tokens");
    let untied = edited("lora-whole-tied", &[], put("lm_head.weight", &[96, 32]));
    refused(untied, "learned the embedding apart from the head");
    let alone = |state: &mut StateDict| drop(state.remove("base_model.model.lm_head.weight"));
    let settings = [("ensure_weight_tying", json!(false))];
    refused(edited("lora-whole-tied", &settings, alone), "in this model they are one");
    let missing = |state: &mut StateDict| {
        drop(state.remove("base_model.model.model.layers.0.mlp.up_proj.bias"));
    };
    refused(edited("lora-whole-biased", &[], missing), "up_proj.bias: is missing");
    let both = put("model.layers.0.self_attn.q_proj.weight", &[32, 32]);
    let settings = [("modules_to_save", json!(["up_proj", "q_proj"]))];
    let bias = put("model.layers.0.self_attn.q_proj.bias", &[32]);
    let both = edited("lora-whole-biased", &settings, |state| {
        both(state);
        bias(state);
    });
    refused(both, "whose weight learns as a whole");
}
