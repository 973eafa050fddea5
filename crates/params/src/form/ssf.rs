//! SSF (Lian et al. 2022): a learned scale γ and shift β after chosen operations.
//!
//! Linear maps: `y ← γ ∘ y + β`, folded `diag(γ) · W`, `γ ∘ b + β`. Embedding: the same, folded
//! `E · diag(γ) + β` in every row. Norms: `y ← γ ∘ y`, folded into their scale; a norm without a
//! bias has no place for β, so β is added where its output is read, `x ← x + β` in front of q, k, v
//! or gate, up: the same numbers, folded `b + W · β` there. `γ ~ N(1, init_std²)`,
//! `β ~ N(0, init_std²)`; with `init_std = 0` the start changes nothing.
//!
//! `scale = false`, `init_std = 0` on linear maps tunes biases alone (BitFit) in models that have none.
//! **Departures**: (1) the final norm and the norms of single heads get no shift: what reads them
//! has no bias in the files of these models.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use luthier_core::{Affine, At, Error, Hook, Policy, Result, SiteInfo, SiteKind, SiteMap};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Init, Scope};

mod rows;

use rows::scale_shift;

const KEY: &str = "train.params.ssf";

/// `[train.params.ssf]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssf {
    /// Sites whose output is scaled and shifted: linear maps, norms, the embedding.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Whether scales are learned.
    pub scale: bool,
    /// Whether shifts are learned.
    pub shift: bool,
    /// How far from 1 and 0 they begin.
    pub init_std: f64,
}

impl Default for Ssf {
    fn default() -> Self {
        let blocks = "layers.*.{attn_norm,mlp_norm,attn.{q,k,v,o},mlp.{gate,up,down}}";
        Ssf {
            at: Globs(vec![format!("{{{blocks},final_norm}}")]),
            exclude: Globs::default(),
            scale: true,
            shift: true,
            init_std: 0.02,
        }
    }
}

impl Ssf {
    fn check(&self) -> Result<()> {
        if !self.scale && !self.shift {
            return Err(Error::input(KEY, "neither a scale nor a shift is learned")
                .hint("set scale = true or shift = true"));
        }
        if !(self.init_std.is_finite() && self.init_std >= 0.0) {
            let what = format!("expected a number from 0 up, got {}", self.init_std);
            return Err(Error::input(format!("{KEY}.init_std"), what));
        }
        Ok(())
    }

    fn shift_init(&self) -> Init {
        if self.init_std == 0.0 { Init::Zeros } else { Init::Normal(self.init_std) }
    }
}

impl Form for Ssf {
    fn bind(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        self.check()?;
        let model = policy.model.clone();
        let sites = model.sites();
        let begun = scope.params().len();
        let has_weight = |s: &SiteInfo| !matches!(s.kind, SiteKind::Activation { .. });
        for site in self.at.sites(sites, KEY, &self.exclude, has_weight)? {
            let scale_d = match self.scale {
                true => {
                    let init = Init::NearOne(self.init_std);
                    Some(scope.own(site, "ssf_scale", &[width(site)], init)?)
                }
                false => None,
            };
            let is_norm = matches!(site.kind, SiteKind::Norm { .. });
            let readers = readers(sites, &site.name);
            let shift_d = match self.shift && (!is_norm || !readers.is_empty()) {
                true => Some(scope.own(site, "ssf_shift", &[width(site)], self.shift_init())?),
                false => None,
            };
            if is_norm && let Some(shift_d) = &shift_d {
                for reader in readers {
                    policy.hooks.bind(reader.id, Arc::new(Input { shift_i: shift_d.clone() }));
                }
            }
            let shift_d = shift_d.filter(|_| !is_norm);
            if scale_d.is_some() || shift_d.is_some() {
                policy.hooks.bind(site.id, Arc::new(Output { scale_d, shift_d }));
            }
        }
        if scope.params().len() == begun {
            return Err(Error::input(format!("{KEY}.at"), "names norms that can have no shift")
                .hint("set scale = true, or name linear maps"));
        }
        Ok(policy)
    }
}

/// Width of a site's output.
fn width(site: &SiteInfo) -> usize {
    match site.kind {
        SiteKind::Linear { o, .. } => o,
        SiteKind::Embed { d, .. } | SiteKind::Norm { d } | SiteKind::Activation { d } => d,
    }
}

/// The linear maps that read a norm's output, if those are all that do.
fn readers<'s>(sites: &'s SiteMap, norm: &str) -> Vec<&'s SiteInfo> {
    let (block, parts): (_, &[&str]) = match norm.rsplit_once('.') {
        Some((block, "attn_norm")) => (block, &["attn.q", "attn.k", "attn.v"]),
        Some((block, "mlp_norm")) => (block, &["mlp.gate", "mlp.up"]),
        _ => return Vec::new(),
    };
    parts.iter().filter_map(|part| sites.get(&format!("{block}.{part}"))).collect()
}

/// Scales and shifts an output.
struct Output {
    scale_d: Option<Var>,
    shift_d: Option<Var>,
}

impl Output {
    fn apply(&self, y: &Tensor) -> Result<Tensor> {
        let (scale_d, shift_d) = (self.scale_d.as_deref(), self.shift_d.as_deref());
        Ok(scale_shift(y, scale_d, shift_d)?)
    }
}

impl Hook for Output {
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.apply(&y)
    }

    fn fold(&self, site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let w = lin.w_oi.to_dtype(DType::F32)?;
        let SiteKind::Linear { .. } = site.kind else {
            // A row of the table, or a norm's scale, is an output itself.
            return Ok(Some(Affine { w_oi: self.apply(&w)?.detach(), b_o: lin.b_o.clone() }));
        };
        let w_oi = match &self.scale_d {
            Some(scale_o) => w.broadcast_mul(&scale_o.unsqueeze(1)?)?.detach(),
            None => w,
        };
        let b_o = match (&lin.b_o, &self.shift_d) {
            (Some(b_o), _) => Some(self.apply(&b_o.to_dtype(DType::F32)?)?.detach()),
            (None, Some(shift_o)) => Some(shift_o.as_detached_tensor().copy()?),
            (None, None) => None,
        };
        Ok(Some(Affine { w_oi, b_o }))
    }
}

/// Shifts the input of a linear map.
struct Input {
    shift_i: Var,
}

impl Hook for Input {
    fn before(&self, _at: &At, x: Tensor) -> Result<Tensor> {
        Ok(scale_shift(&x, None, Some(&self.shift_i))?)
    }

    fn on_input(&self) -> bool {
        true
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let w_oi = lin.w_oi.to_dtype(DType::F32)?;
        let by_o = w_oi.matmul(&self.shift_i.as_detached_tensor().unsqueeze(1)?)?.squeeze(1)?;
        let b_o = match &lin.b_o {
            Some(b_o) => (b_o.to_dtype(DType::F32)? + by_o)?,
            None => by_o,
        };
        Ok(Some(Affine { w_oi, b_o: Some(b_o) }))
    }
}
