//! Schedule-free AdamW (Defazio et al. 2024): a running average of the steps in place of a schedule,
//! as the package `schedulefree` has it.
//!
//! Gradients are taken at `y = β₁ x + (1 − β₁) z`, the variable's numbers while it trains; `x` is the
//! average that is used afterwards. With `s = lr · min(1, t / warmup_steps)`,
//! `w = tʳ · max(s)^weight_lr_power` and `c = w / Σ w`:
//! `v ← β₂ v + (1 − β₂) g²`, `u = g / (√(v / (1 − β₂ᵗ)) + eps) + decay · y`,
//! `y ← y + c (z − y) + s (β₁ (1 − c) − 1) u`, `z ← z − s · u`.
//! [`exchange`](Optimizer::exchange): `x = y + (1 − 1 / β₁)(z − y)`, back `y = x + (1 − β₁)(z − x)`.
//! Its schedule is `constant`; any other multiplies the learning rate.
//! **Departures**: (1) a learning rate of 0 leaves `y` and `z` bit-equal and out of the average;
//! (2) sums of weights belong to each variable, so groups may differ in rate; (3) β₁ of 0 is refused,
//! because `x` could not be had from `y`; (4) a step on the exchanged numbers exchanges them back
//! first, where the package fails.

use luthier_core::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Data, Move, Of, Optimizer, Plan, check_rate, check_share, lerp};
use crate::pass;

/// `[train.update.schedule_free_adamw]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleFree {
    /// Step size after the warm-up.
    pub learning_rate: f64,
    /// Share of the average in what is trained, and memory of the mean square.
    pub betas: [f64; 2],
    /// Added to the root, outside of it.
    pub eps: f64,
    /// A share of the parameter per unit of learning rate, taken where the gradient is.
    pub weight_decay: f64,
    /// Steps until the learning rate is whole.
    pub warmup_steps: u64,
    /// Later steps weigh more in the average, as this power of their number.
    pub r: f64,
    /// Steps weigh in the average as this power of the largest learning rate so far.
    pub weight_lr_power: f64,
}

impl Default for ScheduleFree {
    fn default() -> Self {
        ScheduleFree {
            learning_rate: 0.0025,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            r: 0.0,
            weight_lr_power: 2.0,
        }
    }
}

impl Optimizer for ScheduleFree {
    fn plan(&self, at: &str) -> Result<Plan> {
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("eps", self.eps),
            ("r", self.r),
            ("weight_lr_power", self.weight_lr_power),
        ] {
            check_rate(at, key, value)?;
        }
        self.betas.iter().try_for_each(|beta| check_share(at, "betas", *beta))?;
        if self.betas[0] == 0.0 {
            let what = "the first must be above 0: the average is had from it";
            return Err(Error::input(format!("{at}.betas"), what));
        }
        let state = vec![
            ("exp_avg_sq", Of::Elements),
            ("z", Of::Parameters),
            ("weight_sum", Of::One),
            ("weight_sum_rest", Of::One),
            ("lr_max", Of::One),
            ("exchanged", Of::One),
        ];
        Ok(Plan { learning_rate: self.learning_rate, weight_decay: self.weight_decay, state })
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        if state[5].numbers()[0] == 1.0 {
            self.exchange(param, state);
        }
        let (state, counters) = state.split_at_mut(2);
        let ([beta1, beta2], t) = (self.betas, now.t as f64);
        let warm = (t / self.warmup_steps.max(1) as f64).min(1.0);
        let (rate, bias2) = (now.learning_rate * warm, (1.0 - beta2.powf(t)) as f32);
        let still = rate == 0.0;
        let share = if still { 0.0 } else { self.share(t, rate, counters) };
        let (y_rate, z_rate) = ((rate * (beta1 * (1.0 - share) - 1.0)) as f32, rate as f32);
        let (beta2, new2, share) = (beta2 as f32, (1.0 - beta2) as f32, share as f32);
        let (eps, decay) = (self.eps as f32, now.weight_decay as f32);
        pass::elementwise(param, grad, state, |param, grad, state| {
            let [v, z] = state else { unreachable!("two buffers per element are planned") };
            for (((y, g), v), z) in param.iter_mut().zip(grad).zip(v.iter_mut()).zip(z.iter_mut()) {
                let g = g * now.grad_scale;
                *v = *v * beta2 + new2 * g * g;
                let u = g / ((*v / bias2).sqrt() + eps) + decay * *y;
                let moved = (lerp(*y, *z, share) + y_rate * u, *z - z_rate * u);
                (*y, *z) = if still { (*y, *z) } else { moved };
            }
        });
    }

    fn exchanges(&self) -> bool {
        true
    }

    fn exchange(&self, param: &mut [f32], state: &mut [Data]) {
        let [_, z, _, _, _, exchanged] = state else { unreachable!("six buffers are planned") };
        let exchanged = &mut exchanged.numbers()[0];
        let beta1 = self.betas[0];
        let share = (if *exchanged == 0.0 { 1.0 - 1.0 / beta1 } else { 1.0 - beta1 }) as f32;
        *exchanged = 1.0 - *exchanged;
        let chunks = param.par_chunks_mut(pass::CHUNK).zip(z.numbers().par_chunks(pass::CHUNK));
        chunks.for_each(|(param, z)| {
            param.iter_mut().zip(z).for_each(|(p, z)| *p = lerp(*p, *z, share));
        });
    }
}

impl ScheduleFree {
    /// The weight of this step's `z` in the average. The sum is held in two parts, because a single
    /// f32 would stop to grow.
    fn share(&self, t: f64, rate: f64, counters: &mut [Data]) -> f64 {
        let [sum, rest, lr_max, _] = counters else { unreachable!("four counters are planned") };
        let (sum, rest) = (&mut sum.numbers()[0], &mut rest.numbers()[0]);
        let lr_max = &mut lr_max.numbers()[0];
        let largest = rate.max(f64::from(*lr_max));
        *lr_max = largest as f32;
        let weight = t.powf(self.r) * largest.powf(self.weight_lr_power);
        let all = f64::from(*sum) + f64::from(*rest) + weight;
        *sum = all as f32;
        *rest = (all - f64::from(*sum)) as f32;
        if all > 0.0 { weight / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn an_exchange_is_undone_by_another_and_by_a_step() {
        let optimizer = ScheduleFree { betas: [0.8, 0.95], ..ScheduleFree::default() };
        let mut rng = Seed(2).rng();
        let mut draw = || (0..50).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let mut param = draw();
        let plan = optimizer.plan("schedule_free_adamw").unwrap();
        let mut state: Vec<Data> =
            plan.state.iter().map(|(_, of)| of.begin(&[50], &param)).collect();
        let now = |t| Move { t, learning_rate: 0.1, weight_decay: 0.0, grad_scale: 1.0 };
        for t in 1..=4 {
            optimizer.apply(&now(t), &[50], &mut param, &draw(), &mut state);
        }
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let (trained, before) = (param.clone(), state.clone());
        optimizer.exchange(&mut param, &mut state);
        let used = param.clone();
        assert!(!close(&used, &trained));
        let z = before[1].clone().numbers().to_vec();
        let y: Vec<f32> = used.iter().zip(&z).map(|(x, z)| 0.8 * x + 0.2 * z).collect();
        assert!(close(&y, &trained));
        optimizer.exchange(&mut param, &mut state);
        assert!(close(&param, &trained));
        assert_eq!(state, before);
        // A step on exchanged numbers is a step all the same.
        let grad = draw();
        optimizer.exchange(&mut param, &mut state);
        optimizer.apply(&now(5), &[50], &mut param, &grad, &mut state);
        let (mut straight, mut other) = (trained, before);
        optimizer.apply(&now(5), &[50], &mut straight, &grad, &mut other);
        assert!(close(&param, &straight));
    }

    #[test]
    fn a_sum_of_weights_goes_on_growing() {
        let optimizer = ScheduleFree { weight_lr_power: 0.0, ..ScheduleFree::default() };
        let mut counters = vec![Data::F32(vec![0.0]); 4];
        // A single f32 would hold 2²⁴ for good.
        counters[0] = Data::F32(vec![16_777_216.0]);
        for _ in 0..100 {
            optimizer.share(1.0, 0.1, &mut counters);
        }
        let share = optimizer.share(1.0, 0.1, &mut counters);
        assert!((share * (16_777_216.0 + 101.0) - 1.0).abs() < 1e-12);
    }
}
