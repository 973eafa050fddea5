//! Weighted mean (Wortsman et al. 2022, "Model soups"): `Σ wᵢ · xᵢ`, over `Σ wᵢ` with `normalize`.
//!
//! **Departures**: weights that add up to 0 are refused, where division would give NaN.

use luthier_core::{Error, Result};

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Put, Work},
};

/// `merge_method: linear`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// One for each input.
    pub weight: Vec<f64>,
    /// Whether they are divided by their sum.
    pub normalize: bool,
}

impl Linear {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let (weight, normalize) = (given.numbers("weight"), given.switch("normalize"));
        if normalize && weight.iter().sum::<f64>() == 0.0 {
            return Err(Error::input(given.at("weight"), "the weights add up to 0")
                .hint("set normalize: false, or other weights"));
        }
        Ok(Box::new(Linear { weight, normalize }))
    }
}

impl Combine for Linear {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let total: f64 = if self.normalize { self.weight.iter().sum() } else { 1.0 };
        let shares: Vec<f64> = self.weight.iter().map(|w| w / total).collect();
        work.write_sum(As::Values, &shares, put)
    }
}
