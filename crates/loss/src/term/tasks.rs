//! Several tasks in one run (MFTCoder, Liu et al. 2024, paper 30): what counts the same is a task, not a token.
//!
//! With `w` the token weights, `U` the tasks that a step holds and `v_k` their weights:
//!
//! - `case1`: `Σ w·nll / Σ w`, whatever the task;
//! - `case2`: the mean over rows of their own means;
//! - `case3`: `L_k = Σ_k w·nll / Σ_k w`, then `Σ_U v_k L_k / Σ_U v_k`;
//! - `case4`: `L_k` is the mean over the task's rows of their own means, then the same;
//! - `focal_sample`: `case3` of `α (1 − p)^γ · nll`, where `p` is the probability of the target;
//! - `focal_task`: `L_k = α (1 − P_k)^γ (−log P_k)`, where `P_k` is the mean over the task's rows of their mean
//!   `p`, then the same.
//!
//! **Departures**: (1) all means are those of a whole step; the published code takes those of every
//! micro-batch, so that accumulation changes what is minimised. (2) `P_k` is known only where all rows of a
//! task share a pass: training refuses anything else, an evaluation takes the mean over its passes.
//! (3) `focal_alpha` is one number; what differs between tasks is `task_weights`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Result, nearest::suggest};
use serde::{Deserialize, Serialize};

use crate::{Log, Loss, Objective, Seen, Terms, Totals, normaliser::weight};

mod focal;
mod names;

/// What counts the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every token.
    Case1,
    /// Every row.
    Case2,
    /// Every task; every token within it.
    #[default]
    Case3,
    /// Every task; every row within it.
    Case4,
    /// As `case3`, less for tokens that are known already.
    FocalSample,
    /// Every task, less for those that are known already.
    FocalTask,
}

/// `[train.loss.tasks]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// What counts the same.
    pub mode: Mode,
    /// How much less a known target counts.
    pub focal_gamma: f64,
    /// What focal losses are multiplied by.
    pub focal_alpha: f64,
    /// How much each task counts, by name; all the same where none is given.
    pub task_weights: BTreeMap<String, f64>,
    /// Name and weight of each task by its number, once they are known.
    #[serde(skip)]
    known: Vec<(&'static str, f64)>,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks {
            mode: Mode::Case3,
            focal_gamma: 2.0,
            focal_alpha: 1.0,
            task_weights: BTreeMap::new(),
            known: Vec::new(),
        }
    }
}

impl Tasks {
    /// The same with the names of the tasks by number, which the log and `task_weights` use.
    pub fn of(mut self, names: &[impl AsRef<str>]) -> Result<Self> {
        let weights = &self.task_weights;
        let names = names.iter().map(AsRef::as_ref);
        if let Some(odd) = weights.keys().find(|key| names.clone().all(|name| name != *key)) {
            let at = format!("train.loss.tasks.task_weights.{odd}");
            return Err(Error::input(at, "no task has this name").hint(suggest(odd, names)));
        }
        let weight = |name: &str| match weights.get(name) {
            Some(weight) => Ok(*weight),
            None if weights.is_empty() => Ok(1.0),
            None => Err(Error::input(
                "train.loss.tasks.task_weights",
                format!("no weight is given for the task {name}"),
            )
            .hint("name all tasks, or none")),
        };
        self.known =
            names.map(|name| Ok((names::nll(name), weight(name)?))).collect::<Result<_>>()?;
        Ok(self)
    }

    /// The same with other weights, by number.
    pub fn weighted(&self, weights: &[f64]) -> Self {
        let mut tasks = self.clone();
        tasks.known.resize(weights.len(), ("", 1.0));
        tasks.known.iter_mut().zip(weights).for_each(|((_, known), weight)| *known = *weight);
        tasks
    }

    /// What a task is called; its number where it has no name.
    pub fn name(&self, task: usize) -> String {
        let known = self.known.get(task).and_then(|(name, _)| names::task(name));
        known.map_or_else(|| task.to_string(), str::to_string)
    }

    /// The weight of a task.
    fn weight(&self, task: usize) -> Result<f64> {
        match self.known.get(task) {
            Some((_, weight)) => Ok(*weight),
            None if self.known.is_empty() => Ok(1.0),
            None => Err(Error::failed(format!("task {task}"), "has no weight")),
        }
    }

    /// What the loss of each task of a step is multiplied by.
    pub fn shares(&self, step: &Totals) -> Result<BTreeMap<usize, f64>> {
        let weight = |task: &usize| Ok((*task, self.weight(*task)?));
        let weights: BTreeMap<usize, f64> = step.tasks.keys().map(weight).collect::<Result<_>>()?;
        let sum: f64 = weights.values().sum();
        let share = |weight: f64| if sum > 0.0 { weight / sum } else { 0.0 };
        Ok(weights.into_iter().map(|(task, weight)| (task, share(weight))).collect())
    }

    /// What the nll of every token is multiplied by, so that the sum over the step is the loss times the
    /// step's weight.
    fn coefficients_n(&self, batch: &Batch, step: &Totals) -> Result<Vec<f64>> {
        let shares = self.shares(step)?;
        let mut coefficients_n: Vec<f64> = batch.weights_n.iter().map(|w| f64::from(*w)).collect();
        for row in 0..batch.rows.b() {
            let of_row = &mut coefficients_n[batch.rows.range(row)];
            let task = batch.tasks_b[row];
            let Some(total) = step.tasks.get(&task).filter(|_| of_row.iter().any(|w| *w != 0.0))
            else {
                continue;
            };
            let at = || format!("example {}", batch.examples_b[row]);
            let own = positive(of_row.iter().map(|w| w.abs()).sum(), at)?;
            let of_task = || positive(total.weight, || format!("task {task}"));
            let all = step.all.weight;
            let by = match self.mode {
                Mode::Case1 => 1.0,
                Mode::Case2 => all / (own * step.all.rows as f64),
                Mode::Case3 | Mode::FocalSample => shares[&task] * (all / of_task()?),
                Mode::Case4 | Mode::FocalTask => shares[&task] * all / (own * total.rows as f64),
            };
            of_row.iter_mut().for_each(|w| *w *= by);
        }
        Ok(coefficients_n)
    }

    /// The mean nll of each named task, for the log.
    fn logs(&self, batch: &Batch, index_m: &[u32], logp_m: &[f32]) -> Vec<Log> {
        let mut all = Log { name: "nll", sum: 0.0, weight: 0.0 };
        let mut tasks: Vec<(f64, f64)> = vec![(0.0, 0.0); self.known.len()];
        let mut row = 0;
        for (i, logp) in index_m.iter().zip(logp_m) {
            let i = *i as usize;
            while batch.rows.range(row).end <= i {
                row += 1;
            }
            let weight = f64::from(batch.weights_n[i].abs());
            let nll = -weight * f64::from(*logp);
            (all.sum, all.weight) = (all.sum + nll, all.weight + weight);
            if let Some((sum, total)) = tasks.get_mut(batch.tasks_b[row]) {
                (*sum, *total) = (*sum + nll, *total + weight);
            }
        }
        let task = |((name, _), (sum, weight)): (&(&'static str, f64), (f64, f64))| {
            (!name.is_empty() && weight != 0.0).then_some(Log { name, sum, weight })
        };
        std::iter::once(all).chain(self.known.iter().zip(tasks).filter_map(task)).collect()
    }
}

/// A sum of weights that can divide.
fn positive(sum: f64, at: impl Fn() -> String) -> Result<f64> {
    if sum.is_finite() && sum > 0.0 {
        return Ok(sum);
    }
    let what = format!("its token weights sum to {sum}, which has no mean");
    Err(Error::input(at(), what).hint("the weights of a row and of a task must sum above 0"))
}

impl Objective for Tasks {
    fn check(&self) -> Result<()> {
        let at = |key: &str| format!("train.loss.tasks.{key}");
        let refuse = |key: &str, what: &str, got: f64| {
            Err(Error::input(at(key), format!("expected {what}, got {got}")))
        };
        if !(self.focal_gamma.is_finite() && self.focal_gamma >= 0.0) {
            return refuse("focal_gamma", "a number of at least 0", self.focal_gamma);
        }
        if !(self.focal_alpha.is_finite() && self.focal_alpha > 0.0) {
            return refuse("focal_alpha", "a number above 0", self.focal_alpha);
        }
        for (name, weight) in &self.task_weights {
            if !(weight.is_finite() && *weight >= 0.0) {
                let key = format!("task_weights.{name}");
                return refuse(&key, "a number of at least 0", *weight);
            }
        }
        if !self.task_weights.is_empty() && self.task_weights.values().all(|w| *w == 0.0) {
            let what = "all are 0, so nothing would be learned";
            return Err(Error::input(at("task_weights"), what));
        }
        Ok(())
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        step.iter().map(|batch| weight(&batch.weights_n)).sum()
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, step, .. } = seen;
        let index_m = batch.trained_m();
        if index_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: vec![Log { name: "nll", sum: 0.0, weight: 0.0 }] });
        }
        let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let coefficients_n = self.coefficients_n(batch, step)?;
        let coefficients_m: Vec<f64> =
            index_m.iter().map(|i| coefficients_n[*i as usize]).collect();
        let logp_m = out.logp(&index_m, &targets_m)?.to_dtype(DType::F32)?;
        let values_m = logp_m.to_vec1::<f32>()?;
        let logs = self.logs(batch, &index_m, &values_m);

        // Every mode is a number per token times its logp, and a constant that makes the value right.
        let (slopes_m, constant) = match self.mode {
            Mode::FocalSample => focal::tokens(self, &coefficients_m, &values_m),
            Mode::FocalTask => {
                focal::tasks(self, &coefficients_m, &values_m, &index_m, batch, step)?
            }
            _ => (coefficients_m.iter().map(|c| -*c as f32).collect(), 0.0),
        };
        let slopes_m = Tensor::from_vec(slopes_m, index_m.len(), logp_m.device())?;
        let sum = (&logp_m * slopes_m)?.sum_all()?;
        let sum = if constant == 0.0 { sum } else { (sum + constant)? };
        Ok(Terms { sum, logs })
    }
}

impl Loss {
    /// The same for tasks of these names; `data.task` without an objective that tells tasks apart is
    /// refused.
    pub fn of_tasks(mut self, names: &[String]) -> Result<Self> {
        match self.tasks.take() {
            Some(_) if names.is_empty() => {
                let what = "nothing says which task a row belongs to";
                return Err(Error::input("train.loss.tasks", what)
                    .hint("data.task = \"file\", or data.task = { column = \"…\" }"));
            }
            Some(tasks) => self.tasks = Some(tasks.of(names)?),
            None if names.is_empty() => {}
            None => {
                let what = "this objective does not tell tasks apart";
                return Err(Error::input("data.task", what).hint(
                    "[train.loss.tasks] does; with mode = \"case1\" it is nll, told by task",
                ));
            }
        }
        Ok(self)
    }

    /// The same with other weights of tasks, by number.
    pub fn weighted(&self, weights: &[f64]) -> Self {
        Loss { tasks: self.tasks.as_ref().map(|tasks| tasks.weighted(weights)), ..self.clone() }
    }

    /// Whether all rows of a step must share a pass.
    pub fn undivided(&self) -> bool {
        self.tasks.as_ref().is_some_and(|tasks| tasks.mode == Mode::FocalTask)
    }
}
