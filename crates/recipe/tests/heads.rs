//! Heads of labels against transformers and PEFT (`tests/golden/make_heads.py`), and on disk.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Model, Policy, Rows, Seed, io};
use luthier_model::{Decoder, Precision, Source};
use luthier_params::{Bound, Kept, Params, own, peft};
use luthier_testkit::golden;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Vec<u32>>,
    model: Vec<Vec<f32>>,
    adapter: Vec<Vec<f32>>,
}

fn recorded() -> Golden {
    serde_json::from_value(io::read_json(&golden::golden("heads/scores.json")).unwrap()).unwrap()
}

fn model() -> Arc<dyn Model> {
    let source = Source::open(&golden::golden("heads/model")).unwrap();
    assert_eq!(source.config().labels, Some(3));
    Arc::new(Decoder::load(&source, Precision::F32, |_, _| ()).unwrap())
}

/// What the head says at the last token of a text.
fn scores(policy: &Policy, text: &[u32]) -> Vec<f32> {
    let logits = policy.logits(text, Arc::new(Rows::single(text.len()))).unwrap();
    logits.get(text.len() - 1).unwrap().to_vec1().unwrap()
}

fn agree(policy: &Policy, golden: &Golden, want: &[Vec<f32>]) {
    for (text, want) in golden.texts.iter().zip(want) {
        let got = scores(policy, text);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 2e-5, "{got} {want}");
        }
    }
}

fn bound(text: &str, seed: u64) -> Bound {
    let params: Params = toml::from_str(text).unwrap();
    let bound = params.bind(&model(), Seed(seed)).unwrap();
    for param in &bound.params {
        let mut rng = Seed(seed).split("test").split(&param.name).rng();
        let numbers: Vec<f32> =
            (0..param.var.elem_count()).map(|_| 0.3 * rng.normal() as f32).collect();
        let tensor = Tensor::from_vec(numbers, param.var.shape(), param.var.device()).unwrap();
        param.var.set(&tensor).unwrap();
    }
    bound
}

#[test]
fn a_model_that_scores_labels_says_what_transformers_does() {
    let golden = recorded();
    agree(&Policy::plain(model()), &golden, &golden.model);
}

#[test]
fn an_adapter_of_peft_brings_its_head() {
    let golden = recorded();
    let adapter = peft::load(&golden::golden("heads/adapter"), &model(), None).unwrap();
    assert_eq!(adapter.form.head.as_ref().unwrap().labels.count(), 3);
    agree(&adapter.policy, &golden, &golden.adapter);
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let text = [4, 9, 17, 2];
    for (form, kept) in [
        ("[lora]\nr = 2\n[head]\nlabels = [\"a\", \"b\"]", Kept::Peft),
        ("[ia3]\n[head]\nlabels = 2", Kept::Peft),
        ("[head]\nlabels = 2", Kept::Own),
        ("[ssf]\n[head]\nlabels = 2", Kept::Own),
        ("[full]\n[head]\nlabels = 2", Kept::Model),
    ] {
        let bound = bound(form, 3);
        assert_eq!(bound.form.kept(), kept, "{form}");
        let want = scores(&bound.policy, &text);
        assert_eq!(want.len(), 2, "{form}");
        let (dir, base) = (tempfile::tempdir().unwrap(), peft::Base::default());
        let loaded = match kept {
            Kept::Peft => {
                peft::save(dir.path(), &bound, model().sites(), &base).unwrap();
                let config: Value = io::read_json(&dir.path().join(peft::CONFIG)).unwrap();
                assert_eq!(config["task_type"], "SEQ_CLS");
                assert_eq!(config["modules_to_save"], json!(["score"]));
                peft::load(dir.path(), &model(), None).unwrap()
            }
            Kept::Own => {
                own::save(dir.path(), &bound, &base, &|_| Ok(Vec::new())).unwrap();
                own::load(dir.path(), &model(), None, None).unwrap()
            }
            Kept::Model => continue,
        };
        assert_eq!(scores(&loaded.policy, &text), want, "{form}");
        assert_eq!(loaded.form.head, bound.form.head, "{form}");
    }
}

#[test]
fn the_base_is_untouched_and_settings_that_cannot_be_meant_are_refused() {
    let golden = recorded();
    let base = model();
    let params: Params = toml::from_str("[head]\nlabels = 5").unwrap();
    let bound = params.bind(&base, Seed(1)).unwrap();
    assert_eq!(scores(&bound.policy, &golden.texts[0]).len(), 5);
    agree(&Policy::plain(base.clone()), &golden, &golden.model);
    for (labels, want) in [("0", "one label or more"), ("[\"a\", \"a\"]", "names a twice")] {
        let params: Params = toml::from_str(&format!("[head]\nlabels = {labels}")).unwrap();
        let error = params.bind(&base, Seed(1)).err().unwrap().to_string();
        assert!(error.starts_with("train.params.head.labels") && error.contains(want), "{error}");
    }
}
