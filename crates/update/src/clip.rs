//! How gradients are kept from being too large.

use std::collections::BTreeMap;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Update, groups::layer_of, optimizer::check_rate, schedule::check_positive};

/// What `max_grad_norm` is the limit of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// The norm of all gradients together.
    #[default]
    Global,
    /// The norm of each entry of `[[train.update.groups]]`, and of all other variables.
    Group,
    /// The norm of each layer (`layers.3.…`), and of all variables outside of one.
    Layer,
    /// Nothing: instead every number is held between plus and minus `max_grad_value`.
    Value,
}

impl Clip {
    /// Which variables are clipped together: those with the same number.
    pub(crate) fn cluster(self, name: &str, group: usize) -> usize {
        match self {
            Clip::Global | Clip::Value => 0,
            Clip::Group => group,
            Clip::Layer => layer_of(name).map_or(0, |layer| layer + 1),
        }
    }
}

/// The norm of every cluster, from its variables' sums of squares.
pub(crate) fn norms(clusters: &[usize], sums: &[f64]) -> BTreeMap<usize, f64> {
    let mut norms = BTreeMap::<usize, f64>::new();
    for (cluster, sum) in clusters.iter().zip(sums) {
        *norms.entry(*cluster).or_default() += sum;
    }
    norms.values_mut().for_each(|norm| *norm = norm.sqrt());
    norms
}

/// What a gradient is multiplied by in a cluster of this norm; a limit of 0 is none.
pub(crate) fn scale(norm: f64, limit: f64) -> f32 {
    // The same small constant as torch's clip_grad_norm_.
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

/// Refuses settings without a meaning.
pub(crate) fn check(update: &Update) -> Result<()> {
    check_rate("train.update", "max_grad_norm", update.max_grad_norm)?;
    match (update.clip, update.max_grad_value) {
        (Clip::Value, None) => Err(Error::input("train.update.max_grad_value", "is missing")
            .hint("clip = \"value\" holds every gradient between plus and minus this number")),
        (Clip::Value, Some(value)) => check_positive("train.update", "max_grad_value", value),
        (_, Some(_)) => Err(Error::input("train.update.max_grad_value", "changes nothing")
            .hint("it goes with clip = \"value\"")),
        (Clip::Group, None) if update.groups.is_empty() => {
            Err(Error::input("train.update.clip", "clips by group, but there is no group")
                .hint("add [[train.update.groups]], or leave clip out"))
        }
        _ => Ok(()),
    }
}
