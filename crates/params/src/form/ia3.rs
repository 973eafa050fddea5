//! (IA)³ (Liu et al. 2022): learned vectors that scale keys, values and the MLP's inner activation.
//!
//! `y ← l ∘ (W x + b)`, folded `diag(l) · W`, `l ∘ b`; at feed-forward sites `y ← W (l ∘ x) + b`, folded
//! `W · diag(l)`. Vectors begin at 1. **Departures**: none; the sites by default are PEFT's for Llama
//! and Mistral, which scale keys, where its defaults for Qwen and Gemma scale queries
//! (`at = "layers.*.{attn.{q,v},mlp.down}"`).

use std::{collections::BTreeSet, sync::Arc};

use candle_core::{DType, Tensor, Var};
use luthier_core::{Affine, At, Hook, Policy, Result, SiteId, SiteInfo, SiteMap};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Init, Scope};

const KEY: &str = "train.params.ia3";

/// `[train.params.ia3]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ia3 {
    /// Linear maps whose output (or input) is scaled.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Sites whose input is scaled in place of the output.
    pub feedforward: Globs,
}

impl Default for Ia3 {
    fn default() -> Self {
        Ia3 {
            at: "layers.*.{attn.{k,v},mlp.down}".into(),
            exclude: Globs::default(),
            feedforward: "layers.*.mlp.down".into(),
        }
    }
}

impl Ia3 {
    /// The scaled sites, each with whether its input is.
    pub(crate) fn targets<'s>(&self, sites: &'s SiteMap) -> Result<Vec<(&'s SiteInfo, bool)>> {
        let linear = |s: &SiteInfo| s.linear().is_some();
        let mut inputs: BTreeSet<SiteId> = BTreeSet::new();
        for glob in &self.feedforward.0 {
            let named = sites.find(&format!("{KEY}.feedforward"), glob, linear)?;
            inputs.extend(named.iter().map(|site| site.id));
        }
        let found = self.at.sites(sites, KEY, &self.exclude, linear)?;
        Ok(found.into_iter().map(|site| (site, inputs.contains(&site.id))).collect())
    }
}

impl Form for Ia3 {
    fn bind(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        for (site, on_input) in self.targets(model.sites())? {
            let (i, o) = site.linear().expect("only linear maps are targets");
            let hook: Arc<dyn Hook> = match on_input {
                true => Arc::new(Input { l_1i: scope.own(site, "ia3_l", &[1, i], Init::Ones)? }),
                false => Arc::new(Output { l_o1: scope.own(site, "ia3_l", &[o, 1], Init::Ones)? }),
            };
            policy.hooks.bind(site.id, hook);
        }
        Ok(policy)
    }
}

/// Scales an output.
struct Output {
    l_o1: Var,
}

impl Hook for Output {
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok(y.broadcast_mul(&self.l_o1.t()?)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let l_o1 = self.l_o1.as_detached_tensor();
        let w_oi = lin.w_oi.to_dtype(DType::F32)?.broadcast_mul(&l_o1)?;
        let b_o = match &lin.b_o {
            Some(b_o) => Some((b_o.to_dtype(DType::F32)? * l_o1.squeeze(1)?)?),
            None => None,
        };
        Ok(Some(Affine { w_oi, b_o }))
    }
}

/// Scales an input.
struct Input {
    l_1i: Var,
}

impl Hook for Input {
    fn before(&self, _at: &At, x: Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.l_1i)?)
    }

    fn on_input(&self) -> bool {
        true
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let l_1i = self.l_1i.as_detached_tensor();
        let w_oi = lin.w_oi.to_dtype(DType::F32)?.broadcast_mul(&l_1i)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}
