#![doc = include_str!("../../../docs/seams/data.md")]

pub mod chain;
pub mod choose;
pub mod layout;
pub mod mix;
pub mod order;
pub mod parts;
pub mod read;
pub mod solution;
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
    /// See [`transform::call_turns`].
    CallTurns(transform::call_turns::CallTurns),
    /// See [`transform::key_tokens`].
    KeyTokens(transform::key_tokens::KeyTokens),
    /// See [`transform::system`].
    System(transform::system::System),
    /// See [`transform::response_only`].
    ResponseOnly(transform::response_only::ResponseOnly),
    /// See [`transform::translate`].
    Translate(transform::translate::Translate),
    /// See [`solution::step_pairs`].
    StepPairs(solution::step_pairs::StepPairs),
    /// See [`solution::step_weights`].
    StepWeights(solution::step_weights::StepWeights),
    /// See [`solution::correct`].
    Correct(solution::correct::Correct),
    /// See [`mix::interleave`].
    Interleave(mix::interleave::Interleave),
    /// See [`transform::weigh`].
    Weigh(transform::weigh::Weigh),
    /// See [`transform::deconfound`].
    Deconfound(transform::deconfound::Deconfound),
    /// See [`transform::rank`].
    Rank(transform::rank::Rank),
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
            Kind::CallTurns(_) => "call_turns",
            Kind::KeyTokens(_) => "key_tokens",
            Kind::System(_) => "system",
            Kind::ResponseOnly(_) => "response_only",
            Kind::Translate(_) => "translate",
            Kind::StepPairs(_) => "step_pairs",
            Kind::StepWeights(_) => "step_weights",
            Kind::Correct(_) => "correct",
            Kind::Interleave(_) => "interleave",
            Kind::Weigh(_) => "weigh",
            Kind::Deconfound(_) => "deconfound",
            Kind::Rank(_) => "rank",
            Kind::Shuffle(_) => "shuffle",
        }
    }
}

impl Kind {
    /// Whether the model is asked in other words, so that held-out rows must be, too.
    pub fn rewords(&self) -> bool {
        matches!(self, Kind::Translate(_) | Kind::CallTurns(_))
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
            Kind::CallTurns(step) => step.apply(table, seed),
            Kind::KeyTokens(step) => step.apply(table, seed),
            Kind::System(step) => step.apply(table, seed),
            Kind::ResponseOnly(step) => step.apply(table, seed),
            Kind::Translate(step) => step.apply(table, seed),
            Kind::StepPairs(step) => step.apply(table, seed),
            Kind::StepWeights(step) => step.apply(table, seed),
            Kind::Correct(step) => step.apply(table, seed),
            Kind::Interleave(step) => step.apply(table, seed),
            Kind::Weigh(step) => step.apply(table, seed),
            Kind::Deconfound(step) => step.apply(table, seed),
            Kind::Rank(step) => step.apply(table, seed),
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
    Method {
        paper: Some(66),
        name: "call_turns",
        about: "one example for every tool call; failed ones are context only",
    },
    Method {
        paper: Some(66),
        name: "key_tokens",
        about: "the tokens that decide which tool is called weigh more",
    },
    Method { paper: None, name: "system", about: "a system turn for conversations without one" },
    Method { paper: Some(45), name: "response_only", about: "answers without their questions" },
    Method::of(72, "translate", "translation pairs as prompts, in both directions"),
    Method::of(55, "step_pairs", "a wrong solution against a right one where it goes wrong"),
    Method::of(55, "step_weights", "steps weighted by what they add to the chance of a right end"),
    Method::of(70, "correct", "solutions that make a mistake, notice it and end right"),
    Method::of(72, "interleave", "files drawn by probability, by size and temperature"),
    Method::usual("weigh", "rows weighed by a number in a column, or the best share of them"),
    Method::of(26, "deconfound", "outcomes without what known confounders added to them"),
    Method::usual("rank", "rewarded answers to one prompt as pairs of a better and a worse one"),
    Method { paper: None, name: "shuffle", about: "the same rows in a seeded random order" },
];
