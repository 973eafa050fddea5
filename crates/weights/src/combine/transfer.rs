//! Fine-tuning transfer (Lin et al. 2025, paper 52): what tuning changed in one version of a model,
//! added to another version.
//!
//! `y = base + λ · (tuned − source)`, computed in f64: `base` is the version that gets the change,
//! `source` the one that `tuned` was tuned from. Where tuning added tokens, a version without them
//! counts as having zeros there. **Departures**: none.

use luthier_core::{Error, Result};

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
};

/// `merge_method: transfer`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// A factor of what is added.
    pub lambda: f64,
    /// Which of the two inputs is the source: 0 or 1.
    pub source: usize,
}

impl Transfer {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let marked = given.numbers("source");
        let named: Vec<usize> = (0..marked.len()).filter(|i| marked[*i] != 0.0).collect();
        let [source] = named[..] else {
            let what = format!("marks {} of the models, expected one", named.len());
            return Err(Error::input(given.at("source"), what).hint(
                "`parameters: {source: true}` belongs to the model that the other was tuned from",
            ));
        };
        Ok(Box::new(Transfer { lambda: given.number("lambda"), source }))
    }
}

impl Combine for Transfer {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            let (tuned, source) = (&others[1 - self.source], &others[self.source]);
            for (((y, b), x), s) in out.iter_mut().zip(base).zip(tuned).zip(source) {
                // The change may be smaller than what f32 loses of a sum.
                *y = (f64::from(*b) + self.lambda * (f64::from(*x) - f64::from(*s))) as f32;
            }
            Ok(())
        })
    }
}
