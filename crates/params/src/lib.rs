#![doc = include_str!("../../../docs/seams/params.md")]

use std::sync::Arc;

use candle_core::Var;
use luthier_core::{Error, Model, Policy, Result, Seed};
use serde::{Deserialize, Serialize};

mod dropout;
mod globs;
pub mod peft;
mod scope;
/// What a set of learned parameters looks like.
pub mod form {
    pub mod full;
    pub mod lora;
}

pub use form::full::Full;
pub use form::lora::{Lora, LoraInit, Target};
pub use globs::Globs;
pub use scope::{Init, Scope};

/// A way to make parts of a model learnable.
pub trait Form: Send + Sync {
    /// The policy with its variables, which are taken from `scope`.
    fn bind(&self, model: &Arc<dyn Model>, scope: &mut Scope) -> Result<Policy>;
}

pub use luthier_core::Method;

/// Every form that a recipe can name.
pub const METHODS: &[Method] = &[
    Method { paper: None, name: "lora", about: "a low-rank addition to chosen weights" },
    Method { paper: None, name: "full", about: "the weights themselves" },
];

/// `[train.params]`: exactly one form, `lora` when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// A low-rank addition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// The weights themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
}

/// The form that a policy was bound with, for whoever saves it.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// An adapter: the base stays as it is.
    Lora(Lora),
    /// The model itself changes.
    Full(Full),
}

/// A policy with the variables that can be learned.
#[derive(Clone)]
pub struct Bound {
    /// What runs.
    pub policy: Policy,
    /// Variables in a fixed order: `layers.0.attn.q.lora_A`, or Hugging Face names when the model's
    /// own weights are learned.
    pub vars: Vec<(String, Var)>,
    /// How it was bound.
    pub kind: Kind,
}

impl Params {
    /// The form that is named, or the default.
    pub fn kind(&self) -> Result<Kind> {
        match (&self.lora, &self.full) {
            (None, None) => Ok(Kind::Lora(Lora::default())),
            (Some(lora), None) => Ok(Kind::Lora(lora.clone())),
            (None, Some(full)) => Ok(Kind::Full(full.clone())),
            (Some(_), Some(_)) => {
                Err(Error::input("train.params", "names 2 forms (lora, full)")
                    .hint("keep one of them"))
            }
        }
    }

    /// The same with the default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.lora.is_none() && self.full.is_none() {
            self.lora = Some(Lora::default());
        }
        self
    }

    /// Makes the model learnable; initial values depend on `seed` and each variable's name alone.
    pub fn bind(&self, model: &Arc<dyn Model>, seed: Seed) -> Result<Bound> {
        self.kind()?.bind(model, Scope::new(seed.split("params")))
    }
}

impl Kind {
    pub(crate) fn bind(self, model: &Arc<dyn Model>, mut scope: Scope) -> Result<Bound> {
        let form: &dyn Form = match &self {
            Kind::Lora(lora) => lora,
            Kind::Full(full) => full,
        };
        let policy = form.bind(model, &mut scope)?;
        Ok(Bound { policy, vars: scope.finish()?, kind: self })
    }
}
