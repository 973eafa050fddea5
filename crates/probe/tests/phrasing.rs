//! Accuracy over phrasings: the paper's numbers, and labels as a model scores them.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, Tensor};
use luthier_core::{Error, Policy, Result, Rows, Seed};
use luthier_probe::{
    Bootstrap,
    phrasing::{Item, PhrasingReport, Scoring, Spread, Task, answers, closest, spearman, states},
};
use luthier_testkit::{Fake, Shape};

fn task(name: &str, observed: &[f64], unobserved: &[f64]) -> Task {
    Task {
        name: name.to_string(),
        observed: observed.to_vec(),
        unobserved: unobserved.to_vec(),
        controls: BTreeMap::new(),
    }
}

fn report(tasks: &[Task]) -> Result<PhrasingReport> {
    PhrasingReport::of(tasks, &PhrasingReport::BOOTSTRAP)
}

fn close(got: f64, want: f64, within: f64) {
    assert!((got - want).abs() < within, "{got} {want}");
}

#[test]
fn the_papers_example_has_its_means_deviations_and_gap() {
    let found = report(&[task("t", &[0.80, 0.82], &[0.70, 0.60, 0.80])]).unwrap();
    let all = &found.all;
    close(all.observed.mean, 0.81, 1e-12);
    close(all.unobserved.mean, 0.70, 1e-12);
    close(all.observed.deviation, 0.010, 1e-12);
    close(all.unobserved.deviation, 0.0816, 5e-5);
    close(all.gap, 0.11, 1e-12);
    assert_eq!((all.worst, found.wins), (0.60, 1));
}

/// Templates of all tasks together would spread by 0.2; within their tasks they hardly do.
#[test]
fn spread_is_taken_within_tasks_and_averaged_then() {
    let mut easy = task("easy", &[0.9, 0.9], &[0.8, 0.9]);
    easy.controls.insert("negation".to_string(), vec![0.2, 0.4]);
    let hard = task("hard", &[0.5, 0.5], &[0.6, 0.5]);
    let found = report(&[easy, hard]).unwrap();
    assert_eq!(found.all.observed, Spread { mean: 0.7, deviation: 0.0 });
    close(found.all.unobserved.mean, 0.7, 1e-12);
    close(found.all.unobserved.deviation, 0.05, 1e-12);
    close(found.all.gap, 0.0, 1e-12);
    close(found.all.worst, 0.65, 1e-12);
    assert_eq!(found.wins, 1);
    // Of the task that has it.
    close(found.all.controls["negation"].mean, 0.3, 1e-12);
    assert_eq!(found.tasks[0].0, "easy");
    // Half of the draws of two templates are mixed: the interval reaches to the extremes.
    close(found.gap_ci95[0], -0.05, 1e-9);
    close(found.gap_ci95[1], 0.05, 1e-9);
}

#[test]
fn an_interval_over_templates_is_that_of_independent_draws() {
    let (observed, unobserved) = ([0.9, 0.92, 0.88, 0.91, 0.89], [0.7, 0.5, 0.8, 0.6, 0.65, 0.75]);
    let many = Bootstrap { resamples: 40_000, seed: 1 };
    let found = PhrasingReport::of(&[task("t", &observed, &unobserved)], &many).unwrap();
    // Normal approximation: the variances of both means add up.
    let of = |values: &[f64]| Spread::of(values).deviation.powi(2) / values.len() as f64;
    let error = (of(&observed) + of(&unobserved)).sqrt();
    let [low, high] = found.gap_ci95;
    close(low, found.all.gap - 1.96 * error, 0.1 * error);
    close(high, found.all.gap + 1.96 * error, 0.1 * error);
}

#[test]
fn a_kind_without_templates_is_refused() {
    let refused = |tasks: &[Task]| -> Error { report(tasks).unwrap_err() };
    assert!(refused(&[task("t", &[], &[0.5])]).to_string().contains("t: there is no template"));
    assert!(refused(&[]).to_string().contains("no task"));
}

fn policy() -> Policy {
    Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(11))))
}

/// Log-probabilities of the tokens of a label, from the logits of the whole text.
fn naive(policy: &Policy, prompt: &[u32], label: &[u32]) -> Vec<f64> {
    let all = [prompt, label].concat();
    let logits = policy.logits(&all, Arc::new(Rows::single(all.len()))).unwrap();
    let z_n = logits.exp().unwrap().sum(D::Minus1).unwrap().log().unwrap();
    let (logits, z) = (logits.to_vec2::<f32>().unwrap(), z_n.to_vec1::<f32>().unwrap());
    let at = |(k, token): (usize, &u32)| {
        let n = prompt.len() - 1 + k;
        f64::from(logits[n][*token as usize] - z[n])
    };
    label.iter().enumerate().map(at).collect()
}

fn items() -> Vec<Item> {
    let mut rng = Seed(4).rng();
    let mut tokens = |n: usize| (0..n).map(|_| rng.below(13) as u32).collect::<Vec<u32>>();
    (0..40)
        .map(|i| Item {
            prompt: tokens(1 + i % 5),
            labels: vec![tokens(1 + i % 3), tokens(2), tokens(1 + i % 2), tokens(3)],
            answer: i % 4,
        })
        .collect()
}

#[test]
fn answers_are_those_of_every_label_scored_by_itself() {
    let (policy, items) = (policy(), items());
    let mut differ = 0;
    for scoring in [Scoring::PrefixProduct, Scoring::SumLogprob, Scoring::MeanLogprob] {
        let found = answers(&policy, &items, scoring).unwrap();
        let mut right = 0;
        for (item, picked) in items.iter().zip(&found.picked) {
            let logps: Vec<Vec<f64>> =
                item.labels.iter().map(|label| naive(&policy, &item.prompt, label)).collect();
            let k = item.labels.iter().map(Vec::len).min().unwrap();
            let score = |logps: &Vec<f64>| -> f64 {
                match scoring {
                    Scoring::PrefixProduct => logps[..k].iter().map(|logp| logp.exp()).product(),
                    Scoring::SumLogprob => logps.iter().sum(),
                    Scoring::MeanLogprob => logps.iter().sum::<f64>() / logps.len() as f64,
                }
            };
            let scores: Vec<f64> = logps.iter().map(score).collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!((scores[*picked] - best).abs() < 1e-5, "{scoring:?}: {scores:?} {picked}");
            assert_eq!(scoring.pick(&logps), *picked);
            right += usize::from(*picked == item.answer);
            differ += usize::from(scoring != Scoring::PrefixProduct)
                * usize::from(Scoring::PrefixProduct.pick(&logps) != *picked);
        }
        assert_eq!(found.accuracy, right as f64 / 40.0);
    }
    assert!(differ > 0, "no item tells the ways of scoring apart");
}

#[test]
fn as_many_tokens_count_as_the_shortest_label_has() {
    // "yes" and "not sure".
    let labels = [vec![3], vec![7, 8]];
    assert_eq!(Scoring::PrefixProduct.counts(&labels), [1, 1]);
    assert_eq!(Scoring::SumLogprob.counts(&labels), [1, 2]);
    // The second token of the longer one would lose it the sum.
    let logps = [vec![-1.0], vec![-0.5, -9.0]];
    assert_eq!(Scoring::PrefixProduct.pick(&logps), 1);
    assert_eq!(Scoring::SumLogprob.pick(&logps), 0);
}

#[test]
fn labels_with_one_beginning_are_counted_and_the_first_is_taken() {
    let labels = vec![vec![5], vec![7, 8], vec![7, 9]];
    assert!(Scoring::PrefixProduct.ties(&labels) && !Scoring::SumLogprob.ties(&labels));
    assert_eq!(Scoring::PrefixProduct.pick(&[vec![-2.0], vec![-1.0, -3.0], vec![-1.0, -2.0]]), 1);
    let mut items = items();
    items.truncate(3);
    let before = answers(&policy(), &items, Scoring::PrefixProduct).unwrap();
    items.push(Item { prompt: vec![1, 2], labels, answer: 2 });
    let found = answers(&policy(), &items, Scoring::PrefixProduct).unwrap();
    assert_eq!(found.ties, before.ties + 1);
    assert_ne!(found.picked[3], 2);
}

#[test]
fn items_that_cannot_be_asked_are_refused() {
    let good = Item { prompt: vec![1], labels: vec![vec![2], vec![3]], answer: 1 };
    let refused = |bad: Item, what: &str| {
        let error = answers(&policy(), &[good.clone(), bad], Scoring::default()).unwrap_err();
        assert!(error.to_string().starts_with("item 2: ") && error.to_string().contains(what));
    };
    refused(Item { answer: 2, ..good.clone() }, "number 2 of 2 labels");
    refused(Item { labels: vec![vec![2], vec![]], ..good.clone() }, "without a token");
    refused(Item { prompt: vec![], ..good.clone() }, "empty prompt");
    assert_eq!(answers(&policy(), &[good], Scoring::default()).unwrap().picked.len(), 1);
}

#[test]
fn states_are_those_before_the_answer_and_distances_those_of_the_closest() {
    let (policy, items) = (policy(), items());
    let found = states(&policy, &items).unwrap();
    for (item, state) in items.iter().zip(&found).take(6) {
        let rows = Arc::new(Rows::single(item.prompt.len()));
        let mut ctx = luthier_core::Ctx::new(&policy.hooks, rows, &item.prompt);
        let h_nd = policy.hidden(&mut ctx).unwrap();
        let last: Tensor = h_nd.get(item.prompt.len() - 1).unwrap();
        for (got, want) in state.iter().zip(last.to_vec1::<f32>().unwrap()) {
            assert!((got - want).abs() < 1e-5);
        }
    }
    let at = |x: f32| vec![vec![x, 0.0], vec![0.0, x]];
    assert_eq!(closest(&[at(5.0), at(1.0), at(-3.0)], &at(0.0)).unwrap(), 1.0);
    assert!(closest(&[at(5.0)], &at(0.0)[..1]).is_err());
}

#[test]
fn ranks_are_correlated_and_equals_share_theirs() {
    close(spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 5.0]), -0.2, 1e-12);
    // Ranks 0, 1.5, 1.5, 3 and 0, 2, 1, 3.
    let want = 4.5 / 22.5f64.sqrt();
    close(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]), want, 1e-12);
    assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
}
