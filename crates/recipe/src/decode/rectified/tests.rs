//! Token by token against whole texts read at once, on a model without attention.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Rows, Seed};
use luthier_params::copilot::{HEAD, Sizes};
use luthier_testkit::fake::{Fake, Shape};

use super::*;

const LAMBDA: f64 = 0.7;

fn pilot() -> Policy {
    Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(4))))
}

fn corrector(lambda: f64) -> Corrector {
    let sizes = Sizes { layers: 4, width: 8, heads: 2, vocab: 13, pilot_width: 6 };
    let copilot = Copilot::new(sizes, Seed(1)).unwrap();
    let head = copilot.params().into_iter().find(|p| p.name == HEAD).unwrap();
    let mut rng = Seed(2).rng();
    let values: Vec<f32> = (0..13 * 8).map(|_| 0.1 * rng.normal() as f32).collect();
    head.var.set(&Tensor::from_vec(values, (13, 8), &Device::Cpu).unwrap()).unwrap();
    Corrector { copilot, rule: Rectify { lambda } }
}

/// What answers follow the last token of `ids`, when the copilot was first asked at position `first`.
fn at_once(by: &Corrector, pilot: &Policy, ids: &[u32], first: usize) -> Vec<f32> {
    let (model, rows) = (pilot.model.as_ref(), Arc::new(Rows::single(ids.len())));
    let mut ctx = Ctx::new(&pilot.hooks, rows, ids);
    let mut states = States::default();
    let mut h_nd = model.embed(ids, &mut ctx).unwrap();
    states.take(&h_nd).unwrap();
    for layer in 0..model.n_layers() {
        h_nd = model.block(layer, h_nd, &mut ctx).unwrap();
        states.take(&h_nd).unwrap();
    }
    let logits = model.unembed(&h_nd, &mut ctx).unwrap().to_vec2::<f32>().unwrap();
    let aligned = by.copilot.align(&states.pooled().unwrap()).unwrap();
    let at: Vec<u32> = (first as u32..ids.len() as u32).collect();
    let mut f_mv = Tensor::zeros((at.len(), 13), candle_core::DType::F32, &Device::Cpu).unwrap();
    // Each round makes one more correction right; those after it are not looked at yet.
    for _ in &at {
        let read = by.copilot.read(&f_mv).unwrap();
        let hidden = by.copilot.hidden(&read, &aligned, &at).unwrap();
        f_mv = by.copilot.correct(&hidden).unwrap().detach();
    }
    let f = f_mv.to_vec2::<f32>().unwrap();
    let mut out = vec![0.0; 13];
    by.rule.combine(&[&logits[ids.len() - 1], &f[at.len() - 1]], &mut out);
    out
}

/// One step of one sequence.
fn read(source: &mut Rectified, slots: (usize, usize), ids: &[u32], start: usize) -> Vec<f32> {
    let rows = Arc::new(Rows::new(&[ids.len()], |_| start));
    let (from_b, slots_b) = ([slots.0], [slots.1]);
    let step = Step {
        ids_n: ids,
        rows,
        slots_b: &slots_b,
        from_b: &from_b,
        prompts_b: &[0],
        read_b: &[1],
    };
    let mut logits = Vec::new();
    source.step(&step, &mut logits).unwrap();
    logits
}

/// As probabilities: where one is nearly 0, its logarithm says little.
#[track_caller]
fn assert_near(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let apart = got.iter().zip(want).map(|(a, b)| (a.exp() - b.exp()).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "{apart}: {got:?} {want:?}");
}

#[test]
fn token_by_token_it_is_what_whole_texts_give() {
    let (pilot, by) = (pilot(), corrector(LAMBDA));
    let text = [3, 7, 1, 12, 5, 5, 0, 9];
    let mut source = by.source(&pilot, 3, 13);
    assert_near(&read(&mut source, (0, 0), &text[..4], 0), &at_once(&by, &pilot, &text[..4], 3));
    for end in 5..=text.len() {
        let got = read(&mut source, (0, 0), &text[end - 1..end], end - 1);
        assert_near(&got, &at_once(&by, &pilot, &text[..end], 3));
    }
    // It takes back three tokens and goes on otherwise, in a slot of its own; the first goes on as well.
    let other = [3, 7, 1, 12, 5, 8];
    let forked = read(&mut source, (0, 2), &other[5..], 5);
    assert_near(&forked, &at_once(&by, &pilot, &other, 3));
    let longer = [text.as_slice(), &[2]].concat();
    let got = read(&mut source, (0, 0), &longer[8..], 8);
    assert_near(&got, &at_once(&by, &pilot, &longer, 3));
    // What is free is forgotten.
    source.free(2);
    assert_near(&read(&mut source, (2, 2), &other[..4], 0), &at_once(&by, &pilot, &other[..4], 3));
    // A correction moves probabilities: with none the pilot's are others.
    let plain = read(&mut corrector(0.0).source(&pilot, 1, 13), (0, 0), &text[..4], 0);
    let corrected = at_once(&by, &pilot, &text[..4], 3);
    let z = plain.iter().map(|x| x.exp()).sum::<f32>().ln();
    assert!(plain.iter().zip(corrected).any(|(a, b)| (a - z - b).abs() > 1e-2));
}
