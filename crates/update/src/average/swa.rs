//! Stochastic weight averaging (Izmailov et al. 2018): the plain mean of the weights along the end
//! of a run.
//!
//! From step `⌈start · total⌉` on, the weights of every `every`-th step enter the mean with the same
//! weight. **Departures**: (1) there is no learning rate schedule of its own: name `constant`, or
//! whichever is wanted.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Average;
use crate::optimizer::check_share;

/// `[train.update.swa]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Swa {
    /// Share of the run before it begins; until then the average is the weights.
    pub start: f64,
    /// Steps from one set of weights to the next.
    pub every: u64,
}

impl Default for Swa {
    fn default() -> Self {
        // The paper begins at three quarters of the usual length.
        Swa { start: 0.75, every: 1 }
    }
}

impl Average for Swa {
    fn check(&self, at: &str) -> Result<()> {
        check_share(at, "start", self.start)?;
        if self.every == 0 {
            return Err(Error::input(format!("{at}.every"), "expected at least 1, got 0"));
        }
        Ok(())
    }

    fn share(&self, step: u64, total: u64) -> f64 {
        let first = ((self.start * total as f64).ceil() as u64).max(1);
        match step.checked_sub(first) {
            None => 1.0,
            Some(since) if since.is_multiple_of(self.every) => {
                1.0 / (since / self.every + 1) as f64
            }
            Some(_) => 0.0,
        }
    }
}
