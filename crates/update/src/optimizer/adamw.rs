//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), rounded as torch rounds it.
//!
//! `m ← m + (1 − β₁)(g − m)`, `v ← β₂ v + (1 − β₂) g²`,
//! `p ← (1 − lr · decay) p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)`.
//! **Departures**: (1) a learning rate of 0 leaves parameters bit-equal, also the sign of a zero.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Move, Optimizer, Plan, check_rate, check_share};

/// `[train.update.adamw]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Memory of the mean and of the mean square.
    pub betas: [f64; 2],
    /// Added to the root, outside of it.
    pub eps: f64,
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
}

/// What `[train.update]` means when it names no optimizer.
pub(crate) const DEFAULT: AdamW =
    AdamW { learning_rate: 2e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };

impl Default for AdamW {
    fn default() -> Self {
        DEFAULT
    }
}

impl Optimizer for AdamW {
    fn plan(&self, at: &str) -> Result<Plan> {
        check_rate(at, "learning_rate", self.learning_rate)?;
        check_rate(at, "weight_decay", self.weight_decay)?;
        check_rate(at, "eps", self.eps)?;
        self.betas.iter().try_for_each(|beta| check_share(at, "betas", *beta))?;
        Ok(Plan {
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            state: &["exp_avg", "exp_avg_sq"],
        })
    }

    fn apply(&self, now: &Move, param: &mut [f32], grad: &[f32], state: &mut [&mut [f32]]) {
        let [m, v] = state else { unreachable!("two buffers are planned") };
        let [beta1, beta2] = self.betas;
        let bias1 = 1.0 - beta1.powf(now.t as f64);
        let bias2_sqrt = (1.0 - beta2.powf(now.t as f64)).sqrt() as f32;
        let keep = (1.0 - now.learning_rate * now.weight_decay) as f32;
        let size = (now.learning_rate / bias1) as f32;
        let (new1, beta2, new2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
        let (eps, still) = (self.eps as f32, now.learning_rate == 0.0);
        for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
            let g = g * now.grad_scale;
            *m += new1 * (g - *m);
            *v = *v * beta2 + new2 * g * g;
            let moved = *p * keep - size * *m / (v.sqrt() / bias2_sqrt + eps);
            *p = if still { *p } else { moved };
        }
    }
}
