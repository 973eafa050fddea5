//! Every fused operation against its naive twin: values and all gradients, ragged and odd shapes.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use luthier_core::{Cache, Rows, Seed};
use luthier_kernels::{
    Frozen, HeadWeight, Heads, Rotation, attend, attend_cached, attention, head_logp, linear, nll,
    norm, num::Precision, rms_norm, rope, rotate, swiglu,
};
use proptest::prelude::*;

const F32: Precision = Precision::F32;

fn random(name: &str, dims: &[usize]) -> Var {
    let mut rng = Seed(7).split(name).rng();
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Var::from_tensor(&Tensor::from_vec(data, dims, &Device::Cpu).unwrap()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn largest(t: &Tensor) -> f32 {
    flat(t).iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Largest difference relative to the largest expected magnitude.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    apart(a, b, 1e-3)
}

/// The same, where magnitudes below `least` are rounding of larger numbers.
fn apart(a: &Tensor, b: &Tensor, least: f32) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let scale = largest(b).max(least);
    let (a, b) = (flat(a), flat(b));
    a.iter().zip(&b).fold(0.0, |m, (x, y)| {
        assert!(x.is_finite(), "not finite: {x}");
        m.max((x - y).abs() / scale)
    })
}

/// Compares two results and their gradients, pulled back along a random direction.
fn same(fused: &Tensor, naive: &Tensor, vars: &[&Var]) {
    assert!(distance(fused, naive) < 2e-5, "values differ by {}", distance(fused, naive));
    let pull = random("pull", fused.dims());
    let grads = |y: &Tensor| {
        y.mul(&pull.as_detached_tensor()).unwrap().sum_all().unwrap().backward().unwrap()
    };
    let (a, b) = (grads(fused), grads(naive));
    // A gradient may be the difference of equal numbers: a token alone attends to itself whatever its
    // query, and what is left of terms as large as the other gradients is their rounding.
    let all = vars.iter().map(|var| largest(b.get(var).unwrap())).fold(0.0, f32::max);
    for (i, var) in vars.iter().enumerate() {
        let d = apart(a.get(var).unwrap(), b.get(var).unwrap(), 1e-2 * all);
        assert!(d < 5e-5, "gradient {i} differs by {d}");
    }
}

#[test]
fn norm_rope_swiglu_linear() {
    for (n, d) in [(1, 8), (3, 32), (17, 48)] {
        let (x, w) = (random("x", &[n, d]), random("w", &[d]));
        same(
            &rms_norm(&x, &w, 1e-5).unwrap(),
            &norm::naive_rms_norm(&x, &w, 1e-5).unwrap(),
            &[&x, &w],
        );
        let fixed = w.as_detached_tensor();
        same(
            &rms_norm(&x, &fixed, 1e-5).unwrap(),
            &norm::naive_rms_norm(&x, &fixed, 1e-5).unwrap(),
            &[&x],
        );
        let table =
            Rotation::new(vec![1.0, 0.3, 0.1, 0.02], 1.3).table(&(0..n as u32).collect::<Vec<_>>());
        same(&rotate(&x, &table, 8).unwrap(), &rope::naive_rotate(&x, &table, 8).unwrap(), &[&x]);
        let u = random("u", &[n, d]);
        same(
            &swiglu(&x, &u).unwrap(),
            &luthier_kernels::swiglu::naive_swiglu(&x, &u).unwrap(),
            &[&x, &u],
        );
        let w = random("wo", &[5, d]);
        same(
            &linear(&x, &w, F32).unwrap(),
            &luthier_kernels::linear::naive_linear(&x, &w).unwrap(),
            &[&x, &w],
        );
        let numbers = w.flatten_all().unwrap().to_vec1().unwrap();
        let frozen = Frozen::new(numbers, 5, d, F32).unwrap();
        same(
            &frozen.apply(&x).unwrap(),
            &luthier_kernels::linear::naive_linear(&x, &w).unwrap(),
            &[&x],
        );
    }
}

fn check_attention(lengths: &[usize], heads: Heads) {
    let rows = Arc::new(Rows::new(lengths, |_| 0));
    let n = rows.n();
    let q = random("q", &[n, heads.h * heads.e]);
    let (k, v) = (random("k", &[n, heads.k * heads.e]), random("v", &[n, heads.k * heads.e]));
    let fused = attend(&q, &k, &v, &rows, heads).unwrap();
    let naive = attention::naive_attend(&q, &k, &v, &rows, heads, |_, p| Ok(p)).unwrap();
    same(&fused, &naive, &[&q, &k, &v]);

    // Token by token through a cache: the same numbers without gradients.
    let mut cache = Cache::new(rows.b(), 1);
    let longest = *lengths.iter().max().unwrap();
    for t in 0..longest {
        let live: Vec<usize> = (0..rows.b()).filter(|r| lengths[*r] > t).collect();
        let pick = |x: &Tensor| {
            let index: Vec<u32> = live.iter().map(|r| (rows.offsets[*r] + t) as u32).collect();
            let count = index.len();
            x.index_select(&Tensor::from_vec(index, count, &Device::Cpu).unwrap(), 0).unwrap()
        };
        cache.select(live.clone());
        let step = Rows::new(&vec![1; live.len()], |_| t);
        let y =
            attend_cached(&pick(&q), &pick(&k), &pick(&v), &step, heads, &mut cache, 0).unwrap();
        cache.advance(vec![1; live.len()]);
        assert!(distance(&y, &pick(&naive)) < 2e-5);
    }
}

#[test]
fn attention_over_ragged_rows() {
    let heads = |h, k, e, window| Heads { h, k, e, window, precision: F32 };
    check_attention(&[1], heads(2, 1, 4, None));
    check_attention(&[1], heads(2, 2, 6, None));
    check_attention(&[1, 1, 1], heads(6, 2, 6, None));
    check_attention(&[5, 1, 9], heads(4, 2, 8, None));
    check_attention(&[130, 3, 64], heads(3, 1, 16, None));
    check_attention(&[70, 20], heads(2, 2, 8, Some(6)));
    // More keys than one chunk, also with chunks that no query of a block sees whole.
    check_attention(&[530, 1, 257], heads(2, 1, 4, None));
    check_attention(&[600], heads(2, 2, 4, Some(280)));
    check_attention(&[300, 40], heads(6, 1, 4, Some(2)));
}

fn check_head(m: usize, d: usize, v: usize, gain: f64) {
    let h = Var::from_tensor(&(random("h", &[m, d]).as_tensor() * gain).unwrap()).unwrap();
    let w = random("head", &[v, d]);
    let targets: Vec<u32> = (0..m).map(|i| ((i * 37 + 5) % v) as u32).collect();
    let naive = nll::naive_head_logp(&h, &w, &targets).unwrap();
    same(&head_logp(&h, HeadWeight::Learned(&w, F32), &targets).unwrap(), &naive, &[&h, &w]);
    let numbers = w.flatten_all().unwrap().to_vec1().unwrap();
    let frozen = Frozen::new(numbers, v, d, F32).unwrap();
    same(&head_logp(&h, HeadWeight::Frozen(&frozen), &targets).unwrap(), &naive, &[&h]);
}

#[test]
fn head_without_logits() {
    check_head(1, 4, 7, 1.0);
    check_head(65, 16, 1300, 1.0);
    // Logits in the hundreds: no overflow, no loss of the tail.
    check_head(9, 32, 600, 40.0);
    let frozen = Frozen::new(vec![0.0; 8], 2, 4, F32).unwrap();
    let h = random("h", &[1, 4]);
    assert!(head_logp(&h, HeadWeight::Frozen(&frozen), &[2]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn attention_on_any_lengths(lengths in prop::collection::vec(1usize..80, 1..5), group in 1usize..4) {
        check_attention(&lengths, Heads { h: 2 * group, k: 2, e: 6, window: None, precision: F32 });
    }

    #[test]
    fn head_on_any_sizes(m in 1usize..80, d in 1usize..20, v in 1usize..1100) {
        check_head(m, d, v, 1.0);
    }
}
