//! A held-out part for evaluation.
//!
//! Rows with the same normalised text (as [`crate::choose::dedup`] sees it) always land on the same
//! side, so that no evaluation row was also trained on. Both sides keep the order of the file.

use std::collections::HashMap;

use luthier_core::{Error, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::{Step, choose::dedup::Dedup};

/// `split = { eval_fraction = 0.1, keep = "train" }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Share of the rows that is held out, between 0 and 1.
    pub eval_fraction: f64,
    /// Which side this step passes on.
    #[serde(default)]
    pub keep: Side,
}

/// A side of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What is trained on.
    #[default]
    Train,
    /// What is held out.
    Eval,
}

impl Step for Split {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        let (train, eval) = split(table, self.eval_fraction, seed)?;
        Ok(if self.keep == Side::Train { train } else { eval })
    }
}

/// Both sides, `(train, eval)`; neither is empty.
///
/// The held-out side has `eval_fraction` of the rows, rounded, as far as groups of equal rows allow.
pub fn split(table: Table, eval_fraction: f64, seed: Seed) -> Result<(Table, Table)> {
    let what = |what: String| Err(Error::input("eval_fraction", what));
    if !(eval_fraction > 0.0 && eval_fraction < 1.0) {
        return what(format!("expected a share between 0 and 1, got {eval_fraction}"));
    }
    let rows = table.examples.len();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of = HashMap::with_capacity(rows);
    let compare = Dedup::default();
    for (i, example) in table.examples.iter().enumerate() {
        let group = *group_of.entry(compare.fingerprint(example)).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(i);
    }
    if groups.len() < 2 {
        return what(format!(
            "{} has {} different rows, too few for two sides",
            table.name,
            groups.len()
        ));
    }
    seed.rng().shuffle(&mut groups);
    let wanted = ((rows as f64 * eval_fraction).round() as usize).clamp(1, rows - 1);
    let mut held_out = vec![false; rows];
    let mut taken = 0;
    let mut kept_back = 0;
    for group in &groups {
        if taken + group.len() <= wanted && kept_back + taken + group.len() < rows {
            group.iter().for_each(|i| held_out[*i] = true);
            taken += group.len();
        } else {
            kept_back += group.len();
        }
    }
    if taken == 0 {
        // Every group is larger than the share asked for; the smallest comes nearest to it.
        let smallest = groups.iter().min_by_key(|g| g.len()).expect("there are two groups or more");
        smallest.iter().for_each(|i| held_out[*i] = true);
    }
    let (mut train, mut eval) = (Vec::with_capacity(rows), Vec::new());
    for (example, held_out) in table.examples.into_iter().zip(held_out) {
        if held_out { eval.push(example) } else { train.push(example) }
    }
    let side = |examples, side: &str| Table {
        name: format!("{} ({side})", table.name),
        layout: table.layout.clone(),
        sha256: table.sha256.clone(),
        examples,
    };
    Ok((side(train, "train"), side(eval, "eval")))
}
