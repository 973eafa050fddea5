//! The laws of decoding, on a model whose next token depends on all earlier ones.

mod fake;

use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use fake::{Fake, Letters, VOCAB};
use luthier_core::{At, Hook, Policy, Result, Rows, Seed, SiteId, model::gather_logp};
use luthier_decode::{
    Combine, Finish, Generate, Generated, METHODS, Parts, Sampler,
    combine::{Kind, Linear, log_z},
    generate, generate_from,
    sources::PolicySource,
};

fn prompts() -> Vec<Vec<u32>> {
    let mut rng = Seed(5).rng();
    let prompt = |rng: &mut luthier_core::Rng| {
        let len = 1 + rng.below(9);
        (0..len).map(|_| rng.below(VOCAB) as u32).collect()
    };
    let mut prompts: Vec<Vec<u32>> = (0..11).map(|_| prompt(&mut rng)).collect();
    // Two equal prompts, to tell "by index" from "by content".
    prompts.push(prompts[0].clone());
    prompts
}

fn run(policy: &Policy, prompts: &[Vec<u32>], options: &Generate) -> Vec<Generated> {
    generate(policy, prompts, options, &Letters, &mut |_, _, _| ()).unwrap()
}

fn greedy() -> Generate {
    Generate { max_new_tokens: 25, eos: vec![4], logprobs: true, ..Generate::default() }
}

fn sampled() -> Generate {
    let sampler = Sampler { temperature: 0.8, top_k: 12, seed: 3, ..Sampler::default() };
    Generate { sampler, ..greedy() }
}

/// Without a cache, a batch, or the sampler: run the whole text again for every token.
fn naive_greedy(policy: &Policy, prompt: &[u32], options: &Generate) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..options.max_new_tokens {
        let logits = policy.logits(&ids, Arc::new(Rows::single(ids.len()))).unwrap();
        let rows = logits.to_vec2::<f32>().unwrap();
        let last = &rows[ids.len() - 1];
        let best = (0..VOCAB).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32;
        ids.push(best);
        if options.eos.contains(&best) {
            break;
        }
    }
    ids.split_off(prompt.len())
}

#[test]
fn batched_equals_one_by_one_equals_naive() {
    let (policy, prompts) = (Fake::policy(1), prompts());
    let naive: Vec<Vec<u32>> =
        prompts.iter().map(|p| naive_greedy(&policy, p, &greedy())).collect();
    let lengths: std::collections::BTreeSet<usize> = naive.iter().map(Vec::len).collect();
    assert!(lengths.len() > 3, "the prompts should end at different times: {lengths:?}");
    for (max_batch, prefill_tokens) in [(1, 2048), (2, 2048), (5, 3), (16, 2048), (16, 1)] {
        let options = Generate { max_batch, prefill_tokens, ..greedy() };
        let got = run(&policy, &prompts, &options);
        for (i, generated) in got.iter().enumerate() {
            assert_eq!(generated.tokens, naive[i], "prompt {i}, batch {max_batch}");
            let eos = generated.tokens.last() == Some(&4);
            assert_eq!(generated.finish, if eos { Finish::Eos } else { Finish::Length });
        }
    }
}

#[test]
fn a_sampled_sequence_does_not_depend_on_its_company() {
    let (policy, prompts) = (Fake::policy(1), prompts());
    let together = run(&policy, &prompts, &sampled());
    let few = run(&policy, &prompts, &Generate { max_batch: 3, prefill_tokens: 5, ..sampled() });
    assert_eq!(together, few);
    assert_eq!(together[..4], run(&policy, &prompts[..4], &sampled()));
    assert_ne!(together[0].tokens, together[11].tokens, "equal prompts draw on their own");
    let mut other = sampled();
    other.sampler.seed = 4;
    assert_ne!(together, run(&policy, &prompts, &other));
}

#[test]
fn log_probabilities_are_the_models_own() {
    let (policy, prompts) = (Fake::policy(2), prompts());
    let mut options = sampled();
    options.sampler.repetition_penalty = 1.4;
    for (prompt, generated) in prompts.iter().zip(run(&policy, &prompts, &options)) {
        let ids = [&prompt[..], &generated.tokens].concat();
        let logits = policy.logits(&ids, Arc::new(Rows::single(ids.len()))).unwrap();
        let from = prompt.len() - 1;
        let logits = logits.narrow(0, from, generated.tokens.len()).unwrap();
        let twin: Vec<f32> = gather_logp(&logits, &generated.tokens).unwrap().to_vec1().unwrap();
        assert_eq!(twin.len(), generated.logprobs.len());
        for (a, b) in twin.iter().zip(&generated.logprobs) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn streamed_pieces_join_to_the_text() {
    let (policy, prompts) = (Fake::policy(1), prompts());
    let plain = run(&policy, &prompts, &greedy());
    // A stop string out of the middle of a text that is known to come, and one that never comes.
    let text = &plain.iter().max_by_key(|g| g.text.len()).unwrap().text;
    let stop = vec![text[3..5].to_string(), "aaaaaaaa".to_string()];
    let options = Generate { stop: stop.clone(), ..greedy() };
    let mut streamed = vec![(Vec::new(), String::new()); prompts.len()];
    let got = generate(&policy, &prompts, &options, &Letters, &mut |i, token, piece| {
        streamed[i].0.push(token);
        streamed[i].1.push_str(piece);
        assert!(!streamed[i].1.contains(&stop[0]));
    })
    .unwrap();
    assert!(got.iter().any(|g| g.finish == Finish::Stop));
    for (i, generated) in got.iter().enumerate() {
        assert_eq!((&streamed[i].0, &streamed[i].1), (&generated.tokens, &generated.text));
        let cut = plain[i].text.find(&stop[0]);
        assert_eq!(generated.text, plain[i].text[..cut.unwrap_or(plain[i].text.len())]);
        assert_eq!(generated.finish == Finish::Stop, cut.is_some());
    }
}

#[test]
fn limits_are_kept() {
    let (policy, prompts) = (Fake::policy(1), prompts());
    let none = run(&policy, &prompts, &Generate { max_new_tokens: 0, ..greedy() });
    assert!(none.iter().all(|g| g.tokens.is_empty() && g.finish == Finish::Length));
    let options = Generate { max_context: 12, eos: vec![], ..greedy() };
    for (prompt, generated) in prompts.iter().zip(run(&policy, &prompts, &options)) {
        assert_eq!(prompt.len() + generated.tokens.len(), 12);
    }
    let options = Generate { force_eos: true, min_new_tokens: 6, max_new_tokens: 8, ..sampled() };
    for generated in run(&policy, &prompts, &options) {
        assert_eq!(generated.finish, Finish::Eos);
        assert!((7..=8).contains(&generated.tokens.len()), "{:?}", generated.tokens);
    }
}

#[test]
fn prompts_that_cannot_be_read_are_refused_by_number() {
    let policy = Fake::policy(1);
    let refuse = |prompts: &[Vec<u32>], options: &Generate| {
        let err = generate(&policy, prompts, options, &Letters, &mut |_, _, _| ()).unwrap_err();
        assert_eq!(err.exit_code(), 2);
        err.to_string()
    };
    assert!(refuse(&[vec![1], vec![]], &greedy()).starts_with("prompt 2: has no token"));
    assert!(refuse(&[vec![1, 19]], &greedy()).contains("token id 19"));
    let short = Generate { max_context: 3, ..greedy() };
    assert!(refuse(&[vec![1, 2, 3]], &short).contains("context is 3"));
    let ban = Generate { ban: (0..VOCAB as u32).collect(), ..greedy() };
    let err = generate(&policy, &[vec![1]], &ban, &Letters, &mut |_, _, _| ()).unwrap_err();
    assert!(err.to_string().starts_with("prompt 1, token 1, logits"), "{err}");
}

fn some_logits(seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).rng();
    (0..50).map(|_| 3.0 * rng.normal() as f32).collect()
}

#[test]
fn one_source_with_coefficient_one_is_identity_and_results_normalise() {
    let (a, b) = (some_logits(1), some_logits(2));
    let identity: Kind = serde_json::from_str(r#"{"identity": {}}"#).unwrap();
    let one: Kind = serde_json::from_str(r#"{"linear": {"coefficients": [1.0]}}"#).unwrap();
    let mixed = Kind::Linear(Linear { coefficients: vec![1.5, -0.5], ..Linear::default() });
    let mut out = vec![0.0; 50];
    for kind in [&identity, &one] {
        kind.combine(&[&a], &mut out);
        assert_eq!(out, a);
        assert!(kind.check(1).is_ok() && kind.check(2).is_err());
    }
    mixed.combine(&[&a, &b], &mut out);
    let z = log_z(&out);
    let probs: Vec<f64> = out.iter().map(|l| (f64::from(*l) - z).exp()).collect();
    assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    // The product form of the same mixture.
    let softmax = |x: &[f32]| {
        let z: f64 = x.iter().map(|l| f64::from(*l).exp()).sum();
        x.iter().map(|l| f64::from(*l).exp() / z).collect::<Vec<f64>>()
    };
    let product: Vec<f64> =
        softmax(&a).iter().zip(softmax(&b)).map(|(p, q)| p.powf(1.5) * q.powf(-0.5)).collect();
    let total: f64 = product.iter().sum();
    for (p, q) in probs.iter().zip(product) {
        assert!((p - q / total).abs() < 1e-6);
    }
}

#[test]
fn a_silent_source_says_nothing() {
    let never = vec![f32::NEG_INFINITY; 50];
    let mut out = vec![0.0; 50];
    let rule = Linear { coefficients: vec![0.0, 1.0], ..Linear::default() };
    rule.combine(&[&never, &some_logits(3)], &mut out);
    assert_eq!(out, some_logits(3));
}

#[test]
fn sources_are_stepped_together() {
    let (one, two, prompts) = (Fake::policy(1), Fake::policy(2), prompts());
    let both = |coefficients: Vec<f32>, max_batch: usize| {
        let options = Generate { max_batch, ..greedy() };
        let rule = Linear { coefficients, ..Linear::default() };
        let source = |p| Box::new(PolicySource::new(p, max_batch));
        let parts =
            Parts { sources: vec![source(&one), source(&two)], combine: &rule, constrain: vec![] };
        generate_from(parts, &prompts, &options, &Letters, &mut |_, _, _| ()).unwrap()
    };
    let tokens = |all: &[Generated]| all.iter().map(|g| g.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&both(vec![1.0, 0.0], 4)), tokens(&run(&one, &prompts, &greedy())));
    assert_eq!(tokens(&both(vec![0.0, 1.0], 4)), tokens(&run(&two, &prompts, &greedy())));
    let mixed = both(vec![0.5, 0.5], 4);
    assert_eq!(mixed, both(vec![0.5, 0.5], 1));
    assert_ne!(tokens(&mixed), tokens(&both(vec![1.0, 0.0], 4)));
}

/// Notes how many tokens the head was told of, and how many logits it gave.
#[derive(Default)]
struct HeadWitness(Mutex<Vec<(usize, usize, usize)>>);

impl Hook for HeadWitness {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.0.lock().unwrap().push((at.rows.n(), at.ids_n.len(), y.dim(0)?));
        Ok(y)
    }
}

#[test]
fn the_head_runs_once_per_row_and_hooks_are_told_so() {
    let mut policy = Fake::policy(1);
    let witness = Arc::new(HeadWitness::default());
    policy.hooks.bind(SiteId(0), witness.clone());
    let options = Generate { max_new_tokens: 2, eos: vec![], ..greedy() };
    let watched = run(&policy, &prompts()[..3], &options);
    assert_eq!(*witness.0.lock().unwrap(), [(3, 3, 3), (3, 3, 3)]);
    assert_eq!(watched, run(&Fake::policy(1), &prompts()[..3], &options));
}

#[test]
fn method_names_are_unique() {
    let mut names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), METHODS.len());
    assert!(METHODS.iter().all(|m| !m.about.is_empty()));
}
