//! Entries drawn uniformly, without looking at them: the control of every rule that looks.
//!
//! Every entry of all tensors together has the same chance. **Departures**: none.

use luthier_core::{Mask, Param, Result, Seed};
use serde::{Deserialize, Serialize};

use super::{Rule, check_density, share};
use crate::form::weights;

/// `[train.params.sparse.random]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Random {
    /// Share of the entries that learn.
    pub density: f64,
}

impl Default for Random {
    fn default() -> Self {
        Random { density: 0.05 }
    }
}

impl Rule for Random {
    fn check(&self, at: &str) -> Result<()> {
        check_density(at, self.density)
    }

    fn masks(&self, params: &[Param], seed: Seed) -> Result<Option<Vec<Mask>>> {
        let draw = |p: &Param| -> Vec<f32> {
            let mut rng = seed.split(&p.name).rng();
            (0..p.var.elem_count()).map(|_| rng.uniform() as f32).collect()
        };
        let scores: Vec<Vec<f32>> = params.iter().map(draw).collect();
        weights::largest(&scores, share(params, self.density)).map(Some)
    }
}
