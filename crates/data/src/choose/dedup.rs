//! Exact deduplication: of rows with the same normalised text, the first stays.
//!
//! Normalised means: every run of white space is one space, ends are trimmed, and case is ignored
//! unless asked otherwise. Roles, tool calls and tool definitions count; weights, marks and other
//! columns do not.

use std::collections::HashSet;

use luthier_core::{Example, Result, Seed, Table, Turn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Step;

/// `dedup = { by = "prompt" }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dedup {
    /// What is compared.
    pub by: By,
    /// Whether `Yes` and `yes` are the same text.
    pub ignore_case: bool,
}

impl Default for Dedup {
    fn default() -> Self {
        Dedup { by: By::Example, ignore_case: true }
    }
}

/// What makes two rows the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Prompt and completions.
    #[default]
    Example,
    /// The prompt alone. Plain text has no prompt and is compared whole.
    Prompt,
}

/// 128 bits of SHA-256: no two different texts share them by accident.
pub(crate) type Fingerprint = [u8; 16];

impl Dedup {
    pub(crate) fn fingerprint(&self, example: &Example) -> Fingerprint {
        let mut hash = Sha256::new();
        let mut part = |tag: u8, text: &str| {
            let text = self.normalised(text);
            hash.update([tag]);
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        let mut turns = |turns: &[Turn]| {
            for turn in turns {
                part(b'r', &turn.role);
                part(b'c', &turn.content);
                for (key, value) in &turn.extra {
                    part(b'k', key);
                    part(b'v', &value.to_string());
                }
            }
        };
        turns(&example.prompt);
        if self.by == By::Example || example.prompt.is_empty() {
            example.completions.iter().for_each(|c| turns(&c.turns));
        }
        if let Some(tools) = &example.tools {
            part(b't', &tools.to_string());
        }
        let mut short = Fingerprint::default();
        short.copy_from_slice(&hash.finalize()[..16]);
        short
    }

    fn normalised(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for word in text.split_whitespace() {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(word);
        }
        if self.ignore_case { out.to_lowercase() } else { out }
    }
}

impl Step for Dedup {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        let mut seen = HashSet::with_capacity(table.examples.len());
        table.examples.retain(|example| seen.insert(self.fingerprint(example)));
        Ok(table)
    }
}
