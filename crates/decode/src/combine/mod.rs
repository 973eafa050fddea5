//! Several sources' logits become one.

mod identity;
mod linear;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub use identity::Identity;
pub use linear::Linear;

/// Combines the logits of several sources at one token.
///
/// Logits in, logits out: a constant added to all of them changes no probability, and penalties
/// that look at a logit's sign then act as they would on a single model. [`log_z`] normalises.
pub trait Combine: Send + Sync {
    /// Refuses a number of sources this rule cannot combine.
    fn check(&self, n_sources: usize) -> Result<()>;

    /// Writes the combination of `logits_sv` (one slice per source) to `out_v`.
    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]);
}

/// The rules a recipe can name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// One source.
    Identity(Identity),
    /// Weighted sum.
    Linear(Linear),
}

impl Kind {
    fn inner(&self) -> &dyn Combine {
        match self {
            Kind::Identity(rule) => rule,
            Kind::Linear(rule) => rule,
        }
    }
}

impl Combine for Kind {
    fn check(&self, n_sources: usize) -> Result<()> {
        self.inner().check(n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        self.inner().combine(logits_sv, out_v);
    }
}

fn expect_sources(rule: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let what = format!("expects {expected} source(s), got {got}");
    Err(Error::input(format!("decode.combine.{rule}"), what))
}

/// `ln Σ exp(logit)`: a logit minus this is a log-probability.
pub fn log_z(logits_v: &[f32]) -> f64 {
    let max = logits_v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    let sum: f64 = logits_v.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}
