//! What tests share, and nothing that ships: golden files, comparisons, gradient checks, a model
//! small enough to reason about, and what a policy says, given.
//!
//! Use it as a dev-dependency only.

pub mod compare;
pub mod fake;
pub mod golden;
pub mod gradient;
pub mod random;
pub mod said;

pub use compare::{Difference, assert_close, assert_same_bits, difference};
pub use fake::{Fake, Shape};
pub use golden::{batch, golden, gradients, load_tensors};
pub use gradient::{assert_gradients, check_gradients};
pub use random::random;
pub use said::Said;
