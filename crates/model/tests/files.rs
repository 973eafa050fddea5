//! Hugging Face folders: what transformers wrote is read, what is written is read again, and
//! damaged or mistaken folders are refused by name.

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
use proptest::prelude::*;
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
#[test]
fn both_generations_mean_the_same() {
    let base = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    });
    let with = |more: Value| {
        let mut map = base.as_object().unwrap().clone();
        map.extend(more.as_object().unwrap().clone());
        let mut config = ModelConfig::from_hf(&Value::Object(map), "c").unwrap();
        config.raw = Map::new();
        config
    };
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048});
    let merged = |extra: Value| {
        let mut map = scaling.as_object().unwrap().clone();
        map.extend(extra.as_object().unwrap().clone());
        map
    };
    let old = with(json!({"torch_dtype": "bfloat16", "rope_theta": 5e5,
        "rope_scaling": merged(json!({"rope_type": "llama3"}))}));
    let new = with(json!({"dtype": "bfloat16", "head_dim": 8,
        "rope_parameters": merged(json!({"rope_type": "llama3", "rope_theta": 5e5}))}));
    assert_eq!(old, new);
    assert!(matches!(old.rope.scaling, Scaling::Llama3 { original_max_positions: 2048, .. }));
    let old = with(json!({"rope_theta": 1e6, "rope_scaling": null}));
    let new = with(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}));
    assert_eq!(old, new);
    let old = with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
    let new = with(json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}));
    assert_eq!(old, new);
    assert_eq!(old.rope.theta, 1e4);
}

/// Composed for a GGUF source and read again, every architecture is what it was.
#[test]
fn a_composed_configuration_reads_back_equal() {
    let more = |arch: Arch| match arch {
        Arch::Mistral => json!({"sliding_window": 16}),
        Arch::Qwen2 => json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 16, "rope_theta": 1e6, "truncate": false}}),
        Arch::Qwen3 => json!({"use_sliding_window": true, "sliding_window": 8,
            "max_window_layers": 1, "attention_bias": true, "head_dim": 6}),
        Arch::SmolLM3 => json!({"no_rope_layers": [1, 0, 1], "eos_token_id": [2, 5]}),
        Arch::Llama => json!({"rope_scaling": {"rope_type": "linear", "factor": 2},
            "mlp_bias": true, "head_dim": 6}),
    };
    for arch in Arch::ALL {
        let mut map = json!({
            "model_type": arch.model_type(), "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 50, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        if arch == Arch::Qwen3 {
            map["head_dim"] = json!(8);
        }
        map.as_object_mut().unwrap().extend(more(arch).as_object().unwrap().clone());
        let mut config = ModelConfig::from_hf(&map, arch.model_type()).unwrap();
        config.raw = Map::new();
        let composed = Value::Object(config.to_hf_json("float32").unwrap());
        let mut back = ModelConfig::from_hf(&composed, "composed").unwrap();
        back.raw = Map::new();
        assert_eq!(back, config);
    }
}

#[test]
fn smollm3_and_sliding_layers_are_read_as_transformers_means_them() {
    let base = |model_type: &str, more: Value| {
        let mut map = pico();
        map["model_type"] = json!(model_type);
        map["num_hidden_layers"] = json!(4);
        map.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_hf(&map, "c").unwrap()
    };
    assert_eq!(base("smollm3", json!({})).no_rope_layers, [false, false, false, true]);
    let c = base("smollm3", json!({"no_rope_layers": [0, 1, 1, 1]}));
    assert_eq!(c.no_rope_layers, [true, false, false, false]);
    let c = base(
        "qwen2",
        json!({"use_sliding_window": true, "max_window_layers": 3,
        "sliding_window": 9}),
    );
    assert_eq!((c.window(2), c.window(3)), (None, Some(9)));
    assert_eq!(base("qwen2", json!({"sliding_window": 9})).window(3), None);
    assert_eq!(base("mistral", json!({})).window(0), Some(4096));
    assert_eq!(base("mistral", json!({"sliding_window": null})).window(0), None);
    let c = base("qwen2", json!({}));
    assert!(c.qkv_bias && !c.o_bias && !c.qk_norm);
}

#[test]
fn bad_configurations_are_named() {
    let with = |key: &str, value: Value| {
        let mut map = pico();
        map[key] = value;
        ModelConfig::from_hf(&map, "c.json").unwrap_err().to_string()
    };
    let text = with("model_type", json!("gpt_neox"));
    assert!(text.contains("gpt_neox") && text.contains("llama, mistral, qwen2, qwen3, smollm3"));
    assert!(with("hidden_size", json!("8")).contains("c.json: key hidden_size: expected a whole"));
    assert!(with("hidden_size", json!(-8)).contains("hidden_size"));
    assert!(with("hidden_size", json!(null)).contains("hidden_size is missing"));
    assert!(with("num_hidden_layers", json!(u64::MAX)).contains("at most 1000"));
    assert!(with("vocab_size", json!(1u64 << 60)).contains("vocabulary size"));
    assert!(with("head_dim", json!(u64::MAX)).contains("head width"));
    assert!(with("num_key_value_heads", json!(3)).contains("evenly"));
    assert!(with("num_attention_heads", json!(0)).contains("attention heads"));
    assert!(with("hidden_act", json!("gelu")).contains("gelu"));
    assert!(with("quantization_config", json!({"quant_method": "gptq"})).contains("gptq"));
    let rope = with("rope_parameters", json!({"rope_type": "longrope"}));
    assert!(rope.contains("longrope") && rope.contains("default, linear, llama3, yarn"), "{rope}");
    let rope = with("rope_scaling", json!({"rope_type": "llama3", "factor": 8}));
    assert!(rope.contains("low_freq_factor is missing"), "{rope}");
    assert!(with("rope_parameters", json!({"rope_theta": 0.0})).contains("rope_theta"));
    assert!(with("partial_rotary_factor", json!(0.5)).contains("partial_rotary_factor 0.5"));
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config(), &Save::default()).unwrap();
    dir
}

fn error_after(change: impl FnOnce(&Path)) -> String {
    let dir = folder();
    change(dir.path());
    let error = Source::open(dir.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[test]
fn mistaken_folders_are_named() {
    let err = Source::open(Path::new("/no/such/model")).unwrap_err();
    assert_eq!(err.exit_code(), 2);
    assert!(err.to_string().contains("luthier pull"), "{err}");
    let text = error_after(|d| {
        fs::rename(d.join("config.json"), d.join("adapter_config.json")).unwrap();
    });
    assert!(text.contains("this is an adapter"), "{text}");
    let text = error_after(|d| {
        fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap();
    });
    assert!(text.contains("pickled weights"), "{text}");
    let text = error_after(|d| fs::remove_file(d.join("model.safetensors")).unwrap());
    assert!(text.contains("neither model.safetensors"), "{text}");
    let text = error_after(|d| fs::write(d.join("config.json"), "{\n  \"a\": }").unwrap());
    assert!(text.contains("config.json:2:8"), "{text}");
    let edit = |key: &'static str, value: Value| {
        error_after(move |d| {
            let mut map = pico();
            map[key] = value;
            fs::write(d.join("config.json"), map.to_string()).unwrap();
        })
    };
    let text = edit("intermediate_size", json!(16));
    assert!(text.contains("mlp.gate_proj.weight: expected shape [16, 8], got [12, 8]"), "{text}");
    assert!(edit("num_hidden_layers", json!(3)).contains("model.layers.2"));
    assert!(edit("num_hidden_layers", json!(1)).contains("no use for: model.layers.1"));
    assert!(edit("attention_bias", json!(false)).contains("self_attn.k_proj.bias"));
    let text = error_after(|d| {
        fs::rename(d.join("model.safetensors"), d.join("other.safetensors")).unwrap();
        let index = json!({"weight_map": {"lm_head.weight": "../other.safetensors"}});
        fs::write(d.join("model.safetensors.index.json"), index.to_string()).unwrap();
    });
    assert!(text.contains("expected a file name"), "{text}");
}

/// Replaces the header of the folder's weight file, leaving the data.
fn reheader(dir: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut map: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    change(&mut map);
    let header = Value::Object(map).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + n..]);
    fs::write(&path, out).unwrap();
}

#[test]
fn hostile_safetensors_headers_are_named() {
    let name = "model.norm.weight";
    let entry = |key: &'static str, value: Value| {
        error_after(move |d| reheader(d, |map| map[name][key] = value))
    };
    assert!(entry("shape", json!([9])).contains("model.norm.weight: shape [9] of F32"));
    assert!(entry("shape", json!([1u64 << 62, 1u64 << 62])).contains("model.norm.weight"));
    assert!(entry("data_offsets", json!([8, 4])).contains("does not fill"));
    assert!(entry("data_offsets", json!([0, 32])).contains("gap or overlap"));
    assert!(entry("data_offsets", json!([u64::MAX - 32, u64::MAX])).contains(name));
    assert!(entry("dtype", json!("Q9")).contains("unknown type"));
    assert!(entry("dtype", json!(7)).contains(name));
    let whole = |bytes: &'static [u8]| {
        error_after(move |d| fs::write(d.join("model.safetensors"), bytes).unwrap())
    };
    assert!(whole(b"abc").contains("3 bytes"));
    assert!(whole(&[255; 64]).contains("a header of 18446744073709551615 bytes"));
    assert!(whole(b"\x40\0\0\0\0\0\0\0{}").contains("cut short"));
    assert!(whole(b"\x02\0\0\0\0\0\0\0[]").contains("safetensors header"));
    let text = error_after(|d| {
        let bytes = fs::read(d.join("model.safetensors")).unwrap();
        fs::write(d.join("model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(text.contains("cut short"), "{text}");
    let text = error_after(|d| {
        let mut bytes = fs::read(d.join("model.safetensors")).unwrap();
        bytes.push(0);
        fs::write(d.join("model.safetensors"), &bytes).unwrap();
    });
    assert!(text.contains("bytes of data"), "{text}");
}

#[test]
fn weights_that_are_no_floats_are_refused_when_read() {
    let dir = folder();
    reheader(dir.path(), |map| map["model.norm.weight"]["dtype"] = json!("I32"));
    let source = Source::open(dir.path()).unwrap();
    let text = source.load_f32("model.norm.weight").unwrap_err().to_string();
    assert!(text.contains("stored as I32"), "{text}");
    let text = source.load_f32("model.norms.weight").unwrap_err().to_string();
    assert!(text.contains("did you mean model.norm.weight"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_folders_never_panic(cut in 0usize..4000, at in 0usize..4000, flip in 1u8..) {
        let dir = folder();
        for file in ["model.safetensors", "config.json"] {
            let path = dir.path().join(file);
            let good = fs::read(&path).unwrap();
            // Without its final newline a JSON file is still whole.
            let whole = if file == "config.json" { good.len() - 1 } else { good.len() };
            let mut flipped = good.clone();
            flipped[at % good.len()] ^= flip;
            for bytes in [&good[..cut % whole], &flipped] {
                fs::write(&path, bytes).unwrap();
                if let Ok(source) = Source::open(dir.path()) {
                    for name in source.tensor_names() {
                        let n: usize = source.shape(name).unwrap().iter().product();
                        if let Ok(values) = source.load_f32(name) {
                            prop_assert_eq!(values.len(), n);
                        }
                    }
                }
            }
            fs::write(&path, &good[..cut % whole]).unwrap();
            prop_assert!(Source::open(dir.path()).is_err(), "a cut file is never whole");
            fs::write(&path, good).unwrap();
        }
    }
}

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
