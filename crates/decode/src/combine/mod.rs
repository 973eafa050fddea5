//! Several sources' logits become one.

mod cfg;
mod contrastive;
mod emulate;
mod identity;
mod linear;
mod mixture;
mod proxy;
mod rectify;

use luthier_core::{Error, Result, nearest::suggest};
use serde::{Deserialize, Serialize};

pub use cfg::Cfg;
pub use contrastive::Contrastive;
pub use emulate::{Delta, Emulate, Outside};
pub use identity::Identity;
pub use linear::Linear;
pub use mixture::Mixture;
pub use proxy::Proxy;
pub use rectify::Rectify;

/// Combines the logits of several sources at one token.
///
/// Logits in, logits out: a constant added to all of them changes no probability, and penalties
/// that look at a logit's sign then act as they would on a single model. [`log_z`] normalises.
pub trait Combine: Send + Sync {
    /// Refuses settings that cannot be followed, and a number of sources this rule cannot combine.
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
    /// Mixture of probabilities.
    Mixture(Mixture),
    /// Emulated fine-tuning.
    Emulate(Emulate),
    /// Proxy tuning.
    Proxy(Proxy),
    /// Contrastive decoding.
    Contrastive(Contrastive),
    /// Classifier-free guidance.
    Cfg(Cfg),
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Identity(Identity {})
    }
}

impl Kind {
    fn inner(&self) -> &dyn Combine {
        match self {
            Kind::Identity(rule) => rule,
            Kind::Linear(rule) => rule,
            Kind::Mixture(rule) => rule,
            Kind::Emulate(rule) => rule,
            Kind::Proxy(rule) => rule,
            Kind::Contrastive(rule) => rule,
            Kind::Cfg(rule) => rule,
        }
    }

    /// The sources it asks for, by name, in the order in which it takes their logits. A name may stand
    /// there twice.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Kind::Identity(_) => vec!["policy"],
            Kind::Linear(rule) => rule.sources.iter().map(String::as_str).collect(),
            Kind::Mixture(rule) => rule.sources.iter().map(String::as_str).collect(),
            Kind::Emulate(rule) => rule.names(),
            Kind::Proxy(rule) => {
                [&rule.base, &rule.expert, &rule.anti].map(|name| name.as_str()).to_vec()
            }
            Kind::Contrastive(rule) => {
                [&rule.expert, &rule.amateur].map(|name| name.as_str()).to_vec()
            }
            Kind::Cfg(rule) => {
                [&rule.conditional, &rule.unconditional].map(|name| name.as_str()).to_vec()
            }
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

/// A rule and which of the sources it takes, in its own order: each source is asked once, however often
/// the rule names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    rule: Kind,
    order: Vec<usize>,
    n_sources: usize,
}

impl Picked {
    /// `rule` over sources called `known`.
    pub fn new(rule: Kind, known: &[&str]) -> Result<Self> {
        let place = |name: &str| {
            known.iter().position(|k| *k == name).ok_or_else(|| {
                Error::input("decode.combine", format!("there is no source `{name}`"))
                    .hint(suggest(name, known.iter().copied()))
            })
        };
        let order = rule.names().into_iter().map(place).collect::<Result<Vec<usize>>>()?;
        rule.check(order.len())?;
        Ok(Picked { rule, order, n_sources: known.len() })
    }
}

impl Combine for Picked {
    fn check(&self, n_sources: usize) -> Result<()> {
        expect_sources("sources", self.n_sources, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let picked: Vec<&[f32]> = self.order.iter().map(|i| logits_sv[*i]).collect();
        self.rule.combine(&picked, out_v);
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
