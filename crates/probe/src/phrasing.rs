//! How much a model hangs on the phrasing of an instruction (InstructionEval, Sun et al. 2024, paper 20).
//!
//! Each template of a task asks for the same items in other words. An answer is the label with the
//! largest `Π_{k<K} p(token_k | prompt, tokens before)`, teacher-forced for every label, where `K` is
//! the token count of the item's shortest label; of equals the first. Per task, accuracies of templates
//! that occur in the tuning data (observed) and of others (unobserved) have a mean and a population
//! standard deviation; tasks are averaged after that, never their templates with one another.
//!
//! **Departures**: (1) the release reads all labels off one free generation; for `K = 1` that is the
//! same. (2) Of a prompt above 512 tokens the last ones are kept, since a decoder answers behind them.
//! (3) "Generate" is not a way of scoring here: `exact_match` judges generated answers.

use std::collections::BTreeMap;

use luthier_core::{Batch, Ctx, Error, Head, Logits, Policy, Result, Row, Seed, batch::pack};
use luthier_kernels::threads;
use serde::{Deserialize, Serialize};

use crate::stats::{Bootstrap, quantile};

mod distance;

pub use distance::{closest, spearman, states};

/// Most tokens of a prompt.
const PROMPT: usize = 512;
/// Tokens of a forward pass.
const PASS: usize = 4096;

/// A question with its possible answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The instruction with the input in it, up to where the answer begins.
    pub prompt: Vec<u32>,
    /// Tokens of each label as they follow the prompt (with the space in front, where there is one).
    pub labels: Vec<Vec<u32>>,
    /// Index of the right label.
    pub answer: usize,
}

/// What a label's log-probability is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// Of as many tokens as the item's shortest label has.
    #[default]
    PrefixProduct,
    /// Of all its tokens.
    SumLogprob,
    /// Of all its tokens, over their number.
    MeanLogprob,
}

impl Scoring {
    /// How many tokens of each label are looked at.
    pub fn counts(self, labels: &[Vec<u32>]) -> Vec<usize> {
        let shortest = labels.iter().map(Vec::len).min().unwrap_or(0);
        let count = |label: &Vec<u32>| match self {
            Scoring::PrefixProduct => shortest,
            Scoring::SumLogprob | Scoring::MeanLogprob => label.len(),
        };
        labels.iter().map(count).collect()
    }

    /// Whether two labels cannot be told apart: the first of them is taken whatever the model says.
    pub fn ties(self, labels: &[Vec<u32>]) -> bool {
        let counts = self.counts(labels);
        let seen: Vec<&[u32]> = labels.iter().zip(counts).map(|(l, k)| &l[..k]).collect();
        (1..seen.len()).any(|i| seen[..i].contains(&seen[i]))
    }

    /// The label with the largest score, where `logps[i][k]` is that of token `k` of label `i`.
    pub fn pick(self, logps: &[Vec<f64>]) -> usize {
        let shortest = logps.iter().map(Vec::len).min().unwrap_or(0);
        let score = |logps: &Vec<f64>| match self {
            Scoring::PrefixProduct => logps[..shortest].iter().sum::<f64>(),
            Scoring::SumLogprob => logps.iter().sum(),
            Scoring::MeanLogprob => logps.iter().sum::<f64>() / logps.len() as f64,
        };
        let mut best = (0, f64::NEG_INFINITY);
        for (i, score) in logps.iter().map(score).enumerate() {
            if score > best.1 {
                best = (i, score);
            }
        }
        best.0
    }
}

/// Answers to items.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// The label picked for each.
    pub picked: Vec<usize>,
    /// Share of right ones.
    pub accuracy: f64,
    /// Items of which two labels could not be told apart.
    pub ties: usize,
}

/// A row of the model's own and what is read off it: the label, and the tokens at its end.
struct Asked {
    row: Row,
    item: usize,
    label: usize,
    /// Where the first token is predicted.
    from: usize,
    tokens: Vec<u32>,
}

/// Asks the model, which is not told what is right, and warns of labels it cannot tell apart.
pub fn answers(policy: &Policy, items: &[Item], scoring: Scoring) -> Result<Answers> {
    let ties = items.iter().filter(|item| scoring.ties(&item.labels)).count();
    if ties > 0 {
        tracing::warn!(
            "{ties} of {} items have labels with one beginning: the first is taken",
            items.len()
        );
    }
    let (mut asked, mut logps) = (Vec::new(), Vec::with_capacity(items.len()));
    for (i, item) in items.iter().enumerate() {
        check(i, item)?;
        logps.push(vec![Vec::new(); item.labels.len()]);
        for (label, k) in scoring.counts(&item.labels).into_iter().enumerate() {
            asked.push(ask(policy, item, i, label, k));
        }
    }
    read(policy, &asked, |asked, logp| logps[asked.item][asked.label] = logp)?;
    let picked: Vec<usize> = logps.iter().map(|logps| scoring.pick(logps)).collect();
    let right = picked.iter().zip(items).filter(|(picked, item)| **picked == item.answer).count();
    let accuracy = right as f64 / items.len().max(1) as f64;
    Ok(Answers { picked, accuracy, ties })
}

fn check(at: usize, item: &Item) -> Result<()> {
    let what = if item.answer >= item.labels.len() {
        format!("its answer is number {} of {} labels", item.answer, item.labels.len())
    } else if item.labels.iter().any(Vec::is_empty) {
        "has a label without a token".to_string()
    } else if item.prompt.is_empty() {
        "has an empty prompt".to_string()
    } else {
        return Ok(());
    };
    Err(Error::input(format!("item {}", at + 1), what))
}

fn ask(policy: &Policy, item: &Item, at: usize, label: usize, k: usize) -> Asked {
    let prompt = &item.prompt[item.prompt.len().saturating_sub(PROMPT)..];
    let tokens = item.labels[label][..k].to_vec();
    let all = [prompt, &tokens[..]].concat();
    let weights: Vec<f32> =
        (0..all.len()).map(|i| if i < prompt.len() { 0.0 } else { 1.0 }).collect();
    let virtuals = policy.hooks.virtual_tokens;
    let row = Row::from_tokens(&all, &weights, at).behind(virtuals);
    Asked { row, item: at, label, from: virtuals + prompt.len() - 1, tokens }
}

/// Hands out the log-probabilities of the tokens of everything that is asked. Labels of one item whose
/// rows read the same tokens share a row.
fn read(policy: &Policy, asked: &[Asked], mut found: impl FnMut(&Asked, Vec<f64>)) -> Result<()> {
    let mut rows: Vec<(&Row, Vec<&Asked>)> = Vec::new();
    for one in asked {
        let mut of_item = rows.iter_mut().rev().take_while(|(_, of)| of[0].item == one.item);
        match of_item.find(|(row, _)| row.ids == one.row.ids) {
            Some((_, of)) => of.push(one),
            None => rows.push((&one.row, vec![one])),
        }
    }
    let all: Vec<usize> = (0..rows.len()).collect();
    for pass in pack(&all, |row| rows[row].0.len(), PASS) {
        let batch = Batch::from_rows(pass.iter().map(|row| rows[*row].0));
        let (mut index_m, mut targets_m) = (Vec::new(), Vec::new());
        for (b, row) in pass.iter().enumerate() {
            for asked in &rows[*row].1 {
                let from = (batch.rows.offsets[b] + asked.from) as u32;
                index_m.extend(from..from + asked.tokens.len() as u32);
                targets_m.extend(&asked.tokens);
            }
        }
        let logp_m = threads::together(|| logp(policy, &batch, &index_m, &targets_m))?;
        let mut logp_m = logp_m.into_iter().map(f64::from);
        for asked in pass.iter().flat_map(|row| rows[*row].1.iter().copied()) {
            found(asked, logp_m.by_ref().take(asked.tokens.len()).collect());
        }
    }
    Ok(())
}

fn logp(policy: &Policy, batch: &Batch, index_m: &[u32], targets_m: &[u32]) -> Result<Vec<f32>> {
    let model = &*policy.model;
    batch.check_vocab(model.vocab())?;
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model, h_nd: &h_nd, ctx: &mut ctx };
    Ok(head.logp(index_m, targets_m)?.to_vec1()?)
}

/// A mean and how far single values lie around it: the root of the mean square, without n − 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The population standard deviation.
    pub deviation: f64,
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

impl Spread {
    /// Of the templates of one task.
    pub fn of(values: &[f64]) -> Self {
        let centre = mean(values.iter().copied());
        let square = mean(values.iter().map(|v| (v - centre) * (v - centre)));
        Spread { mean: centre, deviation: square.sqrt() }
    }

    /// The mean of the means and the mean of the deviations of several tasks.
    fn over<'a>(tasks: impl ExactSizeIterator<Item = &'a Spread> + Clone) -> Self {
        let deviation = mean(tasks.clone().map(|s| s.deviation));
        Spread { mean: mean(tasks.map(|s| s.mean)), deviation }
    }
}

/// One task's accuracies, one for each template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What it is called.
    pub name: String,
    /// Of templates that occur in the tuning data.
    pub observed: Vec<f64>,
    /// Of others.
    pub unobserved: Vec<f64>,
    /// Of others yet, by kind: `negation`, `incorrect`, ….
    pub controls: BTreeMap<String, Vec<f64>>,
}

/// What one task, or the mean of all, gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Robustness {
    /// Templates that occur in the tuning data.
    pub observed: Spread,
    /// Others.
    pub unobserved: Spread,
    /// Mean accuracy of the ones less that of the others.
    pub gap: f64,
    /// The lowest accuracy of an unobserved template (over tasks: the mean of these).
    pub worst: f64,
    /// Others yet, by kind.
    pub controls: BTreeMap<String, Spread>,
}

/// Accuracy over phrasings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhrasingReport {
    /// Every task by its name.
    pub tasks: Vec<(String, Robustness)>,
    /// Their mean.
    pub all: Robustness,
    /// 95 % interval of the mean gap, drawing templates within their task and kind.
    pub gap_ci95: [f64; 2],
    /// Tasks in which observed templates do better.
    pub wins: usize,
}

impl PhrasingReport {
    /// How often templates are drawn.
    pub const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 1000, seed: 0 };

    /// Sums up tasks, each with at least one template of either kind.
    pub fn of(tasks: &[Task], bootstrap: &Bootstrap) -> Result<Self> {
        if tasks.is_empty() {
            return Err(Error::input("tasks", "nothing was measured: there is no task"));
        }
        let each: Vec<(String, Robustness)> =
            tasks.iter().map(|t| Ok((t.name.clone(), robustness(t)?))).collect::<Result<_>>()?;
        let of = || each.iter().map(|(_, found)| found);
        let mut kinds: BTreeMap<String, Vec<&Spread>> = BTreeMap::new();
        for (kind, spread) in of().flat_map(|found| &found.controls) {
            kinds.entry(kind.clone()).or_default().push(spread);
        }
        let controls = kinds.into_iter().map(|(k, s)| (k, Spread::over(s.into_iter()))).collect();
        let all = Robustness {
            observed: Spread::over(of().map(|found| &found.observed)),
            unobserved: Spread::over(of().map(|found| &found.unobserved)),
            gap: mean(of().map(|found| found.gap)),
            worst: mean(of().map(|found| found.worst)),
            controls,
        };
        let wins = of().filter(|found| found.gap > 0.0).count();
        Ok(PhrasingReport { all, gap_ci95: interval(tasks, bootstrap)?, wins, tasks: each })
    }
}

fn robustness(task: &Task) -> Result<Robustness> {
    let kinds = [("observed", &task.observed), ("unobserved", &task.unobserved)];
    let named = task.controls.iter().map(|(kind, values)| (kind.as_str(), values));
    if let Some((kind, _)) = kinds.into_iter().chain(named).find(|(_, values)| values.is_empty()) {
        return Err(Error::input(&task.name, format!("there is no template of the kind {kind}")));
    }
    let (observed, unobserved) = (Spread::of(&task.observed), Spread::of(&task.unobserved));
    let controls = task.controls.iter().map(|(kind, values)| (kind.clone(), Spread::of(values)));
    Ok(Robustness {
        observed,
        unobserved,
        gap: observed.mean - unobserved.mean,
        worst: task.unobserved.iter().copied().fold(f64::INFINITY, f64::min),
        controls: controls.collect(),
    })
}

fn interval(tasks: &[Task], bootstrap: &Bootstrap) -> Result<[f64; 2]> {
    if bootstrap.resamples == 0 {
        return Err(Error::input("bootstrap.resamples", "expected at least 1, got 0"));
    }
    let seed = Seed(bootstrap.seed).split("templates");
    let draw = |r: usize| {
        let mut rng = seed.at(r as u64).rng();
        let mut again = |of: &[f64]| mean((0..of.len()).map(|_| of[rng.below(of.len())]));
        let gaps = tasks.iter().map(|task| again(&task.observed) - again(&task.unobserved));
        mean(gaps)
    };
    let mut gaps: Vec<f64> = (0..bootstrap.resamples).map(draw).collect();
    gaps.sort_unstable_by(f64::total_cmp);
    Ok([quantile(&gaps, 0.025), quantile(&gaps, 0.975)])
}
