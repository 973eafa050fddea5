//! Negative log-likelihood of the trained tokens, and what is usually added to it.
//!
//! `sum = Σ_n coefficient_n · cost_n`, coefficients from the [`Normaliser`], and with `p` the
//! probability of the target, `ε` = `label_smoothing`, `γ` = `focal_gamma`:
//!
//! `cost = (1 − ε)·(1 − p)^γ·nll + ε·mean_v(−log p_v) + unlikelihood·Σ_c −log(1 − p_c) + z_loss·lse²`.
//!
//! Label smoothing (Szegedy et al. 2016) is that of transformers' `LabelSmoother` and of PyTorch's
//! `cross_entropy`; the focal factor (Lin et al. 2017) has a gradient of its own; unlikelihood
//! (Welleck et al. 2020) rules out every `c` among the trained tokens before this one in its row, once
//! each, but for the target; `lse` is the logarithm of the sum of exponentials (the z-loss of PaLM).
//! With all of them 0 this is weighted cross-entropy. **Departures**: (1) unlikelihood and z-loss are
//! divided by what the likelihood is divided by, not by numbers of their own; (2) what is ruled out is
//! sought in the row, where the authors' code looks through the whole batch.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Log, Normaliser, Objective, Seen, Terms,
    distribution::{FACETS, NLL, PIECE, RULED_OUT, RuledOut, SMOOTH, SQUARE, facets},
    normaliser::weight,
};

/// `[train.loss.nll]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nll {
    /// What counts the same: every token, or every row, or neither.
    pub normaliser: Normaliser,
    /// Share of the loss that asks for all tokens alike.
    pub label_smoothing: f64,
    /// How much less tokens count that are likely already.
    pub focal_gamma: f64,
    /// On `−log(1 − p)` of what stood in the answer before.
    pub unlikelihood: f64,
    /// On the square of the logits' normaliser.
    pub z_loss: f64,
}

impl Nll {
    /// Plain cross-entropy.
    pub const PLAIN: Nll = Nll {
        normaliser: Normaliser::Token,
        label_smoothing: 0.0,
        focal_gamma: 0.0,
        unlikelihood: 0.0,
        z_loss: 0.0,
    };

    /// What a target costs and how that grows with its nll, without what the whole distribution adds.
    fn own(&self, nll: f64) -> (f64, f64) {
        let (cost, slope) = focal(nll, self.focal_gamma);
        ((1.0 - self.label_smoothing) * cost, (1.0 - self.label_smoothing) * slope)
    }

    /// Whether log-probabilities of targets are all that is needed.
    fn of_targets_alone(&self) -> bool {
        self.label_smoothing == 0.0 && self.unlikelihood == 0.0 && self.z_loss == 0.0
    }
}

/// `(1 − p)^γ·nll` with `p = e^(−nll)`, and its derivative by `nll`.
pub fn focal(nll: f64, gamma: f64) -> (f64, f64) {
    if gamma == 0.0 {
        return (nll, 1.0);
    }
    let (p, left) = ((-nll).exp(), -(-nll).exp_m1());
    match (p > 0.0, left > 0.0) {
        // Certain: the factor takes the gradient away, too.
        (_, false) => (0.0, 0.0),
        (false, _) => (nll, 1.0),
        _ => {
            let factor = left.powf(gamma);
            (factor * nll, factor + gamma * left.powf(gamma - 1.0) * p * nll)
        }
    }
}

/// The trained tokens of a batch.
struct Told {
    index_m: Vec<u32>,
    targets_m: Vec<u32>,
    /// What the sum multiplies each by.
    coefficients_m: Vec<f32>,
    /// What each counts in the log: the size of its weight.
    weights_m: Vec<f32>,
}

impl Told {
    fn of(batch: &Batch, normaliser: Normaliser) -> Result<Self> {
        let (index_m, coefficients_n) = (batch.trained_m(), normaliser.coefficients_n(batch)?);
        let pick = |of: &[f32]| index_m.iter().map(|i| of[*i as usize]).collect();
        let targets_m = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let coefficients_m = pick(&coefficients_n);
        let weights_m = index_m.iter().map(|i| batch.weights_n[*i as usize].abs()).collect();
        Ok(Told { index_m, targets_m, coefficients_m, weights_m })
    }

    /// Of every token, the distinct ones before it in its row.
    fn before(&self, batch: &Batch) -> RuledOut {
        let mut before = RuledOut::default();
        let mut told = self.index_m.iter().zip(&self.targets_m).peekable();
        for row in 0..batch.rows.b() {
            let (end, begun) = (batch.rows.range(row).end, before.tokens.len());
            let mut seen = std::collections::HashSet::new();
            while let Some((_, target)) = told.next_if(|(i, _)| (**i as usize) < end) {
                before.runs_m.push(begun..before.tokens.len());
                if seen.insert(*target) {
                    before.tokens.push(*target);
                }
            }
        }
        before
    }
}

impl Objective for Nll {
    fn check(&self) -> Result<()> {
        self.normaliser.check("train.loss.nll.normaliser")?;
        let share = (0.0..1.0).contains(&self.label_smoothing);
        let positive = |x: f64| x.is_finite() && x >= 0.0;
        for (key, value, ok, expected) in [
            ("label_smoothing", self.label_smoothing, share, "a share from 0 up to, but not, 1"),
            ("focal_gamma", self.focal_gamma, positive(self.focal_gamma), "a number from 0 up"),
            ("unlikelihood", self.unlikelihood, positive(self.unlikelihood), "a number from 0 up"),
            ("z_loss", self.z_loss, positive(self.z_loss), "a number from 0 up"),
        ] {
            if !ok {
                let what = format!("expected {expected}, got {value}");
                return Err(Error::input(format!("train.loss.nll.{key}"), what));
            }
        }
        Ok(())
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        self.normaliser.total(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let told = Told::of(batch, self.normaliser)?;
        if told.index_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: vec![Log { name: "nll", sum: 0.0, weight: 0.0 }] });
        }
        match self.of_targets_alone() {
            true => self.by_targets(out, &told, weight(&told.weights_m)),
            false => self.by_distributions(out, &told, batch),
        }
    }
}

impl Nll {
    fn by_targets(&self, out: &mut dyn Logits, told: &Told, weight: f64) -> Result<Terms> {
        let logp_m = out.logp(&told.index_m, &told.targets_m)?.to_dtype(DType::F32)?;
        let values: Vec<f32> = logp_m.to_vec1()?;
        let (mut slopes, mut beyond) = (Vec::with_capacity(values.len()), 0.0);
        for (coefficient, logp) in told.coefficients_m.iter().zip(&values) {
            let nll = f64::from(-logp);
            let (cost, slope) = self.own(nll);
            slopes.push(-(slope as f32 * coefficient));
            // What a line through 0 with this slope misses.
            if self.focal_gamma != 0.0 {
                beyond += f64::from(*coefficient) * (cost - slope * nll);
            }
        }
        let slopes_m = Tensor::from_vec(slopes, values.len(), logp_m.device())?;
        let mut sum = (&logp_m * slopes_m)?.sum_all()?;
        if self.focal_gamma != 0.0 {
            sum = (sum + beyond)?;
        }
        // The log always tells the token-weighted mean, whatever is minimised.
        let weighted = |(w, logp): (&f32, f32)| f64::from(*w) * f64::from(-logp);
        let total = told.weights_m.iter().zip(values).map(weighted).sum();
        Ok(Terms { sum, logs: vec![Log { name: "nll", sum: total, weight }] })
    }

    /// Logits of a few tokens at a time.
    fn by_distributions(&self, out: &mut dyn Logits, told: &Told, batch: &Batch) -> Result<Terms> {
        let (m, mut totals) = (told.index_m.len(), [0.0; FACETS]);
        let before = match self.unlikelihood > 0.0 {
            true => told.before(batch),
            false => RuledOut::default(),
        };
        let sum = out.sum(m.div_ceil(PIECE), &mut |out, piece| {
            let range = piece * PIECE..m.min((piece + 1) * PIECE);
            let runs = before.runs_m.get(range.clone()).unwrap_or_default().to_vec();
            let ruled_out = RuledOut { tokens: before.tokens.clone(), runs_m: runs };
            let logits_cv = out.logits(&told.index_m[range.clone()])?.to_dtype(DType::F32)?;
            let facets_cf = facets(&logits_cv, &told.targets_m[range.clone()], ruled_out)?;
            let (mut factors, mut beyond) = (Vec::with_capacity(FACETS * range.len()), 0.0);
            for (i, numbers) in range.clone().zip(facets_cf.to_vec2::<f32>()?) {
                let (cost, slope) = self.own(f64::from(numbers[NLL]));
                let mut by = [0.0; FACETS];
                by[NLL] = slope;
                by[SMOOTH] = self.label_smoothing;
                by[SQUARE] = self.z_loss;
                by[RULED_OUT] = self.unlikelihood;
                let coefficient = f64::from(told.coefficients_m[i]);
                factors.extend(by.map(|by| (coefficient * by) as f32));
                beyond += coefficient * (cost - slope * f64::from(numbers[NLL]));
                for (total, number) in totals.iter_mut().zip(numbers) {
                    *total += f64::from(told.weights_m[i]) * f64::from(number);
                }
            }
            let factors_cf = Tensor::from_vec(factors, facets_cf.dims2()?, facets_cf.device())?;
            let sum = (facets_cf * factors_cf)?.sum_all()?;
            Ok(if self.focal_gamma == 0.0 { sum } else { (sum + beyond)? })
        })?;
        let weight = weight(&told.weights_m);
        let mut logs = vec![Log { name: "nll", sum: totals[NLL], weight }];
        let more = [
            ("unlikelihood", self.unlikelihood, totals[RULED_OUT]),
            ("z_loss", self.z_loss, totals[SQUARE]),
        ];
        let asked = more.into_iter().filter(|(_, coefficient, _)| *coefficient > 0.0);
        logs.extend(asked.map(|(name, _, sum)| Log { name, sum, weight }));
        Ok(Terms { sum, logs })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;

    use super::*;

    #[test]
    fn focal_costs_are_those_of_the_definition() {
        // Paper 30's figures for γ = 2.
        for (p, want) in [(0.9f64, 0.001_053_6), (0.1, 1.865_094)] {
            let (cost, _) = focal(-p.ln(), 2.0);
            assert!((cost - want).abs() < 1e-6, "{p}: {cost}");
        }
        for gamma in [0.5, 1.0, 2.0, 5.0] {
            for nll in [1e-3, 0.3, 2.0, 9.0] {
                let (_, slope) = focal(nll, gamma);
                let by = 1e-6;
                let rise = focal(nll + by, gamma).0 - focal(nll - by, gamma).0;
                assert!((rise / (2.0 * by) - slope).abs() < 1e-5, "{gamma} {nll}: {slope}");
            }
            assert_eq!(focal(0.0, gamma), (0.0, 0.0));
            assert_eq!(focal(f64::INFINITY, gamma), (f64::INFINITY, 1.0));
        }
        assert_eq!(focal(1.7, 0.0), (1.7, 1.0));
    }

    #[test]
    fn what_is_ruled_out_stood_before_in_the_same_row() {
        let row = |targets: &[u32], weights: &[f32]| Row {
            ids: vec![0; targets.len()],
            targets: targets.to_vec(),
            weights: weights.to_vec(),
            ..Row::default()
        };
        let rows = [row(&[7, 5, 5, 6, 5], &[0.0, 1.0, 1.0, 1.0, 2.0]), row(&[5, 8], &[1.0, 1.0])];
        let batch = Batch::from_rows(&rows);
        let before = Told::of(&batch, Normaliser::Token).unwrap().before(&batch);
        let runs: Vec<&[u32]> =
            before.runs_m.iter().map(|run| &before.tokens[run.clone()]).collect();
        let want: [&[u32]; 6] = [&[], &[5], &[5], &[5, 6], &[], &[5]];
        assert_eq!(runs, want);
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_key() {
        for (nll, key) in [
            (Nll { label_smoothing: 1.0, ..Nll::PLAIN }, "label_smoothing"),
            (Nll { focal_gamma: -1.0, ..Nll::PLAIN }, "focal_gamma"),
            (Nll { unlikelihood: f64::NAN, ..Nll::PLAIN }, "unlikelihood"),
            (Nll { z_loss: -0.1, ..Nll::PLAIN }, "z_loss"),
            (Nll { normaliser: Normaliser::Constant(0.0), ..Nll::PLAIN }, "normaliser.constant"),
        ] {
            let error = nll.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("train.loss.nll.{key}: ")), "{error}");
        }
        Nll::PLAIN.check().unwrap();
        assert_eq!(Nll::PLAIN, Nll::default());
    }
}
