//! Muon (Jordan et al. 2024), as torch has it: momentum whose singular values are all made about 1.
//!
//! `b ← b + (1 − momentum)(g − b)`, `o = momentum · b + (1 − momentum) g` with `nesterov`, else `b`;
//! `o ← o / ‖o‖`, then `ns_steps` times `s = o oᵀ`, `o ← a₀ o + (a₁ s + a₂ s s) o` with
//! `a = ns_coefficients`; `p ← (1 − lr · decay) p − lr · adjust · o`. Everything of `o` is rounded
//! to bf16, as in torch: the iteration is made for that, and needs no more.
//! What is no matrix moves by AdamW's rule with the `adamw_…` settings, as the published code's
//! second group does; there `momentum_buffer` holds AdamW's mean and `exp_avg_sq` its mean square.
//! Jordan's advice is to give embeddings and the head to AdamW too.
//! **Departures**: (1) schedule and groups multiply both learning rates, and a group's or the common
//! weight decay is for both; (2) of three or more dimensions, all but the last count as rows; (3) a
//! learning rate of 0 leaves parameters bit-equal.

use half::bf16;
use luthier_core::{Error, Result};
use luthier_kernels::{
    gemm::{Output, Term, View, product},
    num::{Precision, narrow, widen},
};
use serde::{Deserialize, Serialize};

use super::{AdamW, Data, Move, Of, Optimizer, Plan, check_rate, check_share, lerp};
use crate::pass;

/// `[train.update.muon]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Muon {
    /// Step size of matrices before the schedule.
    pub learning_rate: f64,
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
    /// Memory of the mean.
    pub momentum: f64,
    /// Whether to look ahead along the mean.
    pub nesterov: bool,
    /// Of the polynomial that takes singular values to about 1.
    pub ns_coefficients: [f64; 3],
    /// How often the polynomial is applied.
    pub ns_steps: u32,
    /// The least norm that a gradient is divided by.
    pub eps: f64,
    /// How the shape of a matrix enters its learning rate.
    pub adjust_lr_fn: AdjustLr,
    /// Step size of what is no matrix.
    pub adamw_learning_rate: f64,
    /// Memory of its mean and mean square.
    pub adamw_betas: [f64; 2],
    /// Added to its root, outside of it.
    pub adamw_eps: f64,
}

/// What the learning rate of a matrix with `rows` and `columns` is multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// `√max(1, rows / columns)` (Jordan).
    #[default]
    Original,
    /// `0.2 √max(rows, columns)`: AdamW's learning rates and weight decay fit (Moonshot).
    MatchRmsAdamw,
    /// `√(rows / columns)` (Bernstein).
    SpectralUnclamped,
}

impl Default for Muon {
    fn default() -> Self {
        Muon {
            learning_rate: 1e-3,
            weight_decay: 0.1,
            momentum: 0.95,
            nesterov: true,
            ns_coefficients: [3.4445, -4.7750, 2.0315],
            ns_steps: 5,
            eps: 1e-7,
            adjust_lr_fn: AdjustLr::Original,
            adamw_learning_rate: 3e-4,
            adamw_betas: [0.9, 0.95],
            adamw_eps: 1e-10,
        }
    }
}

impl Optimizer for Muon {
    fn plan(&self, at: &str) -> Result<Plan> {
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("eps", self.eps),
            ("adamw_learning_rate", self.adamw_learning_rate),
            ("adamw_eps", self.adamw_eps),
        ] {
            check_rate(at, key, value)?;
        }
        check_share(at, "momentum", self.momentum)?;
        self.adamw_betas.iter().try_for_each(|beta| check_share(at, "adamw_betas", *beta))?;
        if self.eps == 0.0 {
            let what = "expected a number above 0: a gradient of 0 is divided by it";
            return Err(Error::input(format!("{at}.eps"), what));
        }
        if self.ns_steps >= 100 {
            let what = format!("expected fewer than 100, got {}", self.ns_steps);
            return Err(Error::input(format!("{at}.ns_steps"), what));
        }
        if let Some(bad) = self.ns_coefficients.iter().find(|c| !c.is_finite()) {
            let what = format!("expected finite numbers, got {bad}");
            return Err(Error::input(format!("{at}.ns_coefficients"), what));
        }
        // A vector has as many rows as elements: its mean square. A matrix has no use for them.
        let state = vec![("momentum_buffer", Of::Elements), ("exp_avg_sq", Of::Rows)];
        let (learning_rate, weight_decay) = (self.learning_rate, self.weight_decay);
        Ok(Plan { learning_rate, weight_decay, state })
    }

    fn apply(
        &self,
        now: &Move,
        dims: &[usize],
        param: &mut [f32],
        grad: &[f32],
        state: &mut [Data],
    ) {
        let [.., columns] = *dims else { return self.adamw(now, param, grad, state) };
        if dims.len() < 2 || columns == 0 {
            return self.adamw(now, param, grad, state);
        }
        let (rows, new) = (param.len() / columns, (1.0 - self.momentum) as f32);
        let mut update = vec![0f32; param.len()];
        pass::elementwise(&mut update, grad, &mut state[..1], |update, grad, state| {
            let [b] = state else { unreachable!("one buffer was given") };
            for ((o, g), b) in update.iter_mut().zip(grad).zip(b.iter_mut()) {
                let g = g * now.grad_scale;
                *b = lerp(*b, g, new);
                *o = if self.nesterov { lerp(g, *b, self.momentum as f32) } else { *b };
            }
        });
        if now.learning_rate == 0.0 {
            return;
        }
        self.orthogonalise(&mut update, rows, columns);
        let keep = (1.0 - now.learning_rate * now.weight_decay) as f32;
        let rate = (now.learning_rate * self.adjust_lr_fn.factor(rows, columns)) as f32;
        pass::elementwise(param, &update, &mut [], |param, update, _| {
            param.iter_mut().zip(update).for_each(|(p, o)| *p = *p * keep - rate * o);
        });
    }
}

impl Muon {
    /// AdamW for what is no matrix.
    fn adamw(&self, now: &Move, param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let whole = self.learning_rate > 0.0;
        let share = if whole { self.adamw_learning_rate / self.learning_rate } else { 0.0 };
        let now = Move { learning_rate: now.learning_rate * share, ..*now };
        let (betas, eps) = (self.adamw_betas, self.adamw_eps);
        AdamW { betas, eps, ..AdamW::default() }.apply(&now, &[], param, grad, state);
    }

    /// Newton-Schulz: takes the singular values of `o` to about 1.
    fn orthogonalise(&self, o: &mut [f32], rows: usize, columns: usize) {
        let (tall, small, large) = (rows > columns, rows.min(columns), rows.max(columns));
        let [a0, a1, a2] = self.ns_coefficients.map(|a| a as f32);
        let round = |x: f32| bf16::from_f32(x).to_f32();
        let mut held = vec![bf16::ZERO; o.len()];
        narrow(o, &mut held);
        widen(&held, o);
        let norm = round(pass::squares(o).sqrt() as f32).max(round(self.eps as f32));
        o.iter_mut().for_each(|o| *o /= norm);
        narrow(o, &mut held);
        let mut s = vec![0f32; small * small];
        let mut s_held = vec![bf16::ZERO; small * small];
        for _ in 0..self.ns_steps {
            let o_view = View::rows(&held[..], columns);
            let (a, b) = if tall { (o_view.t(), o_view) } else { (o_view, o_view.t()) };
            times(&mut s, small, small, Term { a, b, k: large });
            narrow(&s, &mut s_held);
            let view = View::rows(&s_held[..], small);
            times(&mut s, small, small, Term { a: view, b: view, k: small });
            s.iter_mut().zip(&s_held).for_each(|(ss, s)| *ss = a1 * s.to_f32() + a2 * *ss);
            narrow(&s, &mut s_held);
            let view = View::rows(&s_held[..], small);
            // A tall matrix is transposed throughout, and what multiplies it is symmetric.
            let (a, b) = if tall { (o_view, view) } else { (view, o_view) };
            times(o, rows, columns, Term { a, b, k: small });
            o.iter_mut().zip(&held).for_each(|(so, o)| *so += a0 * o.to_f32());
            narrow(o, &mut held);
        }
        widen(&held, o);
    }
}

fn times(c: &mut [f32], rows: usize, columns: usize, term: Term) {
    product(Precision::Bf16, rows, columns, &[term], Output::Set, c, columns);
}

impl AdjustLr {
    fn factor(self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        match self {
            AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
            AdjustLr::SpectralUnclamped => (rows / columns).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    /// The published polynomial leaves singular values between about 0.7 and 1.2, whatever they were.
    #[test]
    fn singular_values_come_near_to_1() {
        for (rows, columns) in [(40, 24), (24, 40), (9, 9), (1, 30), (30, 1)] {
            let mut rng = Seed(5).rng();
            let mut o: Vec<f32> = (0..rows * columns).map(|_| rng.normal() as f32).collect();
            Muon::default().orthogonalise(&mut o, rows, columns);
            let small = rows.min(columns);
            let at = |i: usize, k: usize| {
                f64::from(if rows > columns { o[k * columns + i] } else { o[i * columns + k] })
            };
            let gram = |i: usize, j: usize| {
                (0..rows.max(columns)).map(|k| at(i, k) * at(j, k)).sum::<f64>()
            };
            let trace: f64 = (0..small).map(|i| gram(i, i)).sum();
            // Largest singular value by the power method.
            let mut v = vec![1.0; small];
            let mut largest = 0.0;
            for _ in 0..50 {
                let w: Vec<f64> =
                    (0..small).map(|i| (0..small).map(|j| gram(i, j) * v[j]).sum()).collect();
                largest = w.iter().map(|x| x * x).sum::<f64>().sqrt();
                v = w.iter().map(|x| x / largest).collect();
            }
            let mean = trace / small as f64;
            assert!(
                largest.sqrt() < 1.3 && mean.sqrt() > 0.6,
                "{rows} x {columns}: {largest} {mean}"
            );
        }
    }

    #[test]
    fn a_gradient_of_0_moves_nothing() {
        let muon = Muon { weight_decay: 0.0, ..Muon::default() };
        let now = Move { t: 1, learning_rate: 1.0, weight_decay: 0.0, grad_scale: 1.0 };
        let mut state = [Data::F32(vec![0.0; 6]), Data::F32(vec![0.0; 2])];
        let mut param = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        muon.apply(&now, &[2, 3], &mut param, &[0.0; 6], &mut state);
        assert_eq!(param, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
