#![doc = include_str!("../../../docs/seams/data.md")]

pub mod chain;
pub mod choose;
pub mod layout;
pub mod mix;
pub mod order;
pub mod read;
pub mod transform;

use luthier_core::{Result, Seed, Table};
use serde::{Deserialize, Serialize};

pub use chain::{Chain, Note};
pub use layout::Layout;
pub use order::{Order, Plan, Size};
pub use read::{ReadOptions, read, read_many};
pub use transform::overlength::{CutTable, Overlength};

/// Makes a table of another: fewer rows, another order, or declared additions.
pub trait Step {
    /// The new table. The same table and seed give the same rows at any thread count.
    fn apply(&self, table: Table, seed: Seed) -> Result<Table>;
}

/// Every step a recipe can name, written as the key of its settings: `limit = { n = 512 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// See [`choose::limit`].
    Limit(choose::limit::Limit),
    /// See [`choose::sample`].
    Sample(choose::sample::Sample),
    /// See [`choose::filter`].
    Filter(choose::filter::Filter),
    /// See [`choose::dedup`].
    Dedup(choose::dedup::Dedup),
    /// See [`choose::split`].
    Split(choose::split::Split),
    /// See [`transform::system`].
    System(transform::system::System),
    /// See [`transform::response_only`].
    ResponseOnly(transform::response_only::ResponseOnly),
    /// See [`mix::shuffle`].
    Shuffle(mix::shuffle::Shuffle),
}

impl Kind {
    /// The name in recipes and in [`METHODS`].
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Limit(_) => "limit",
            Kind::Sample(_) => "sample",
            Kind::Filter(_) => "filter",
            Kind::Dedup(_) => "dedup",
            Kind::Split(_) => "split",
            Kind::System(_) => "system",
            Kind::ResponseOnly(_) => "response_only",
            Kind::Shuffle(_) => "shuffle",
        }
    }
}

impl Step for Kind {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        match self {
            Kind::Limit(step) => step.apply(table, seed),
            Kind::Sample(step) => step.apply(table, seed),
            Kind::Filter(step) => step.apply(table, seed),
            Kind::Dedup(step) => step.apply(table, seed),
            Kind::Split(step) => step.apply(table, seed),
            Kind::System(step) => step.apply(table, seed),
            Kind::ResponseOnly(step) => step.apply(table, seed),
            Kind::Shuffle(step) => step.apply(table, seed),
        }
    }
}

pub use luthier_core::Method;

/// What this seam offers; `luthier methods` and the laws run over it.
pub const METHODS: &[Method] = &[
    Method { paper: None, name: "limit", about: "the first n rows" },
    Method {
        paper: None,
        name: "sample",
        about: "n rows drawn without replacement, in file order",
    },
    Method {
        paper: None,
        name: "filter",
        about: "rows whose mark or numeric column is in a range",
    },
    Method { paper: None, name: "dedup", about: "the first of rows with the same normalised text" },
    Method {
        paper: None,
        name: "split",
        about: "one side of a split that keeps equal rows together",
    },
    Method { paper: None, name: "system", about: "a system turn for conversations without one" },
    Method { paper: Some(45), name: "response_only", about: "answers without their questions" },
    Method { paper: None, name: "shuffle", about: "the same rows in a seeded random order" },
];
