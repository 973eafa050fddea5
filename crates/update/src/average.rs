//! Averages of the weights over the run, to evaluate and to keep in their place.

use luthier_core::Result;

pub mod ema;
pub mod swa;

pub use ema::Ema;
pub use swa::Swa;

/// A running average of every learned number: `a ← a + share · (θ − a)` after every step.
pub trait Average: Send + Sync {
    /// Refuses settings without a meaning; `at` is its recipe key.
    fn check(&self, at: &str) -> Result<()>;

    /// The share of the newest weights after step `step` (1 is the first) of `total`: 1 makes them
    /// the average, 0 passes them over.
    fn share(&self, step: u64, total: u64) -> f64;
}

/// Takes the newest weights into an average.
pub(crate) fn take(average: &mut [f32], weights: &[f32], share: f64) {
    if share == 1.0 {
        average.copy_from_slice(weights);
    } else if share != 0.0 {
        let share = share as f32;
        average.iter_mut().zip(weights).for_each(|(a, x)| *a += share * (x - *a));
    }
}
