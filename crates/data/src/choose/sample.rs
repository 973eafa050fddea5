//! `n` rows drawn uniformly without replacement; they keep the order of the file.

use luthier_core::{Error, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `sample = { n = 512 }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// How many rows exactly.
    pub n: usize,
}

impl Step for Sample {
    fn apply(&self, mut table: Table, seed: Seed) -> Result<Table> {
        let rows = table.examples.len();
        if self.n > rows {
            let what = format!("cannot draw {} rows without replacement from {rows}", self.n);
            return Err(Error::input("sample.n", what)
                .hint("use `limit` where fewer rows than asked for will do"));
        }
        let mut order: Vec<usize> = (0..rows).collect();
        seed.rng().shuffle(&mut order);
        let mut kept = vec![false; rows];
        order[..self.n].iter().for_each(|i| kept[*i] = true);
        let mut kept = kept.into_iter();
        // `retain` visits every row once, in order.
        table.examples.retain(|_| kept.next() == Some(true));
        Ok(table)
    }
}
