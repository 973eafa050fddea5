//! A run whose tasks are weighed: what it measures, follows and tells.

use luthier_core::{Batch, Error, Result, Row};
use luthier_loss::{Loss, Objective};
use serde_json::{Map, Value};

use super::{Job, Run, named};
use crate::{config::Train, evaluate::evaluate, step::StepReport};

impl Run<'_> {
    /// The loss with the weights of tasks for this step, where they follow something.
    pub(super) fn weighed(&mut self, number: u64) -> Result<Option<Loss>> {
        let (job, objective) = (self.job, self.objective.as_ref());
        let Some(balance) = &mut self.balance else { return Ok(None) };
        balance.before(number, &mut |rows| measure(job, objective, rows))?;
        Ok(Some(job.config.loss.weighted(balance.weights())))
    }

    /// Lets the weights of tasks see what a step did.
    pub(super) fn follow(&mut self, number: u64) -> Result<()> {
        let (job, objective) = (self.job, self.objective.as_ref());
        let Some(balance) = &mut self.balance else { return Ok(()) };
        balance.after(number, &mut |rows| measure(job, objective, rows))?;
        self.progress.balance = Some(balance.state().clone());
        Ok(())
    }

    /// What an objective tells of a step, and the weights of tasks where they change.
    pub(super) fn more(&self, report: &StepReport) -> Map<String, Value> {
        let mut more = named(&report.logs, "");
        let (Some(balance), Some(tasks)) = (&self.balance, &self.job.config.loss.tasks) else {
            return more;
        };
        for (task, weight) in balance.weights().iter().enumerate() {
            more.insert(format!("task_weight/{}", tasks.name(task)), Value::from(*weight));
        }
        more
    }
}

/// Refuses a step in several passes where the objective needs it whole.
pub(super) fn undivided(config: &Train, passes: &[Batch]) -> Result<()> {
    if !config.loss.undivided() || passes.len() < 2 {
        return Ok(());
    }
    let tokens: usize = passes.iter().map(Batch::n).sum();
    let what = format!("this objective needs the {tokens} tokens of a step in one pass");
    Err(Error::input("train.micro_tokens", what)
        .hint(format!("train.micro_tokens = {tokens} or more, or a smaller step")))
}

/// The objective's mean over some rows, as the policy is.
fn measure(job: &Job, objective: &dyn Objective, rows: &[Row]) -> Result<f64> {
    let (policy, micro) = (&job.bound.policy, job.config.micro_tokens());
    Ok(evaluate(policy, objective, job.teacher, rows, micro)?.0)
}
