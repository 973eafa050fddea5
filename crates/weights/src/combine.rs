//! How several tensors become one: one file per way.

use luthier_core::Result;

use crate::operands::{Put, Work};

mod arcee_fusion;
mod arithmetic;
mod fisher;
mod graft;
mod gram;
mod karcher;
mod linear;
pub mod lines;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod regmean;
mod sce;
mod slerp;
mod transfer;
mod wise_ft;

pub use arcee_fusion::ArceeFusion;
pub use arithmetic::{Arithmetic, Mask, Point, Resolve, TABLE, Term};
pub use fisher::Fisher;
pub use graft::{Cutoffs, Graft};
pub use karcher::Karcher;
pub use linear::Linear;
pub use lines::Lines;
pub use model_stock::ModelStock;
pub use multislerp::MultiSlerp;
pub use nearswap::NearSwap;
pub use nuslerp::NuSlerp;
pub use passthrough::Passthrough;
pub use ram::Ram;
pub use regmean::RegMean;
pub use sce::Sce;
pub use slerp::Slerp;
pub use transfer::Transfer;
pub use wise_ft::WiseFt;

/// A way to make one tensor of several. The struct holds the settings for this one tensor.
pub trait Combine: Sync {
    /// Computes every number of the output once and gives it away.
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()>;
}
