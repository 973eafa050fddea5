//! Stochastic gradient descent with momentum, as torch has it.
//!
//! `g ← g + decay · p`; `b ← momentum · b + (1 − dampening) g` (the first step takes `b ← g`);
//! `p ← p − lr · b`, or `p − lr · (g + momentum · b)` with Nesterov's look-ahead.
//! **Departures**: (1) a learning rate of 0 leaves parameters bit-equal, also the sign of a zero.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Data, Move, Of, Optimizer, Plan, check_rate, check_share};
use crate::pass;

/// `[train.update.sgd]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sgd {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Share of the last step that is kept; 0 keeps no buffer.
    pub momentum: f64,
    /// Share of the gradient that does not enter the buffer.
    pub dampening: f64,
    /// Whether to look ahead along the buffer.
    pub nesterov: bool,
    /// Added to the gradient, not decoupled.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        let (momentum, dampening, nesterov, weight_decay) = (0.0, 0.0, false, 0.0);
        Sgd { learning_rate: 1e-3, momentum, dampening, nesterov, weight_decay }
    }
}

impl Optimizer for Sgd {
    fn plan(&self, at: &str) -> Result<Plan> {
        check_rate(at, "learning_rate", self.learning_rate)?;
        check_rate(at, "weight_decay", self.weight_decay)?;
        check_share(at, "momentum", self.momentum)?;
        check_rate(at, "dampening", self.dampening)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let what = "needs momentum above 0 and dampening 0";
            return Err(Error::input(format!("{at}.nesterov"), what));
        }
        let state = match self.momentum > 0.0 {
            true => vec![("momentum_buffer", Of::Elements)],
            false => Vec::new(),
        };
        let (learning_rate, weight_decay) = (self.learning_rate, self.weight_decay);
        Ok(Plan { learning_rate, weight_decay, state })
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let (rate, decay) = (now.learning_rate as f32, now.weight_decay as f32);
        let (momentum, nesterov) = (self.momentum as f32, self.nesterov);
        let (grad_scale, still) = (now.grad_scale, now.learning_rate == 0.0);
        // The first gradient enters whole, so that the buffer does not begin with a bias to 0.
        let enter = if now.t == 1 { 1.0 } else { (1.0 - self.dampening) as f32 };
        let pull = move |p: f32, g: f32| {
            let g = g * grad_scale;
            if decay == 0.0 { g } else { g + decay * p }
        };
        let step = move |p: &mut f32, by: f32| *p = if still { *p } else { *p - rate * by };
        pass::elementwise(param, grad, state, move |param, grad, state| match state {
            [b] => {
                for ((p, g), b) in param.iter_mut().zip(grad).zip(b.iter_mut()) {
                    let g = pull(*p, *g);
                    *b = *b * momentum + enter * g;
                    step(p, if nesterov { g + momentum * *b } else { *b });
                }
            }
            _ => param.iter_mut().zip(grad).for_each(|(p, g)| step(p, pull(*p, *g))),
        });
    }
}
