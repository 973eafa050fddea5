//! Merges that mergekit does not have, on whole models: transfer between versions, grafts, Fisher
//! values and inner products from files, LiNeS; and a GGUF file beside a folder.

use std::path::Path;

use candle_core::{Device, Tensor};
use luthier_core::{Seed, StateDict};
use luthier_model::{Source, gguf};
use serde_json::json;

use crate::{
    merge, numbers, sized,
    support::{luthier, pico},
    tiny::tiny_llama,
};

fn all(folder: &Path) -> StateDict {
    StateDict::load(&folder.join("model.safetensors")).unwrap()
}

#[track_caller]
fn merged(at: &Path, text: &str, out: &str) -> StateDict {
    let ran = merge(at, text, out);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    all(&at.join(out))
}

/// Numbers from `low` to 1 for every tensor, in a file of their own.
fn beside(of: &StateDict, path: &Path, seed: u64, low: f64) -> StateDict {
    let mut file = StateDict::default();
    for (name, tensor) in of.iter() {
        let mut rng = Seed(seed).split(name).rng();
        let values: Vec<f32> =
            (0..tensor.elem_count()).map(|_| (low + (1.0 - low) * rng.uniform()) as f32).collect();
        file.insert(name, Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap());
    }
    file.save(path, &[]).unwrap();
    file
}

#[test]
fn a_difference_moves_to_another_version_and_new_tokens_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pico(&at.join("old"), 1);
    pico(&at.join("new"), 2);
    // Tuning added tokens.
    sized(&at.join("tuned"), json!({"vocab_size": 264, "eos_token_id": 256}));
    let text = "merge_method: transfer\nbase_model: new\nmodels:\n  - model: tuned\n  \
        - {model: old, parameters: {source: true}}\nparameters: {lambda: 1}\nout_dtype: float32\n";
    let out = merged(at, text, "out");
    let (new, old) = (all(&at.join("new")), all(&at.join("old")));
    let tuned = Source::open(&at.join("tuned")).unwrap();
    for (name, _) in out.iter() {
        let (y, n, o) = (numbers(&out, name), numbers(&new, name), numbers(&old, name));
        let t = tuned.load_f32(name).unwrap();
        assert_eq!(y.len(), t.len(), "{name}");
        for (i, y) in y.iter().enumerate() {
            let at = |x: &[f32]| f64::from(x.get(i).copied().unwrap_or(0.0));
            assert_eq!(*y, (at(&n) + (at(&t) - at(&o))) as f32, "{name} {i}");
        }
    }
    let config = Source::open(&at.join("out")).unwrap();
    assert_eq!((config.config().vocab, &config.config().eos[..]), (264, &[256u32][..]));
    let unmarked = text.replace(", parameters: {source: true}", "");
    merge(at, &unmarked, "no").refused(&["source", "marks 0 of the models"]);
}

#[test]
fn grafts_are_the_largest_changes_of_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let (base, tuned) = (pico(&at.join("base"), 1), pico(&at.join("tuned"), 2));
    let (base, tuned) = (all(&base), all(&tuned));
    let text = "merge_method: graft\nbase_model: base\nmodels: [{model: tuned}]\n\
        parameters:\n  top: 0.02\n  include: [{filter: layers, value: true}, {value: false}]\n\
        out_dtype: float32\n";
    let out = merged(at, text, "out");
    let mut moved: Vec<f32> = Vec::new();
    let mut kept = Vec::new();
    for (name, _) in base.iter() {
        let (b, t, y) = (numbers(&base, name), numbers(&tuned, name), numbers(&out, name));
        if !name.contains("layers") {
            assert_eq!(b, y, "{name}");
            continue;
        }
        for ((b, t), y) in b.into_iter().zip(t).zip(y) {
            assert!(y == b || y == t, "{name}");
            moved.push((t - b).abs());
            if y != b {
                kept.push((t - b).abs());
            }
        }
    }
    moved.sort_by(|a, b| b.total_cmp(a));
    kept.sort_by(|a, b| b.total_cmp(a));
    // Of equal changes at the edge none is in.
    let count = (moved.len() as f64 * 0.02) as usize;
    let edge = moved[count];
    let above = moved.iter().filter(|m| **m > edge).count();
    assert_eq!(kept, moved[..above]);
    assert!(count - above < 3, "{count} {above}");
    let mask = beside(&base, &at.join("mask.safetensors"), 3, 0.0);
    let text = "merge_method: graft\nbase_model: base\n\
        models: [{model: tuned, mask: mask.safetensors}]\nout_dtype: float32\n";
    let out = merged(at, text, "masked");
    for (name, _) in base.iter() {
        let (b, t) = (numbers(&base, name), numbers(&tuned, name));
        let (y, m) = (numbers(&out, name), numbers(&mask, name));
        for i in 0..y.len() {
            assert_eq!(y[i], if m[i] > 0.5 { t[i] } else { b[i] }, "{name} {i}");
        }
    }
    let depth = text.replace("out_dtype", "parameters: {top: [0.1, 0.2]}\nout_dtype");
    let depth = depth.replace(", mask: mask.safetensors", "");
    merge(at, &depth, "no").refused(&["top", "cannot depend on depth"]);
}

#[test]
fn fisher_values_and_inner_products_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let (a, b) = (pico(&at.join("a"), 1), pico(&at.join("b"), 2));
    let (a, b) = (all(&a), all(&b));
    let fa = beside(&a, &at.join("fa.safetensors"), 3, 0.1);
    let mut fb = beside(&b, &at.join("fb.safetensors"), 4, 0.1);
    let text = "merge_method: fisher\nmodels: [{model: a, fisher: fa.safetensors}, \
        {model: b, fisher: fb.safetensors, parameters: {weight: 0.5}}]\nout_dtype: float32\n";
    let out = merged(at, text, "out");
    for (name, _) in out.iter() {
        let (x, y) = (numbers(&a, name), numbers(&b, name));
        let (f, g, got) = (numbers(&fa, name), numbers(&fb, name), numbers(&out, name));
        for i in 0..x.len() {
            let want = (f[i] * x[i] + 0.5 * g[i] * y[i]) / (f[i] + 0.5 * g[i]);
            assert!((got[i] - want).abs() < 1e-5, "{name} {i}: {} {want}", got[i]);
        }
    }
    // What no file knows is a plain mean, and is told of.
    let mut known = [fa.clone(), fb.clone()];
    for (file, name) in known.iter_mut().zip(["fa", "fb"]) {
        file.remove("model.norm.weight").unwrap();
        file.save(&at.join(format!("{name}.safetensors")), &[]).unwrap();
    }
    let ran = merge(at, text, "partly");
    assert!(ran.json()["notes"].to_string().contains("1 of"), "{}", ran.stdout);
    let name = "model.norm.weight";
    let pair = numbers(&a, name).into_iter().zip(numbers(&b, name));
    for (got, (x, y)) in numbers(&all(&at.join("partly")), name).into_iter().zip(pair) {
        assert!((got - (x + 0.5 * y) / 1.5).abs() < 1e-6);
    }
    fa.save(&at.join("fa.safetensors"), &[]).unwrap();
    fb.remove("model.norm.weight").unwrap();
    fb.save(&at.join("fb.safetensors"), &[]).unwrap();
    merge(at, text, "no").refused(&["fisher of b", "nothing for this tensor"]);
    // Identity matrices: the plain mean, of every tensor.
    let mut gram = StateDict::default();
    for (name, tensor) in a.iter().filter(|(name, _)| name.contains("_proj")) {
        let i = tensor.dims()[1];
        let eye: Vec<f32> = (0..i * i).map(|k| f32::from(k / i == k % i)).collect();
        gram.insert(name, Tensor::from_vec(eye, (i, i), &Device::Cpu).unwrap());
    }
    gram.save(&at.join("g.safetensors"), &[]).unwrap();
    let text = "merge_method: regmean\nmodels: [{model: a, gram: g.safetensors}, \
        {model: b, gram: g.safetensors}]\nout_dtype: float32\n";
    let out = merged(at, text, "mean");
    for (name, _) in out.iter() {
        let pair = numbers(&a, name).into_iter().zip(numbers(&b, name));
        for (got, (x, y)) in numbers(&out, name).into_iter().zip(pair) {
            assert!((got - (x + y) / 2.0).abs() < 1e-6, "{name}");
        }
    }
    let other: StateDict =
        [("x".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())].into_iter().collect();
    other.save(&at.join("g.safetensors"), &[]).unwrap();
    merge(at, text, "no").refused(&["g.safetensors", "has nothing for any tensor"]);
}

#[test]
fn lines_scales_by_depth_on_top_of_a_merge() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (name, seed) in [("base", 1), ("a", 2), ("b", 3)] {
        pico(&at.join(name), seed);
    }
    let text = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n\
        parameters: {weight: 1, density: 0.3, normalize: false}\nout_dtype: float32\n";
    let plain = merged(at, text, "plain");
    let base = all(&at.join("base"));
    let factors = |lines: &str, out: &str| -> [f32; 4] {
        let scaled = merged(at, &format!("{text}lines: {lines}\n"), out);
        [
            "embed_tokens.weight",
            "layers.0.mlp.up_proj.weight",
            "layers.1.mlp.up_proj.weight",
            "norm.weight",
        ]
        .map(|name| {
            let name = format!("model.{name}");
            let (y, p, b) =
                (numbers(&scaled, &name), numbers(&plain, &name), numbers(&base, &name));
            let sums = y.iter().zip(&p).zip(&b).fold((0f64, 0f64), |(s, t), ((y, p), b)| {
                (s + f64::from(y - b).abs(), t + f64::from(p - b).abs())
            });
            (sums.0 / sums.1) as f32
        })
    };
    let near = |got: [f32; 4], want: [f32; 4]| {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4), "{got:?} {want:?}");
    };
    near(factors("{alpha: 0.25}", "one"), [0.25, 0.25, 1.0, 0.25]);
    near(factors("{alpha: 0.5, beta: 0.25, outside: deep}", "two"), [0.5, 0.5, 0.75, 0.75]);
    // The rule for alpha, by hand.
    let (mut sum, mut after) = (0f64, 0f64);
    let (a, b) = (all(&at.join("a")), all(&at.join("b")));
    for (name, _) in base.iter() {
        let (x, y, z) = (numbers(&a, name), numbers(&b, name), numbers(&base, name));
        for (i, p) in numbers(&plain, name).into_iter().enumerate() {
            sum += f64::from((x[i] - z[i] + y[i] - z[i]).abs());
            after += f64::from((p - z[i]).abs());
        }
    }
    let alpha = (sum / after / 2.0) as f32;
    near(factors("{alpha: auto, beta: 0.5}", "three"), [alpha, alpha, alpha + 0.5, alpha]);
    let soup = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n";
    merge(at, &format!("{soup}lines: {{alpha: 0.2}}\n"), "no").refused(&["lines", "base"]);
    merge(at, &format!("{text}lines: {{aplha: 0.2}}\n"), "no").refused(&["`aplha`", "alpha"]);
    merge(at, &format!("{text}lines: {{alpha: auto}}\n"), "no").refused(&["lines.beta"]);
}

#[test]
fn a_gguf_file_is_a_model_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let mut file = tiny_llama();
    let words = ["<unk>", "<s>", "</s>", "a", "<|im_end|>", "b"];
    let text = |text: &str| gguf::Value::String(text.into());
    file.key("tokenizer.ggml.model", text("gpt2"));
    file.key("tokenizer.ggml.pre", text("gpt-2"));
    let tokens = gguf::Array::String(words.iter().map(|w| w.to_string()).collect());
    file.key("tokenizer.ggml.tokens", gguf::Value::Array(tokens));
    let kinds = gguf::Array::I32(vec![2, 3, 3, 1, 3, 1]);
    file.key("tokenizer.ggml.token_type", gguf::Value::Array(kinds));
    file.key("tokenizer.ggml.merges", gguf::Value::Array(gguf::Array::String(Vec::new())));
    file.key("tokenizer.ggml.padding_token_id", gguf::Value::U32(0));
    let gguf = file.write(at);
    let copy = format!(
        "merge_method: passthrough\nmodels: [{{model: {}}}]\ndtype: float32\n",
        gguf.display()
    );
    let ran = merge(at, &copy, "folder");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mean = format!(
        "merge_method: linear\nmodels: [{{model: {}}}, {{model: folder}}]\nparameters: {{weight: 1}}\n\
         dtype: float32\n",
        gguf.display()
    );
    let out = merged(at, &mean, "out");
    // Both are the same model, so their mean is.
    let source = Source::open(&gguf).unwrap();
    let mut compared = 0;
    for (name, _) in out.iter() {
        assert_eq!(numbers(&out, name), source.load_f32(name).unwrap(), "{name}");
        compared += 1;
    }
    assert!(compared > 10);
    let args = ["generate", "--model", "out", "--prompt", "a", "--max-new-tokens", "2", "--raw"];
    let said = luthier(at, &args, "");
    assert_eq!(said.code, 0, "{}", said.stderr);
}
