//! Beam search against transformers' (tests/golden/make_beams.py).

use std::{path::Path, sync::Arc};

use luthier_core::Policy;
use luthier_decode::{
    Beam, Generate, Parts, Sampler, TokenText, beam_search, combine::Identity,
    sources::PolicySource,
};
use luthier_model::{Decoder, Precision, Source};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    num_beams: usize,
    length_penalty: f32,
    early_stopping: Value,
    max_new_tokens: usize,
    bias: f32,
    eos: Vec<u32>,
    repetition_penalty: f32,
    prompts: Vec<Vec<u32>>,
    found: Vec<Vec<Answer>>,
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    score: f32,
}

/// Ids as letters from `!` on.
struct Letters;

impl TokenText for Letters {
    fn decode(&self, ids: &[u32]) -> String {
        ids.iter().map(|id| char::from(b'!' + *id as u8)).collect()
    }
}

fn policy() -> Policy {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/llama"));
    let decoder = Decoder::load(&Source::open(dir).unwrap(), Precision::F32, |_, _| ()).unwrap();
    Policy::plain(Arc::new(decoder))
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/golden/beams.json")).unwrap()
}

#[test]
fn searches_find_what_transformers_finds() {
    let policy = policy();
    let mut early = 0;
    for (i, case) in cases().into_iter().enumerate() {
        let beam: Beam = serde_json::from_value(json!({
            "num_beams": case.num_beams, "length_penalty": case.length_penalty,
            "early_stopping": case.early_stopping,
        }))
        .unwrap();
        let sampler = Sampler { repetition_penalty: case.repetition_penalty, ..Sampler::default() };
        // One prompt at a time, and all of them side by side.
        for at_a_time in [1, 3] {
            let max_batch = beam.slots(at_a_time);
            let options = Generate {
                max_new_tokens: case.max_new_tokens,
                max_batch,
                eos: case.eos.clone(),
                logit_bias: case.eos.iter().map(|id| (*id, case.bias)).collect(),
                sampler,
                ..Generate::default()
            };
            let sources = vec![Box::new(PolicySource::new(&policy, max_batch)) as _];
            let parts = Parts { sources, combine: &Identity {}, constrain: vec![] };
            let mut done = Vec::new();
            let on_done = &mut |prompt| done.push(prompt);
            let all =
                beam_search(parts, &case.prompts, &options, &beam, &Letters, on_done).unwrap();
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2]);
            for (p, (got, want)) in all.iter().zip(&case.found).enumerate() {
                assert_eq!(got.len(), want.len(), "case {i}, prompt {p}");
                for (got, want) in got.iter().zip(want) {
                    let near = (got.score - want.score).abs() < 2e-4;
                    assert!(near, "case {i}, prompt {p}: {} {}", got.score, want.score);
                    assert_eq!(got.generated.tokens, want.tokens, "case {i}, prompt {p}");
                    early += usize::from(want.tokens.len() < case.max_new_tokens);
                }
            }
        }
    }
    assert!(early > 50, "some beams should end before the limit: {early}");
}

#[test]
fn one_beam_is_greedy_and_a_stop_string_ends_it() {
    let policy = policy();
    let prompts = vec![vec![1, 5, 9, 33], vec![1, 71]];
    let plain = Generate { max_new_tokens: 9, max_batch: 2, eos: vec![2], ..Generate::default() };
    let greedy =
        luthier_decode::generate(&policy, &prompts, &plain, &Letters, &mut |_, _, _| ()).unwrap();
    let beam = Beam { num_beams: 1, ..Beam::default() };
    let search = |stop: Vec<String>| {
        let options = Generate { stop, ..plain.clone() };
        let sources = vec![Box::new(PolicySource::new(&policy, 2)) as _];
        let parts = Parts { sources, combine: &Identity {}, constrain: vec![] };
        beam_search(parts, &prompts, &options, &beam, &Letters, &mut |_| ()).unwrap()
    };
    for (found, greedy) in search(vec![]).iter().zip(&greedy) {
        assert_eq!(&found[0].generated, greedy);
    }
    let stop = greedy[0].text[2..4].to_string();
    let cut = &search(vec![stop.clone()])[0][0].generated;
    assert_eq!(cut.text, greedy[0].text.split(&stop).next().unwrap());
    assert_eq!(cut.finish, luthier_decode::Finish::Stop);
}
