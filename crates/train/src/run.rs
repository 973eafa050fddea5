//! The run loop: steps, evaluations, checkpoints, samples, in an order that makes a resumed run
//! equal to one that was never interrupted.

use std::{sync::atomic::Ordering, time::Instant};

use luthier_core::{Batch, Error, Result, Row, Seed};
use luthier_loss::{Loss, Objective};
use luthier_params::Handover;
use luthier_update::{Start, Stepper};
use serde_json::{Map, Value};

use crate::{
    balance::Balancer,
    beside::Beside,
    checkpoint::{self, Progress},
    course::{Course, Place},
    draw::fresh::Fresh,
    job::{Drawn, Job},
    log::{self, Line, Log},
    neftune,
    order::{by_task, extent, micro_batches, place},
    outcome::{Outcome, Stopped},
    step::{Data, Step, StepReport},
    sum::Gradients,
};

mod after;
mod tasks;

/// The forward passes of a step; every `unit` rows share one.
pub fn passes(step: &[usize], rows: &[Row], micro_tokens: usize, unit: usize) -> Vec<Batch> {
    let batch = |pass: &Vec<usize>| Batch::from_rows(pass.iter().map(|i| &rows[*i]));
    micro_batches(step, rows, micro_tokens, unit).iter().map(batch).collect()
}

struct Run<'a> {
    job: &'a Job<'a>,
    beside: Option<&'a mut dyn Beside>,
    objective: Box<dyn Objective + 'a>,
    balance: Option<Balancer<'a>>,
    course: Course<'a>,
    /// What masks are read as, where not as themselves.
    fresh: Option<Fresh>,
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
    run_beside(job, None)
}

/// [`run`] with something that learns beside the policy from what its passes show.
pub fn run_beside<'a>(job: &'a Job<'a>, mut beside: Option<&'a mut dyn Beside>) -> Result<Outcome> {
    let objective = job.config.loss.objective()?;
    let of_round = |round| extent(job.config, &|epoch| (job.order)(round, epoch), job.train).0;
    let lengths: Vec<u64> = (0..job.rounds).map(of_round).collect();
    let total = lengths.iter().sum();
    if lengths.contains(&0) {
        return Err(Error::input("train", "there is no step to make: no row is left to train on"));
    }
    let newest = checkpoint::list(job.out)?.pop().filter(|_| job.resume);
    let mut course = Course::new(job.bound, Seed(job.config.seed).split("course"))?;
    // Before a checkpoint moves the weights: from those that training began with.
    let fresh = Fresh::of(job.config, &job.bound.policy)?;
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
    if let Some(beside) = &mut beside {
        beside.begin(total, newest.as_ref().map(|(_, dir)| dir.as_path()))?;
    }
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
        beside,
        objective,
        balance,
        course,
        fresh,
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
        let cut = |step: &[usize], rows: &[Row]| match config.group_by_task {
            None => passes(step, rows, config.micro_tokens(), unit),
            Some(_) => {
                let of_task = |step: &Vec<usize>| passes(step, rows, config.micro_tokens(), unit);
                by_task(step, rows).iter().flat_map(of_task).collect()
            }
        };
        let passes = match self.job.draw {
            None => cut(rows, self.job.train),
            Some(draw) => {
                let made = draw(Drawn {
                    step: number - 1,
                    of: self.total,
                    seed: Seed(config.seed).split("draw").at(number),
                    policy: &self.course.policy,
                    rows: rows.iter().map(|i| self.job.train[*i].clone()).collect(),
                })?;
                let all: Vec<usize> = (0..made.len()).collect();
                cut(&all, &made)
            }
        };
        let data = Data {
            number,
            passes: &passes,
            noise: Seed(config.seed).split("noise").at(number),
            describe: self.job.describe,
        };
        tasks::undivided(config, &passes)?;
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
        let reading = self.fresh.as_ref().map(|fresh| fresh.read_by(policy)).transpose()?;
        let policy = reading.as_ref().unwrap_or(policy);
        let step = Step { policy, params: &self.course.params, ..all };
        let show: Option<&mut dyn Beside> = match &mut self.beside {
            None => None,
            Some(beside) => Some(&mut **beside),
        };
        let mut report = step.run_beside(&data, &mut self.gradients, &mut self.stepper, show)?;
        if let Some(beside) = &mut self.beside {
            report.logs.extend(beside.step()?);
        }
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
}

fn named(logs: &[(&'static str, f64)], prefix: &str) -> Map<String, Value> {
    logs.iter().map(|(name, value)| (format!("{prefix}{name}"), Value::from(*value))).collect()
}
