//! Multi-SLERP: several inputs, or what they differ by from a base, averaged on a sphere.
//!
//! `uᵢ = xᵢ / (|xᵢ| + eps)`, `m = Σ wᵢ · uᵢ`, result `(Σ wᵢ · |xᵢ|) · m / |m|`. The method as described
//! also averages tangent vectors at `m / |m|`; these add up to 0 there by construction (what they
//! leave out of `m` is its part along itself), so nothing is computed for them. **Departures**: none
//! beyond that rounding.

use luthier_core::{Error, Result};

use crate::{
    combine::{Combine, gram::Gram},
    method::Given,
    operands::{As, Put, Work},
};

/// `merge_method: multislerp`.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiSlerp {
    /// One for each input but the base.
    pub weight: Vec<f64>,
    /// Whether they are divided by their sum.
    pub normalize_weights: bool,
    /// Keeps divisions from 0.
    pub eps: f64,
    at: String,
}

impl MultiSlerp {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let (weight, normalize) = (given.numbers("weight"), given.switch("normalize_weights"));
        if normalize && weight.iter().sum::<f64>() == 0.0 {
            return Err(Error::input(given.at("weight"), "the weights add up to 0")
                .hint("set normalize_weights: false, or other weights"));
        }
        let (eps, at) = (given.number("eps"), given.at("weight"));
        Ok(Box::new(MultiSlerp { weight, normalize_weights: normalize, eps, at }))
    }

    fn coefficients(&self, gram: &Gram) -> Result<Vec<f64>> {
        let total: f64 = if self.normalize_weights { self.weight.iter().sum() } else { 1.0 };
        let weights: Vec<f64> = self.weight.iter().map(|w| w / total).collect();
        let lengths: Vec<f64> = (0..gram.len()).map(|i| gram.norm(i) + self.eps).collect();
        let of_mean = gram.divided(&lengths).length(&weights);
        if of_mean < self.eps {
            if gram.len() == 2 {
                return Ok(weights);
            }
            return Err(Error::input(
                &self.at,
                "the weighted directions cancel, so they have no mean",
            )
            .hint("give inputs that point in opposite directions different weights"));
        }
        let length: f64 = weights.iter().enumerate().map(|(i, w)| w * gram.norm(i)).sum();
        Ok(weights.iter().zip(&lengths).map(|(w, n)| length * w / (n * of_mean)).collect())
    }
}

impl Combine for MultiSlerp {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        if work.others() == 1 {
            return work.write_sum(As::Values, &[1.0], put);
        }
        let gram = Gram::of(work, As::Deltas)?;
        work.write_sum(As::Deltas, &self.coefficients(&gram)?, put)
    }
}
