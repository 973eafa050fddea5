#![doc = include_str!("../../../docs/seams/probe.md")]

pub mod calibration;
pub mod capture;
pub mod components;
pub mod delta;
pub mod diversity;
pub mod f1;
pub mod fisher;
pub mod graft;
pub mod metric;
pub mod novelty;
pub mod phrasing;
pub mod sharpness;
pub mod stats;
pub mod tool_call;
pub mod tuco;
pub mod wanda;

pub use calibration::Calibration;
pub use capture::Capture;
pub use components::Components;
pub use fisher::Fisher;
pub use graft::Graft;
pub use metric::{Kind, Metric, Verdict};
pub use novelty::{Novelty, novelty};
pub use phrasing::{PhrasingReport, Scoring};
pub use sharpness::Sharpness;
pub use stats::{Bootstrap, Comparison, Score};
pub use tuco::Contribution;
pub use wanda::{InputNorms, Scope};

pub use luthier_core::Method;

/// Every measurement this seam offers.
pub const METHODS: &[Method] = &[
    Method::usual("exact_match", "share of answers that equal the expected text"),
    Method::usual("json_match", "share of answers that are the expected JSON value, and per field"),
    Method::usual("bleu", "likeness to a text by n-grams of words, with sacrebleu's numbers"),
    Method::usual(
        "chrf",
        "likeness by n-grams of characters (and words), with sacrebleu's numbers",
    ),
    Method::usual("rouge_l", "likeness by the longest common subsequence of words"),
    Method::usual("pass_at_k", "the chance that one of k sampled answers is right, unbiased"),
    Method::usual("choice", "multiple choice by likelihood: acc, acc_norm, acc_bytes"),
    Method::usual("nll", "token-level negative log-likelihood and perplexity"),
    Method::usual(
        "calibration",
        "how well confidence tells what is right: ECE, reliability diagram, Brier score",
    ),
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
    Method::of(27, "tuco", "how much of a pass tuning contributes at a prompt's last token"),
    Method::of(17, "novelty", "which texts tuning has made likelier"),
    Method::of(
        4,
        "wanda",
        "how much each weight matters on given data: its size times its inputs'",
    ),
    Method::of(37, "graft", "the smallest region of tuned weights that carries what was learned"),
    Method::of(48, "diversity", "where the average of two models is right and both are wrong"),
    Method::of(77, "sharpness", "how steep the loss is around a model, layer by layer; stragglers"),
    Method::of(76, "weighted_f1", "F1 of labels, classes weighted by how often they are asked for"),
];
