//! RegMean from end to end: products measured by `luthier probe gram`, then the merge.

use std::fs;

use luthier_core::StateDict;
use luthier_model::Source;
use serde_json::json;

use crate::{
    merge, numbers,
    support::{luthier, pico},
};

#[test]
fn products_are_those_of_the_inputs_and_merge_the_maps() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (name, seed) in [("a", 1), ("b", 2)] {
        pico(&at.join(name), seed);
    }
    let text = "hardly a text at all";
    fs::write(at.join("one.jsonl"), json!({"text": text}).to_string()).unwrap();
    let lines: Vec<String> = (0..40)
        .map(|i| json!({"text": format!("{i} words and {} more", i * i)}).to_string())
        .collect();
    fs::write(at.join("many.jsonl"), lines.join("\n")).unwrap();
    let gram = |model: &str, data: &str, out: &str| {
        let args = [
            "probe",
            "gram",
            "--model",
            model,
            "--data",
            data,
            "--out",
            out,
            "--json",
            "models.precision=f32",
        ];
        let ran = luthier(at, &args, "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (ran.json(), StateDict::load(&at.join(out)).unwrap())
    };
    let (report, found) = gram("a", "one.jsonl", "one.safetensors");
    // By hand: what the first block's maps read is the normed embedding of every token.
    let n = report["tokens"].as_u64().unwrap() as usize;
    assert!(n + 1 >= text.len() && n <= text.len(), "{n}");
    let a = Source::open(&at.join("a")).unwrap();
    let table = a.load_f32("model.embed_tokens.weight").unwrap();
    let scale = a.load_f32("model.layers.0.input_layernorm.weight").unwrap();
    let mut want = vec![0f64; 32 * 32];
    for byte in text.bytes().take(n) {
        let x: Vec<f64> =
            table[usize::from(byte) * 32..][..32].iter().map(|x| f64::from(*x)).collect();
        let rms = (x.iter().map(|x| x * x).sum::<f64>() / 32.0 + 1e-5).sqrt();
        let x: Vec<f64> = x.iter().zip(&scale).map(|(x, s)| x / rms * f64::from(*s)).collect();
        for (k, sum) in want.iter_mut().enumerate() {
            *sum += x[k / 32] * x[k % 32] / n as f64;
        }
    }
    for part in ["q", "k", "v"] {
        let got = numbers(&found, &format!("model.layers.0.self_attn.{part}_proj.weight"));
        for (x, y) in got.iter().zip(&want) {
            assert!((f64::from(*x) - y).abs() < 1e-4, "{part}: {x} {y}");
        }
    }
    let shape =
        |name: &str| found.get(&format!("model.layers.1.{name}.weight")).unwrap().dims().to_vec();
    assert_eq!((shape("mlp.down_proj"), shape("self_attn.o_proj")), (vec![64, 64], vec![32, 32]));
    assert_eq!(found.len(), 14, "seven maps in each of two blocks");
    gram("a", "many.jsonl", "ga.safetensors");
    gram("b", "many.jsonl", "gb.safetensors");
    let merged = |file: &str, out: &str| {
        let text = format!(
            "merge_method: regmean\nmodels: [{{model: a, gram: {file}a.safetensors}}, \
             {{model: b, gram: {file}b.safetensors}}]\n"
        );
        let ran = merge(at, &text, out);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        StateDict::load(&at.join(out).join("model.safetensors")).unwrap()
    };
    let out = merged("g", "out");
    // Vectors and tables are means; maps are not.
    let b = Source::open(&at.join("b")).unwrap();
    let off = |name: &str| {
        let pair = a.load_f32(name).unwrap().into_iter().zip(b.load_f32(name).unwrap());
        let far = numbers(&out, name).into_iter().zip(pair).map(|(y, (p, q))| y - (p + q) / 2.0);
        far.fold(0f32, |most, d| most.max(d.abs()))
    };
    assert!(off("model.norm.weight") < 1e-6 && off("model.embed_tokens.weight") < 1e-6);
    assert!(off("model.layers.0.mlp.up_proj.weight") > 0.01);
}
