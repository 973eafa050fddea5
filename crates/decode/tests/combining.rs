//! The rules that combine several sources: their formulas by hand, their limits, and what they cost.

mod fake;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use fake::{Fake, Letters, VOCAB};
use luthier_core::{Policy, Result, Seed};
use luthier_decode::{
    Combine, Generate, Generated, Parts, Source,
    combine::{
        Cfg, Contrastive, Delta, Emulate, Kind, Linear, Mixture, Outside, Picked, Proxy, log_z,
    },
    generate, generate_from,
    sources::{PolicySource, Reworded, Step},
};

fn some_logits(seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).rng();
    (0..50).map(|_| 3.0 * rng.normal() as f32).collect()
}

fn probs(logits_v: &[f32]) -> Vec<f64> {
    let z = log_z(logits_v);
    logits_v.iter().map(|l| (f64::from(*l) - z).exp()).collect()
}

fn combined(rule: &dyn Combine, logits_sv: &[&[f32]]) -> Vec<f64> {
    rule.check(logits_sv.len()).unwrap();
    let mut out = vec![f32::NAN; logits_sv[0].len()];
    rule.combine(logits_sv, &mut out);
    probs(&out)
}

fn close(got: &[f64], want: &[f64], within: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < within, "{i}: {g} {w}");
    }
}

fn logs(probs: &[f32]) -> Vec<f32> {
    probs.iter().map(|p| p.ln()).collect()
}

fn emulate(beta: f32) -> Emulate {
    let delta = Delta { tuned: "t".into(), untuned: "u".into(), beta };
    Emulate { deltas: vec![delta], ..Emulate::default() }
}

#[test]
fn emulation_by_hand() {
    let (base, untuned, tuned) =
        (logs(&[0.7, 0.2, 0.1]), logs(&[0.5, 0.3, 0.2]), logs(&[0.25, 0.6, 0.15]));
    let all = [&base[..], &tuned, &untuned];
    close(&combined(&emulate(1.0), &all), &[0.42424, 0.48485, 0.09091], 1e-5);
    close(&combined(&emulate(2.0), &all), &[0.16970, 0.77576, 0.05455], 1e-5);
    close(&combined(&emulate(0.0), &all), &[0.7, 0.2, 0.1], 1e-6);
    // Small and large one and the same: the tuned model. A pair that did not change: the base.
    close(&combined(&emulate(1.0), &[&base, &tuned, &base]), &probs(&tuned), 1e-6);
    close(&combined(&emulate(1.0), &[&base, &tuned, &tuned]), &probs(&base), 1e-6);
    // Two halves of one delta are one.
    let mut halves = emulate(0.3);
    halves.deltas.push(Delta { beta: 0.7, ..halves.deltas[0].clone() });
    let both = combined(&halves, &[&base, &tuned, &untuned, &tuned, &untuned]);
    close(&both, &[0.42424, 0.48485, 0.09091], 1e-5);
    // A constant on any member changes nothing.
    for member in 0..3 {
        let mut moved = [base.clone(), tuned.clone(), untuned.clone()];
        moved[member].iter_mut().for_each(|l| *l += 3.0);
        let moved: Vec<&[f32]> = moved.iter().map(Vec::as_slice).collect();
        close(&combined(&emulate(1.0), &moved), &[0.42424, 0.48485, 0.09091], 1e-5);
    }
    // What the large base never says stays unsaid.
    let never = [f32::NEG_INFINITY, base[1], base[2]];
    assert_eq!(combined(&emulate(1.0), &[&never, &tuned, &untuned])[0], 0.0);
}

#[test]
fn the_nucleus_of_the_base_bounds_the_delta() {
    let (base, untuned, tuned) =
        (logs(&[0.6, 0.3, 0.1]), logs(&[0.5, 0.3, 0.2]), logs(&[0.25, 0.15, 0.6]));
    let all = [&base[..], &tuned, &untuned];
    // 0.8 is reached by the first two.
    let mask = Emulate { top_p: 0.8, ..emulate(1.0) };
    close(&combined(&mask, &all), &[0.3 / 0.45, 0.15 / 0.45, 0.0], 1e-6);
    let keep = Emulate { outside: Outside::Keep, ..mask.clone() };
    close(&combined(&keep, &all), &[0.3 / 0.55, 0.15 / 0.55, 0.1 / 0.55], 1e-6);
    // A constant in a small model's logits moves nothing either way.
    let moved: Vec<f32> = tuned.iter().map(|l| l + 5.0).collect();
    for rule in [&mask, &keep] {
        close(&combined(rule, &[&base, &moved, &untuned]), &combined(rule, &all), 1e-6);
    }
    assert!(Emulate { top_p: 0.0, ..emulate(1.0) }.check(3).is_err());
    assert!(emulate(f32::NAN).check(3).is_err() && emulate(1.0).check(2).is_err());
}

#[test]
fn other_rules_by_their_formulas() {
    let (a, b, c) = (some_logits(1), some_logits(2), some_logits(3));
    let (p, q) = (probs(&a), probs(&b));
    let normal = |x: Vec<f64>| {
        let z: f64 = x.iter().sum();
        x.into_iter().map(|x| x / z).collect::<Vec<f64>>()
    };
    let over = |f: &dyn Fn(usize) -> f64| normal((0..50).map(f).collect());

    let proxy = Proxy { alpha: 0.7, ..Proxy::default() };
    let r = probs(&c);
    let want = over(&|v| p[v] * (q[v] / r[v]).powf(0.7));
    close(&combined(&proxy, &[&a, &b, &c]), &want, 1e-6);

    let cfg = Cfg { guidance_scale: 2.5, ..Cfg::default() };
    let want = over(&|v| (2.5 * (p[v].ln() - q[v].ln()) + q[v].ln()).exp());
    close(&combined(&cfg, &[&a, &b]), &want, 1e-6);
    let same = Cfg { guidance_scale: 1.0, ..Cfg::default() };
    close(&combined(&same, &[&a, &b]), &p, 1e-6);

    let mixture = Mixture { weights: vec![3.0, 1.0], ..Mixture::default() };
    let want = over(&|v| 0.75 * p[v] + 0.25 * q[v]);
    close(&combined(&mixture, &[&a, &b]), &want, 1e-6);
    let mut out = vec![0.0; 50];
    mixture.combine(&[&a, &b], &mut out);
    assert!(log_z(&out).abs() < 1e-5, "a mixture is normalised as it is");

    let best = p.iter().copied().fold(0.0, f64::max);
    for (beta, temperature) in [(1.0f32, 1.0f32), (0.5, 0.7)] {
        let rule = Contrastive { beta, amateur_temperature: temperature, ..Contrastive::default() };
        let cold: Vec<f32> = b.iter().map(|l| l / temperature).collect();
        let amateur = probs(&cold);
        let want = over(&|v| match p[v] >= 0.1 * best {
            true => p[v] / amateur[v].powf(f64::from(beta)),
            false => 0.0,
        });
        close(&combined(&rule, &[&a, &b]), &want, 1e-6);
    }
    let alone = Contrastive { alpha: 0.0, beta: 0.0, ..Contrastive::default() };
    close(&combined(&alone, &[&a, &b]), &p, 1e-6);
}

#[test]
fn one_source_alone_is_itself_under_every_rule() {
    let (a, b, c) = (some_logits(4), some_logits(5), some_logits(6));
    let p = probs(&a);
    let first = |n: usize| {
        let mut numbers = vec![0.0f32; n];
        numbers[0] = 1.0;
        numbers
    };
    let rules: Vec<(Box<dyn Combine>, usize)> = vec![
        (Box::new(Linear { coefficients: first(3), ..Linear::default() }), 3),
        (Box::new(Mixture { weights: first(3), ..Mixture::default() }), 3),
        (Box::new(emulate(0.0)), 3),
        (Box::new(Proxy { alpha: 0.0, ..Proxy::default() }), 3),
        (Box::new(Contrastive { alpha: 0.0, beta: 0.0, ..Contrastive::default() }), 2),
        (Box::new(Cfg { guidance_scale: 1.0, ..Cfg::default() }), 2),
    ];
    let never = vec![f32::NEG_INFINITY; 50];
    for (rule, n) in rules {
        close(&combined(rule.as_ref(), &[&a[..], &b, &c][..n]), &p, 1e-6);
        // Others without a say may say anything.
        close(&combined(rule.as_ref(), &[&a[..], &never, &never][..n]), &p, 1e-6);
    }
}

#[test]
fn a_rule_takes_its_sources_by_name_and_each_once() {
    let rule = Kind::Emulate(emulate(1.0));
    let picked = Picked::new(rule.clone(), &["u", "policy", "t"]).unwrap();
    let (a, b, c) = (some_logits(1), some_logits(2), some_logits(3));
    close(&combined(&picked, &[&b, &a, &c]), &combined(&rule, &[&a, &c, &b]), 1e-9);
    assert!(picked.check(2).is_err());
    let error = Picked::new(rule, &["u", "police", "t"]).unwrap_err().to_string();
    assert!(error.contains("`policy`") && error.contains("did you mean police"), "{error}");
    // The base of the deltas twice, with one source behind it.
    let mut twice = emulate(0.5);
    twice.deltas.push(twice.deltas[0].clone());
    let picked = Picked::new(Kind::Emulate(twice), &["policy", "t", "u"]).unwrap();
    close(&combined(&picked, &[&a, &b, &c]), &combined(&emulate(1.0), &[&a, &b, &c]), 1e-5);
}

/// Counts the tokens that a source reads.
struct Counted<'a>(PolicySource<'a>, Arc<AtomicUsize>);

impl Source for Counted<'_> {
    fn vocab(&self) -> usize {
        self.0.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        self.1.fetch_add(step.ids_n.len(), Ordering::Relaxed);
        self.0.step(step, logits_bv)
    }

    fn free(&mut self, slot: usize) {
        self.0.free(slot);
    }
}

fn prompts() -> Vec<Vec<u32>> {
    let mut rng = Seed(8).rng();
    (0..7).map(|i| (0..1 + i).map(|_| rng.below(VOCAB) as u32).collect()).collect()
}

fn greedy() -> Generate {
    Generate { max_new_tokens: 20, eos: vec![4], max_batch: 3, ..Generate::default() }
}

fn run(policies: &[&Policy], rule: &dyn Combine, read: &Arc<AtomicUsize>) -> Vec<Generated> {
    let mut sources: Vec<Box<dyn Source + '_>> = Vec::new();
    for policy in policies {
        sources.push(Box::new(Counted(PolicySource::new(policy, 3), read.clone())));
    }
    let parts = Parts { sources, combine: rule, constrain: vec![] };
    generate_from(parts, &prompts(), &greedy(), &Letters, &mut |_, _, _| ()).unwrap()
}

#[test]
fn equal_models_cost_one_forward_pass_each() {
    let policy = Fake::policy(1);
    let read = |k: usize| {
        let counter = Arc::new(AtomicUsize::new(0));
        let rule = Mixture { weights: vec![1.0; k], ..Mixture::default() };
        let all = run(&vec![&policy; k], &rule, &counter);
        (counter.load(Ordering::Relaxed), all)
    };
    let (one, alone) = read(1);
    for k in 2..5 {
        let (tokens, mixed) = read(k);
        assert_eq!(tokens, k * one, "{k} models");
        assert_eq!(mixed, alone);
    }
}

#[test]
fn a_source_with_its_own_prompt_reads_it_and_then_the_answer() {
    let (policy, prompts) = (Fake::policy(1), prompts());
    // Longer, shorter and equal ones.
    let own: Vec<Vec<u32>> =
        prompts.iter().enumerate().map(|(i, p)| [&p[..], &[2; 9][..i % 4]].concat()).collect();
    let own: Vec<Vec<u32>> =
        own.into_iter().enumerate().map(|(i, p)| p[..p.len() - (i + 1) % 2].to_vec()).collect();
    let own: Vec<Vec<u32>> =
        own.into_iter().map(|p| if p.is_empty() { vec![3] } else { p }).collect();
    let reworded = Reworded::new(Box::new(PolicySource::new(&policy, 3)), own.clone(), &prompts);
    let sources: Vec<Box<dyn Source>> =
        vec![Box::new(PolicySource::new(&policy, 3)), Box::new(reworded.unwrap())];
    let rule = Linear { coefficients: vec![0.0, 1.0], ..Linear::default() };
    let parts = Parts { sources, combine: &rule, constrain: vec![] };
    let got = generate_from(parts, &prompts, &greedy(), &Letters, &mut |_, _, _| ()).unwrap();
    let want = generate(&policy, &own, &greedy(), &Letters, &mut |_, _, _| ()).unwrap();
    assert_eq!(got, want);
    let refused = |own: Vec<Vec<u32>>| {
        let source = Box::new(PolicySource::new(&policy, 3));
        Reworded::new(source, own, &prompts).err().expect("no prompts").to_string()
    };
    assert!(refused(vec![vec![]; 7]).starts_with("prompt 1"));
    assert!(refused(vec![vec![99]; 7]).contains("token id 99"));
    assert!(refused(vec![]).contains("expected 7"));
}

#[test]
fn tokens_beyond_the_common_vocabulary_are_dropped() {
    let policy = Fake::policy(3);
    let sources: Vec<Box<dyn Source>> =
        vec![Box::new(PolicySource::new(&policy, 3).narrowed(VOCAB - 4))];
    let rule = Linear { coefficients: vec![1.0], ..Linear::default() };
    let parts = Parts { sources, combine: &rule, constrain: vec![] };
    let prompts = vec![vec![1, 2, 3], vec![5]];
    let got = generate_from(parts, &prompts, &greedy(), &Letters, &mut |_, _, _| ()).unwrap();
    let ban = (VOCAB as u32 - 4..VOCAB as u32).collect();
    let options = Generate { ban, ..greedy() };
    let want = generate(&policy, &prompts, &options, &Letters, &mut |_, _, _| ()).unwrap();
    assert_eq!(got, want);
}
