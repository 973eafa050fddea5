//! Every architecture against transformers: logits, loss, and the gradient of every parameter.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;
use luthier_core::{Batch, Ctx, Head, Logits, Model, Policy, SiteKind};
use luthier_model::{Decoder, Precision, Source};
use luthier_testkit::{assert_close, golden};

const MODELS: &[&str] = &[
    "llama",
    "llama-tied-llama3",
    "llama-linear",
    "llama-yarn",
    "llama-bias",
    "llama-bf16",
    "mistral",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "smollm3",
];

fn load(name: &str) -> Decoder {
    let source = Source::open(&golden::golden(format!("models/{name}"))).unwrap();
    Decoder::load(&source, Precision::F32, |_, _| ()).unwrap()
}

/// Σ w·nll / Σ w through the fused head.
fn loss(policy: &Policy, batch: &Batch) -> Tensor {
    let model = policy.model.as_ref();
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    let mut h_nd = model.embed(&batch.ids_n, &mut ctx).unwrap();
    for layer in 0..model.n_layers() {
        h_nd = model.block(layer, h_nd, &mut ctx).unwrap();
    }
    let index = batch.trained_m();
    let pick = |i: &u32| *i as usize;
    let targets: Vec<u32> = index.iter().map(|i| batch.targets_n[pick(i)]).collect();
    let weights: Vec<f32> = index.iter().map(|i| batch.weights_n[pick(i)]).collect();
    let mut head = Head { model, h_nd: &h_nd, ctx: &mut ctx };
    let logp_m = head.logp(&index, &targets).unwrap();
    let w_m = Tensor::from_vec(weights, index.len(), logp_m.device()).unwrap();
    (logp_m.mul(&w_m).unwrap().sum_all().unwrap() * (-1.0 / batch.weight())).unwrap()
}

#[test]
fn logits_loss_and_every_gradient_are_those_of_transformers() {
    for name in MODELS {
        let recorded = golden::load_tensors(format!("models/{name}/golden.safetensors"));
        let batch = golden::batch(&recorded, "");
        let model: Arc<dyn Model> = Arc::new(load(name));
        let plain = Policy::plain(model.clone());
        let logits_nv = plain.logits(&batch.ids_n, batch.rows.clone()).unwrap();
        let want = recorded.get("logits_nv").unwrap();
        assert_close(&format!("{name}: logits"), &logits_nv, want, 1e-4, 0.0);

        let want_loss = recorded.get("loss").unwrap();
        let got = loss(&plain, &batch).reshape(1).unwrap();
        assert_close(&format!("{name}: loss"), &got, want_loss, 1e-4, 0.0);

        let sites: Vec<_> = model
            .sites()
            .iter()
            .filter(|s| !matches!(s.kind, SiteKind::Activation { .. }))
            .map(|s| s.id)
            .collect();
        let (learned, vars) = model.learn(&sites).unwrap();
        let value = loss(&Policy::plain(learned), &batch);
        let store = value.backward().unwrap();
        let vars: BTreeMap<_, _> = vars.into_iter().collect();
        for (parameter, want) in golden::gradients(&recorded) {
            let var = vars.get(parameter).unwrap_or_else(|| panic!("{name}: no {parameter}"));
            let got =
                store.get(var).unwrap_or_else(|| panic!("{name}: no gradient of {parameter}"));
            assert_close(&format!("{name}: gradient of {parameter}"), got, want, 1e-4, 1e-7);
        }
    }
}

#[test]
fn shards_and_both_generations_of_config_are_the_same_model() {
    let recorded = golden::load_tensors("models/llama/golden.safetensors");
    let batch = golden::batch(&recorded, "");
    let sharded = Policy::plain(Arc::new(load("llama-sharded")));
    let logits_nv = sharded.logits(&batch.ids_n, batch.rows.clone()).unwrap();
    assert_close("sharded", &logits_nv, recorded.get("logits_nv").unwrap(), 1e-4, 0.0);
    for name in ["llama-linear", "llama-tied-llama3", "llama-yarn", "qwen2"] {
        let dir = tempfile::tempdir().unwrap();
        let from = golden::golden(format!("models/{name}"));
        std::fs::copy(from.join("config.v4.json"), dir.path().join("config.json")).unwrap();
        std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors"))
            .unwrap();
        let old =
            Decoder::load(&Source::open(dir.path()).unwrap(), Precision::F32, |_, _| ()).unwrap();
        let recorded = golden::load_tensors(format!("models/{name}/golden.safetensors"));
        let batch = golden::batch(&recorded, "");
        let old = Policy::plain(Arc::new(old));
        let logits_nv = old.logits(&batch.ids_n, batch.rows.clone()).unwrap();
        assert_close(name, &logits_nv, recorded.get("logits_nv").unwrap(), 1e-4, 0.0);
    }
}

#[test]
fn token_by_token_with_a_cache_is_one_pass() {
    for name in ["llama", "qwen3", "smollm3"] {
        let recorded = golden::load_tensors(format!("models/{name}/golden.safetensors"));
        let batch = golden::batch(&recorded, "");
        let policy = Policy::plain(Arc::new(load(name)));
        let want = recorded.get("logits_nv").unwrap().narrow(0, 0, 41).unwrap();
        let mut cache = luthier_core::Cache::new(1, policy.model.n_layers());
        let mut got = Vec::new();
        // A prompt of 30 tokens at once, then one by one.
        let cuts: Vec<usize> = std::iter::once(0).chain(30..=41).collect();
        for pair in cuts.windows(2) {
            let ids = &batch.ids_n[pair[0]..pair[1]];
            let rows = Arc::new(luthier_core::Rows::new(&[ids.len()], |_| pair[0]));
            let mut ctx = Ctx::new(&policy.hooks, rows, ids);
            ctx.cache = Some(&mut cache);
            let h_nd = policy.hidden(&mut ctx).unwrap();
            got.push(policy.model.unembed(&h_nd, &mut ctx).unwrap());
        }
        assert_close(name, &Tensor::cat(&got, 0).unwrap(), &want, 1e-4, 0.0);
    }
}
