//! The settings of a merge for one tensor, with their defaults filled in.

use std::ops::RangeInclusive;

use luthier_core::{Error, Result};

/// The settings of a merge for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// The file they come from.
    pub file: String,
    /// Names of the inputs, the base left out where the merge works from it.
    pub inputs: Vec<String>,
    /// Settings of the merge.
    pub merge: Vec<(&'static str, Option<f64>)>,
    /// Settings of the inputs, one of each for every name in `inputs`.
    pub each: Vec<(&'static str, Vec<Option<f64>>)>,
    /// Whether a file beside the input has something for this tensor, one for every name in
    /// `inputs`. What it has is an operand of its own: they follow the models, in the same order.
    pub beside: Vec<bool>,
}

impl Given {
    /// The place of a setting, for errors.
    pub fn at(&self, key: &str) -> String {
        format!("{}: {key}", self.file)
    }

    /// The place of a setting of one input.
    pub fn at_other(&self, key: &str, input: usize) -> String {
        format!("{}: {key} of {}", self.file, self.inputs[input])
    }

    /// A setting of the merge, or nothing.
    pub fn maybe(&self, key: &str) -> Option<f64> {
        let of_merge = self.merge.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let first = || self.each.iter().find(|(name, _)| *name == key)?.1.first().copied();
        of_merge.or_else(first).flatten()
    }

    /// A setting of the merge that has a value.
    pub fn number(&self, key: &str) -> f64 {
        self.maybe(key).unwrap_or(0.0)
    }

    /// A setting of the merge within bounds.
    pub fn number_within(&self, key: &str, bounds: RangeInclusive<f64>) -> Result<f64> {
        let got = self.number(key);
        inside(got, bounds, || self.at(key))
    }

    /// A switch of the merge.
    pub fn switch(&self, key: &str) -> bool {
        self.number(key) != 0.0
    }

    /// A setting of the inputs; empty where the merge has none of this name.
    pub fn numbers(&self, key: &str) -> Vec<f64> {
        let found = self.each.iter().find(|(name, _)| *name == key);
        found.into_iter().flat_map(|(_, values)| values).map(|v| v.unwrap_or(0.0)).collect()
    }

    /// A setting of the inputs, or nothing, for each of them.
    pub fn maybe_numbers(&self, key: &str) -> Vec<Option<f64>> {
        let found = self.each.iter().find(|(name, _)| *name == key);
        found.map_or_else(|| vec![None; self.inputs.len()], |(_, values)| values.clone())
    }

    /// Refuses files that know a tensor of some inputs and not of others.
    pub fn all_or_none_beside(&self, key: &str) -> Result<bool> {
        let known = self.beside.iter().filter(|known| **known).count();
        match self.beside.iter().position(|known| !known) {
            Some(i) if known > 0 => {
                let what = "has nothing for this tensor, and the others have";
                Err(Error::input(self.at_other(key, i), what)
                    .hint("files of all models must be made with the same settings"))
            }
            _ => Ok(known > 0),
        }
    }

    /// A setting of the inputs within bounds.
    pub fn within(&self, key: &str, bounds: RangeInclusive<f64>) -> Result<Vec<f64>> {
        let values = self.numbers(key).into_iter().enumerate();
        values.map(|(i, got)| inside(got, bounds.clone(), || self.at_other(key, i))).collect()
    }
}

fn inside(got: f64, bounds: RangeInclusive<f64>, at: impl Fn() -> String) -> Result<f64> {
    if bounds.contains(&got) {
        return Ok(got);
    }
    let what = format!("expected {} to {}, got {got}", bounds.start(), bounds.end());
    Err(Error::input(at(), what))
}
