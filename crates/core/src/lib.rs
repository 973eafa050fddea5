//! The nouns every part of luthier shares.
//!
//! Seams never import each other; they meet here: an [`Example`] and its tensor form [`Batch`], a
//! [`StateDict`] of named tensors, a [`SiteMap`] of places in a forward pass with the [`Hook`]s
//! bound to them, and a [`Model`]. Read in this order: `example`, `batch`, `hook`, `model`.

pub mod batch;
pub mod cache;
pub mod error;
pub mod example;
pub mod held;
pub mod hook;
pub mod io;
pub mod method;
pub mod model;
pub mod nearest;
pub mod param;
pub mod seed;
pub mod site;
pub mod state;
pub mod table;

pub use batch::{Batch, Row, Rows, Told};
pub use cache::Cache;
pub use error::{Error, Result};
pub use example::{Completion, Example, Form, Origin, Turn};
pub use held::Held;
pub use hook::{Affine, At, Hook, Hooks, LowRank};
pub use method::Method;
pub use model::{
    AddTo, Ctx, Found, Gradient, Head, Learned, Logits, Model, Piece, Policy, Rotary, Tape, Taped,
};
pub use param::{Mask, Param};
pub use seed::{Rng, Seed};
pub use site::{SiteId, SiteInfo, SiteKind, SiteMap};
pub use state::StateDict;
pub use table::Table;
