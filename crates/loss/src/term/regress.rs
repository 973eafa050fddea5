//! Regression: the number known of a row, by a head with one label.
//!
//! `(score − label)²` at the last token of the row. The step's loss is the mean over rows by their
//! weights. **Departures**: none.

use luthier_core::{Batch, Result};
use serde::{Deserialize, Serialize};

use super::judged::Judged;
use crate::{
    Objective, Seen, Terms, Unit,
    pair::answers::{nothing, tell_weighted},
};

/// `[train.loss.regress]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Regress {}

impl Objective for Regress {
    fn unit(&self) -> Unit {
        Unit::Judged { pair: false }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        step.iter().map(|batch| batch.weight()).sum()
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let Some(judged) = Judged::ask(out, batch)? else { return nothing() };
        judged.single("regress")?;
        let (mut total, mut slopes, mut logs) = (0.0, Vec::new(), Vec::new());
        for (row, weight, scores) in &judged.rows {
            let off = scores[0] - batch.labels_b[*row];
            total += weight * off * off;
            slopes.push(2.0 * weight * off);
            tell_weighted(&mut logs, "mae", off.abs(), *weight);
        }
        Ok(Terms { sum: judged.charge(total, slopes)?, logs })
    }
}
