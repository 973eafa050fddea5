//! GGUF files: values against the reference package, a whole tiny model, and hostile headers.

use std::path::{Path, PathBuf};

use luthier_core::StateDict;
use luthier_model::{
    config::{Arch, Scaling},
    gguf::{Array, Gguf, Value},
    quant::{GgmlType, dequantize},
    source::Source,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

mod tiny;
use tiny::{TinyGguf, tiny_llama};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn values_are_those_of_the_reference_package() {
    let path = golden("gguf_quants.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let raw = SafeTensors::deserialize(&bytes).unwrap();
    let values = StateDict::load(&path).unwrap();
    for ty in GgmlType::all() {
        let name = ty.name();
        let stored = raw.tensor(&format!("{name}.raw")).unwrap();
        let expected = values.get(&format!("{name}.f32")).unwrap().to_vec1::<f32>().unwrap();
        assert!(expected.len() >= 40, "{name}");
        let mut got = vec![0f32; expected.len()];
        dequantize(ty, stored.data(), &mut got).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&expected), "{name}");
    }
}

#[test]
fn keys_of_every_type_come_back_with_errors_that_name_them() {
    let mut file = TinyGguf::default();
    file.key("a.u8", Value::U8(200));
    file.key("a.i16", Value::I16(-3));
    file.key("a.f32", Value::F32(1e-5));
    file.key("a.u64", Value::U64(1 << 40));
    file.key("a.flag", Value::Bool(true));
    file.key("a.text", Value::String("ünï".into()));
    file.key("a.texts", Value::Array(Array::String(vec!["x".into(), "".into()])));
    file.key("a.ints", Value::Array(Array::I32(vec![-1, 7])));
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::U8(vec![])]);
    file.key("a.nested", Value::Array(nested.clone()));
    let dir = tempfile::tempdir().unwrap();
    let path = file.write(dir.path());
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.uint("a.u8").unwrap(), 200);
    assert_eq!(gguf.uint("a.u64").unwrap(), 1 << 40);
    assert_eq!(gguf.float("a.f32").unwrap(), 1e-5);
    assert_eq!(gguf.float("a.i16").unwrap(), -3.0);
    assert_eq!(gguf.opt_flag("a.flag").unwrap(), Some(true));
    assert_eq!(gguf.text("a.text").unwrap(), "ünï");
    assert_eq!(gguf.texts("a.texts").unwrap(), ["x", ""]);
    assert_eq!(gguf.opt_ints("a.ints").unwrap(), Some(vec![-1, 7]));
    assert_eq!(gguf.get("a.nested"), Some(&Value::Array(nested)));
    assert_eq!(gguf.opt_uint("b").unwrap(), None);
    let wrong = gguf.uint("a.i16").unwrap_err().to_string();
    assert!(wrong.contains("tiny.gguf: key a.i16: expected a whole number, got a neg"), "{wrong}");
    let missing = gguf.text("a.textt").unwrap_err().to_string();
    assert!(missing.contains("did you mean a.text"), "{missing}");
}

#[test]
fn a_tiny_llama_is_seen_as_a_hugging_face_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny_llama().write(dir.path());
    let source = Source::open(&path).unwrap();
    let config = source.config();
    assert_eq!(config.arch, Arch::Llama);
    assert_eq!((config.hidden, config.heads, config.kv_heads, config.head_dim), (32, 4, 2, 8));
    assert_eq!((config.vocab, config.layers, config.tied), (6, 1, true));
    assert_eq!(config.rms_eps, 1e-5);
    assert_eq!(config.eos, [2, 4]);
    assert_eq!(source.dtype_name("model.layers.0.mlp.up_proj.weight").unwrap(), "Q4_0");
    assert_eq!(source.shape("model.layers.0.self_attn.k_proj.weight").unwrap(), [16, 32]);
    // The tiny file stores value `row` in every row; HF order of a head is evens, then odds.
    let k = source.load_f32("model.layers.0.self_attn.k_proj.weight").unwrap();
    let rows: Vec<f32> = k.chunks(32).map(|row| row[0]).collect();
    let expected = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15].map(|x| x as f32);
    assert_eq!(rows, expected);
    let v = source.load_f32("model.layers.0.self_attn.v_proj.weight").unwrap();
    assert_eq!(
        v.chunks(32).map(|row| row[0]).collect::<Vec<_>>(),
        (0..16).map(|x| x as f32).collect::<Vec<_>>()
    );
    assert_eq!(source.sha256().unwrap(), luthier_core::io::sha256_file(&path).unwrap());
    assert!(source.gguf().is_some());
}

#[test]
fn rope_factors_are_honoured_and_saved_as_llama3() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = tiny_llama();
    // theta 500000 over 8 dimensions with factor 8: one short wave, one on the ramp, two long.
    let theta = 500_000f64;
    let factors: Vec<f32> = (0..4)
        .map(|i| {
            let wave = 2.0 * std::f64::consts::PI * theta.powf(f64::from(2 * i) / 8.0);
            let smooth = (8192.0 / wave - 1.0) / 3.0;
            match wave {
                w if w < 8192.0 / 4.0 => 1.0,
                w if w > 8192.0 => 8.0,
                _ => (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32,
            }
        })
        .collect();
    assert!(factors[2] > 1.0 && factors[2] < 8.0, "{factors:?} has a value on the ramp");
    file.key("llama.rope.freq_base", Value::F32(theta as f32));
    file.floats("rope_freqs.weight", &[4], factors.clone());
    let source = Source::open(&file.write(dir.path())).unwrap();
    let config = source.config();
    assert_eq!(config.rope.scaling, Scaling::Factors(factors));
    let json = serde_json::Value::Object(config.to_hf_json("float32").unwrap());
    assert_eq!(json["rope_parameters"]["rope_type"], "llama3");
    let back = luthier_model::ModelConfig::from_hf(&json, "config.json").unwrap();
    for (a, b) in config.rope.inv_freq().0.iter().zip(back.rope.inv_freq().0) {
        assert!((a - b).abs() <= 1e-6 * a, "{a} {b}");
    }
}

fn error_of(file: &TinyGguf) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = Source::open(&file.write(dir.path())).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn every_kind_of_bad_file_is_named() {
    let with = |key: &str, value: Value| {
        let mut file = tiny_llama();
        file.key(key, value);
        error_of(&file)
    };
    let text = with("general.architecture", Value::String("gpt2".into()));
    assert!(text.contains("\"gpt2\"") && text.contains("llama, qwen2, qwen3, smollm3"), "{text}");
    assert!(with("general.type", Value::String("adapter".into())).contains("base model"));
    assert!(with("split.count", Value::U16(3)).contains("join the parts"));
    assert!(with("llama.expert_count", Value::U32(8)).contains("mixture"));
    assert!(with("llama.logit_scale", Value::F32(0.5)).contains("llama.logit_scale = 0.5"));
    assert!(with("llama.block_count", Value::U32(2)).contains("model.layers.1"));
    assert!(with("llama.block_count", Value::U32(4_000_000_000)).contains("at most 1000"));
    assert!(with("llama.attention.head_count", Value::U32(0)).contains("expected 1 to"));
    assert!(with("llama.attention.head_count_kv", Value::U32(3)).contains("evenly"));
    assert!(with("llama.feed_forward_length", Value::U32(48)).contains("[48, 32], got [64, 32]"));
    assert!(with("general.alignment", Value::U32(0)).contains("general.alignment"));
    let mut extra = tiny_llama();
    extra.floats("blk.0.attn_q.scale", &[2], vec![1.0; 2]);
    assert!(error_of(&extra).contains("blk.0.attn_q.scale has no place"));
    let mut bias = tiny_llama();
    bias.floats("blk.0.attn_v.bias", &[16], vec![1.0; 16]);
    assert!(error_of(&bias).contains("no use for: model.layers.0.self_attn.v_proj.bias"));
    let mut unread = tiny_llama();
    unread.tensors[3].ty = 23;
    assert!(error_of(&unread).contains("IQ4_XS, which luthier does not read"));
    let mut far = tiny_llama();
    far.tensors[3].offset = Some(1 << 40);
    assert!(error_of(&far).contains("past the end of the file"));
    let mut wraps = tiny_llama();
    wraps.tensors[3].offset = Some(u64::MAX - 31);
    assert!(error_of(&wraps).contains("past the end of the file"));
    let mut huge = tiny_llama();
    huge.tensors[3].dims = vec![1 << 62, 1 << 62];
    assert!(error_of(&huge).contains("absurd"));
}

#[test]
fn hostile_counts_are_refused_before_allocation() {
    let header = |n_tensors: u64, n_keys: u64, rest: &[u8]| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_keys.to_le_bytes());
        bytes.extend(rest);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostile.gguf");
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path).unwrap_err().to_string()
    };
    assert!(header(u64::MAX, 0, &[]).contains("tensors: length"));
    assert!(header(0, u64::MAX, &[]).contains("keys: length"));
    // One key `k` that is a text of 2^62 bytes, then an array of 2^61 numbers.
    let key = |rest: &[u64], ty: u32| {
        let mut bytes = 1u64.to_le_bytes().to_vec();
        bytes.push(b'k');
        bytes.extend(ty.to_le_bytes());
        rest.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes
    };
    assert!(header(0, 1, &key(&[1 << 62], 8)).contains("k: length 4611686018427387904"));
    let mut array = key(&[], 9);
    array.extend(12u32.to_le_bytes());
    array.extend((1u64 << 61).to_le_bytes());
    assert!(header(0, 1, &array).contains("k: length 2305843009213693952"));
    let mut deep = key(&[], 9);
    for _ in 0..100_000 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    assert!(header(0, 1, &deep).contains("nested"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Any cut or changed byte gives an error or a model whose tensors can all be read.
    #[test]
    fn damaged_files_never_panic(cut in 0usize..9000, at in 0usize..2200, flip in 1u8..) {
        let good = tiny_llama().bytes();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.gguf");
        let mut flipped = good.clone();
        flipped[at % good.len()] ^= flip;
        for bytes in [&good[..cut.min(good.len() - 1)], &flipped] {
            std::fs::write(&path, bytes).unwrap();
            if let Ok(source) = Source::open(&path) {
                for name in source.tensor_names() {
                    let n: usize = source.shape(name).unwrap().iter().product();
                    prop_assert_eq!(source.load_f32(name).unwrap().len(), n);
                }
            }
        }
        std::fs::write(&path, &good[..cut.min(good.len() - 1)]).unwrap();
        prop_assert!(Source::open(&path).is_err(), "a cut file is never whole");
    }
}
