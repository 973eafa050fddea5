//! LN tuning (Zhao et al. 2024): the scales of norms are learned, and kept as an adapter.
//!
//! No hook and no equation: as in `full`, the model hands out variables in place of its scales. What
//! differs is what is saved: PEFT's LN tuning adapter in place of a whole model. **Departures**: none;
//! by default every norm learns, as in PEFT for Llama and Mistral.

use luthier_core::{Error, Policy, Result, SiteId, SiteInfo, SiteKind, SiteMap};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Scope};

const KEY: &str = "train.params.ln_tuning";

/// `[train.params.ln_tuning]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LnTuning {
    /// Norms whose scales are learned.
    pub at: Globs,
    /// Norms among them that stay as they are.
    pub exclude: Globs,
}

impl Default for LnTuning {
    fn default() -> Self {
        LnTuning { at: "**".into(), exclude: Globs::default() }
    }
}

impl LnTuning {
    /// The norms that learn.
    pub(crate) fn targets<'s>(&self, sites: &'s SiteMap) -> Result<Vec<&'s SiteInfo>> {
        let is_norm = |s: &SiteInfo| matches!(s.kind, SiteKind::Norm { .. });
        self.at.sites(sites, KEY, &self.exclude, is_norm)
    }
}

impl Form for LnTuning {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let sites = self.targets(policy.model.sites())?;
        let ids: Vec<SiteId> = sites.iter().map(|site| site.id).collect();
        let (model, vars) = policy.model.learn(&ids)?;
        if let Some((name, _)) =
            vars.iter().find(|(n, _)| scope.params().iter().any(|p| p.name == *n))
        {
            let what = format!("names {name}, which learns already");
            return Err(Error::input(format!("{KEY}.at"), what)
                .hint("let train.params.full exclude the norms"));
        }
        scope.adopt(vars)?;
        Ok(Policy { model, hooks: policy.hooks })
    }
}
