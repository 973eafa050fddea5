//! The run loop: steps, evaluations, checkpoints, samples, in an order that makes a resumed run
//! equal to one that was never interrupted.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use luthier_core::{Batch, Error, Policy, Result, Row, Seed, StateDict};
use luthier_loss::{Loss, Objective};
use luthier_params::{Bound, Handover};
use luthier_update::{Start, Stepper};
use serde_json::{Map, Value};

use crate::{
    balance::Balancer,
    checkpoint::{self, Progress},
    config::Train,
    course::{Course, Place},
    evaluate::{ece, evaluate},
    log::{self, Line, Log},
    neftune,
    order::{extent, micro_batches, place},
    outcome::{Outcome, Stopped},
    step::{Data, Step, StepReport},
    sum::Gradients,
};

const BEST: &str = "best.safetensors";

/// Everything a training run works on.
pub struct Job<'a> {
    /// Model, hooks and what may learn.
    pub bound: &'a Bound,
    /// The stage's settings.
    pub config: &'a Train,
    /// Rows to train on.
    pub train: &'a [Row],
    /// Rows to evaluate on; may be empty.
    pub eval: &'a [Row],
    /// How often the schedule is run, each time with a new optimizer.
    pub rounds: usize,
    /// The steps of an epoch of a round as indices into `train`.
    pub order: &'a dyn Fn(usize, usize) -> Vec<Vec<usize>>,
    /// What is done to the rows of a step as they are drawn.
    pub draw: Option<&'a Draw<'a>>,
    /// Whose distributions the objective compares with, if it does.
    pub teacher: Option<&'a Policy>,
    /// What the update needs to know of model and data.
    pub start: &'a Start<'a>,
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

/// Makes the rows of a step from those that were drawn for it: a function of nothing but what it is
/// told, so that a resumed run makes the same.
pub type Draw<'a> = dyn Fn(Drawn) -> Result<Vec<Row>> + 'a;

/// What was drawn for a step.
pub struct Drawn<'a> {
    /// How many steps came before.
    pub step: u64,
    /// Steps of the whole run.
    pub of: u64,
    /// Of everything random.
    pub seed: Seed,
    /// The policy as it is.
    pub policy: &'a Policy,
    /// In whole units.
    pub rows: Vec<Row>,
}

/// The forward passes of a step; every `unit` rows share one.
pub fn passes(step: &[usize], rows: &[Row], micro_tokens: usize, unit: usize) -> Vec<Batch> {
    let batch = |pass: &Vec<usize>| Batch::from_rows(pass.iter().map(|i| &rows[*i]));
    micro_batches(step, rows, micro_tokens, unit).iter().map(batch).collect()
}

struct Run<'a> {
    job: &'a Job<'a>,
    objective: Box<dyn Objective + 'a>,
    balance: Option<Balancer<'a>>,
    course: Course<'a>,
    stepper: Stepper,
    /// Of the step before.
    gradients: Gradients,
    progress: Progress,
    /// Steps of each round.
    lengths: Vec<u64>,
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
    let of_round = |round| extent(job.config, &|epoch| (job.order)(round, epoch), job.train).0;
    let lengths: Vec<u64> = (0..job.rounds).map(of_round).collect();
    let total = lengths.iter().sum();
    if lengths.contains(&0) {
        return Err(Error::input("train", "there is no step to make: no row is left to train on"));
    }
    let newest = checkpoint::list(job.out)?.pop().filter(|_| job.resume);
    let mut course = Course::new(job.bound, Seed(job.config.seed).split("course"))?;
    let (progress, stepper) = match &newest {
        None => {
            let progress = Progress { fingerprint: job.fingerprint.clone(), ..Progress::default() };
            (progress, stepper(job, &course, lengths[0])?)
        }
        Some((_, dir)) => {
            let progress = checkpoint::load(dir, &job.fingerprint, job.bound, &mut course)?;
            // The optimizer is that of the last step, also where a round has just ended.
            let (round, _) = place(&lengths, progress.step.saturating_sub(1));
            let mut stepper = stepper(job, &course, lengths[round])?;
            checkpoint::load_stepper(dir, &mut stepper)?;
            (progress, stepper)
        }
    };
    let mut balance = Balancer::new(&job.config.balance, job.config.seed, job.train, job.eval)?;
    if let (Some(balance), Some(state)) = (&mut balance, &progress.balance) {
        balance.load(state.clone())?;
    }
    let log = Log::open(job.out, job.resume.then_some(progress.step), true)?;
    let bar = match job.progress {
        true => log::Progress::new(total, progress.step),
        false => log::Progress::silent(),
    };
    let run = Run {
        job,
        objective,
        balance,
        course,
        stepper,
        gradients: Gradients::new(),
        progress,
        lengths,
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

fn stepper(job: &Job, course: &Course, steps: u64) -> Result<Stepper> {
    let start = Start { total_steps: steps, ..*job.start };
    Stepper::new(&job.config.update, &course.params, &start)
}

impl Run<'_> {
    fn all(mut self) -> Result<Outcome> {
        let mut stopped = None;
        let (first, _) = place(&self.lengths, self.progress.step);
        for round in first..self.lengths.len() {
            let begun: u64 = self.lengths[..round].iter().sum();
            if round > 0 && self.progress.step == begun {
                self.stepper = stepper(self.job, &self.course, self.lengths[round])?;
            }
            stopped = self.round(round, begun)?;
            if stopped.is_some() {
                break;
            }
        }
        self.finish(stopped)
    }

    /// The rest of a round whose first step follows `begun` steps.
    fn round(&mut self, round: usize, begun: u64) -> Result<Option<Stopped>> {
        let end = begun + self.lengths[round];
        let (mut epoch, mut first) = (0, begun);
        while self.progress.step < end {
            let steps = (self.job.order)(round, epoch);
            for (i, rows) in steps.iter().enumerate() {
                if first + (i as u64) < self.progress.step {
                    continue;
                }
                let epochs = epoch as f64 + (i + 1) as f64 / steps.len() as f64;
                let place = Place {
                    round,
                    step: self.progress.step - begun,
                    steps: self.lengths[round],
                    epoch_begins: i == 0,
                };
                self.step(rows, place, epochs)?;
                if self.after_step(epochs)? {
                    return Ok(Some(Stopped::EarlyStopping));
                }
                if self.job.stop.load(Ordering::SeqCst) && self.progress.step < self.total {
                    return Ok(Some(Stopped::Interrupted(self.checkpoint()?)));
                }
                if self.progress.step >= end {
                    break;
                }
            }
            first += steps.len() as u64;
            epoch += 1;
        }
        Ok(None)
    }

    fn step(&mut self, rows: &[usize], place: Place, epoch: f64) -> Result<()> {
        let (config, begun) = (self.job.config, Instant::now());
        let unit = self.objective.unit().rows();
        let number = self.progress.step + 1;
        let passes = match self.job.draw {
            None => passes(rows, self.job.train, config.micro_tokens(), unit),
            Some(draw) => {
                let made = draw(Drawn {
                    step: number - 1,
                    of: self.total,
                    seed: Seed(config.seed).split("draw").at(number),
                    policy: &self.course.policy,
                    rows: rows.iter().map(|i| self.job.train[*i].clone()).collect(),
                })?;
                let all: Vec<usize> = (0..made.len()).collect();
                passes(&all, &made, config.micro_tokens(), unit)
            }
        };
        let data = Data {
            number,
            passes: &passes,
            noise: Seed(config.seed).split("noise").at(number),
            describe: self.job.describe,
        };
        if config.loss.undivided() && passes.len() > 1 {
            let tokens: usize = passes.iter().map(Batch::n).sum();
            let what = format!("this objective needs the {tokens} tokens of a step in one pass");
            return Err(Error::input("train.micro_tokens", what)
                .hint(format!("train.micro_tokens = {tokens} or more, or a smaller step")));
        }
        let loss = self.weighed(number)?;
        let objective = loss.as_ref().map(Loss::objective).transpose()?;
        let all = Step {
            policy: &self.job.bound.policy,
            params: &self.job.bound.params,
            objective: objective.as_deref().unwrap_or(self.objective.as_ref()),
            teacher: self.job.teacher,
            keep: self.job.keep,
        };
        // A trial at the very start of a warm-up would move nothing.
        let rate = match self.stepper.learning_rate()? {
            0.0 => config.update.check()?.learning_rate,
            rate => rate,
        };
        match self.course.choose(place, &all, &data, rate, &self.stepper)? {
            // Where a round begins is where its penalties pull to.
            Some(_) if place.step == 0 => {
                self.stepper = stepper(self.job, &self.course, place.steps)?;
            }
            Some(handover) => {
                self.stepper.rebind(&self.course.params, handover == Handover::Keep)?;
            }
            None => {}
        }
        let noisy = match config.neftune_noise_alpha {
            Some(alpha) => {
                let seed = Seed(config.seed).split("neftune").at(number);
                Some(neftune::with(&self.course.policy, alpha, seed)?)
            }
            None => None,
        };
        let policy = noisy.as_ref().unwrap_or(&self.course.policy);
        let step = Step { policy, params: &self.course.params, ..all };
        let report = step.run(&data, &mut self.gradients, &mut self.stepper)?;
        self.follow(number)?;
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

    /// The loss with the weights of tasks for this step, where they follow something.
    fn weighed(&mut self, number: u64) -> Result<Option<Loss>> {
        let (job, objective) = (self.job, self.objective.as_ref());
        let Some(balance) = &mut self.balance else { return Ok(None) };
        balance.before(number, &mut |rows| measure(job, objective, rows))?;
        Ok(Some(job.config.loss.weighted(balance.weights())))
    }

    /// Lets the weights of tasks see what a step did.
    fn follow(&mut self, number: u64) -> Result<()> {
        let (job, objective) = (self.job, self.objective.as_ref());
        let Some(balance) = &mut self.balance else { return Ok(()) };
        balance.after(number, &mut |rows| measure(job, objective, rows))?;
        self.progress.balance = Some(balance.state().clone());
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
            more: self.more(report),
        }))
    }

    /// What an objective tells of a step, and the weights of tasks where they change.
    fn more(&self, report: &StepReport) -> Map<String, Value> {
        let mut more = named(&report.logs, "");
        let (Some(balance), Some(tasks)) = (&self.balance, &self.job.config.loss.tasks) else {
            return more;
        };
        for (task, weight) in balance.weights().iter().enumerate() {
            more.insert(format!("task_weight/{}", tasks.name(task)), Value::from(*weight));
        }
        more
    }

    /// Evaluation, samples and checkpoint when they are due; true when training should stop.
    fn after_step(&mut self, epoch: f64) -> Result<bool> {
        let (step, config) = (self.progress.step, self.job.config);
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let mut give_up = false;
        if due(config.eval_steps) && !self.job.eval.is_empty() {
            self.stepper.exchange()?;
            give_up = self.evaluate(epoch)?;
            self.stepper.exchange()?;
        }
        if due(config.sample_steps) {
            self.stepper.exchange()?;
            let samples = (self.job.sample)(step)?;
            self.stepper.exchange()?;
            for sample in samples {
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

    /// With the weights to use, which are not always those that are trained.
    fn evaluate(&mut self, epoch: f64) -> Result<bool> {
        let (job, step, begun) = (self.job, self.progress.step, Instant::now());
        let (policy, micro_tokens) = (&job.bound.policy, job.config.micro_tokens());
        let objective = self.objective.as_ref();
        let (loss, mut logs) = evaluate(policy, objective, job.teacher, job.eval, micro_tokens)?;
        if job.config.eval_ece {
            logs.push(("ece", ece(policy, job.eval, micro_tokens)?));
        }
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
                checkpoint::snapshot(&job.bound.params).save(&job.out.join(BEST), &[])?;
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
        let (bound, course) = (job.bound, &self.course);
        let dir = checkpoint::save(
            job.out,
            &self.progress,
            bound,
            course,
            &mut self.stepper,
            job.export,
        )?;
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
            // What is exported and measured from here on are the weights to use.
            self.stepper.exchange()?;
            if !job.eval.is_empty() && self.evaluated_at != self.progress.step {
                let epoch = config.epochs * self.progress.step as f64 / self.total as f64;
                self.evaluate(epoch)?;
            }
            let best = job.out.join(BEST);
            if config.load_best_model_at_end && best.is_file() {
                checkpoint::restore(&job.bound.params, &StateDict::load(&best)?, &best)?;
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

/// The objective's mean over some rows, as the policy is.
fn measure(job: &Job, objective: &dyn Objective, rows: &[Row]) -> Result<f64> {
    let (policy, micro) = (&job.bound.policy, job.config.micro_tokens());
    Ok(evaluate(policy, objective, job.teacher, rows, micro)?.0)
}

fn named(logs: &[(&'static str, f64)], prefix: &str) -> Map<String, Value> {
    logs.iter().map(|(name, value)| (format!("{prefix}{name}"), Value::from(*value))).collect()
}
