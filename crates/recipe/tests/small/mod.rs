//! A model of bytes and tables made in place, for evaluation.

// Every test binary takes what it needs.
#![allow(dead_code)]

use std::sync::Arc;

use luthier_core::{Example, Policy, Seed, Table, Turn};
use luthier_testkit::{Fake, Shape};

/// Reads and writes bytes, and knows nothing.
pub fn policy(seed: u64) -> Policy {
    let shape = Shape { vocab: 259, width: 12, inner: 16, layers: 2, tied: false };
    Policy::plain(Arc::new(Fake::new(shape, Seed(seed))))
}

/// A table called `t.jsonl`.
pub fn table(examples: Vec<Example>) -> Table {
    let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
    Table { name, layout, sha256: String::new(), examples }
}

/// A question and its answer, from one line of it.
pub fn chat(line: usize, question: &str, answer: &str) -> Example {
    let turns = vec![Turn::new("user", question)];
    Example::new("t.jsonl", line, turns, Some(Turn::new("assistant", answer)))
}
