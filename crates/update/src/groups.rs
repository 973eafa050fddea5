//! Which variable gets which learning rate and weight decay.

use luthier_core::{Error, Param, Result, nearest::suggest, site::Pattern};
use serde::{Deserialize, Serialize};

use crate::{Plan, Update, optimizer::check_rate};

mod factors;

pub(crate) use factors::{check, layer_of};

/// `[[train.update.groups]]`: other rates for the variables that a glob names. The first group that
/// names a variable decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Glob over variable names.
    pub at: String,
    /// In place of any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Multiplies the learning rate that the variable has without this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// In place of any other, for norms and biases too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// What one variable is updated with, before the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// The rates of every variable, in the order of `params`, and the group it is in: the number of
/// groups when it is in none. Names without a variable are refused when `strict`.
pub(crate) fn resolve(
    update: &Update,
    plan: &Plan,
    params: &[Param],
    n_layers: usize,
    strict: bool,
) -> Result<Vec<(Rates, usize)>> {
    let groups = &update.groups;
    let mut patterns = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        patterns.push(Pattern::new(&format!("{}.at", key(i)), &group.at)?);
    }
    let mut used = vec![false; groups.len()];
    let mut rates = Vec::with_capacity(params.len());
    for param in params {
        let base = factors::rates(update, plan, param, n_layers)?;
        match patterns.iter().position(|p| p.matches(&param.name)) {
            None => rates.push((base, groups.len())),
            Some(i) => {
                used[i] = true;
                rates.push((groups[i].rates(base), i));
            }
        }
    }
    if strict {
        factors::expect_use(update, params)?;
        if let Some(i) = used.iter().position(|used| !used) {
            return Err(unused(i, &groups[i].at, &patterns[i], params));
        }
    }
    Ok(rates)
}

fn key(i: usize) -> String {
    format!("train.update.groups[{i}]")
}

fn unused(i: usize, glob: &str, pattern: &Pattern, params: &[Param]) -> Error {
    let (at, mut names) = (format!("{}.at", key(i)), params.iter().map(|p| p.name.as_str()));
    if names.any(|name| pattern.matches(name)) {
        let what = format!("every variable that `{glob}` names is in an earlier group");
        return Error::input(at, what).hint("the first match wins: put it further up");
    }
    let near = suggest(glob, params.iter().take(8).map(|p| p.name.as_str()));
    Error::input(at, format!("`{glob}` matches no learned variable")).hint(near)
}

impl Group {
    fn check(&self, at: &str) -> Result<()> {
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("lr_scale", self.lr_scale),
            ("weight_decay", self.weight_decay),
        ] {
            check_rate(at, key, value.unwrap_or(0.0))?;
        }
        match (self.learning_rate, self.lr_scale, self.weight_decay) {
            (Some(_), Some(_), _) => {
                Err(Error::input(at, "both learning_rate and lr_scale are given")
                    .hint("keep one of them"))
            }
            (None, None, None) => Err(Error::input(at, "changes nothing")
                .hint("give learning_rate, lr_scale or weight_decay")),
            _ => Ok(()),
        }
    }

    fn rates(&self, base: Rates) -> Rates {
        let scaled = base.learning_rate * self.lr_scale.unwrap_or(1.0);
        Rates {
            learning_rate: self.learning_rate.unwrap_or(scaled),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
        }
    }
}
