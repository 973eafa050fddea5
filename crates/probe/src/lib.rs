#![doc = include_str!("../../../docs/seams/probe.md")]

pub mod capture;
pub mod components;
pub mod delta;
pub mod fisher;
pub mod metric;
pub mod phrasing;
pub mod stats;

pub use capture::Capture;
pub use components::Components;
pub use fisher::Fisher;
pub use metric::{Kind, Metric, Verdict};
pub use phrasing::{PhrasingReport, Scoring};
pub use stats::{Bootstrap, Comparison, Score};

pub use luthier_core::Method;

/// Every measurement this seam offers.
pub const METHODS: &[Method] = &[
    Method::usual("exact_match", "share of answers that equal the expected text"),
    Method::usual("json_match", "share of answers that are the expected JSON value, and per field"),
    Method::usual("choice", "multiple choice by likelihood: acc, acc_norm, acc_bytes"),
    Method::usual("nll", "token-level negative log-likelihood and perplexity"),
    Method::usual("delta", "norm, rank and spectrum of what changed in each matrix"),
    Method::usual("capture", "mean and norm of what passes through chosen sites"),
    Method {
        paper: Some(69),
        name: "components",
        about: "directions in which the inputs of linear sites vary, and how much",
    },
    Method::of(
        20,
        "phrasing",
        "accuracy over phrasings of an instruction: mean, spread and gap of those seen in tuning and others",
    ),
    Method::usual("fisher", "how much the likelihood of data hangs on each parameter"),
];
