//! CoBa, the convergence balancer of MFTCoder's code (Liu et al. 2024, paper 30; Gong et al. 2024).
//!
//! With `s_k` the slope of a straight line through the latest `history_length` losses of task k, `s_max` that
//! through the largest of them, K tasks and n slopes so far:
//!
//! - relative convergence `RCS = softmax_k(K s_k / Σ_k |s_k|)`: more for tasks that are slow;
//! - absolute convergence `ACS = softmax_k(−n s_k / Σ_n |s_k|)`: less for a task that diverges;
//! - divergence factor `DF = n · softmax_n(−τ n s_max / Σ_n |s_max|)` of the latest slope;
//! - `w = softmax_k(K (DF · RCS + (1 − DF) · ACS))`, none below 1 / 10 K.
//!
//! Weights are equal until `warmup_steps`; slopes are taken from there on.
//!
//! **Departures**: (1) losses are shares of each task's first, as in the paper (the code divides by 1); (2) the
//! window of ACS is the code's, which leaves out as many of the first slopes as losses left the history: at
//! most `history_length` less the warm-up; (3) that of DF is `history_length`, where the code keeps all; (4) a sum of
//! slopes that is 0 gives equal scores, where the code divides by it.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{State, positive, softmax};

/// `[train.balance.coba]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Coba {
    /// Steps with equal weights.
    pub warmup_steps: u64,
    /// Losses that a slope is taken of.
    pub history_length: usize,
    /// How sharply divergence is told.
    pub tau: f64,
    /// Steps between measurements.
    pub update_interval: u64,
    /// Draws of rows for one measurement.
    pub sample_valid_num: usize,
    /// Rows of each task in a draw.
    pub valid_rows: usize,
}

impl Default for Coba {
    fn default() -> Self {
        Coba {
            warmup_steps: 100,
            history_length: 200,
            tau: 5.0,
            update_interval: 1,
            sample_valid_num: 1,
            valid_rows: 8,
        }
    }
}

impl Coba {
    pub(super) fn check(&self) -> Result<()> {
        positive("coba.tau", self.tau.is_finite() && self.tau > 0.0, self.tau)?;
        positive("coba.history_length", self.history_length > 1, self.history_length)?;
        positive("coba.update_interval", self.update_interval > 0, self.update_interval)?;
        positive("coba.sample_valid_num", self.sample_valid_num > 0, self.sample_valid_num)?;
        positive("coba.valid_rows", self.valid_rows > 0, self.valid_rows)
    }

    /// Takes in the losses before step `number`.
    pub(super) fn update(&self, state: &mut State, number: u64, losses: &[f64]) {
        if state.updates == 0 {
            // A loss of 0 has no share of itself.
            state.first = losses.iter().map(|l| if *l > 0.0 { *l } else { 1.0 }).collect();
            state.losses = vec![Vec::new(); losses.len()];
        }
        state.updates += 1;
        for ((known, loss), first) in state.losses.iter_mut().zip(losses).zip(&state.first) {
            known.push(loss / first);
            let excess = known.len().saturating_sub(self.history_length);
            known.drain(..excess);
        }
        if number < self.warmup_steps {
            return;
        }
        let largest = |i: usize| state.losses.iter().map(|of| of[i]).fold(f64::MIN, f64::max);
        let largest: Vec<f64> = (0..state.losses[0].len()).map(largest).collect();
        let all = state.losses.iter().chain([&largest]);
        let slopes: Vec<f64> = all.map(|losses| slope(losses)).collect();
        state.slopes.push(slopes);
        let excess = state.slopes.len().saturating_sub(self.history_length);
        state.slopes.drain(..excess);
        let since = *state.since.get_or_insert(state.updates);
        let window = (self.history_length as u64 + 1).saturating_sub(since).max(1);
        state.weights = self.weights(&state.slopes, window as usize);
    }

    /// The weights after these slopes: each a slope of every task, then that of the largest losses.
    fn weights(&self, slopes: &[Vec<f64>], window: usize) -> Vec<f64> {
        let Some((largest, now)) = slopes.last().and_then(|now| now.split_last()) else {
            return Vec::new();
        };
        let k = now.len();
        let share = |by: f64, of: f64, sum: f64| if sum == 0.0 { 0.0 } else { by * of / sum };
        let sum: f64 = now.iter().map(|s| s.abs()).sum();
        let relative: Vec<f64> = now.iter().map(|s| share(k as f64, *s, sum)).collect();
        let recent = &slopes[slopes.len() - window.min(slopes.len())..];
        let n = recent.len() as f64;
        let absolute = |(task, s): (usize, &f64)| {
            -share(n, *s, recent.iter().map(|slopes| slopes[task].abs()).sum())
        };
        let absolute: Vec<f64> = now.iter().enumerate().map(absolute).collect();
        let n = slopes.len() as f64;
        let sum: f64 = slopes.iter().map(|slopes| slopes[k].abs()).sum();
        let diverges = |s: f64| -share(self.tau * n, s, sum);
        let factors: Vec<f64> = slopes.iter().map(|slopes| diverges(slopes[k])).collect();
        debug_assert_eq!(factors.last(), Some(&diverges(*largest)));
        let factor = softmax(&factors).last().map_or(1.0, |last| last * n);
        let (rcs, acs) = (softmax(&relative), softmax(&absolute));
        let logits: Vec<f64> = rcs
            .iter()
            .zip(&acs)
            .map(|(rcs, acs)| k as f64 * (factor * rcs + (1.0 - factor) * acs))
            .collect();
        let weights = softmax(&logits);
        let floor = 1.0 / (10.0 * k as f64);
        match weights.iter().any(|w| *w < floor) {
            true => weights.iter().map(|w| w * (1.0 - k as f64 * floor) + floor).collect(),
            false => weights,
        }
    }
}

/// Of the straight line that is nearest to the values in the sense of squares.
fn slope(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let middle = (n - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / n;
    let both = values.iter().enumerate().map(|(i, y)| (i as f64 - middle) * (y - mean));
    // Σ (i − middle)² over n whole numbers.
    both.sum::<f64>() / (n * (n * n - 1.0) / 12.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights after these losses.
    fn after(coba: &Coba, losses: &[Vec<f64>]) -> Vec<f64> {
        let mut state = State { weights: vec![0.5; losses[0].len()], ..State::default() };
        for (i, losses) in losses.iter().enumerate() {
            coba.update(&mut state, i as u64 + 1, losses);
        }
        state.weights
    }

    #[test]
    fn given_histories_have_the_known_weights() {
        let coba = Coba { warmup_steps: 20, history_length: 50, ..Coba::default() };
        let fast = |t: f64| 2.0 * (-t / 30.0).exp();
        let slow = |t: f64| 2.0 * (-t / 300.0).exp();
        let rising = |t: f64| if t < 30.0 { fast(t) } else { fast(30.0) + 0.03 * (t - 30.0) };
        let of = |other: &dyn Fn(f64) -> f64| {
            let losses: Vec<Vec<f64>> =
                (0..60).map(|t| vec![fast(f64::from(t)), other(f64::from(t))]).collect();
            after(&coba, &losses)
        };
        // From an implementation in numpy of the published code's formulas.
        for (weights, want) in [(of(&fast), 0.5), (of(&slow), 0.7081), (of(&rising), 0.2809)] {
            assert!((weights[1] - want).abs() < 5e-4, "{weights:?}, expected {want}");
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn equal_histories_have_equal_weights_and_none_is_too_small() {
        let coba = Coba { warmup_steps: 3, history_length: 9, ..Coba::default() };
        let same: Vec<Vec<f64>> = (0..30).map(|t| vec![3.0 / (1.0 + f64::from(t)); 3]).collect();
        assert!(after(&coba, &same).iter().all(|w| (w - 1.0 / 3.0).abs() < 1e-12));
        let still = vec![vec![1.5; 3]; 12];
        assert!(after(&coba, &still).iter().all(|w| (w - 1.0 / 3.0).abs() < 1e-12));
        let mut rng = luthier_core::Seed(5).rng();
        for k in 2..6 {
            let losses: Vec<Vec<f64>> =
                (0..40).map(|_| (0..k).map(|_| 5.0 * rng.uniform()).collect()).collect();
            let weights = after(&coba, &losses);
            let floor = 1.0 / (10.0 * k as f64);
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{weights:?}");
            assert!(weights.iter().all(|w| *w >= floor), "{weights:?}");
        }
    }

    #[test]
    fn weights_are_equal_until_the_warm_up_is_over() {
        let coba = Coba { warmup_steps: 10, history_length: 9, ..Coba::default() };
        let losses =
            |n: u64| -> Vec<Vec<f64>> { (0..n).map(|t| vec![1.0 / (t + 1) as f64, 1.0]).collect() };
        assert_eq!(after(&coba, &losses(9)), [0.5, 0.5]);
        assert_ne!(after(&coba, &losses(10)), [0.5, 0.5]);
    }

    #[test]
    fn slopes_are_those_of_the_nearest_line() {
        assert!((slope(&[1.0, 3.0, 5.0, 7.0]) - 2.0).abs() < 1e-12);
        // Residuals of the line 1.9 − 0.7 i are 0.1, −0.2, 0.1.
        assert!((slope(&[2.0, 1.0, 0.6]) + 0.7).abs() < 1e-12);
        assert_eq!((slope(&[4.0]), slope(&[])), (0.0, 0.0));
    }
}
