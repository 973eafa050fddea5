#![doc = include_str!("../../../docs/seams/probe.md")]

pub mod capture;
pub mod delta;
pub mod metric;
pub mod stats;

pub use capture::Capture;
pub use metric::{Kind, Metric, Verdict};
pub use stats::{Bootstrap, Comparison, Score};

/// One entry of [`METHODS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Number of the paper in `papers/`, when there is one.
    pub paper: Option<u32>,
    /// The name a recipe or the command line uses.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
}

const fn method(name: &'static str, about: &'static str) -> Method {
    Method { paper: None, name, about }
}

/// Every measurement this seam offers.
pub const METHODS: &[Method] = &[
    method("exact_match", "share of answers that equal the expected text"),
    method("json_match", "share of answers that are the expected JSON value, and per field"),
    method("choice", "multiple choice by likelihood: acc, acc_norm, acc_bytes"),
    method("nll", "token-level negative log-likelihood and perplexity"),
    method("delta", "norm, rank and spectrum of what changed in each matrix"),
    method("capture", "mean and norm of what passes through chosen sites"),
];
