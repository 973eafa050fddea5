//! Adafactor (Shazeer and Stern 2018) with the settings and defaults of transformers: the mean
//! square of a matrix as one number per row and one per column.
//!
//! `β = 1 − t^decay_rate`, `s = g² + eps[0]`, `row ← β row + (1 − β) mean over columns of s`,
//! `col ← β col + (1 − β) mean over rows of s`, `u = g / √(row / mean(row)) / √col` (of a vector
//! `g / √v` with `v ← β v + (1 − β) s`), `u ← u / max(1, rms(u) / clip_threshold)`,
//! `a = lr · max(eps[1], rms(p))` with `scale_parameter`, else `a = lr`; `u ← a u`, or with `beta1`
//! `m ← beta1 m + (1 − beta1) a u` and `u ← m`; `p ← p − a · decay · p − u`.
//! With `relative_step`, `lr = min(0.01, 1 / √t)`, where `warmup_init` puts `1e-6 t` for the 0.01.
//! **Departures**: (1) `relative_step` is on where there is no `learning_rate`, so that giving one
//! is enough to use it; (2) the schedule multiplies relative steps too (`constant` leaves them);
//! (3) a learning rate of 0 leaves parameters bit-equal; (4) a tensor of three or more dimensions
//! is a matrix with rows along the last.

use luthier_core::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Data, Move, Of, Optimizer, Plan, check_rate, check_share};
use crate::pass::{self, CHUNK};

/// `[train.update.adafactor]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adafactor {
    /// Step size before the schedule; without one, steps are relative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Added to squares of gradients; the least size a parameter counts as having.
    pub eps: [f64; 2],
    /// The root mean square that an update is held to.
    pub clip_threshold: f64,
    /// How fast the memory of squares grows long: a power of the step, below 0.
    pub decay_rate: f64,
    /// Memory of the mean; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
    /// Whether steps are in units of the parameter's root mean square.
    pub scale_parameter: bool,
    /// Whether the step's number gives the learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_step: Option<bool>,
    /// Whether relative steps begin small.
    pub warmup_init: bool,
}

impl Default for Adafactor {
    fn default() -> Self {
        Adafactor {
            learning_rate: None,
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: true,
            relative_step: None,
            warmup_init: false,
        }
    }
}

impl Optimizer for Adafactor {
    fn plan(&self, at: &str) -> Result<Plan> {
        let wrong = |key: &str, what: &str| Err(Error::input(format!("{at}.{key}"), what));
        match (self.learning_rate, self.relative_step) {
            (Some(_), Some(true)) => {
                return wrong(
                    "relative_step",
                    "gives the learning rate, but learning_rate is given",
                );
            }
            (None, Some(false)) => return wrong("relative_step", "off, but without learning_rate"),
            _ if self.warmup_init && !self.is_relative() => {
                return wrong("warmup_init", "needs relative_step, that is, no learning_rate");
            }
            _ => {}
        }
        // Relative steps are multiplied by the schedule alone.
        let learning_rate = self.learning_rate.unwrap_or(1.0);
        check_rate(at, "learning_rate", learning_rate)?;
        check_rate(at, "weight_decay", self.weight_decay)?;
        check_share(at, "beta1", self.beta1.unwrap_or(0.0))?;
        self.eps.iter().try_for_each(|eps| check_rate(at, "eps", *eps))?;
        check_rate(at, "clip_threshold", self.clip_threshold)?;
        if self.eps[0] as f32 == 0.0 || self.clip_threshold == 0.0 {
            let key = if self.clip_threshold == 0.0 { "clip_threshold" } else { "eps" };
            return wrong(key, "expected a number above 0");
        }
        if !(self.decay_rate.is_finite() && self.decay_rate < 0.0) {
            let what = format!("expected a number below 0, got {}", self.decay_rate);
            return wrong("decay_rate", &what);
        }
        let mut state = vec![("exp_avg_sq_row", Of::Rows), ("exp_avg_sq_col", Of::Columns)];
        state.extend(self.beta1.map(|_| ("exp_avg", Of::Elements)));
        Ok(Plan { learning_rate, weight_decay: self.weight_decay, state })
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let [row, col, mean @ ..] = state else { unreachable!("two buffers are planned") };
        let rms = |squares: f64| (squares / grad.len().max(1) as f64).sqrt();
        let mut rate = now.learning_rate * self.relative(now.t);
        if self.scale_parameter {
            rate *= self.eps[1].max(rms(pass::squares(param)));
        }
        let cut = Cut::new(row.len(), col.len().max(1));
        let factors = self.factors(now, &cut, grad, row.numbers(), col.numbers());
        let size = rms(factors.squares(now.grad_scale, &cut, grad));
        let shrink = (size / self.clip_threshold).max(1.0) as f32;
        let (rate, decay) = (rate as f32, (now.weight_decay * rate) as f32);
        let still = now.learning_rate == 0.0;
        let beta1 = self.beta1.unwrap_or(0.0);
        let (beta1, new1) = (beta1 as f32, (1.0 - beta1) as f32);
        let mut means = mean.first_mut().map(|m| m.numbers().chunks_mut(cut.numbers()));
        let chunks: Vec<_> = param
            .chunks_mut(cut.numbers())
            .zip(grad.chunks(cut.numbers()))
            .zip(factors.left.chunks(cut.rows))
            .map(|chunk| (chunk, means.as_mut().and_then(Iterator::next)))
            .collect();
        chunks.into_par_iter().for_each(|(((param, grad), left), mut mean)| {
            let rows = param.chunks_mut(cut.columns).zip(grad.chunks(cut.columns)).zip(left);
            for (r, ((param, grad), left)) in rows.enumerate() {
                let mut mean = mean.as_mut().map(|m| m[r * cut.columns..].iter_mut());
                for ((p, g), right) in param.iter_mut().zip(grad).zip(&factors.right) {
                    let mut u = left * right * (g * now.grad_scale) / shrink * rate;
                    if let Some(m) = mean.as_mut().and_then(Iterator::next) {
                        *m = *m * beta1 + new1 * u;
                        u = *m;
                    }
                    *p = if still { *p } else { *p - *p * decay - u };
                }
            }
        });
    }
}

impl Adafactor {
    fn is_relative(&self) -> bool {
        self.relative_step.unwrap_or(self.learning_rate.is_none())
    }

    /// What the step's number says of the learning rate.
    fn relative(&self, t: u64) -> f64 {
        let least = if self.warmup_init { 1e-6 * t as f64 } else { 1e-2 };
        if self.is_relative() { least.min(1.0 / (t as f64).sqrt()) } else { 1.0 }
    }

    /// Takes the squares of a gradient into the averages; what an update multiplies gradients by.
    fn factors(
        &self,
        now: &Move,
        cut: &Cut,
        grad: &[f32],
        row: &mut [f32],
        col: &mut [f32],
    ) -> Factors {
        let old = 1.0 - (now.t as f64).powf(self.decay_rate);
        let (old, new, eps) = (old as f32, (1.0 - old) as f32, self.eps[0] as f32);
        let square = |g: &f32| f64::from((g * now.grad_scale) * (g * now.grad_scale) + eps);
        let take = |average: &mut f32, sum: f64, of: usize| {
            *average = *average * old + new * (sum / of as f64) as f32;
        };
        let of_rows = |(grad, row): (&[f32], &mut [f32])| {
            let mut sums = vec![0f64; cut.columns];
            for (grad, row) in grad.chunks(cut.columns).zip(row) {
                let mut whole = 0.0;
                for (sum, g) in sums.iter_mut().zip(grad) {
                    let square = square(g);
                    whole += square;
                    *sum += square;
                }
                take(row, whole, cut.columns);
            }
            sums
        };
        let chunks = grad.par_chunks(cut.numbers()).zip(row.par_chunks_mut(cut.rows));
        let parts: Vec<Vec<f64>> = chunks.map(of_rows).collect();
        if col.is_empty() {
            return Factors {
                left: row.iter().map(|v| 1.0 / v.sqrt()).collect(),
                right: vec![1.0],
            };
        }
        for (j, col) in col.iter_mut().enumerate() {
            take(col, parts.iter().map(|part| part[j]).sum(), row.len());
        }
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        let left = row.iter().map(|x| 1.0 / (x / mean as f32).sqrt()).collect();
        Factors { left, right: col.iter().map(|x| 1.0 / x.sqrt()).collect() }
    }
}

/// What a gradient is multiplied by: a number per row times a number per column.
struct Factors {
    left: Vec<f32>,
    right: Vec<f32>,
}

impl Factors {
    /// The sum of squares of the update; its order follows from the shape.
    fn squares(&self, grad_scale: f32, cut: &Cut, grad: &[f32]) -> f64 {
        let of_rows = |(grad, left): (&[f32], &[f32])| -> f64 {
            let of_row = |(grad, left): (&[f32], &f32)| -> f64 {
                let update = grad.iter().zip(&self.right).map(|(g, r)| left * r * (g * grad_scale));
                update.map(|u| f64::from(u).powi(2)).sum()
            };
            grad.chunks(cut.columns).zip(left).map(of_row).sum()
        };
        let chunks = grad.par_chunks(cut.numbers()).zip(self.left.par_chunks(cut.rows));
        let parts: Vec<f64> = chunks.map(of_rows).collect();
        parts.iter().sum()
    }
}

/// How a matrix is shared among threads: whole rows, so many at a time. A vector is a column.
struct Cut {
    rows: usize,
    columns: usize,
}

impl Cut {
    /// At most 64 pieces, because each has its own sums over rows.
    fn new(rows: usize, columns: usize) -> Self {
        Cut { rows: rows.div_ceil(64).max(CHUNK / columns).max(1), columns }
    }

    fn numbers(&self) -> usize {
        self.rows * self.columns
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn pieces_of_a_matrix_make_one_matrix() {
        let (rows, columns) = (150, 301);
        let mut rng = Seed(6).rng();
        let mut draw = || (0..rows * columns).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let (mut param, grad) = (draw(), draw());
        let at = |r: usize, c: usize| f64::from(grad[r * columns + c]);
        let row: Vec<f64> = (0..rows)
            .map(|r| (0..columns).map(|c| at(r, c).powi(2)).sum::<f64>() / columns as f64)
            .collect();
        let col: Vec<f64> = (0..columns)
            .map(|c| (0..rows).map(|r| at(r, c).powi(2)).sum::<f64>() / rows as f64)
            .collect();
        let mean = row.iter().sum::<f64>() / rows as f64;
        let update = |r: usize, c: usize| at(r, c) / (row[r] / mean * col[c]).sqrt();
        let all = || (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
        let rms = |x: f64| (x / (rows * columns) as f64).sqrt();
        let shrink = rms(all().map(|(r, c)| update(r, c).powi(2)).sum()) / 0.5;
        assert!(shrink > 1.5);
        let rate = 0.01 * rms(param.iter().map(|p| f64::from(*p).powi(2)).sum());
        let want: Vec<f64> = all()
            .map(|(r, c)| f64::from(param[r * columns + c]) - rate * update(r, c) / shrink)
            .collect();
        let optimizer = Adafactor { clip_threshold: 0.5, ..Adafactor::default() };
        let plan = optimizer.plan("adafactor").unwrap();
        assert_eq!(plan.learning_rate, 1.0);
        let dims = [rows, columns];
        let mut state: Vec<Data> =
            plan.state.iter().map(|(_, of)| of.begin(&dims, &param)).collect();
        let now = Move { t: 1, learning_rate: 1.0, weight_decay: 0.0, grad_scale: 1.0 };
        optimizer.apply(&now, &dims, &mut param, &grad, &mut state);
        let apart = param.iter().zip(&want).map(|(p, want)| (f64::from(*p) - want).abs());
        assert!(apart.fold(0.0, f64::max) < 1e-6);
        assert_eq!(state.iter().map(Data::len).sum::<usize>(), rows + columns);
    }

    #[test]
    fn rates_that_contradict_each_other_are_refused() {
        let refused = |optimizer: Adafactor, key: &str| {
            let error = optimizer.plan("train.update.adafactor").unwrap_err().to_string();
            assert!(error.starts_with(&format!("train.update.adafactor.{key}")), "{error}");
        };
        let rate = Adafactor { learning_rate: Some(0.1), ..Adafactor::default() };
        assert!(rate.plan("").is_ok() && !rate.is_relative());
        refused(Adafactor { relative_step: Some(true), ..rate.clone() }, "relative_step");
        refused(Adafactor { warmup_init: true, ..rate.clone() }, "warmup_init");
        refused(Adafactor { eps: [0.0, 1e-3], ..rate.clone() }, "eps");
        refused(Adafactor { decay_rate: 0.8, ..rate }, "decay_rate");
        let off = Adafactor { relative_step: Some(false), ..Adafactor::default() };
        refused(off, "relative_step");
    }
}
