//! Fisher averaging (Matena & Raffel 2021): every number a mean of its own, weighted by how much the
//! likelihood of each model depends on it.
//!
//! `y = Σ wᵢ · (Fᵢ + floor) · xᵢ / Σ wᵢ · (Fᵢ + floor)`, where `Fᵢ` are the values that `luthier probe
//! fisher` writes. **Departures**: (1) where no Fisher value says anything (all are 0, or a file has
//! none for a tensor) the mean is the plain one by `wᵢ`; the paper divides by a small constant there.

use luthier_core::{Error, Result};

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
};

/// `merge_method: fisher`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fisher {
    /// One for each model.
    pub weight: Vec<f64>,
    /// Added to every Fisher value.
    pub floor: f64,
    /// Whether there are Fisher values for this tensor.
    pub known: bool,
}

impl Fisher {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let weight = given.within("weight", 0.0..=f64::MAX)?;
        if weight.iter().sum::<f64>() == 0.0 {
            return Err(Error::input(given.at("weight"), "the weights add up to 0"));
        }
        let floor = given.number_within("floor", 0.0..=f64::MAX)?;
        Ok(Box::new(Fisher { weight, floor, known: given.all_or_none_beside("fisher")? }))
    }
}

impl Combine for Fisher {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let (k, total) = (self.weight.len(), self.weight.iter().sum::<f64>());
        work.write(Cut::Anywhere, As::Values, put, |piece, loaded| {
            let Loaded { others, out, .. } = loaded;
            let (models, fishers) = others.split_at(k);
            for (i, y) in out.iter_mut().enumerate() {
                let (mut sum, mut by, mut plain) = (0f64, 0f64, 0f64);
                for (m, (x, weight)) in models.iter().zip(&self.weight).enumerate() {
                    let f = if self.known { f64::from(fishers[m][i]) + self.floor } else { 0.0 };
                    if f < 0.0 || f.is_nan() {
                        let what = format!("number {} has the Fisher value {f}", piece.from + i);
                        return Err(Error::input("fisher", what)
                            .hint("Fisher values are means of squares, 0 or more"));
                    }
                    let x = f64::from(x[i]);
                    sum += weight * f * x;
                    by += weight * f;
                    plain += weight * x;
                }
                *y = (if by > 0.0 { sum / by } else { plain / total }) as f32;
            }
            Ok(())
        })
    }
}
