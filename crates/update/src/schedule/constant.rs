//! No change from first to last.
//!
//! `1`.
//! **Departures**: none; it has no warm-up, [`super::ConstantWithWarmup`] has.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule};

/// `[train.update.schedule.constant]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constant {}

impl Schedule for Constant {
    fn check(&self, _at: &str, _learning_rate: f64) -> Result<()> {
        Ok(())
    }

    fn scale(&self, _now: &Now) -> f64 {
        1.0
    }
}
