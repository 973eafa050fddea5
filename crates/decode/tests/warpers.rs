//! Penalties, constraints and warpers against transformers' own (tests/golden/warpers.py).

use luthier_decode::{Constrain, Generate, Sampler, SoFar};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    options: Map<String, Value>,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    probs: Vec<f64>,
}

/// The keys of [`Generate`] stay, all others belong to its sampler.
fn options(case: &Case) -> Generate {
    let mut outer = Map::new();
    let mut sampler = Map::new();
    for (key, value) in &case.options {
        let ours = ["logit_bias", "ban", "min_new_tokens", "eos"].contains(&key.as_str());
        (if ours { &mut outer } else { &mut sampler }).insert(key.clone(), value.clone());
    }
    outer.insert("sampler".into(), Value::Object(sampler));
    serde_json::from_value(Value::Object(outer)).unwrap()
}

#[test]
fn distributions_equal_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("golden/warpers.json")).unwrap();
    assert_eq!(golden.cases.len(), 11);
    for (i, case) in golden.cases.iter().enumerate() {
        let options = options(case);
        let so_far = SoFar { prompt: &case.prompt, tokens: &case.tokens };
        let mut logits = case.logits.clone();
        options.constraints()[..].constrain(&so_far, &mut logits);
        options.sampler.penalise(&so_far, &mut logits);
        let kept = options.sampler.candidates(&logits).unwrap();
        let z: f64 = kept.iter().map(|c| f64::from(c.logit).exp()).sum();
        let mut probs = vec![0.0; logits.len()];
        kept.iter().for_each(|c| probs[c.id as usize] = f64::from(c.logit).exp() / z);
        for (id, (got, want)) in probs.iter().zip(&case.probs).enumerate() {
            assert_eq!(*got == 0.0, *want == 0.0, "case {i} token {id}: {got} {want}");
            assert!((got - want).abs() < 1e-6, "case {i} token {id}: {got} {want}");
        }
    }
}

#[test]
fn greedy_keeps_the_penalties_and_ignores_the_warpers() {
    let sampler = Sampler { repetition_penalty: 3.0, top_k: 1, ..Sampler::default() };
    let so_far = SoFar { prompt: &[1], tokens: &[] };
    let mut rng = luthier_core::Seed(0).rng();
    let token = sampler.choose(&so_far, &mut [1.0, 2.0, 0.5], &mut rng).unwrap();
    assert_eq!(token, 0);
}
