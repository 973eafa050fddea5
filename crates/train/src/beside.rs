//! What learns beside the policy from what a step's passes show, and never changes them.

use std::path::Path;

use candle_core::Tensor;
use luthier_core::{Batch, Logits, Result};

/// A learner of its own. It sees each pass of a step as it runs, before the policy's weights move; the
/// second passes of a two-pass step and the trials of a choice are not shown.
pub trait Beside {
    /// Before the first step of `steps`, or the first that follows the checkpoint in `from`.
    fn begin(&mut self, steps: u64, from: Option<&Path>) -> Result<()>;

    /// A residual stream of a pass, as a constant: first what was embedded, then behind every block.
    fn stream(&mut self, h_nd: &Tensor) -> Result<()>;

    /// The end of the pass. What `out` gives is without a way back into the policy.
    fn end(&mut self, batch: &Batch, out: &mut dyn Logits) -> Result<()>;

    /// The passes of a step are over; numbers for its log line.
    fn step(&mut self) -> Result<Vec<(&'static str, f64)>>;

    /// Adds what it has learned, and all that it goes on from, to a checkpoint's folder.
    fn save(&self, dir: &Path) -> Result<()>;
}
