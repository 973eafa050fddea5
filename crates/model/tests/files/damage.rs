//! Folders that are no models, and files that were damaged.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

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
