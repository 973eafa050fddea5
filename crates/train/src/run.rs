//! The run loop: steps, evaluations, checkpoints, samples, in an order that makes a resumed run
//! equal to one that was never interrupted.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use candle_core::Var;
use luthier_core::{Batch, Error, Policy, Result, Row, Seed, StateDict};
use luthier_loss::Objective;
use luthier_update::Stepper;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    checkpoint::{self, Progress},
    config::Train,
    evaluate::evaluate,
    log::{self, Line, Log},
    order::micro_batches,
    step::{Step, StepReport},
    sum::Gradients,
};

const BEST: &str = "best.safetensors";

/// Everything a training run works on.
pub struct Job<'a> {
    /// Model and hooks.
    pub policy: &'a Policy,
    /// What learns.
    pub vars: &'a [(String, Var)],
    /// The stage's settings.
    pub config: &'a Train,
    /// Rows to train on.
    pub train: &'a [Row],
    /// Rows to evaluate on; may be empty.
    pub eval: &'a [Row],
    /// The steps of an epoch as indices into `train`.
    pub order: &'a dyn Fn(usize) -> Vec<Vec<usize>>,
    /// Names an example for errors.
    pub describe: &'a dyn Fn(usize) -> String,
    /// Adds files to a checkpoint folder so that it can be used as a model or adapter.
    pub export: &'a dyn Fn(&Path) -> Result<()>,
    /// Generates samples for the log.
    pub sample: &'a dyn Fn(u64) -> Result<Vec<log::Sample>>,
    /// Set to stop after the step in progress.
    pub stop: &'a AtomicBool,
    /// The run directory.
    pub out: &'a Path,
    /// Goes on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Identifies recipe, data and model.
    pub fingerprint: String,
    /// Whether block activations are kept.
    pub keep: bool,
    /// Shows a progress bar.
    pub progress: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Optimizer steps done.
    pub steps: u64,
    /// Steps that were planned.
    pub total_steps: u64,
    /// Seconds of this process's training (evaluation and checkpoints included).
    pub seconds: f64,
    /// Tokens read by this process.
    pub tokens: u64,
    /// Tokens per second of stepping.
    pub tokens_per_second: f64,
    /// Mean loss over all steps.
    pub train_loss: f64,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Best evaluation: step and loss.
    pub best: Option<(u64, f64)>,
    /// Largest resident memory of the process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Why it ended before the last step, if it did.
    pub stopped: Option<Stopped>,
}

/// Reasons to end early.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Interrupted; the checkpoint to resume from.
    Interrupted(PathBuf),
    /// Evaluation had stopped improving.
    EarlyStopping,
}

/// Steps and tokens of the whole run: all epochs, cut at the requested length.
pub fn extent(
    config: &Train,
    order: &dyn Fn(usize) -> Vec<Vec<usize>>,
    rows: &[Row],
) -> (u64, u64) {
    let (mut steps, mut tokens, mut left, mut epoch) = (0, 0, config.epochs, 0);
    let most = config.max_steps.unwrap_or(u64::MAX);
    while left > 0.0 && steps < most {
        let all = order(epoch);
        let share = (all.len() as f64 * left.min(1.0)).ceil() as u64;
        let taken = share.min(most - steps);
        steps += taken;
        let read = |step: &Vec<usize>| step.iter().map(|i| rows[*i].len() as u64).sum::<u64>();
        tokens += all.iter().take(taken as usize).map(read).sum::<u64>();
        left -= 1.0;
        epoch += 1;
    }
    (steps, tokens)
}

/// The forward passes of a step.
pub fn passes(step: &[usize], rows: &[Row], micro_tokens: usize) -> Vec<Batch> {
    let batch = |pass: &Vec<usize>| Batch::from_rows(pass.iter().map(|i| &rows[*i]));
    micro_batches(step, rows, micro_tokens).iter().map(batch).collect()
}

struct Run<'a> {
    job: &'a Job<'a>,
    objective: &'a dyn Objective,
    stepper: Stepper,
    /// Of the step before.
    gradients: Gradients,
    progress: Progress,
    total: u64,
    log: Log,
    bar: log::Progress,
    started: Instant,
    stepping: f64,
    tokens: u64,
    eval_loss: Option<f64>,
    evaluated_at: u64,
}

/// Trains to the end, to an early stop, or to an interruption.
pub fn run(job: &Job) -> Result<Outcome> {
    let objective = job.config.loss.objective()?;
    let (total, _) = extent(job.config, job.order, job.train);
    if total == 0 {
        return Err(Error::input("train", "there is no step to make: no row is left to train on"));
    }
    let mut stepper = Stepper::new(&job.config.update, job.vars, total)?;
    let newest = checkpoint::list(job.out)?.pop().filter(|_| job.resume);
    let progress = match &newest {
        Some((_, dir)) => checkpoint::load(dir, &job.fingerprint, job.vars, &mut stepper)?,
        None => Progress { fingerprint: job.fingerprint.clone(), ..Progress::default() },
    };
    let log = Log::open(job.out, job.resume.then_some(progress.step), true)?;
    let bar = match job.progress {
        true => log::Progress::new(total, progress.step),
        false => log::Progress::silent(),
    };
    let run = Run {
        job,
        objective,
        stepper,
        gradients: Gradients::new(),
        progress,
        total,
        log,
        bar,
        started: Instant::now(),
        stepping: 0.0,
        tokens: 0,
        eval_loss: None,
        evaluated_at: 0,
    };
    run.all()
}

impl Run<'_> {
    fn all(mut self) -> Result<Outcome> {
        let mut stopped = None;
        let (mut epoch, mut first) = (0, 0);
        'epochs: while self.progress.step < self.total {
            let steps = (self.job.order)(epoch);
            for (i, rows) in steps.iter().enumerate() {
                if first + (i as u64) < self.progress.step {
                    continue;
                }
                let place = epoch as f64 + (i + 1) as f64 / steps.len() as f64;
                self.step(rows, place)?;
                if self.after_step(place)? {
                    stopped = Some(Stopped::EarlyStopping);
                    break 'epochs;
                }
                if self.job.stop.load(Ordering::SeqCst) && self.progress.step < self.total {
                    stopped = Some(Stopped::Interrupted(self.checkpoint()?));
                    break 'epochs;
                }
                if self.progress.step >= self.total {
                    break 'epochs;
                }
            }
            first += steps.len() as u64;
            epoch += 1;
        }
        self.finish(stopped)
    }

    fn step(&mut self, rows: &[usize], epoch: f64) -> Result<()> {
        let (config, begun) = (self.job.config, Instant::now());
        let passes = passes(rows, self.job.train, config.micro_tokens());
        let number = self.progress.step + 1;
        let step = Step {
            policy: self.job.policy,
            vars: self.job.vars,
            objective: self.objective,
            keep: self.job.keep,
        };
        let noise = Seed(config.seed).split("noise").at(number);
        let used = &mut self.gradients;
        let report =
            step.run(number, &passes, noise, used, &mut self.stepper, self.job.describe)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.stepping += seconds;
        self.tokens += report.tokens;
        self.progress.step = number;
        self.progress.tokens += report.tokens;
        self.progress.loss_sum += report.loss;
        if number.is_multiple_of(config.logging_steps) || number == self.total {
            self.log_step(&report, epoch, seconds)?;
        }
        self.bar.step(number, report.loss, report.tokens);
        Ok(())
    }

    fn log_step(&mut self, report: &StepReport, epoch: f64, seconds: f64) -> Result<()> {
        self.log.write(&Line::Step(log::Step {
            step: self.progress.step,
            epoch,
            loss: report.loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens: self.progress.tokens,
            tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
            seconds: self.started.elapsed().as_secs_f64(),
            more: named(&report.logs, ""),
        }))
    }

    /// Evaluation, samples and checkpoint when they are due; true when training should stop.
    fn after_step(&mut self, epoch: f64) -> Result<bool> {
        let (step, config) = (self.progress.step, self.job.config);
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let mut give_up = false;
        if due(config.eval_steps) && !self.job.eval.is_empty() {
            give_up = self.evaluate(epoch)?;
        }
        if due(config.sample_steps) {
            for sample in (self.job.sample)(step)? {
                let line = format!("step {step}: {:?}", sample.sample_text);
                self.log.write(&Line::Sample(sample))?;
                self.bar.say(&line);
            }
        }
        if due(config.save_steps) {
            self.checkpoint()?;
        }
        Ok(give_up)
    }

    fn evaluate(&mut self, epoch: f64) -> Result<bool> {
        let (job, step, begun) = (self.job, self.progress.step, Instant::now());
        let (loss, logs) =
            evaluate(job.policy, self.objective, job.eval, job.config.micro_tokens())?;
        self.log.write(&Line::Eval(log::Eval {
            step,
            epoch,
            eval_loss: loss,
            eval_runtime: begun.elapsed().as_secs_f64(),
            more: named(&logs, "eval_"),
        }))?;
        self.bar.say(&format!("step {step}: evaluation loss {loss:.4}"));
        self.eval_loss = Some(loss);
        self.evaluated_at = step;
        self.stepper.observe(loss)?;
        let bar = self.progress.best.map_or(f64::INFINITY, |(_, best)| best);
        if loss < bar - job.config.early_stopping_threshold {
            self.progress.best = Some((step, loss));
            self.progress.evals_without_improvement = 0;
            if job.config.load_best_model_at_end {
                checkpoint::snapshot(job.vars).save(&job.out.join(BEST), &[])?;
            }
        } else {
            self.progress.evals_without_improvement += 1;
        }
        let patience = job.config.early_stopping_patience;
        Ok(patience.is_some_and(|p| self.progress.evals_without_improvement >= p))
    }

    fn checkpoint(&mut self) -> Result<PathBuf> {
        // The log first: a checkpoint never knows steps that the log lacks.
        self.log.sync()?;
        let (job, best) = (self.job, self.progress.best.map(|(step, _)| step));
        let dir = checkpoint::save(job.out, &self.progress, job.vars, &self.stepper, job.export)?;
        if let Some(limit) = job.config.save_total_limit {
            checkpoint::prune(job.out, limit, best)?;
        }
        self.bar.restart_clock();
        Ok(dir)
    }

    fn finish(mut self, stopped: Option<Stopped>) -> Result<Outcome> {
        let (job, config) = (self.job, self.job.config);
        let interrupted = matches!(stopped, Some(Stopped::Interrupted(_)));
        if !interrupted {
            if !job.eval.is_empty() && self.evaluated_at != self.progress.step {
                let epoch = config.epochs * self.progress.step as f64 / self.total as f64;
                self.evaluate(epoch)?;
            }
            let best = job.out.join(BEST);
            if config.load_best_model_at_end && best.is_file() {
                checkpoint::restore(job.vars, &StateDict::load(&best)?, &best)?;
            }
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let steps = self.progress.step;
        let train_loss = self.progress.loss_sum / steps.max(1) as f64;
        if !interrupted {
            self.log.write(&Line::End(log::End {
                step: steps,
                epoch: config.epochs * steps as f64 / self.total as f64,
                train_loss,
                train_runtime: seconds,
                train_steps_per_second: steps as f64 / seconds.max(1e-9),
                more: Map::new(),
            }))?;
        }
        self.log.sync()?;
        self.bar.finish();
        Ok(Outcome {
            steps,
            total_steps: self.total,
            seconds,
            tokens: self.tokens,
            tokens_per_second: self.tokens as f64 / self.stepping.max(1e-9),
            train_loss,
            eval_loss: self.eval_loss,
            best: self.progress.best,
            peak_rss_bytes: log::rss().map(|(_, peak)| peak),
            stopped,
        })
    }
}

fn named(logs: &[(&'static str, f64)], prefix: &str) -> Map<String, Value> {
    logs.iter().map(|(name, value)| (format!("{prefix}{name}"), Value::from(*value))).collect()
}
