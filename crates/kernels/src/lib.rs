//! Fused CPU operations with backward, each beside its naive twin.
//!
//! Every operation comes as a function on tensors that takes part in candle's graph, and as a
//! `naive_…` function in plain tensor operations that is its oracle in the tests. All arithmetic is
//! f32. Reductions run in a fixed order, so results do not depend on the number of threads.
//!
//! This is the only crate with `unsafe`; each block says why it is sound.
#![allow(unsafe_code)]

// Not called here: naming it turns on AVX-512 in candle's own products, the path of most hooks.
use ::gemm as _;

pub mod attention;
pub mod blocks;
pub mod few;
pub mod gemm;
pub mod linear;
pub mod math;
pub mod nf4;
pub mod nll;
pub mod norm;
pub mod num;
pub mod pool;
pub mod quant;
mod quant_k;
pub mod rope;
pub mod simd;
pub mod svd;
pub mod swiglu;
pub mod tensor;
pub mod threads;

pub use attention::{Heads, attend, attend_cached};
pub use linear::{Frozen, linear};
pub use nll::{HeadWeight, head_logp};
pub use norm::rms_norm;
pub use rope::{Rotation, rotate};
pub use swiglu::swiglu;
