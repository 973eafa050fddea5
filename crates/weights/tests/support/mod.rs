//! Operands in memory, and merges of them.

use std::sync::Mutex;

use luthier_core::{Result, Rng, Seed};
use luthier_weights::{
    Given, Operands, Spec, Work, merge,
    method::{Base, Fallback, Of},
};

/// Operands that are simply there.
#[derive(Clone)]
pub struct Held {
    pub dims: Vec<usize>,
    pub inputs: Vec<Vec<f32>>,
    pub base: Option<usize>,
}

impl Operands for Held {
    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn inputs(&self) -> (usize, Option<usize>) {
        (self.inputs.len(), self.base)
    }

    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.inputs[input][from..from + out.len()]);
        Ok(())
    }
}

pub fn normal(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// A base and `others` inputs near it.
pub fn held(spec: &Spec, dims: &[usize], others: usize) -> Held {
    let mut rng = Seed(5).split(spec.name).rng();
    let n = dims.iter().product();
    let base = normal(n, &mut rng);
    let near =
        |rng: &mut Rng| base.iter().map(|b| b + 0.3 * rng.normal() as f32).collect::<Vec<f32>>();
    let mut inputs: Vec<Vec<f32>> = (0..others).map(|_| near(&mut rng)).collect();
    let based = spec.base != Base::Ordinary;
    if based {
        // Not first: an implementation that counts on a place is found out.
        inputs.insert(1.min(others), base);
    }
    Held { dims: dims.to_vec(), inputs, base: based.then_some(1.min(others)) }
}

/// As many inputs besides the base as a method takes, three where it may.
pub fn usual(spec: &Spec) -> usize {
    let based = usize::from(spec.base != Base::Ordinary);
    3.min(spec.others.1).min(spec.inputs.1.saturating_sub(based))
}

/// Defaults, weights that differ, and what `over` says.
pub fn given(spec: &Spec, others: usize, over: &[(&str, f64)]) -> Given {
    let value = |name: &str, default: Fallback| {
        let said = over.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        said.or(match default {
            Fallback::Number(value) => Some(value),
            Fallback::Nothing => None,
            Fallback::Needed => Some(0.4),
        })
        // A share for what knows none by itself.
        .or((name == "top").then_some(0.5))
    };
    let (mut merge, mut each) = (Vec::new(), Vec::new());
    for key in spec.keys {
        let value = value(key.name, key.default);
        match key.of {
            Of::Merge => merge.push((key.name, value)),
            _ => each.push((key.name, vec![value; others])),
        }
    }
    for (_, weights) in each.iter_mut().filter(|(name, _)| *name == "weight") {
        let weighted = weights.iter_mut().enumerate();
        weighted.for_each(|(i, w)| *w = Some(0.4 + 0.35 * i as f64));
    }
    // One of them is what the other was tuned from, and what is grafted was counted before.
    if let Some((_, marks)) = each.iter_mut().find(|(name, _)| *name == "source") {
        *marks = (0..others).map(|i| Some(if i + 1 == others { 1.0 } else { 0.0 })).collect();
    }
    if spec.name == "graft" {
        each.push(("edge", vec![Some(0.2); others]));
    }
    let inputs = (0..others).map(|i| format!("m{i}")).collect();
    Given { file: "m.yml".into(), inputs, merge, each, beside: vec![false; others] }
}

pub fn run_with(spec: &Spec, given: &Given, held: &Held, piece: usize, seed: u64) -> Vec<f32> {
    let combine = spec.combine(given).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
    let n: usize = held.dims.iter().product();
    let out = Mutex::new((vec![f32::NAN; n], vec![0u8; n]));
    let put = |from: usize, values: &[f32]| {
        let mut out = out.lock().unwrap();
        out.0[from..from + values.len()].copy_from_slice(values);
        out.1[from..from + values.len()].iter_mut().for_each(|times| *times += 1);
        Ok(())
    };
    let work = Work::new(held, Seed(seed)).in_pieces_of(piece);
    merge(combine.as_ref(), &work, &put).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
    let (out, times) = out.into_inner().unwrap();
    assert!(times.iter().all(|t| *t == 1), "{}: every number once", spec.name);
    out
}

pub fn run(spec: &Spec, held: &Held, over: &[(&str, f64)]) -> Vec<f32> {
    let others = held.inputs.len() - usize::from(held.base.is_some());
    run_with(spec, &given(spec, others, over), held, 1 << 18, 1)
}

#[track_caller]
pub fn near(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        let off = (x - y).abs();
        assert!(off <= tolerance * (1.0 + y.abs()), "{name}: number {i}: {x}, expected {y}");
    }
    assert_eq!(got.len(), want.len());
}

pub fn spec(name: &str) -> &'static Spec {
    Spec::find(name).unwrap()
}
