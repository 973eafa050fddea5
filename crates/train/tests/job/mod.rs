//! A run on a small decoder, for what differs between tests alone to be written down there.

// Every test binary takes what it needs.
#![allow(dead_code)]

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use luthier_core::{Model, Row, Seed};
use luthier_model::{Decoder, Precision, Source};
use luthier_params::{Bound, Params};
use luthier_testkit::golden;
use luthier_train::{Job, Train, checkpoint, log::metrics};
use luthier_update::Start;
use serde_json::Value;

/// The steps of an epoch of a round.
pub type Order<'a> = dyn Fn(usize, usize) -> Vec<Vec<usize>> + 'a;

static GO_ON: AtomicBool = AtomicBool::new(false);

/// What an update is told that asks for nothing special.
pub const START: Start =
    Start { total_steps: 0, seed: Seed(0), model_params: 1000, n_layers: 2, fisher: None };

/// One round on `train` in this order, from the beginning to the end, nothing evaluated.
pub fn job<'a>(
    bound: &'a Bound,
    config: &'a Train,
    train: &'a [Row],
    order: &'a Order<'a>,
    out: &'a Path,
) -> Job<'a> {
    Job {
        bound,
        config,
        train,
        eval: &[],
        rounds: 1,
        draw: None,
        teacher: None,
        order,
        start: &START,
        describe: &|i| format!("row {i}"),
        export: &|_| Ok(()),
        sample: &|_| Ok(Vec::new()),
        stop: &GO_ON,
        out,
        resume: false,
        fingerprint: "test".into(),
        keep: true,
        progress: false,
    }
}

/// A recorded model.
pub fn model(name: &str) -> Arc<dyn Model> {
    let source = Source::open(&golden::golden(format!("models/{name}"))).unwrap();
    Arc::new(Decoder::load(&source, Precision::F32, |_, _| ()).unwrap())
}

/// The small llama with what learns by the settings of `params`.
pub fn bound(form: &str) -> Bound {
    let params: Params = toml::from_str(form).unwrap();
    params.bind(&model("llama"), Seed(5)).unwrap()
}

/// Twelve rows, and six steps that read them.
pub fn twelve() -> (Vec<Row>, Vec<Vec<usize>>) {
    let mut rng = Seed(3).rng();
    let row = |i: usize| {
        let tokens: Vec<u32> = (0..5 + i).map(|_| rng.below(96) as u32).collect();
        Row::from_tokens(&tokens, &vec![1.0; tokens.len()], i)
    };
    ((0..12).map(row).collect(), (0..6).map(|s| vec![2 * s, 2 * s + 1]).collect())
}

/// All that has been learned.
pub fn bytes(bound: &Bound) -> Vec<u8> {
    checkpoint::snapshot(&bound.params).to_safetensors(&[]).unwrap()
}

/// The log of a run, without how long anything took.
pub fn lines(out: &Path) -> Vec<Value> {
    let all = metrics::read(&out.join("metrics.jsonl")).unwrap();
    all.into_iter().map(metrics::without_timings).collect()
}

/// Forgets everything after a step, as if the run had been killed there.
pub fn killed_after(step: u64, out: &Path) {
    for (at, dir) in checkpoint::list(out).unwrap() {
        if at > step {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}
