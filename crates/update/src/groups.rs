//! Which variable gets which learning rate and weight decay.

use luthier_core::{Error, Result, nearest::suggest, site::Pattern};
use serde::{Deserialize, Serialize};

use crate::{Plan, optimizer::check_rate};

/// `[[train.update.groups]]`: other rates for the variables that a glob names. The first group that
/// names a variable decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Glob over variable names.
    pub at: String,
    /// In place of the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Multiplies the optimizer's learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// In place of the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// What one variable is updated with, before the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub learning_rate: f64,
    pub weight_decay: f64,
}

/// The rates of every variable, in the order of `names`.
pub(crate) fn resolve(groups: &[Group], plan: &Plan, names: &[&str]) -> Result<Vec<Rates>> {
    let key = |i: usize| format!("train.update.groups[{i}]");
    let mut patterns = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        group.check(&key(i))?;
        patterns.push(Pattern::new(&format!("{}.at", key(i)), &group.at)?);
    }
    let mut used = vec![false; groups.len()];
    let mut rates = Vec::with_capacity(names.len());
    for name in names {
        let found = patterns.iter().position(|p| p.matches(name));
        if let Some(i) = found {
            used[i] = true;
        }
        rates.push(found.map_or(plan.into(), |i| groups[i].rates(plan)));
    }
    match used.iter().position(|used| !used) {
        None => Ok(rates),
        Some(i) => {
            let at = format!("{}.at", key(i));
            let glob = &groups[i].at;
            if names.iter().any(|name| patterns[i].matches(name)) {
                let what = format!("every variable that `{glob}` names is in an earlier group");
                return Err(Error::input(at, what).hint("the first match wins: put it further up"));
            }
            let what = format!("`{glob}` matches no learned variable");
            Err(Error::input(at, what).hint(suggest(glob, names.iter().take(8).copied())))
        }
    }
}

impl From<&Plan> for Rates {
    fn from(plan: &Plan) -> Self {
        Rates { learning_rate: plan.learning_rate, weight_decay: plan.weight_decay }
    }
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

    fn rates(&self, plan: &Plan) -> Rates {
        let scaled = plan.learning_rate * self.lr_scale.unwrap_or(1.0);
        Rates {
            learning_rate: self.learning_rate.unwrap_or(scaled),
            weight_decay: self.weight_decay.unwrap_or(plan.weight_decay),
        }
    }
}
