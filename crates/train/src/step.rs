//! One optimizer step from its passes, exact under any split.

use std::{sync::Arc, time::Instant};

use candle_core::Tensor;
use luthier_core::{At, Batch, Ctx, Error, Hook, Param, Policy, Result, Seed};
use luthier_kernels::threads;
use luthier_loss::{Log, Objective, Totals, told};
use luthier_update::Stepper;

use crate::{
    beside::Beside,
    sum::{Gradients, Sums},
};

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Loss: the objective's sums over its normaliser, as minimised.
    pub loss: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the first group.
    pub learning_rate: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens with a non-zero weight.
    pub trained: u64,
    /// The objective's own numbers, nearly all of them means.
    pub logs: Vec<(&'static str, f64)>,
}

/// What a step reads.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// 1 for the first step.
    pub number: u64,
    /// Its rows, cut into forward passes.
    pub passes: &'a [Batch],
    /// Of dropout and the like.
    pub noise: Seed,
    /// Names an example for errors: `train.jsonl:17`.
    pub describe: &'a dyn Fn(usize) -> String,
}

/// What the passes of a step gave.
pub struct Found {
    /// The objective's sums over its normaliser.
    pub loss: f64,
    /// The objective's own numbers.
    pub logs: Vec<Log>,
    /// By variable name, of the loss.
    pub gradients: Gradients,
}

/// What a step works on.
pub struct Step<'a> {
    /// Model and hooks.
    pub policy: &'a Policy,
    /// What learns.
    pub params: &'a [Param],
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// Whose distributions the objective compares with, if it does.
    pub teacher: Option<&'a Policy>,
    /// Whether block activations are kept between forward and backward.
    pub keep: bool,
}

impl Step<'_> {
    /// Sums gradients over `passes`, divides by the whole step's normaliser, and moves the weights.
    ///
    /// `used` holds the gradients of the step before, whose memory this one takes over.
    pub fn run(
        &self,
        data: &Data,
        used: &mut Gradients,
        stepper: &mut Stepper,
    ) -> Result<StepReport> {
        self.run_beside(data, used, stepper, None)
    }

    /// [`Step::run`], with its passes shown to `beside`.
    pub fn run_beside(
        &self,
        data: &Data,
        used: &mut Gradients,
        stepper: &mut Stepper,
        beside: Option<&mut dyn Beside>,
    ) -> Result<StepReport> {
        let found = self.shown(data, std::mem::take(used), beside)?;
        *used = found.gradients;
        if stepper.two_passes() {
            stepper.ascend(&|name, _| used.get(name).cloned())?;
            let above = self.gradients(data, std::mem::take(used));
            stepper.descend()?;
            *used = above?.gradients;
        }
        let info = stepper.step(&|name, _| used.get(name).cloned())?;
        let sum = |count: &dyn Fn(&Batch) -> usize| data.passes.iter().map(count).sum::<usize>();
        Ok(StepReport {
            loss: found.loss,
            grad_norm: info.grad_norm,
            learning_rate: info.learning_rate,
            tokens: sum(&Batch::n) as u64,
            trained: sum(&|batch| batch.trained_m().len()) as u64,
            logs: told::numbers(&found.logs),
        })
    }

    /// Loss and gradients of a step, in the memory of `used` ones.
    pub fn gradients(&self, data: &Data, used: Gradients) -> Result<Found> {
        self.shown(data, used, None)
    }

    fn shown(
        &self,
        data: &Data,
        used: Gradients,
        mut beside: Option<&mut dyn Beside>,
    ) -> Result<Found> {
        let Data { number, passes, noise, describe } = *data;
        let all: Vec<&Batch> = passes.iter().collect();
        let normaliser = self.objective.normaliser(&all);
        if normaliser <= 0.0 {
            let names = examples(&all, describe);
            return Err(Error::input(format!("step {number}"), "no token of this step is trained")
                .hint(format!("look at `luthier show` for {names}")));
        }
        let whole = Totals { by: normaliser, ..Totals::of(passes) };
        let mut sums = Sums::new(self.params, used);
        let (mut loss, mut penalty, mut logs) = (0.0, 0.0, Vec::new());
        for (i, batch) in passes.iter().enumerate() {
            let noise = Some(noise.at(i as u64));
            let scale = 1.0 / normaliser;
            // A pass is thousands of small operations: the threads stay awake for all of them.
            let share = threads::together(|| {
                let show: Option<&mut dyn Beside> = match &mut beside {
                    None => None,
                    Some(beside) => Some(&mut **beside),
                };
                self.pass(batch, &whole, noise, (scale, &mut sums), show)
            })?;
            if !share.sum.is_finite() {
                return Err(self.blame(number, batch, describe));
            }
            loss += share.sum;
            add_logs(&mut logs, &share.logs);
            let rows: usize = passes.iter().map(|batch| batch.rows.b()).sum();
            penalty += self.penalties(batch, 1.0 / rows as f64, &mut sums)?;
        }
        Ok(Found { loss: loss / normaliser + penalty, logs, gradients: sums.gradients() })
    }

    /// Tokens per second of one pass: the second of two without an update, so that buffers are
    /// warm.
    pub fn time(&self, pass: &Batch) -> Result<f64> {
        let mut seconds = 0.0;
        for _ in 0..2 {
            let begun = Instant::now();
            let mut sums = Sums::new(self.params, Gradients::new());
            let by = self.objective.normaliser(&[pass]);
            let (noise, whole) = (Some(Seed(0)), Totals { by, ..Totals::of([pass]) });
            threads::together(|| self.forward_backward(pass, &whole, noise, 1.0, &mut sums))?;
            seconds = begun.elapsed().as_secs_f64();
        }
        Ok(pass.n() as f64 / seconds.max(1e-9))
    }

    /// The error for a loss that is not a number: step, examples, first site that went wrong.
    fn blame(&self, number: u64, batch: &Batch, describe: &dyn Fn(usize) -> String) -> Error {
        let site = match first_non_finite(self.policy, batch) {
            Ok(Some(site)) => format!("first at site {site}"),
            Ok(None) => "every site up to the head is finite: first in the loss itself".into(),
            Err(e) => format!("(looking for the site failed: {e})"),
        };
        let what =
            format!("the loss is not finite, {site}; examples {}", examples(&[batch], describe));
        Error::failed(format!("step {number}"), what)
            .hint("lower learning_rate, add warmup_steps, or remove the named examples")
    }
}

fn examples(micro: &[&Batch], describe: &dyn Fn(usize) -> String) -> String {
    let ids: Vec<usize> = micro.iter().flat_map(|b| b.examples_b.iter().copied()).collect();
    let shown: Vec<String> = ids.iter().take(5).map(|i| describe(*i)).collect();
    let more = ids.len().saturating_sub(5);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &tail
}

/// Adds logged sums by name.
pub(crate) fn add_logs(all: &mut Vec<Log>, new: &[Log]) {
    for log in new {
        match all.iter_mut().find(|l| l.name == log.name) {
            Some(known) => {
                known.sum += log.sum;
                known.weight += log.weight;
            }
            None => all.push(*log),
        }
    }
}

/// Notes the first site whose output is not finite.
struct Alarm(std::sync::Mutex<Option<String>>);

impl Hook for Alarm {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let mut first = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if first.is_none() {
            // A sum is not finite as soon as one term is not.
            let sum = y.to_dtype(candle_core::DType::F64)?.sum_all()?.to_scalar::<f64>()?;
            if !sum.is_finite() {
                *first = Some(at.site.name.clone());
            }
        }
        Ok(y)
    }
}

/// Runs `batch` once more, watching every site but the attention patterns.
fn first_non_finite(policy: &Policy, batch: &Batch) -> Result<Option<String>> {
    let alarm = Arc::new(Alarm(Default::default()));
    let mut hooks = policy.hooks.clone();
    for site in policy.model.sites().iter().filter(|s| !s.name.ends_with("attn.pattern")) {
        hooks.bind(site.id, alarm.clone());
    }
    let mut ctx = Ctx::new(&hooks, batch.rows.clone(), &batch.ids_n);
    let watched = Policy { model: policy.model.clone(), hooks: hooks.clone() };
    let h_nd = watched.hidden(&mut ctx)?;
    // The head is watched on the trained tokens only, to keep the logits small.
    for index in batch.trained_m().chunks(256) {
        let index = Tensor::from_slice(index, index.len(), h_nd.device())?;
        watched.model.unembed(&h_nd.index_select(&index, 0)?, &mut ctx)?;
    }
    let first = alarm.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
    Ok(first)
}
