//! Odds ratio preference optimisation (Hong et al. 2024): likelihood of the chosen answer, and odds
//! against the rejected one, without a reference.
//!
//! With mean log-probabilities `c`, `r` over the tokens of the two answers,
//! `−c − β·ln σ((c − r) − (ln(1 − e^c) − ln(1 − e^r)))`.
//!
//! **Departures**: (1) TRL's likelihood covers the prompt as well and all tokens of a batch together;
//! here it is the answer's, a mean over its tokens and then over pairs.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Objective, Seen, Terms, Unit,
    pair::{Charge, charge, number},
};

/// `[train.loss.orpo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Orpo {
    /// What the odds count; λ in the paper.
    pub beta: f64,
}

impl Default for Orpo {
    fn default() -> Self {
        Orpo { beta: 0.1 }
    }
}

impl Objective for Orpo {
    fn check(&self) -> Result<()> {
        if self.beta >= 0.0 && self.beta.is_finite() {
            return Ok(());
        }
        let what = format!("expected a number from 0, got {}", self.beta);
        Err(Error::input("train.loss.orpo.beta", what))
    }

    fn unit(&self) -> Unit {
        Unit::Pair { reference: false }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        number(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        charge(out, batch, &|chosen, rejected| {
            let [c, r] = [chosen, rejected].map(|answer| answer.per_token(answer.logp));
            let odds = (c - r) - (c.log_1m_exp() - r.log_1m_exp());
            Charge {
                cost: -c - odds.log_sigmoid() * self.beta,
                rewards: [c, r].map(|worth| self.beta * worth.v),
                more: vec![("nll", -c.v), ("log_odds", odds.v)],
            }
        })
    }
}
