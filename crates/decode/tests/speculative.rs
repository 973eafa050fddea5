//! Drafted text is the text that would have come without a draft.

mod fake;

use std::sync::{Arc, Mutex};

use fake::{Fake, Letters, VOCAB};
use luthier_core::{Policy, Result, Seed};
use luthier_decode::{
    Combine, Draft, Generate, Generated, Parts, Sampler, Source,
    combine::{Emulate, Linear, log_z},
    generate_from,
    sources::{PolicySource, Step},
};

/// Notes the tokens of every step.
struct Noted<'a>(PolicySource<'a>, Arc<Mutex<Vec<usize>>>);

impl Source for Noted<'_> {
    fn vocab(&self) -> usize {
        self.0.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        self.1.lock().unwrap().push(step.ids_n.len());
        self.0.step(step, logits_bv)
    }

    fn free(&mut self, slot: usize) {
        self.0.free(slot);
    }
}

fn prompts() -> Vec<Vec<u32>> {
    let mut rng = Seed(5).rng();
    (0..9).map(|i| (0..1 + i).map(|_| rng.below(VOCAB) as u32).collect()).collect()
}

type Steps = Vec<Vec<usize>>;

fn run(
    policies: &[&Policy],
    rule: &dyn Combine,
    prompts: &[Vec<u32>],
    options: &Generate,
) -> (Vec<Generated>, Steps) {
    let notes: Vec<Arc<Mutex<Vec<usize>>>> = policies.iter().map(|_| Arc::default()).collect();
    let mut sources: Vec<Box<dyn Source + '_>> = Vec::new();
    for (policy, notes) in policies.iter().zip(&notes) {
        let source = PolicySource::new(policy, options.max_batch);
        sources.push(Box::new(Noted(source, notes.clone())));
    }
    let parts = Parts { sources, combine: rule, constrain: vec![] };
    let all = generate_from(parts, prompts, options, &Letters, &mut |_, _, _| ()).unwrap();
    (all, notes.iter().map(|n| n.lock().unwrap().clone()).collect())
}

fn drafted(source: usize, tokens: usize, options: &Generate) -> Generate {
    Generate { draft: Some(Draft { source, tokens }), ..options.clone() }
}

#[test]
fn greedy_text_is_the_same_token_by_token() {
    let models = [Fake::policy(1), Fake::policy(2), Fake::policy(3)];
    let all: Vec<&Policy> = models.iter().collect();
    let rule = Emulate::default();
    let prompts = prompts();
    for (max_batch, min_new_tokens) in [(1, 0), (4, 0), (9, 6)] {
        let plain = Generate {
            max_new_tokens: 17,
            min_new_tokens,
            max_batch,
            eos: vec![4],
            logprobs: true,
            sampler: Sampler { repetition_penalty: 1.2, ..Sampler::default() },
            ..Generate::default()
        };
        let (want, _) = run(&all, &rule, &prompts, &plain);
        for (source, tokens) in [(0, 1), (0, 4), (1, 3), (2, 30)] {
            let (got, _) = run(&all, &rule, &prompts, &drafted(source, tokens, &plain));
            assert_eq!(got, want, "source {source} drafts {tokens}, {max_batch} at a time");
        }
    }
}

#[test]
fn a_draft_that_is_right_saves_passes_of_the_others() {
    let models = [Fake::policy(1), Fake::policy(1)];
    let rule = Linear { coefficients: vec![0.5, 0.5], ..Linear::default() };
    let plain = Generate { max_new_tokens: 20, max_batch: 1, ..Generate::default() };
    let (want, _) = run(&[&models[0], &models[1]], &rule, &[vec![7, 1, 2]], &plain);
    let (got, steps) =
        run(&[&models[0], &models[1]], &rule, &[vec![7, 1, 2]], &drafted(0, 5, &plain));
    assert_eq!(got, want);
    // Twenty tokens in four passes: the prompt and four of its five, then five at a time.
    assert_eq!(steps[1], [7, 5, 5, 5]);
    assert_eq!(steps[0].len(), 20);
}

#[test]
fn a_drafted_sequence_does_not_depend_on_its_company() {
    let models = [Fake::policy(1), Fake::policy(2)];
    let all = [&models[0], &models[1]];
    let rule = Linear { coefficients: vec![0.6, 0.4], ..Linear::default() };
    let sampler = Sampler { temperature: 0.9, top_p: 0.9, seed: 3, ..Sampler::default() };
    let options = Generate { max_new_tokens: 15, eos: vec![4], sampler, ..Generate::default() };
    let options = drafted(1, 3, &options);
    let (together, _) = run(&all, &rule, &prompts(), &options);
    let few = Generate { max_batch: 2, prefill_tokens: 5, ..options.clone() };
    assert_eq!(run(&all, &rule, &prompts(), &few).0, together);
    assert_eq!(run(&all, &rule, &prompts()[..3], &options).0, together[..3]);
}

/// Exact distribution of the first two tokens, and counts of a drafted generation.
#[test]
fn drawn_text_has_the_distribution_of_the_combination() {
    let models = [Fake::policy(1), Fake::policy(2)];
    let rule = Linear { coefficients: vec![0.7, 0.3], ..Linear::default() };
    let prompt = vec![3, 1];
    let (temperature, keep) = (1.1f32, 4usize);
    // The next token's probabilities: combine, divide, keep the best few.
    let next = |text: &[u32]| -> Vec<f64> {
        let of = |policy: &Policy| {
            let rows = Arc::new(luthier_core::Rows::single(text.len()));
            policy.logits(text, rows).unwrap().to_vec2::<f32>().unwrap().pop().unwrap()
        };
        let (a, b) = (of(&models[0]), of(&models[1]));
        let mut mixed: Vec<f32> =
            a.iter().zip(&b).map(|(a, b)| (0.7 * a + 0.3 * b) / temperature).collect();
        let mut sorted = mixed.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[keep - 1];
        mixed.iter_mut().filter(|l| **l < least).for_each(|l| *l = f32::NEG_INFINITY);
        let z = log_z(&mixed);
        mixed.iter().map(|l| (f64::from(*l) - z).exp()).collect()
    };
    let first = next(&prompt);
    let mut expected = std::collections::BTreeMap::new();
    for (a, p) in first.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        for (b, q) in next(&[3, 1, a as u32]).iter().enumerate().filter(|(_, q)| **q > 0.0) {
            expected.insert((a as u32, b as u32), p * q);
        }
    }
    let n = 6000;
    let sampler = Sampler { temperature, top_k: keep, seed: 11, ..Sampler::default() };
    let options = Generate { max_new_tokens: 2, max_batch: 64, sampler, ..Generate::default() };
    let prompts = vec![prompt; n];
    let (all, steps) = run(&[&models[0], &models[1]], &rule, &prompts, &drafted(1, 2, &options));
    let mut counts = std::collections::BTreeMap::new();
    all.iter().for_each(|g| *counts.entry((g.tokens[0], g.tokens[1])).or_insert(0usize) += 1);
    assert!(counts.keys().all(|pair| expected.contains_key(pair)), "{counts:?}");
    let mut chi = 0.0;
    for (pair, p) in &expected {
        let want = p * n as f64;
        let got = counts.get(pair).copied().unwrap_or(0) as f64;
        chi += (got - want).powi(2) / want;
    }
    // Fifteen degrees of freedom; a thousandth lies beyond 37.7.
    assert!(expected.len() == 16 && chi < 37.7, "{chi} over {}", expected.len());
    // Some drafts stayed and some did not, or nothing was tried.
    let read: usize = steps[0].iter().sum();
    assert!(read > 3 * n && read < 4 * n, "{read}");
}

#[test]
fn the_share_of_drafts_that_stay_is_the_overlap() {
    let models = [Fake::policy(1), Fake::policy(2)];
    let rule = Linear { coefficients: vec![1.0, 0.0], ..Linear::default() };
    let prompt = vec![6, 2, 9];
    let of = |policy: &Policy| {
        let rows = Arc::new(luthier_core::Rows::single(3));
        let row = policy.logits(&prompt, rows).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
        let z = log_z(&row);
        row.iter().map(|l| (f64::from(*l) - z).exp()).collect::<Vec<f64>>()
    };
    let overlap: f64 = of(&models[0]).iter().zip(of(&models[1])).map(|(p, q)| p.min(q)).sum();
    let n = 4000;
    let sampler = Sampler { temperature: 1.0, seed: 2, ..Sampler::default() };
    let options = Generate { max_new_tokens: 2, max_batch: 50, sampler, ..Generate::default() };
    let prompts = vec![prompt.clone(); n];
    let (_, steps) = run(&[&models[0], &models[1]], &rule, &prompts, &drafted(1, 2, &options));
    // Four tokens of prompt and draft each; one more where the first drafted token did not stay.
    let again = steps[0].iter().sum::<usize>() - 4 * n;
    let stayed = 1.0 - again as f64 / n as f64;
    let error = (overlap * (1.0 - overlap) / n as f64).sqrt();
    assert!((stayed - overlap).abs() < 4.0 * error, "{stayed} {overlap}");
}
