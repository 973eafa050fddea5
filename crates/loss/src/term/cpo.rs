//! Preferences without a reference: contrastive preference optimisation (Xu et al. 2024), SimPO (Meng
//! et al. 2024), AlphaPO, by TRL's names.
//!
//! With the log-probabilities `c`, `r` of the chosen and the rejected answer (means over their tokens
//! with `ipo` and `simpo`) and `δ = c − r`, or the difference of `(1 − p^−α)/α` where `alpha` is not 0:
//!
//! | `loss_type` | a pair costs, besides `cpo_alpha` · the mean NLL of the chosen answer's tokens |
//! |---|---|
//! | `sigmoid` | `−(1−ε)·ln σ(βδ) − ε·ln σ(−βδ)` |
//! | `hinge` | `max(0, 1 − βδ)` |
//! | `ipo` | `(δ − 1/(2β))²` |
//! | `simpo` | as `sigmoid`, with `βδ − γ` |
//!
//! **Departures**: (1) the NLL is a mean over the tokens of each answer and then over pairs, where TRL
//! takes all tokens of a batch together: a step's loss may not depend on how the step is cut. (2) SimPO
//! is `loss_type = "simpo"` with `cpo_alpha = 0`, as TRL advises.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Objective, Seen, Terms, Unit,
    pair::{Answer, Charge, charge, dual::Dual, number},
};

/// `[train.loss.cpo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cpo {
    /// How steep the preference is.
    pub beta: f64,
    /// What a pair costs.
    pub loss_type: CpoType,
    /// Share of pairs that are believed to be the wrong way round.
    pub label_smoothing: f64,
    /// What the likelihood of the chosen answer counts.
    pub cpo_alpha: f64,
    /// By how much the chosen answer shall lead, with `simpo`.
    pub simpo_gamma: f64,
    /// AlphaPO's α; 0 leaves log-probabilities as they are.
    pub alpha: f64,
}

/// What a pair costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module says what each is")]
pub enum CpoType {
    #[default]
    Sigmoid,
    Hinge,
    Ipo,
    Simpo,
}

impl Default for Cpo {
    fn default() -> Self {
        Cpo {
            beta: 0.1,
            loss_type: CpoType::Sigmoid,
            label_smoothing: 0.0,
            cpo_alpha: 1.0,
            simpo_gamma: 0.5,
            alpha: 0.0,
        }
    }
}

impl Cpo {
    /// What an answer is worth.
    fn worth(&self, answer: &Answer) -> Dual {
        let logp = match self.loss_type {
            CpoType::Ipo | CpoType::Simpo => answer.per_token(answer.logp),
            CpoType::Sigmoid | CpoType::Hinge => answer.logp,
        };
        match self.alpha == 0.0 {
            true => logp,
            false => (-(logp * -self.alpha).exp() + 1.0) * (1.0 / self.alpha),
        }
    }

    fn cost(&self, delta: Dual) -> Dual {
        let smooth = |x: Dual| {
            let eps = self.label_smoothing;
            -x.log_sigmoid() * (1.0 - eps) - (-x).log_sigmoid() * eps
        };
        match self.loss_type {
            CpoType::Sigmoid => smooth(delta * self.beta),
            CpoType::Simpo => smooth(delta * self.beta - self.simpo_gamma),
            CpoType::Hinge => (-delta * self.beta + 1.0).relu(),
            CpoType::Ipo => (delta - 0.5 / self.beta).square(),
        }
    }
}

impl Objective for Cpo {
    fn check(&self) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            let what = format!("expected a number above 0, got {}", self.beta);
            return Err(Error::input("train.loss.cpo.beta", what));
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            let what = format!("expected from 0 to below 0.5, got {}", self.label_smoothing);
            return Err(Error::input("train.loss.cpo.label_smoothing", what));
        }
        Ok(())
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
            let worth = [self.worth(chosen), self.worth(rejected)];
            let nll = -chosen.per_token(chosen.logp);
            Charge {
                cost: self.cost(worth[0] - worth[1]) + nll * self.cpo_alpha,
                rewards: worth.map(|worth| self.beta * worth.v),
                more: vec![("nll", nll.v)],
            }
        })
    }
}
