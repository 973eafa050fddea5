//! The same rows in a seeded random order.
//!
//! Training draws a fresh order every epoch by itself (see [`crate::order`]); this step is for what
//! follows it in a chain, such as `limit`.

use luthier_core::{Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `shuffle = {}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shuffle {}

impl Step for Shuffle {
    fn apply(&self, mut table: Table, seed: Seed) -> Result<Table> {
        seed.rng().shuffle(&mut table.examples);
        Ok(table)
    }
}
