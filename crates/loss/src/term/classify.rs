//! Classification: the label of a row, by a head that scores all labels.
//!
//! `−(1 − ε)·ln p(label) − ε/L · Σ ln p` with `p = softmax(scores)` over L labels at the last token of
//! the row and ε = `label_smoothing`; torch's cross-entropy. The step's loss is the mean over rows by
//! their weights. **Departures**: none.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use super::judged::Judged;
use crate::{
    Objective, Seen, Terms, Unit,
    pair::answers::{nothing, tell_weighted},
    told::sure,
};

/// `[train.loss.classify]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Classify {
    /// Share of the belief that is spread over all labels.
    pub label_smoothing: f64,
}

impl Objective for Classify {
    fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.label_smoothing) {
            return Ok(());
        }
        let what = format!("expected from 0 to below 1, got {}", self.label_smoothing);
        Err(Error::input("train.loss.classify.label_smoothing", what))
    }

    fn unit(&self) -> Unit {
        Unit::Judged { pair: false }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        step.iter().map(|batch| batch.weight()).sum()
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let Some(judged) = Judged::ask(out, batch)? else { return nothing() };
        let (mut total, mut slopes, mut logs) = (0.0, Vec::new(), Vec::new());
        for (row, weight, scores) in &judged.rows {
            let (label, labels) = (batch.labels_b[*row], scores.len());
            if label < 0.0 || label.fract() != 0.0 || label >= labels as f64 {
                let at = format!("example {}", batch.examples_b[*row]);
                let what = format!("expected a label from 0 to {}, got {label}", labels - 1);
                return Err(Error::input(at, what)
                    .hint("train.params.head.labels says how many labels there are"));
            }
            let label = label as usize;
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_z = top + scores.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            let spread = self.label_smoothing / labels as f64;
            let wanted =
                |i: usize| spread + if i == label { 1.0 - self.label_smoothing } else { 0.0 };
            for (i, score) in scores.iter().enumerate() {
                let logp = score - log_z;
                total -= weight * wanted(i) * logp;
                slopes.push(weight * (logp.exp() - wanted(i)));
            }
            // Of equal scores the first counts, as in torch's argmax.
            let first = scores.iter().position(|score| *score == top);
            let right = first == Some(label);
            tell_weighted(&mut logs, "accuracy", f64::from(u8::from(right)), *weight);
            sure(&mut logs, (top - log_z).exp(), right, *weight);
        }
        Ok(Terms { sum: judged.charge(total, slopes)?, logs })
    }
}
