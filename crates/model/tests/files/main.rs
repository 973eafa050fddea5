//! Hugging Face folders: what transformers wrote is read, what is written is read again, and
//! damaged or mistaken folders are refused by name.

mod configuration;
mod damage;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use luthier_core::{Result, StateDict};
use luthier_model::{
    ModelConfig,
    config::{Arch, Scaling},
    names,
    save::{Save, SaveDtype, save_hf},
    source::Source,
};
use serde_json::{Map, Value, json};

fn pico() -> Value {
    json!({
        "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 10,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        "attention_bias": true, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
        "eos_token_id": [2, 3], "unknown_key": {"is": "kept"}, "dtype": "bfloat16",
    })
}

fn config() -> ModelConfig {
    ModelConfig::from_hf(&pico(), "pico").unwrap()
}

/// Different numbers for every tensor, none of them a bf16 number.
fn values(name: &str, n: usize) -> Vec<f32> {
    let start = name.bytes().fold(1u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into())) % 1000;
    (0..n).map(|i| ((start + i as u32) as f32).sqrt() * 0.37 - 3.0).collect()
}

fn save(dir: &Path, config: &ModelConfig, save: &Save) -> Result<Vec<PathBuf>> {
    let tensors = names::tensors(config);
    let sizes: BTreeMap<&str, usize> =
        tensors.iter().map(|(n, s)| (n.as_str(), s.iter().product())).collect();
    save_hf(dir, config, &tensors, |name| Ok(values(name, sizes[name])), save)
}

#[test]
fn a_saved_model_is_read_again_in_every_format() {
    for dtype in [SaveDtype::F32, SaveDtype::BF16, SaveDtype::F16] {
        let dir = tempfile::tempdir().unwrap();
        let how = Save { dtype, metadata: vec![("by".into(), "test".into())], ..Save::default() };
        let written = save(dir.path(), &config(), &how).unwrap();
        let names: Vec<_> = written.iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["model.safetensors", "config.json", "generation_config.json"]);
        let source = Source::open(dir.path()).unwrap();
        for name in source.tensor_names() {
            let got = source.load_f32(name).unwrap();
            let expected: Vec<f32> = values(name, got.len())
                .into_iter()
                .map(|x| match dtype {
                    SaveDtype::F32 => x,
                    SaveDtype::BF16 => bf16::from_f32(x).to_f32(),
                    SaveDtype::F16 => f16::from_f32(x).to_f32(),
                })
                .collect();
            assert_eq!(got, expected, "{name}");
            assert_eq!(source.dtype_name(name).unwrap(), dtype.safetensors());
        }
        assert_eq!(source.tensor_names().count(), names::tensors(source.config()).len());
        // The official reader agrees that the file is one.
        let state = StateDict::load(&dir.path().join("model.safetensors")).unwrap();
        assert_eq!(state.get("lm_head.weight").unwrap().dims(), [10, 8]);
        assert_eq!(source.config().raw["dtype"], dtype.config());
        assert_eq!(source.config().raw["unknown_key"]["is"], "kept");
    }
}

#[test]
fn bf16_rounds_to_nearest_with_ties_to_even() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let tensors = names::tensors(&config);
    // 1 + 2^-8 and 1 + 3·2^-8 are halfway between bf16 neighbours 2^-7 apart.
    let (tie_down, tie_up, above) = (1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.1 / 256.0);
    let how = Save { dtype: SaveDtype::BF16, ..Save::default() };
    let load = |name: &str| {
        let n: usize = tensors.iter().find(|t| t.0 == name).unwrap().1.iter().product();
        Ok([tie_down, tie_up, above, -tie_up].into_iter().cycle().take(n).collect())
    };
    save_hf(dir.path(), &config, &tensors, load, &how).unwrap();
    let got = Source::open(dir.path()).unwrap().load_f32("model.norm.weight").unwrap();
    assert_eq!(got[..4], [1.0, 1.015625, 1.0078125, -1.015625]);
}

#[test]
fn shards_hold_what_the_index_says() {
    let dir = tempfile::tempdir().unwrap();
    let how = Save { shard_bytes: 500, ..Save::default() };
    let written = save(dir.path(), &config(), &how).unwrap();
    let shards = written.iter().filter(|p| p.extension().unwrap() == "safetensors").count();
    assert!(shards > 3, "{shards}");
    let index: Value =
        luthier_core::io::read_json(&dir.path().join("model.safetensors.index.json")).unwrap();
    let expected: usize =
        names::tensors(&config()).iter().map(|t| t.1.iter().product::<usize>() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], expected);
    let first = format!("model-00001-of-{shards:05}.safetensors");
    assert_eq!(index["weight_map"]["model.embed_tokens.weight"], first);
    let source = Source::open(dir.path()).unwrap();
    for name in source.tensor_names() {
        let got = source.load_f32(name).unwrap();
        assert_eq!(got, values(name, got.len()), "{name}");
    }
    // The hash is the same every time and sees every shard.
    let hash = source.sha256().unwrap().to_string();
    let last = dir.path().join(format!("model-{shards:05}-of-{shards:05}.safetensors"));
    let mut bytes = fs::read(&last).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&last, bytes).unwrap();
    assert_ne!(Source::open(dir.path()).unwrap().sha256().unwrap(), hash);
    // Another layout beside it would be read in its place.
    let err = save(dir.path(), &config(), &Save::default()).unwrap_err().to_string();
    assert!(err.contains("other weights"), "{err}");
    fs::remove_file(&last).unwrap();
    let err = Source::open(dir.path()).unwrap_err().to_string();
    assert!(err.contains("is missing; the index lists"), "{err}");
}

#[test]
fn a_failed_save_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let tensors = names::tensors(&config);
    let how = Save { shard_bytes: 500, ..Save::default() };
    let mut calls = 0;
    let load = |name: &str| {
        calls += 1;
        let n: usize = tensors.iter().find(|t| t.0 == name).unwrap().1.iter().product();
        Ok(vec![1.0; if calls == 20 { n + 1 } else { n }])
    };
    let err = save_hf(dir.path(), &config, &tensors, load, &how).unwrap_err().to_string();
    assert!(err.contains("model.layers.") && err.contains("expected"), "{err}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let how = Save { dtype: SaveDtype::F16, ..Save::default() };
    let load = |name: &str| {
        let n: usize = tensors.iter().find(|t| t.0 == name).unwrap().1.iter().product();
        Ok(vec![7e4; n])
    };
    let err = save_hf(dir.path(), &config, &tensors, load, &how).unwrap_err().to_string();
    assert!(err.contains("model.embed_tokens.weight: 70000 is too large for float16"), "{err}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Both generations of the same configuration.
/// The pico models of `tests/golden/models` were written by transformers 5.
#[test]
fn folders_of_transformers_are_read() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut seen = 0;
    for entry in fs::read_dir(models).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("config.json").is_file() {
            continue;
        }
        let source = Source::open(&dir).unwrap();
        for (name, shape) in names::tensors(source.config()) {
            let values = source.load_checked(&name, &shape).unwrap();
            assert!(values.iter().any(|x| *x != 0.0) && values.iter().all(|x| x.is_finite()));
        }
        if dir.join("config.v4.json").is_file() {
            let at = dir.join("config.v4.json");
            let json: Value = luthier_core::io::read_json(&at).unwrap();
            let mut old = ModelConfig::from_hf(&json, "v4").unwrap();
            let json: Value = luthier_core::io::read_json(&dir.join("config.json")).unwrap();
            let mut new = ModelConfig::from_hf(&json, "v5").unwrap();
            (old.raw, new.raw) = (Map::new(), Map::new());
            assert_eq!(old, new, "{}", dir.display());
        }
        seen += 1;
    }
    assert!(seen >= 5, "{seen} models");
}
