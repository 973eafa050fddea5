//! NearSwap: takes the other input's number where it is within `t` of the base's, and less of it the
//! further it is away.
//!
//! `s = clamp(t / |a − b|, 0, 1)`, `s · b + (1 − s) · a`. **Departures**: none.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
};

/// `merge_method: nearswap`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearSwap {
    /// The distance up to which the other input is taken whole.
    pub t: f64,
}

impl NearSwap {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(NearSwap { t: given.number("t") }))
    }
}

impl Combine for NearSwap {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let t = self.t as f32;
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            for ((y, a), b) in out.iter_mut().zip(base).zip(&others[0]) {
                let share = (t / (*a - b).abs().max(1e-6)).clamp(0.0, 1.0);
                *y = share * b + (1.0 - share) * *a;
            }
            Ok(())
        })
    }
}
