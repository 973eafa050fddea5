//! Adam (Kingma and Ba 2015) with the decay in the gradient, rounded as torch rounds it.
//!
//! `g ← g + decay · p`, `m ← m + (1 − β₁)(g − m)`, `v ← β₂ v + (1 − β₂) g²`,
//! `p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)`; without `bias_correction` both corrections
//! are 1 (BERT's Adam, which paper 22 holds to be what makes fine-tuning unstable).
//! **Departures**: (1) a learning rate of 0 leaves parameters bit-equal, also the sign of a zero.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Data, Move, Of, Optimizer, Plan, check_rate, check_share, lerp};
use crate::pass;

/// `[train.update.adam]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adam {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Memory of the mean and of the mean square.
    pub betas: [f64; 2],
    /// Added to the root, outside of it.
    pub eps: f64,
    /// Added to the gradient, not decoupled.
    pub weight_decay: f64,
    /// Whether the averages, which begin at 0, are scaled up to what they would be without.
    pub bias_correction: bool,
}

impl Default for Adam {
    fn default() -> Self {
        let (learning_rate, betas, eps, weight_decay) = (2e-4, [0.9, 0.999], 1e-8, 0.0);
        Adam { learning_rate, betas, eps, weight_decay, bias_correction: true }
    }
}

impl Optimizer for Adam {
    fn plan(&self, at: &str) -> Result<Plan> {
        plan(at, self.learning_rate, self.weight_decay, self.betas, self.eps)
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let moments = Moments::new(self.betas, self.eps, self.bias_correction, now);
        let (decay, still) = (now.weight_decay as f32, now.learning_rate == 0.0);
        pass::elementwise(param, grad, state, |param, grad, state| {
            let [m, v] = state else { unreachable!("two buffers are planned") };
            for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
                let g = g * now.grad_scale;
                let g = if decay == 0.0 { g } else { g + decay * *p };
                let moved = *p - moments.step(g, m, v);
                *p = if still { *p } else { moved };
            }
        });
    }
}

/// What both forms of Adam ask for.
pub(super) fn plan(
    at: &str,
    learning_rate: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
) -> Result<Plan> {
    check_rate(at, "learning_rate", learning_rate)?;
    check_rate(at, "weight_decay", weight_decay)?;
    check_rate(at, "eps", eps)?;
    betas.iter().try_for_each(|beta| check_share(at, "betas", *beta))?;
    let state = vec![("exp_avg", Of::Elements), ("exp_avg_sq", Of::Elements)];
    Ok(Plan { learning_rate, weight_decay, state })
}

/// The running averages of one step: all that is the same for every element.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    new1: f32,
    beta2: f32,
    new2: f32,
    size: f32,
    bias2_sqrt: f32,
    eps: f32,
}

impl Moments {
    pub fn new(betas: [f64; 2], eps: f64, bias_correction: bool, now: &Move) -> Self {
        let [beta1, beta2] = betas;
        let bias = |beta: f64| if bias_correction { 1.0 - beta.powf(now.t as f64) } else { 1.0 };
        Moments {
            new1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            new2: (1.0 - beta2) as f32,
            size: (now.learning_rate / bias(beta1)) as f32,
            bias2_sqrt: bias(beta2).sqrt() as f32,
            eps: eps as f32,
        }
    }

    /// Takes a gradient into the averages; what is to be subtracted from the parameter.
    #[inline(always)]
    pub fn step(&self, g: f32, m: &mut f32, v: &mut f32) -> f32 {
        *m = lerp(*m, g, self.new1);
        *v = *v * self.beta2 + self.new2 * g * g;
        self.change(*m, *v)
    }

    /// What such averages subtract from the parameter.
    #[inline(always)]
    pub fn change(&self, m: f32, v: f32) -> f32 {
        self.size * m / (v.sqrt() / self.bias2_sqrt + self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps in units of the learning rate on a gradient that never changes (paper 22).
    fn steps(bias_correction: bool, gradient: f32, until: u64) -> Vec<f64> {
        let adam = Adam { eps: 0.0, bias_correction, ..Adam::default() };
        let mut state = [Data::F32(vec![0.0]), Data::F32(vec![0.0])];
        let rate = 1.0 / 1024.0;
        let step = |t: u64| {
            let now = Move { t, learning_rate: rate, weight_decay: 0.0, grad_scale: 1.0 };
            let mut p = [0.0];
            adam.apply(&now, &[1], &mut p, &[gradient], &mut state);
            -f64::from(p[0]) / rate
        };
        (1..=until).map(step).collect()
    }

    #[test]
    fn paper_22s_step_sizes() {
        let close = |got: f64, want: f64| {
            assert!((got - want).abs() < 5e-3, "{got}, not {want}");
        };
        for gradient in [3f32, -0.02] {
            let sign = f64::from(gradient.signum());
            for step in steps(true, gradient, 1000) {
                assert!((step * sign - 1.0).abs() < 1e-4, "{step}");
            }
            let bare = steps(false, gradient, 1000);
            for (t, want) in [(1, 3.162), (10, 6.53), (100, 3.24), (300, 1.96), (1000, 1.26)] {
                close(bare[t - 1] * sign, want);
                let law = (1.0 - 0.9f64.powi(t as i32)) / (1.0 - 0.999f64.powi(t as i32)).sqrt();
                assert!((bare[t - 1] * sign / law - 1.0).abs() < 1e-4, "step {t}");
            }
        }
    }
}
