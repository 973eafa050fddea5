//! What is added to any objective for what its policy's distributions look like: how undecided they
//! are, and how far they have gone from the model as it was.
//!
//! Over the trained tokens of a step, with weights `w`, `p` the policy's distribution and `r` that of
//! the model without what is tuned,
//!
//! `loss = objective − entropy·(Σ w·H(p) / Σ w) + kl·(Σ w·KL(p ‖ r) / Σ w)`.
//!
//! Both are exact over the vocabulary, a few tokens at a time. Their means are over all trained tokens,
//! whatever the objective is divided by: its own sum is divided by `step.by`, so theirs is multiplied
//! by `step.by / Σ w` first, and any cut of a step into passes gives the same. **Departures**: the KL
//! is no estimate from sampled tokens (k1, k3) but the divergence itself.

use candle_core::Tensor;
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Log, Objective, Seen, Teacher, Terms, Unit,
    distribution::{ENTROPY, FACETS, PIECE, RuledOut, divergence, facets},
};

const KEY: &str = "train.loss.penalty";

/// `[train.loss.penalty]`, beside an objective.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Penalty {
    /// What a nat of entropy earns; below 0 it costs.
    pub entropy: f64,
    /// What a nat of divergence from the model as it was costs.
    pub kl: f64,
}

/// An objective with its penalties.
pub struct Penalised<'a> {
    /// What is minimised.
    pub objective: Box<dyn Objective + 'a>,
    /// What is added.
    pub penalty: &'a Penalty,
}

impl Objective for Penalised<'_> {
    fn check(&self) -> Result<()> {
        self.objective.check()?;
        let Penalty { entropy, kl } = self.penalty;
        if !entropy.is_finite() {
            let what = format!("expected a number, got {entropy}");
            return Err(Error::input(format!("{KEY}.entropy"), what));
        }
        if !(kl.is_finite() && *kl >= 0.0) {
            let what = format!("expected a number from 0 up, got {kl}");
            return Err(Error::input(format!("{KEY}.kl"), what)
                .hint("what is to move away from the model as it was needs no penalty for it"));
        }
        if *kl > 0.0 && self.objective.teacher() == Teacher::Model {
            let what = "compares with the model as it was, and the objective with models.teacher; \
                only one of them can be read";
            return Err(Error::input(format!("{KEY}.kl"), what).hint("leave it at 0"));
        }
        Ok(())
    }

    fn unit(&self) -> Unit {
        self.objective.unit()
    }

    fn teacher(&self) -> Teacher {
        match self.penalty.kl > 0.0 {
            true => Teacher::Base,
            false => self.objective.teacher(),
        }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        self.objective.normaliser(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, mut teacher, batch, step } = seen;
        let Terms { sum, mut logs } = {
            let teacher = match &mut teacher {
                Some(teacher) if self.objective.teacher() != Teacher::Nobody => {
                    Some(&mut **teacher as &mut dyn Logits)
                }
                _ => None,
            };
            self.objective.terms(Seen { out: &mut *out, teacher, batch, step })?
        };
        let told = Told::of(batch);
        if told.index_m.is_empty() || *self.penalty == Penalty::default() {
            return Ok(Terms { sum, logs });
        }
        let each = step.by / step.all.weight;
        if !each.is_finite() {
            let what = format!("the weights of a step sum to {}", step.all.weight);
            return Err(Error::input(KEY, format!("{what}, so there is no mean over its tokens"))
                .hint("token weights must sum to more than 0"));
        }
        let mut sum = sum;
        if self.penalty.entropy != 0.0 {
            let (of, log) = told.entropy(out, -self.penalty.entropy * each)?;
            sum = (sum + of)?;
            logs.push(log);
        }
        if self.penalty.kl > 0.0 {
            let Some(base) = teacher else {
                return Err(Error::failed(KEY, "the model as it was is not at hand"));
            };
            let (of, log) = told.divergence(out, base, self.penalty.kl * each)?;
            sum = (sum + of)?;
            logs.push(log);
        }
        Ok(Terms { sum, logs })
    }
}

/// The trained tokens of a batch.
struct Told {
    index_m: Vec<u32>,
    targets_m: Vec<u32>,
    /// Their sizes: a token that the objective pushes away is not to diverge, either.
    weights_m: Vec<f32>,
}

/// A number for each of some tokens, given by their places among those that are trained.
type Numbers<'a> = dyn FnMut(&mut dyn Logits, std::ops::Range<usize>) -> Result<Tensor> + 'a;

impl Told {
    fn of(batch: &Batch) -> Self {
        let index_m = batch.trained_m();
        let targets_m = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let weights_m = index_m.iter().map(|i| batch.weights_n[*i as usize].abs()).collect();
        Told { index_m, targets_m, weights_m }
    }

    /// `by·Σ w·of(token)` over pieces of the tokens, each piece from its place among them, and the mean
    /// for the log.
    fn over(
        &self,
        out: &mut dyn Logits,
        name: &'static str,
        by: f64,
        of: &mut Numbers,
    ) -> Result<(Tensor, Log)> {
        let (m, mut total) = (self.index_m.len(), 0.0);
        let sum = out.sum(m.div_ceil(PIECE), &mut |out, piece| {
            let range = piece * PIECE..m.min((piece + 1) * PIECE);
            let weights = &self.weights_m[range.clone()];
            let number_c = of(out, range)?;
            let told = weights.iter().zip(number_c.to_vec1::<f32>()?);
            total += told.map(|(w, number)| f64::from(*w) * f64::from(number)).sum::<f64>();
            let by_c: Vec<f32> = weights.iter().map(|w| (by * f64::from(*w)) as f32).collect();
            let by_c = Tensor::from_vec(by_c, weights.len(), number_c.device())?;
            Ok((number_c * by_c)?.sum_all()?)
        })?;
        let weight = self.weights_m.iter().map(|w| f64::from(*w)).sum();
        Ok((sum, Log { name, sum: total, weight }))
    }

    fn entropy(&self, out: &mut dyn Logits, by: f64) -> Result<(Tensor, Log)> {
        self.over(out, "entropy", by, &mut |out, range| {
            let logits_cv = out.logits(&self.index_m[range.clone()])?;
            let facets_cf = facets(&logits_cv, &self.targets_m[range], RuledOut::default())?;
            debug_assert_eq!(facets_cf.dims().last(), Some(&FACETS));
            Ok(facets_cf.narrow(1, ENTROPY, 1)?.squeeze(1)?)
        })
    }

    fn divergence(
        &self,
        out: &mut dyn Logits,
        base: &mut dyn Logits,
        by: f64,
    ) -> Result<(Tensor, Log)> {
        self.over(out, "kl_base", by, &mut |out, range| {
            let index = &self.index_m[range];
            let base_cv = base.logits(index)?.detach();
            divergence(&out.logits(index)?, &base_cv)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Loss, Nll};

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_key() {
        let check = |entropy, kl| {
            let penalty = Penalty { entropy, kl };
            Penalised { objective: Box::new(Nll::PLAIN), penalty: &penalty }.check()
        };
        for (entropy, kl, key) in [(f64::NAN, 0.0, "entropy"), (0.0, -0.1, "kl")] {
            let error = check(entropy, kl).unwrap_err().to_string();
            assert!(error.starts_with(&format!("train.loss.penalty.{key}: ")), "{error}");
        }
        check(-0.01, 0.1).unwrap();
    }

    #[test]
    fn the_model_as_it_was_is_read_only_where_it_is_asked_for() {
        let of = |kl| Loss { penalty: Some(Penalty { entropy: 0.1, kl }), ..Loss::default() };
        assert_eq!(of(0.0).objective().unwrap().teacher(), Teacher::Nobody);
        assert_eq!(of(0.1).objective().unwrap().teacher(), Teacher::Base);
    }
}
