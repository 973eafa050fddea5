//! How several tensors become one: one file per way.

use luthier_core::Result;

use crate::operands::{Put, Work};

mod arcee_fusion;
mod arithmetic;
mod gram;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod sce;
mod slerp;

pub use arcee_fusion::ArceeFusion;
pub use arithmetic::{Arithmetic, Mask, Point, Resolve, TABLE, Term};
pub use karcher::Karcher;
pub use linear::Linear;
pub use model_stock::ModelStock;
pub use multislerp::MultiSlerp;
pub use nearswap::NearSwap;
pub use nuslerp::NuSlerp;
pub use passthrough::Passthrough;
pub use ram::Ram;
pub use sce::Sce;
pub use slerp::Slerp;

/// A way to make one tensor of several. The struct holds the settings for this one tensor.
pub trait Combine: Sync {
    /// Computes every number of the output once and gives it away.
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()>;
}
