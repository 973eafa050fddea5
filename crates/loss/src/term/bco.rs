//! Binary classifier optimisation (Jung et al. 2024): wanted and unwanted answers are told apart by what
//! they gain over a reference.
//!
//! With the reward `r = β·(Σ w·logp − Σ w·logp_ref)` of a row and `δ` the mean reward of its group, a
//! constant, a wanted row costs `−λ_D·ln σ(r − δ)` and an unwanted one `−λ_U·ln σ(δ − r)`. The step's
//! loss is the mean over rows.
//!
//! **Departures**: (1) TRL, which has dropped its trainer since, takes for δ a running mean over all
//! steps so far; a mean over a `group` of neighbours, which no cut of a step parts, has no state that a
//! resumed run could lack, and is what TRL has in its first step. (2) The paper's weighting of unwanted
//! answers by a classifier of prompts (underlying distribution matching) is left out. (3) The reference
//! is the policy as training began.

use luthier_core::{Batch, Result};
use serde::{Deserialize, Serialize};

use super::kto;
use crate::{Objective, Seen, Terms, Unit, pair::Answer};

/// `[train.loss.bco]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bco {
    /// How dear it is to leave the reference.
    pub beta: f64,
    /// What wanted rows count.
    pub desirable_weight: f64,
    /// What unwanted rows count.
    pub undesirable_weight: f64,
    /// How many neighbouring rows share a baseline.
    pub group: usize,
}

impl Default for Bco {
    fn default() -> Self {
        Bco { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0, group: 8 }
    }
}

impl Objective for Bco {
    fn check(&self) -> Result<()> {
        let weights = [self.desirable_weight, self.undesirable_weight];
        kto::check("bco", self.beta, weights, self.group)
    }

    fn unit(&self) -> Unit {
        Unit::Unpaired { group: self.group, mismatched: false }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        kto::number(step, self.group, false)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        kto::charge(seen, self.group, false, &|group| {
            let reward = |answer: &Answer| answer.log_ratio() * self.beta;
            let rewards = group.own.iter().map(|(answer, _)| reward(answer).v);
            let delta = rewards.sum::<f64>() / group.own.len() as f64;
            let cost = |(answer, wanted): &(Answer, bool)| {
                let (gain, cost) = (reward(answer), reward(answer) - delta);
                let cost = match wanted {
                    true => -cost.log_sigmoid() * self.desirable_weight,
                    false => -(-cost).log_sigmoid() * self.undesirable_weight,
                };
                (cost, gain.v, gain.v - delta)
            };
            (group.own.iter().map(cost).collect(), vec![("delta", delta)])
        })
    }
}
