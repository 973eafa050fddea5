//! L2-SP: a spring to where a parameter began (Li, Grandvalet, Davoine 2018).
//!
//! `g ← g + alpha · (θ − θ0)`, the gradient of `alpha / 2 · ‖θ − θ0‖²`. **Departures**: (1) the
//! paper pulls layers that are new, and so have no origin worth keeping, to 0 with a strength `beta`
//! of their own; that is weight decay, which `[[train.update.groups]]` sets by name.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Need, Place, Transform, Turn, pieces};
use crate::optimizer::check_rate;

/// `[train.update.l2_sp]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct L2Sp {
    /// Strength.
    pub alpha: f64,
}

impl Default for L2Sp {
    fn default() -> Self {
        L2Sp { alpha: 0.01 }
    }
}

impl Transform for L2Sp {
    fn check(&self, at: &str) -> Result<Need> {
        check_rate(at, "alpha", self.alpha)?;
        Ok(Need { origin: true, ..Need::default() })
    }

    fn apply(&self, _now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()> {
        let alpha = self.alpha as f32;
        let (values, origin) = (place.learned(place.values), place.origin);
        pieces(grad, |range, grad| {
            let pairs = values[range.clone()].iter().zip(&origin[range]);
            grad.iter_mut().zip(pairs).for_each(|(g, (x, x0))| *g += alpha * (x - x0));
        });
        Ok(())
    }
}
