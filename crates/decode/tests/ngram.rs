//! Texts as a source: the counts by another way, batches, and mixtures with a model.

mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fake::{Fake, Letters, VOCAB};
use luthier_core::{Rows, Seed};
use luthier_decode::{
    Beam, Draft, Generate, Generated, Parts, Source, beam_search,
    combine::{Kind, Mixture, Picked},
    generate_from,
    sources::{Ngram, PolicySource, Step},
};

fn texts() -> Vec<Vec<u32>> {
    let mut rng = Seed(8).rng();
    // Few different tokens, so that long pasts occur again; one text is a single token.
    let mut text = |len: usize| (0..len).map(|_| rng.below(5) as u32 + 2).collect::<Vec<u32>>();
    vec![text(60), text(1), text(45), text(9)]
}

/// The formula as it stands, from a table of counts.
fn naive(texts: &[Vec<u32>], n: usize, past: &[u32]) -> Vec<f64> {
    let mut counts: BTreeMap<&[u32], BTreeMap<u32, f64>> = BTreeMap::new();
    for text in texts {
        for at in 0..text.len() {
            for k in 0..n.min(at + 1) {
                *counts.entry(&text[at - k..at]).or_default().entry(text[at]).or_default() += 1.0;
            }
        }
    }
    let mut p_v = vec![1.0 / VOCAB as f64; VOCAB];
    for k in 0..n.min(past.len() + 1) {
        let Some(next) = counts.get(&past[past.len() - k..]) else { break };
        let (c, t) = (next.values().sum::<f64>(), next.len() as f64);
        p_v = (0..VOCAB as u32)
            .map(|v| (next.get(&v).unwrap_or(&0.0) + t * p_v[v as usize]) / (c + t))
            .collect();
    }
    p_v
}

fn greedy() -> Generate {
    Generate { max_new_tokens: 12, eos: vec![6], logprobs: true, ..Generate::default() }
}

fn prompts() -> Vec<Vec<u32>> {
    let mut prompts: Vec<Vec<u32>> = texts()
        .iter()
        .flat_map(|text| [text[..1].to_vec(), text[..text.len() / 2 + 1].to_vec()])
        .collect();
    // A past that occurs nowhere, and one that does after a token that does not.
    prompts.extend([vec![17, 18], vec![18, 3, 4]]);
    prompts
}

fn run(sources: Vec<Box<dyn Source + '_>>, weights: &[f32], options: &Generate) -> Vec<Generated> {
    let names = ["a", "b"][..sources.len()].to_vec();
    let mixture = Mixture {
        sources: names.iter().map(|name| name.to_string()).collect(),
        weights: weights.to_vec(),
    };
    let rule = Picked::new(Kind::Mixture(mixture), &names).unwrap();
    let parts = Parts { sources, combine: &rule, constrain: Vec::new() };
    generate_from(parts, &prompts(), options, &Letters, &mut |_, _, _| ()).unwrap()
}

#[test]
fn probabilities_are_those_of_the_formula() {
    for n in [1, 2, 4, 9] {
        let index = Ngram::new(texts(), n).unwrap();
        assert_eq!((index.tokens(), index.largest()), (115, 6));
        let options = Generate { max_batch: 4, ..greedy() };
        let said = run(vec![Box::new(index.source(4, VOCAB).unwrap())], &[1.0], &options);
        let mut different = BTreeSet::new();
        for (prompt, answer) in prompts().iter().zip(&said) {
            let mut past = prompt.clone();
            for (token, logp) in answer.tokens.iter().zip(&answer.logprobs) {
                let p_v = naive(&texts(), n, &past);
                assert!((p_v.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                let best = p_v.iter().copied().fold(0.0, f64::max);
                assert!((p_v[*token as usize] - best).abs() < 1e-12, "{past:?}");
                assert!((f64::from(*logp) - best.ln()).abs() < 1e-5, "{past:?}: {logp}");
                different.insert(format!("{best:.9}"));
                past.push(*token);
            }
        }
        assert!(n == 1 || different.len() > 3, "{}", different.len());
        // Not the best token alone: all of them, at the last two tokens of every past.
        for past in prompts().iter().filter(|past| past.len() > 1) {
            let (mut source, mut logits) = (index.source(1, VOCAB).unwrap(), Vec::new());
            let rows = Arc::new(Rows::single(past.len()));
            let (slots_b, read_b) = (&[0][..], &[2][..]);
            let step =
                Step { ids_n: past, rows, slots_b, from_b: slots_b, prompts_b: &[0], read_b };
            source.step(&step, &mut logits).unwrap();
            let want =
                [&past[..past.len() - 1], past].map(|past| naive(&texts(), n, past)).concat();
            assert_eq!(logits.len(), want.len());
            for (logp, p) in logits.iter().zip(want) {
                assert!((f64::from(*logp) - p.ln()).abs() < 1e-5, "{past:?}: {logp}");
            }
        }
    }
}

#[test]
fn neither_company_nor_drafts_nor_beams_show() {
    let index = Ngram::new(texts(), 4).unwrap();
    let policy = Fake::policy(1);
    let with = |options: &Generate, max_batch: usize, weights: &[f32]| -> Vec<Vec<u32>> {
        let options = Generate { max_batch, ..options.clone() };
        let sources: Vec<Box<dyn Source + '_>> = vec![
            Box::new(index.source(max_batch, VOCAB).unwrap()),
            Box::new(PolicySource::new(&policy, max_batch)),
        ];
        run(sources, weights, &options).into_iter().map(|answer| answer.tokens).collect()
    };
    let mixed = with(&greedy(), 16, &[0.5, 0.5]);
    assert_eq!(with(&greedy(), 1, &[0.5, 0.5]), mixed);
    assert_eq!(with(&greedy(), 3, &[0.5, 0.5]), mixed);
    // Texts that write ahead: what they guess wrong is taken back.
    let drafted = Generate { draft: Some(Draft { source: 0, tokens: 3 }), ..greedy() };
    assert_eq!(with(&drafted, 4, &[0.5, 0.5]), mixed);
    // A say of 0 is none, and all of it is the texts alone.
    let alone = with(&greedy(), 4, &[0.0, 1.0]);
    assert_ne!(alone, mixed);
    let counted = with(&greedy(), 4, &[1.0, 0.0]);
    assert!(counted != mixed && counted != alone);
    // Beams copy and drop pasts; the likeliest of one beam is the greedy answer.
    let beam = |num_beams: usize| {
        let beam = Beam { num_beams, ..Beam::default() };
        let sources: Vec<Box<dyn Source + '_>> =
            vec![Box::new(index.source(beam.slots(2), VOCAB).unwrap())];
        let names = ["a"];
        let mixture = Mixture { sources: vec!["a".into()], weights: vec![1.0] };
        let rule = Picked::new(Kind::Mixture(mixture), &names).unwrap();
        let parts = Parts { sources, combine: &rule, constrain: Vec::new() };
        let options = Generate { max_batch: beam.slots(2), ..greedy() };
        let prompts = prompts();
        let found = beam_search(parts, &prompts, &options, &beam, &Letters, &mut |_| ()).unwrap();
        let sum = |past: &[u32], tokens: &[u32]| -> f64 {
            let mut past = past.to_vec();
            let logp = |token: &u32| {
                let p = naive(&texts(), 4, &past)[*token as usize];
                past.push(*token);
                p.ln()
            };
            tokens.iter().map(logp).sum()
        };
        let best = found.into_iter().zip(prompts).map(|(all, prompt)| {
            let tokens = all[0].generated.tokens.clone();
            sum(&prompt, &tokens) / tokens.len() as f64
        });
        best.collect::<Vec<f64>>()
    };
    let (one, four) = (beam(1), beam(4));
    assert!(one.iter().sum::<f64>() < four.iter().sum::<f64>(), "{one:?} {four:?}");
}

#[test]
fn texts_without_tokens_and_of_other_vocabularies_are_refused() {
    for (texts, n, word) in
        [(vec![], 3, "no token"), (vec![vec![]], 3, "no token"), (texts(), 0, "n: ")]
    {
        let error = Ngram::new(texts, n).err().unwrap();
        assert!(error.to_string().contains(word) && error.exit_code() == 2, "{error}");
    }
    let error = Ngram::new([vec![3, 40]], 2).unwrap().source(1, VOCAB).err().unwrap();
    assert!(error.to_string().contains("token 40"), "{error}");
}
