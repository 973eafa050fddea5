//! One source, unchanged.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources};

/// Passes the only source's logits on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

impl Combine for Identity {
    fn check(&self, n_sources: usize) -> Result<()> {
        expect_sources("identity", 1, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        out_v.copy_from_slice(logits_sv[0]);
    }
}
