//! Base and tuned model side by side: scaled block by block, and contrasted by beam sampling.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Affine, At, Ctx, Hook, Hooks, Policy, Result, Rows, Seed, SiteInfo};
use luthier_decode::{
    BeamSampling, Contrasted, Generate, Parts, Scaled, TokenText, combine::Identity, generate,
    generate_from,
};
use luthier_testkit::{Fake, Shape};

fn fake(seed: u64) -> Policy {
    Policy::plain(Arc::new(Fake::new(Shape { layers: 3, ..Shape::default() }, Seed(seed))))
}

/// Adds half of the input to the output of a square map.
struct Half;

impl Hook for Half {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok((y + (x * 0.5)?)?)
    }

    fn fold(&self, _site: &SiteInfo, _lin: &Affine) -> Result<Option<Affine>> {
        Ok(None)
    }
}

/// A base and the same weights with hooks.
fn adapted() -> (Policy, Policy) {
    let base = fake(1);
    let mut hooks = Hooks::none();
    for layer in [0, 2] {
        let site = base.model.sites().get(&format!("layers.{layer}.attn.v")).unwrap().id;
        hooks.bind(site, Arc::new(Half));
    }
    let tuned = Policy { model: base.model.clone(), hooks };
    (base, tuned)
}

struct Letters;

impl TokenText for Letters {
    fn decode(&self, ids: &[u32]) -> String {
        ids.iter().map(|id| char::from(b'a' + *id as u8)).collect()
    }
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(got: &[f32], want: &[f32], within: f32) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < within, "{g} {w}");
    }
}

/// What a block adds to the stream.
fn adds(policy: &Policy, layer: usize, x_nd: &Tensor, ids: &[u32], rows: &Arc<Rows>) -> Tensor {
    let mut ctx = Ctx::new(&policy.hooks, rows.clone(), ids);
    (policy.model.block(layer, x_nd.clone(), &mut ctx).unwrap() - x_nd).unwrap()
}

/// `x ← x + PTC + α · FTC`, as published.
fn naive(base: &Policy, tuned: &Policy, alpha: f64, ids: &[u32], rows: &Arc<Rows>) -> Vec<f32> {
    let mut ctx = Ctx::new(&tuned.hooks, rows.clone(), ids);
    let mut x_nd = tuned.model.embed(ids, &mut ctx).unwrap();
    for layer in 0..tuned.model.n_layers() {
        let ptc = adds(base, layer, &x_nd, ids, rows);
        let ftc = (adds(tuned, layer, &x_nd, ids, rows) - &ptc).unwrap();
        x_nd = ((x_nd + ptc).unwrap() + (ftc * alpha).unwrap()).unwrap();
    }
    flat(&tuned.model.unembed(&x_nd, &mut ctx).unwrap())
}

#[test]
fn the_scale_is_of_every_blocks_difference() {
    let ids = [3, 1, 4, 1, 5, 9, 2];
    let rows = Arc::new(Rows::new(&[4, 2, 1], |_| 0));
    for (base, tuned) in [(fake(1), fake(2)), adapted()] {
        let of =
            |alpha| flat(&Scaled::new(&base, &tuned, alpha).unwrap().logits(&ids, &rows).unwrap());
        for alpha in [0.0, 0.3, 1.0, 1.25, -0.5] {
            close(&of(alpha), &naive(&base, &tuned, alpha, &ids, &rows), 1e-5);
        }
        close(&of(1.0), &flat(&tuned.logits(&ids, rows.clone()).unwrap()), 1e-5);
        let apart = of(0.0).iter().zip(of(1.0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart > 0.05, "{apart}");
        let last = Scaled::new(&base, &tuned, 0.3).unwrap().last_logits(&ids, &rows).unwrap();
        let (whole, v) = (of(0.3), base.model.vocab());
        let ends = [3, 5, 6].map(|i: usize| whole[i * v..][..v].to_vec()).concat();
        close(&last, &ends, 1e-6);
    }
    // With hooks alone between them, 0 is the base, ends and all.
    let (base, tuned) = adapted();
    let none = Scaled::new(&base, &tuned, 0.0).unwrap().logits(&ids, &rows).unwrap();
    close(&flat(&none), &flat(&base.logits(&ids, rows).unwrap()), 1e-6);
}

#[test]
fn two_caches_give_what_reading_everything_again_gives() {
    let (base, tuned) = (fake(1), fake(2));
    let prompts = [vec![3, 1, 4], vec![7], vec![2, 2, 8, 1], vec![3, 1, 4]];
    let options = Generate { max_new_tokens: 9, max_batch: 2, ..Generate::default() };
    for alpha in [0.4, 1.0] {
        let scaled = Scaled::new(&base, &tuned, alpha).unwrap();
        let parts = Parts {
            sources: vec![Box::new(scaled.source(options.max_batch))],
            combine: &Identity {},
            constrain: Vec::new(),
        };
        let got = generate_from(parts, &prompts, &options, &Letters, &mut |_, _, _| ()).unwrap();
        for (prompt, got) in prompts.iter().zip(&got) {
            let mut ids = prompt.clone();
            for _ in 0..options.max_new_tokens {
                let rows = Arc::new(Rows::single(ids.len()));
                let logits = scaled.last_logits(&ids, &rows).unwrap();
                let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
                ids.push(best.unwrap() as u32);
            }
            assert_eq!(got.tokens, ids[prompt.len()..]);
        }
        if alpha == 1.0 {
            let whole = generate(&tuned, &prompts, &options, &Letters, &mut |_, _, _| ()).unwrap();
            let tokens = |all: &[luthier_decode::Generated]| -> Vec<Vec<u32>> {
                all.iter().map(|g| g.tokens.clone()).collect()
            };
            assert_eq!(tokens(&got), tokens(&whole));
        }
    }
}

#[test]
fn models_that_do_not_fit_cannot_be_scaled() {
    let base = fake(1);
    let other = |shape| Policy::plain(Arc::new(Fake::new(shape, Seed(2))));
    let shape = Shape { layers: 3, ..Shape::default() };
    for (tuned, what) in [
        (other(Shape { layers: 2, ..shape }), "3 (blocks), the tuned model 2"),
        (other(Shape { width: 8, ..shape }), "6 (width), the tuned model 8"),
        (other(Shape { vocab: 14, ..shape }), "13 (tokens), the tuned model 14"),
    ] {
        let error = Scaled::new(&base, &tuned, 1.0).err().unwrap();
        assert!(error.to_string().contains(what) && error.exit_code() == 2, "{error}");
    }
    let mut prompted = fake(2);
    prompted.hooks.virtual_tokens = 3;
    assert!(Scaled::new(&base, &prompted, 1.0).is_err());
    assert!(Scaled::new(&base, &fake(2), f64::NAN).is_err());
}

fn sample(how: BeamSampling, tuned: &Policy, base: &Policy, seed: u64) -> Contrasted {
    how.sample(tuned, base, &[3, 1], &[0, 6], Seed(seed)).unwrap()
}

/// `log p` of the tokens behind the prompt `3 1`, without a cache.
fn logp(policy: &Policy, tokens: &[u32]) -> f64 {
    let ids = [&[3, 1], tokens].concat();
    let logits = policy.logits(&ids, Arc::new(Rows::single(ids.len()))).unwrap();
    let rows = logits.to_vec2::<f32>().unwrap();
    let one = |(i, id): (usize, &u32)| {
        let z: f64 = rows[i + 1].iter().map(|l| f64::from(*l).exp()).sum();
        f64::from(rows[i + 1][*id as usize]) - z.ln()
    };
    tokens.iter().enumerate().map(one).sum()
}

#[test]
fn a_total_is_the_ratio_of_likelihoods_whatever_beams_did() {
    let (tuned, base) = (fake(2), fake(1));
    let mut texts = Vec::new();
    for num_beams in [1, 4, 7] {
        for seed in 0..6 {
            for gamma in [0.0, 0.5, 1.0] {
                let how = BeamSampling { num_beams, length: 8, gamma, ..BeamSampling::default() };
                let Contrasted { tokens, total } = sample(how, &tuned, &base, seed);
                assert_eq!(tokens.len(), 8);
                assert!(!tokens.contains(&0) && !tokens.contains(&6), "{tokens:?}");
                let want = logp(&tuned, &tokens) - gamma * logp(&base, &tokens);
                assert!((total - want).abs() < 1e-3, "{num_beams} {gamma}: {total} {want}");
                assert_eq!(sample(how, &tuned, &base, seed).tokens, tokens);
                texts.push(tokens);
            }
        }
    }
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 10, "{}", texts.len());
}

#[test]
fn with_the_highest_bar_it_is_greedy_whatever_the_base_says() {
    let (tuned, base) = (fake(2), fake(1));
    let how = BeamSampling { length: 9, alpha: 1.0, ..BeamSampling::default() };
    let options = Generate { max_new_tokens: 9, ban: vec![0, 6], ..Generate::default() };
    let greedy = generate(&tuned, &[vec![3, 1]], &options, &Letters, &mut |_, _, _| ()).unwrap();
    for seed in 0..4 {
        assert_eq!(sample(how, &tuned, &base, seed).tokens, greedy[0].tokens);
    }
}

#[test]
fn more_contrast_says_more_that_the_base_would_not() {
    let (tuned, base) = (fake(2), fake(1));
    let ratio = |gamma| -> f64 {
        let how = BeamSampling { length: 6, gamma, ..BeamSampling::default() };
        let one = |seed| {
            let tokens = sample(how, &tuned, &base, seed).tokens;
            logp(&tuned, &tokens) - logp(&base, &tokens)
        };
        (0..12).map(one).sum()
    };
    assert!(ratio(1.0) > ratio(0.0), "{} {}", ratio(1.0), ratio(0.0));
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let (tuned, base) = (fake(2), fake(1));
    let how = BeamSampling { length: 2, ..BeamSampling::default() };
    assert!(how.sample(&tuned, &base, &[], &[], Seed(1)).is_err());
    let all: Vec<u32> = (0..13).collect();
    let error = how.sample(&tuned, &base, &[1], &all, Seed(1)).unwrap_err();
    assert!(error.to_string().contains("leaves no token"), "{error}");
    let other = Policy::plain(Arc::new(Fake::new(Shape { vocab: 9, ..Shape::default() }, Seed(3))));
    let error = how.sample(&tuned, &other, &[1], &[], Seed(1)).unwrap_err();
    assert!(error.to_string().starts_with("the base: has 9 tokens"), "{error}");
}
