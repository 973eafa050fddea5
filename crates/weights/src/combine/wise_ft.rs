//! WiSE-FT (Wortsman et al. 2021; papers 48 and 60): a straight line from the base to a tuned model.
//!
//! `y = (1 − α) · base + α · tuned`, for every tensor, heads included. **Departures**: none; the search
//! for α is `search: {grid: {alpha: […]}}`.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
};

/// `merge_method: wise_ft`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WiseFt {
    /// How far along the line; 0 is the base, 1 the tuned model, and beyond it leads on.
    pub alpha: f64,
}

impl WiseFt {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(WiseFt { alpha: given.number("alpha") }))
    }
}

impl Combine for WiseFt {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let (from, to) = ((1.0 - self.alpha) as f32, self.alpha as f32);
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            for ((y, b), x) in out.iter_mut().zip(base).zip(&others[0]) {
                // Neither end may be lost to rounding.
                *y = from * *b + to * *x;
            }
            Ok(())
        })
    }
}
