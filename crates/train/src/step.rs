//! One optimizer step from its shards, exact under any split.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use candle_core::{Tensor, Var};
use luthier_core::{At, Batch, Ctx, Error, Hook, Policy, Result, Seed};
use luthier_kernels::threads;
use luthier_loss::{Log, Objective};
use luthier_update::Stepper;

use crate::{backward::Share, sum::Sums};

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
    /// The objective's own numbers, as means.
    pub logs: Vec<(&'static str, f64)>,
}

/// What a step works on.
pub struct Step<'a> {
    /// Model and hooks.
    pub policy: &'a Policy,
    /// What learns.
    pub vars: &'a [(String, Var)],
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// Whether block activations are kept between forward and backward.
    pub keep: bool,
}

impl Step<'_> {
    /// Sums gradients over `passes`, divides by the whole step's normaliser, and moves the weights.
    /// The shards of one pass run side by side.
    ///
    /// `describe` names an example for errors: `train.jsonl:17`.
    pub fn run(
        &self,
        number: u64,
        passes: &[Vec<Batch>],
        noise: Seed,
        stepper: &mut Stepper,
        describe: &dyn Fn(usize) -> String,
    ) -> Result<StepReport> {
        let all: Vec<&Batch> = passes.iter().flatten().collect();
        let normaliser = self.objective.normaliser(&all);
        if normaliser <= 0.0 {
            let names = examples(&all, describe);
            return Err(Error::input(format!("step {number}"), "no token of this step is trained")
                .hint(format!("look at `luthier show` for {names}")));
        }
        let sums = Sums::new(self.vars, all.len());
        let (mut shares, mut first) = (Vec::with_capacity(all.len()), 0);
        for pass in passes {
            let new = self.pass(pass, noise, first, 1.0 / normaliser, &sums);
            shares.extend(new.map_err(|trouble| match trouble {
                Trouble::NotFinite(i) => self.blame(number, &pass[i], describe),
                Trouble::Error(error) => error,
            })?);
            first += pass.len();
        }
        let gradients = sums.gradients()?;
        let mut logs = Vec::new();
        shares.iter().for_each(|share| add_logs(&mut logs, &share.logs));
        let sum: f64 = shares.iter().map(|share| share.sum).sum();
        let info = stepper.step(&|name, _| gradients.get(name).cloned())?;
        Ok(StepReport {
            loss: sum / normaliser,
            grad_norm: info.grad_norm,
            learning_rate: info.learning_rate,
            tokens: all.iter().map(|b| b.n() as u64).sum(),
            trained: all.iter().map(|b| b.trained_m().len() as u64).sum(),
            logs: means(&logs),
        })
    }

    /// The shards of one pass, the first of them being number `first` of the step.
    ///
    /// Threads take the shards in order, and gradients are summed in that order whoever is done
    /// first: the sum follows from the shards alone, and little waits for its turn.
    fn pass(
        &self,
        shards: &[Batch],
        noise: Seed,
        first: usize,
        scale: f64,
        sums: &Sums,
    ) -> std::result::Result<Vec<Share>, Trouble> {
        let run = |i: usize| -> std::result::Result<Share, Trouble> {
            let mut shard = sums.shard(first + i);
            let noise = Some(noise.at((first + i) as u64));
            let share = self.forward_backward(&shards[i], noise, scale, &mut shard)?;
            shard.finish()?;
            if share.sum.is_finite() { Ok(share) } else { Err(Trouble::NotFinite(i)) }
        };
        // With fewer shards, cores would idle if each shard kept to one.
        if shards.len() < 2 || 2 * shards.len() <= threads::count() {
            return (0..shards.len()).map(run).collect();
        }
        let next = AtomicUsize::new(0);
        let shares = shards.iter().map(|_| Mutex::new(None)).collect::<Vec<_>>();
        threads::for_each(vec![(); threads::count().min(shards.len())], |()| {
            threads::alone(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= shards.len() {
                        return;
                    }
                    let share = run(i);
                    if share.is_err() {
                        next.store(shards.len(), Ordering::Relaxed);
                    }
                    *shares[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(share);
                }
            });
        });
        // After a trouble the later shards are missing, but none before it: that one is told of.
        let shares = shares.into_iter();
        shares.map_while(|it| it.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Tokens per second of one pass: the second of two without an update, so that buffers are
    /// warm.
    pub fn time(&self, pass: &[Batch]) -> Result<f64> {
        let mut seconds = 0.0;
        for _ in 0..2 {
            let begun = Instant::now();
            match self.pass(pass, Seed(0), 0, 1.0, &Sums::new(self.vars, pass.len())) {
                // A loss that is not finite is for the first step to explain; it takes its time too.
                Ok(_) | Err(Trouble::NotFinite(_)) => {}
                Err(Trouble::Error(error)) => return Err(error),
            }
            seconds = begun.elapsed().as_secs_f64();
        }
        let tokens: usize = pass.iter().map(Batch::n).sum();
        Ok(tokens as f64 / seconds.max(1e-9))
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

/// Why a shard gave nothing.
enum Trouble {
    /// The loss of the pass's shard with this number is not finite.
    NotFinite(usize),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Error(error)
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

pub(crate) fn means(logs: &[Log]) -> Vec<(&'static str, f64)> {
    logs.iter().filter(|l| l.weight != 0.0).map(|l| (l.name, l.sum / l.weight)).collect()
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
