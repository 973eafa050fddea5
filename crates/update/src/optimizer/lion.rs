//! Lion (Chen et al. 2023): steps of one size along the sign of a momentum, as lion-pytorch has it.
//!
//! `p ← (1 − lr · decay) p − lr · sign(β₁ m + (1 − β₁) g)`, then `m ← β₂ m + (1 − β₂) g`.
//! Every element moves by the whole learning rate: take a third to a tenth of AdamW's, and so much
//! more decay. **Departures**: (1) a learning rate of 0 leaves parameters bit-equal, also the sign
//! of a zero.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Data, Move, Of, Optimizer, Plan, check_rate, check_share};
use crate::pass;

/// `[train.update.lion]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lion {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Share of the momentum in the direction of a step, and memory of the momentum.
    pub betas: [f64; 2],
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Lion { learning_rate: 1e-4, betas: [0.9, 0.99], weight_decay: 0.0 }
    }
}

impl Optimizer for Lion {
    fn plan(&self, at: &str) -> Result<Plan> {
        check_rate(at, "learning_rate", self.learning_rate)?;
        check_rate(at, "weight_decay", self.weight_decay)?;
        self.betas.iter().try_for_each(|beta| check_share(at, "betas", *beta))?;
        let (learning_rate, weight_decay) = (self.learning_rate, self.weight_decay);
        Ok(Plan { learning_rate, weight_decay, state: vec![("exp_avg", Of::Elements)] })
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let (rate, still) = (now.learning_rate as f32, now.learning_rate == 0.0);
        let keep = (1.0 - now.learning_rate * now.weight_decay) as f32;
        let [(old1, new1), (old2, new2)] = self.betas.map(|b| (b as f32, (1.0 - b) as f32));
        pass::elementwise(param, grad, state, |param, grad, state| {
            let [m] = state else { unreachable!("one buffer is planned") };
            for ((p, g), m) in param.iter_mut().zip(grad).zip(m.iter_mut()) {
                let g = g * now.grad_scale;
                let moved = *p * keep - rate * sign(*m * old1 + new1 * g);
                *m = *m * old2 + new2 * g;
                *p = if still { *p } else { moved };
            }
        });
    }
}

/// 0 of 0, unlike `signum`.
#[inline(always)]
fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_the_size_of_the_rate_and_no_gradient_is_no_step() {
        let now = Move { t: 1, learning_rate: 0.25, weight_decay: 0.0, grad_scale: 1.0 };
        let mut state = [Data::F32(vec![0.0; 3])];
        let mut param = [1.0, 1.0, 1.0];
        Lion::default().apply(&now, &[3], &mut param, &[1e-9, -70.0, 0.0], &mut state);
        assert_eq!(param, [0.75, 1.25, 1.0]);
    }
}
