//! The weights themselves are learned.
//!
//! No hook and no equation: the model hands out variables in place of its weights, by their Hugging
//! Face names. **Departures**: none.

use std::sync::Arc;

use luthier_core::{Model, Policy, Result, SiteId, SiteKind};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Scope};

/// `[train.params.full]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Full {
    /// Sites whose weights are learned.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
}

impl Default for Full {
    fn default() -> Self {
        Full { at: "**".into(), exclude: Globs::default() }
    }
}

impl Form for Full {
    fn bind(&self, model: &Arc<dyn Model>, scope: &mut Scope) -> Result<Policy> {
        let has_weight = |kind: &SiteKind| !matches!(kind, SiteKind::Activation { .. });
        let sites = self
            .at
            .sites(model.sites(), "train.params.full", &self.exclude, |s| has_weight(&s.kind))?;
        let ids: Vec<SiteId> = sites.iter().map(|s| s.id).collect();
        let (model, vars) = model.learn(&ids)?;
        scope.adopt(vars);
        Ok(Policy::plain(model))
    }
}
