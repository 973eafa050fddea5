//! Weights of tasks that follow how the tasks converge, seen on held-out rows (MFTCoder, Liu et al. 2024, paper
//! 30).
//!
//! Before a step, each task's loss is measured on some of its evaluation rows, drawn for this step; the losses
//! so far give the weights with which `train.loss.tasks` goes on. Training losses would reward what is learned by
//! heart. Everything remembered goes into checkpoints, and a draw follows from seed and step, so that a resumed
//! run has the weights of one that never stopped.

use luthier_core::{Error, Result, Row, Seed};
use luthier_loss::Loss;
use serde::{Deserialize, Serialize};

mod coba;
mod famo;

pub use coba::Coba;
pub use famo::Famo;

/// `[train.balance]`: at most one of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// More for tasks that converge slowly, less for those that diverge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coba: Option<Coba>,
    /// The same rate of progress for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub famo: Option<Famo>,
}

impl Balance {
    /// Whether nothing is balanced.
    pub fn is_off(&self) -> bool {
        self.coba.is_none() && self.famo.is_none()
    }

    /// Refuses settings that cannot be meant with this objective.
    pub fn check(&self, loss: &Loss) -> Result<()> {
        if self.coba.is_some() && self.famo.is_some() {
            return Err(
                Error::input("train.balance", "names both coba and famo").hint("keep one of them")
            );
        }
        if !self.is_off() && loss.tasks.is_none() {
            let what = "weighs tasks, and the objective does not tell them apart";
            return Err(Error::input("train.balance", what).hint("add [train.loss.tasks]"));
        }
        self.coba.as_ref().map_or(Ok(()), Coba::check)?;
        self.famo.as_ref().map_or(Ok(()), Famo::check)
    }
}

/// What is remembered between steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The weight of each task.
    pub weights: Vec<f64>,
    /// How often losses were measured.
    pub updates: u64,
    /// The first loss of each task.
    pub first: Vec<f64>,
    /// The latest ones of each, as shares of the first.
    pub losses: Vec<Vec<f64>>,
    /// Their slopes, and that of the largest.
    pub slopes: Vec<Vec<f64>>,
    /// After how many measurements there was a slope.
    pub since: Option<u64>,
    /// What the weights are the softmax of.
    pub logits: Vec<f64>,
}

/// The loss of some rows of one task.
pub type Measure<'m> = dyn FnMut(&[Row]) -> Result<f64> + 'm;

/// What balances a run.
pub struct Balancer<'a> {
    how: &'a Balance,
    seed: Seed,
    /// Of each task, its evaluation rows.
    rows: Vec<Vec<&'a Row>>,
    state: State,
    /// What was measured before the step in progress.
    before: Vec<f64>,
}

impl<'a> Balancer<'a> {
    /// One for the tasks of `train`, measured on rows of `eval`; `None` where nothing is balanced.
    pub fn new(
        how: &'a Balance,
        seed: u64,
        train: &[Row],
        eval: &'a [Row],
    ) -> Result<Option<Self>> {
        if how.is_off() {
            return Ok(None);
        }
        let n = train.iter().map(|row| row.task + 1).max().unwrap_or(0);
        let of = |task: usize| -> Vec<&Row> {
            eval.iter().filter(|row| row.task == task && row.trained() > 0).collect()
        };
        let rows: Vec<Vec<&Row>> = (0..n).map(of).collect();
        let missing = rows.iter().position(Vec::is_empty);
        let trained = |task: usize| train.iter().find(|row| row.task == task);
        if let Some(row) = missing.and_then(trained) {
            let what = format!(
                "no evaluation row is of the task of example {}: nothing tells how it converges",
                row.example
            );
            return Err(Error::input("train.balance", what)
                .hint("name data.eval with rows of every task, or raise data.eval_fraction"));
        }
        let state =
            State { weights: vec![1.0 / n as f64; n], logits: vec![0.0; n], ..State::default() };
        let seed = Seed(seed).split("balance");
        Ok(Some(Balancer { how, seed, rows, state, before: Vec::new() }))
    }

    /// Goes on from a checkpoint.
    pub fn load(&mut self, state: State) -> Result<()> {
        if state.weights.len() != self.rows.len() {
            let what = format!(
                "expected the weights of {} tasks, found {}",
                self.rows.len(),
                state.weights.len()
            );
            return Err(Error::input("checkpoint", what));
        }
        self.state = state;
        Ok(())
    }

    /// What a checkpoint must know.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The weight of each task.
    pub fn weights(&self) -> &[f64] {
        &self.state.weights
    }

    /// Measures and weighs before step `number`, counted from 1.
    pub fn before(&mut self, number: u64, measure: &mut Measure) -> Result<()> {
        if let Some(coba) = &self.how.coba {
            if !(number - 1).is_multiple_of(coba.update_interval) {
                return Ok(());
            }
            let losses = self.losses(number, coba.valid_rows, coba.sample_valid_num, measure)?;
            coba.update(&mut self.state, number, &losses);
        }
        if let Some(famo) = &self.how.famo {
            self.before = self.losses(number, famo.valid_rows, 1, measure)?;
            self.state.weights = famo.weights(&self.state.logits, &self.before);
        }
        Ok(())
    }

    /// Measures the same rows again after the step, where progress is what counts.
    pub fn after(&mut self, number: u64, measure: &mut Measure) -> Result<()> {
        let Some(famo) = &self.how.famo else { return Ok(()) };
        let after = self.losses(number, famo.valid_rows, 1, measure)?;
        famo.update(&mut self.state.logits, &self.before, &after);
        self.state.updates += 1;
        Ok(())
    }

    /// The loss of each task, the mean over `batches` draws of `n` of its rows.
    fn losses(
        &self,
        number: u64,
        n: usize,
        batches: usize,
        measure: &mut Measure,
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(self.rows.len());
        for (task, rows) in self.rows.iter().enumerate() {
            let seed = self.seed.at(number).at(task as u64);
            let mut sum = 0.0;
            for batch in 0..batches {
                sum += measure(&draw(rows, n, seed.at(batch as u64)))?;
            }
            let loss = sum / batches as f64;
            if !(loss.is_finite() && loss >= 0.0) {
                let what = format!("the evaluation loss of task {task} is {loss}");
                return Err(Error::failed(format!("step {number}"), what));
            }
            losses.push(loss);
        }
        Ok(losses)
    }
}

/// `n` of the rows, none twice; all where there are no more.
fn draw(rows: &[&Row], n: usize, seed: Seed) -> Vec<Row> {
    let mut all: Vec<&Row> = rows.to_vec();
    let (n, mut rng) = (n.min(all.len()), seed.rng());
    for i in 0..n {
        let other = i + rng.below(all.len() - i);
        all.swap(i, other);
    }
    all[..n].iter().map(|row| (*row).clone()).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|x| x / sum).collect()
}

/// Refuses what is not above 0.
fn positive(key: &str, ok: bool, got: impl std::fmt::Display) -> Result<()> {
    match ok {
        true => Ok(()),
        false => {
            let what = format!("expected a number above 0, got {got}");
            Err(Error::input(format!("train.balance.{key}"), what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: usize, example: usize) -> Row {
        Row { task, ..Row::from_tokens(&[1, 2, 3], &[0.0, 1.0, 1.0], example) }
    }

    #[test]
    fn rows_are_drawn_by_step_and_task_and_none_twice() {
        let rows: Vec<Row> = (0..9).map(|i| row(i % 2, i)).collect();
        let coba = Coba { valid_rows: 3, ..Coba::default() };
        let how = Balance { coba: Some(coba), ..Balance::default() };
        let drawn = |number: u64, seed: u64| {
            let mut seen: Vec<Vec<(usize, usize)>> = Vec::new();
            let mut balancer = Balancer::new(&how, seed, &rows, &rows).unwrap().unwrap();
            let mut measure = |rows: &[Row]| {
                seen.push(rows.iter().map(|row| (row.task, row.example)).collect());
                Ok(1.0)
            };
            balancer.before(number, &mut measure).unwrap();
            seen
        };
        let first = drawn(1, 7);
        assert_eq!(first.len(), 2);
        for (task, rows) in first.iter().enumerate() {
            let mut examples: Vec<usize> = rows.iter().map(|(_, example)| *example).collect();
            assert!(rows.len() == 3 && rows.iter().all(|(of, _)| *of == task), "{rows:?}");
            examples.sort_unstable();
            examples.dedup();
            assert_eq!(examples.len(), 3);
        }
        assert_eq!(first, drawn(1, 7));
        let others = [drawn(2, 7), drawn(3, 7), drawn(1, 8), drawn(2, 8)];
        assert!(others.iter().any(|other| *other != first));
    }

    #[test]
    fn what_cannot_be_balanced_is_refused() {
        let refused = |text: &str, loss: &str| {
            let how: Balance = toml::from_str(text).unwrap();
            how.check(&toml::from_str(loss).unwrap()).unwrap_err().to_string()
        };
        assert!(refused("[coba]\n[famo]", "[tasks]").contains("both coba and famo"));
        assert!(refused("[coba]", "[nll]").contains("[train.loss.tasks]"));
        assert!(refused("[coba]\ntau = 0.0", "[tasks]").contains("train.balance.coba.tau"));
        assert!(refused("[famo]\nvalid_rows = 0", "[tasks]").contains("train.balance.famo.valid"));
        let how: Balance = toml::from_str("[coba]").unwrap();
        let (train, eval) = ([row(0, 0), row(1, 5)], [row(0, 0)]);
        let error = Balancer::new(&how, 1, &train, &eval).err().unwrap().to_string();
        assert!(error.contains("example 5") && error.contains("data.eval"), "{error}");
    }
}
