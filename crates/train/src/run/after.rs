//! What is due after a step, and the end of a run.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use luthier_core::{Result, StateDict};
use serde_json::Map;

use super::{Run, named};
use crate::{
    checkpoint,
    evaluate::{evaluate, next_token},
    log::{self, Line},
    outcome::{Outcome, Stopped},
};

const BEST: &str = "best.safetensors";

impl Run<'_> {
    /// Evaluation, samples and checkpoint when they are due; true when training should stop.
    pub(super) fn after_step(&mut self, epoch: f64) -> Result<bool> {
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
        // What the objective itself is sure of has been told.
        if job.config.eval_ece && !logs.iter().any(|(name, _)| *name == "ece") {
            let found = next_token(policy, job.eval, micro_tokens)?;
            logs.retain(|(name, _)| found.iter().all(|(new, _)| new != name));
            logs.extend(found);
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

    pub(super) fn checkpoint(&mut self) -> Result<PathBuf> {
        // The log first: a checkpoint never knows steps that the log lacks.
        self.log.sync()?;
        let (job, best) = (self.job, self.progress.best.map(|(step, _)| step));
        let (bound, course) = (job.bound, &self.course);
        let beside = self.beside.as_deref();
        let export = |dir: &Path| -> Result<()> {
            beside.map_or(Ok(()), |beside| beside.save(dir))?;
            (job.export)(dir)
        };
        let dir =
            checkpoint::save(job.out, &self.progress, bound, course, &mut self.stepper, &export)?;
        if let Some(limit) = job.config.save_total_limit {
            checkpoint::prune(job.out, limit, best)?;
        }
        self.bar.restart_clock();
        Ok(dir)
    }

    pub(super) fn finish(mut self, stopped: Option<Stopped>) -> Result<Outcome> {
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
