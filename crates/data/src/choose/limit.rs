//! The first `n` rows; a table with fewer keeps them all.

use luthier_core::{Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `limit = { n = 512 }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// How many rows at most.
    pub n: usize,
}

impl Step for Limit {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        table.examples.truncate(self.n);
        Ok(table)
    }
}
