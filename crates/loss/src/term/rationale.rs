//! An answer, and the answer with the reason for it, as two objectives (MORepair, Yang et al. 2025, paper 41).
//!
//! Every example becomes two rows: `x → y` and `x → y e`. With `L1` and `L2` the means over the target tokens of
//! a step's rows of each kind, `L = (1 − α) L1 + α L2`. Pooling the tokens instead would let long reasons
//! outweigh the answers. With `α = 0` there is no second row and this is fine-tuning on `x → y`; with `α = 1`
//! there is no first.
//!
//! **Departures**: (1) means are those of a step, where the published code has one example a step; (2) only
//! what the assistant says is learned, and its end (`data.loss_on = "all"` is the published code's choice,
//! whose labels leave ends out); (3) a blank line stands between answer and reason.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Objective, Seen, Tasks, Terms, Unit};

/// Where the reason stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Behind the answer, which so never needs it.
    #[default]
    After,
    /// In front of it: a chain of thought, to be written before any answer.
    Before,
}

/// `[train.loss.rationale]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rationale {
    /// Share of the answer with its reason.
    pub alpha: f64,
    /// Where the reason, the example's column `rationale`, stands.
    pub rationale_position: Place,
}

impl Default for Rationale {
    fn default() -> Self {
        Rationale { alpha: 0.5, rationale_position: Place::After }
    }
}

impl Rationale {
    /// What the kinds of rows are called in the log.
    const NAMES: [&str; 2] = ["answer", "answer_and_rationale"];

    fn tasks(&self) -> Result<Tasks> {
        Ok(Tasks::default().of(&Self::NAMES)?.weighted(&[1.0 - self.alpha, self.alpha]))
    }
}

impl Objective for Rationale {
    fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.alpha) {
            return Ok(());
        }
        let what = format!("expected a share from 0 to 1, got {}", self.alpha);
        Err(Error::input("train.loss.rationale.alpha", what))
    }

    fn unit(&self) -> Unit {
        Unit::Rationale {
            place: self.rationale_position,
            answer: self.alpha < 1.0,
            rationale: self.alpha > 0.0,
        }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        Tasks::default().normaliser(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        self.tasks()?.terms(seen)
    }
}
