//! Adapters as models: folded while they are read, bit for bit as `luthier fold` folds them.

use std::{fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use luthier_core::{Model, Param, Seed};
use luthier_model::{Decoder, Precision, Source};
use luthier_params::{Ia3, Lora, Params, Sparse, Ssf, own, peft};
use serde_json::{Value, json};

use crate::{
    merge, sized,
    support::{adapter, luthier, pico},
};

const SUM: &str = "merge_method: task_arithmetic\nbase_model: a\nmodels:\n";

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

fn fold(dir: &Path, model: &str, adapter: &str, out: &str) {
    let args = ["fold", "--model", model, "--adapter", adapter, "--out", out, "--dtype", "f32"];
    let ran = luthier(dir, &args, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// An adapter of this form with random numbers, in PEFT's files or our own.
fn formed(base: &Path, dir: &Path, params: &Params, seed: u64) {
    let source = Source::open(base).unwrap();
    let model: Arc<dyn Model> =
        Arc::new(Decoder::load(&source, Precision::F32, |_, _| ()).unwrap());
    let bound = params.bind(&model, Seed(seed)).unwrap();
    for Param { name, var, mask, .. } in &bound.params {
        let mut rng = Seed(seed).split(name).rng();
        let mut values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let moved = |i: usize| mask.as_ref().is_none_or(|m| m.positions().contains(&(i as u32)));
        for (i, x) in values.iter_mut().enumerate() {
            let by = 0.2 * rng.normal() as f32;
            *x += if moved(i) { by } else { 0.0 };
        }
        var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let base = peft::Base { name: base.display().to_string(), sha256: None };
    fs::create_dir_all(dir).unwrap();
    match bound.form.kept() {
        luthier_params::Kept::Peft => peft::save(dir, &bound, model.sites(), &base).unwrap(),
        _ => {
            own::save(dir, &bound, &base, &|name| source.load_f32(name)).unwrap();
        }
    }
}

fn table<T: serde::de::DeserializeOwned>(value: Value) -> Option<T> {
    Some(serde_json::from_value(value).unwrap())
}

#[test]
fn base_and_adapter_are_the_folded_model_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = pico(&at.join("a"), 1);
    pico(&at.join("b"), 2);
    adapter(&a, &at.join("one"));
    formed(
        &a,
        &at.join("dora"),
        &Params {
            lora: table::<Lora>(json!({"r": 3, "alpha": 5.0, "dora": true})),
            ..Params::default()
        },
        5,
    );
    formed(&a, &at.join("ia3"), &Params { ia3: table::<Ia3>(json!({})), ..Params::default() }, 6);
    formed(
        &a,
        &at.join("sparse"),
        &Params { sparse: table::<Sparse>(json!({"random": {}})), ..Params::default() },
        7,
    );
    let b = format!("{SUM}  - {{model: b, parameters: {{weight: 0.4}}}}\ndtype: float32\n");
    assert_eq!(merge(at, &b, "without").code, 0);
    for name in ["one", "dora", "ia3", "sparse"] {
        fold(at, "a", name, &format!("folded-{name}"));
        let text = |model: &str| {
            format!(
                "{SUM}  - {{model: {model}, parameters: {{weight: 0.7}}}}\n  \
                 - {{model: b, parameters: {{weight: 0.4}}}}\ndtype: float32\n"
            )
        };
        let (streamed, plain) = (format!("out-{name}"), format!("plain-{name}"));
        let ran = merge(at, &text(&format!("a+{name}")), &streamed);
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert_eq!(merge(at, &text(&format!("folded-{name}")), &plain).code, 0);
        assert_eq!(weights(&at.join(streamed)), weights(&at.join(&plain)), "{name}");
        // And it says something: without the adapter the merge is another.
        assert_ne!(weights(&at.join(plain)), weights(&at.join("without")), "{name}");
    }
    let lora = |names: &[&str]| -> String {
        let one = |n: &&str| format!("  - {{model: {n}, parameters: {{weight: 0.5}}}}\n");
        format!("{SUM}{}dtype: float32\n", names.iter().map(one).collect::<String>())
    };
    // An adapter by itself finds its base; mergekit's longer form is the same model.
    assert_eq!(merge(at, &lora(&["one", "a+dora"]), "alone").code, 0);
    assert_eq!(merge(at, &lora(&["a+one", "{model: a, lora: dora}"]), "named").code, 0);
    assert_eq!(weights(&at.join("alone")), weights(&at.join("named")));
    let folded = lora(&["folded-one", "folded-dora"]);
    assert_eq!(merge(at, &folded, "folded").code, 0);
    assert_eq!(weights(&at.join("alone")), weights(&at.join("folded")));
}

#[test]
fn an_adapter_may_untie_a_head_and_bring_biases() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = sized(&at.join("a"), json!({"tie_word_embeddings": true}));
    let lora: Option<Lora> =
        table(json!({"r": 2, "alpha": 3.0, "at": ["embed", "layers.*.attn.q"]}));
    formed(&a, &at.join("embeds"), &Params { lora, ..Params::default() }, 5);
    formed(
        &a,
        &at.join("shifts"),
        &Params { ssf: table::<Ssf>(json!({})), ..Params::default() },
        6,
    );
    for name in ["embeds", "shifts"] {
        let ran = luthier(
            at,
            &["fold", "--model", "a", "--adapter", name, "--out", "folded", "--dtype", "f32"],
            "",
        );
        let text = |model: &str| {
            format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\ndtype: float32\n")
        };
        let merged = merge(at, &text(&format!("a+{name}")), "out");
        // What cannot be folded cannot be merged either.
        assert_eq!(ran.code, merged.code, "{name}: {} / {}", ran.stderr, merged.stderr);
        if ran.code == 0 {
            assert_eq!(merge(at, &text("folded"), "plain").code, 0);
            assert_eq!(weights(&at.join("out")), weights(&at.join("plain")), "{name}");
            let config = |name: &str| -> Value {
                let path = at.join(name).join("config.json");
                serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
            };
            assert_eq!(config("out"), config("plain"), "{name}");
        }
        for folder in ["folded", "out", "plain"] {
            let _ = fs::remove_dir_all(at.join(folder));
        }
    }
}

#[test]
fn what_is_no_change_of_weights_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = pico(&at.join("a"), 1);
    let params =
        Params { bottleneck: Some(luthier_params::Bottleneck::default()), ..Params::default() };
    formed(&a, &at.join("beside"), &params, 5);
    let text = "merge_method: passthrough\nmodels: [{model: a+beside}]\n";
    merge(at, text, "out").refused(&["beside", "cannot become a weight"]);
}
