//! LoRA (Hu et al. 2021): a low-rank addition to chosen weights, with PEFT's settings and meaning.
//!
//! Linear sites: `y ← y + s · (dropout(x) · Aᵀ · Bᵀ + b)`, folded `W + s · B · A`, `bias + s · b`.
//! Embedding: `y ← y + s · A[:, ids]ᵀ · Bᵀ`, folded `E + s · (B · A)ᵀ`.
//! `s = alpha / r`, or `alpha / √r` with `rslora`. **Departures**: (1) a rank above the smaller width
//! of a site is refused when training, because the surplus can learn nothing.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Tensor, Var};
use luthier_core::{
    Affine, At, Error, Hook, Hooks, LowRank, Model, Policy, Result, SiteInfo, SiteKind, SiteMap,
};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Init, Scope, dropout::dropout, globs::overrides};

const KEY: &str = "train.params.lora";

/// `[train.params.lora]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Share of a site's inputs that the adapter does not see in training.
    pub dropout: f64,
    /// Scale by `alpha / √r` instead of `alpha / r`.
    pub rslora: bool,
    /// Whether the addition has a bias of its own.
    pub bias: bool,
    /// How A begins; B begins at 0.
    pub init: LoraInit,
    /// Sites to adapt.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Other ranks, by glob.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other values of alpha, by glob.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// How the first factor begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// Uniform within `1 / √in`.
    #[default]
    Kaiming,
    /// Normal with deviation `1 / r`.
    Gaussian,
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            bias: false,
            init: LoraInit::Kaiming,
            at: "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}".into(),
            exclude: Globs::default(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// One adapted site.
#[derive(Clone, Copy, Debug)]
pub struct Target<'s> {
    /// Where.
    pub site: &'s SiteInfo,
    /// Rank there.
    pub r: usize,
    /// Alpha there.
    pub alpha: f64,
    /// What the product is multiplied by.
    pub scale: f64,
}

impl Target<'_> {
    /// Input and output width; for the embedding, vocabulary and width.
    pub fn widths(&self) -> (usize, usize) {
        match self.site.kind {
            SiteKind::Linear { i, o, .. } => (i, o),
            SiteKind::Embed { v, d } => (v, d),
            SiteKind::Norm { d } | SiteKind::Activation { d } => (d, d),
        }
    }
}

impl Lora {
    /// The sites that would be adapted and how, for a plan. Settings without a meaning are refused.
    pub fn targets<'s>(&self, sites: &'s SiteMap) -> Result<Vec<Target<'s>>> {
        self.check()?;
        let targets = self.resolve(sites)?;
        for target in &targets {
            let ((i, o), Target { site, r, .. }) = (target.widths(), target);
            if *r == 0 || *r > i.min(o) {
                let key = if *r == self.r { "r" } else { "rank_pattern" };
                let what =
                    format!("{}: expected a rank from 1 to {}, got {r}", site.name, i.min(o));
                return Err(Error::input(format!("{KEY}.{key}"), what));
            }
            if self.bias && matches!(site.kind, SiteKind::Embed { .. }) {
                let what = "an embedding cannot have a LoRA bias";
                return Err(Error::input(format!("{KEY}.bias"), what)
                    .hint("set exclude = \"embed\", or bias = false"));
            }
        }
        Ok(targets)
    }

    /// The same without a limit on ranks: an adapter from elsewhere is taken as it is.
    pub(crate) fn resolve<'s>(&self, sites: &'s SiteMap) -> Result<Vec<Target<'s>>> {
        let adaptable =
            |s: &SiteInfo| matches!(s.kind, SiteKind::Linear { .. } | SiteKind::Embed { .. });
        let found = self.at.sites(sites, KEY, &self.exclude, adaptable)?;
        let ranks = overrides(&format!("{KEY}.rank_pattern"), &self.rank_pattern, &found)?;
        let alphas = overrides(&format!("{KEY}.alpha_pattern"), &self.alpha_pattern, &found)?;
        let target = |((site, r), alpha): ((_, Option<usize>), Option<f64>)| {
            let (r, alpha) = (r.unwrap_or(self.r), alpha.unwrap_or(self.alpha));
            let by = if self.rslora { (r as f64).sqrt() } else { r as f64 };
            Target { site, r, alpha, scale: alpha / by }
        };
        Ok(found.into_iter().zip(ranks).zip(alphas).map(target).collect())
    }

    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("expected at least 0 and below 1, got {}", self.dropout);
            return Err(Error::input(format!("{KEY}.dropout"), what));
        }
        let alphas = self.alpha_pattern.values().map(|a| ("alpha_pattern", *a));
        for (key, alpha) in alphas.chain([("alpha", self.alpha)]) {
            if !alpha.is_finite() || alpha == 0.0 {
                let what = format!("expected a number other than 0, got {alpha}");
                return Err(Error::input(format!("{KEY}.{key}"), what));
            }
        }
        Ok(())
    }

    fn hook(&self, target: &Target, scope: &mut Scope) -> Result<Arc<dyn Hook>> {
        let (Target { site, r, scale, .. }, (i, o)) = (*target, target.widths());
        if let SiteKind::Embed { .. } = site.kind {
            // The other way round than at a linear site: the lookup is 0, so the start is no change.
            let a_rv = scope.own(site, "lora_embedding_A", &[r, i], Init::Zeros)?;
            let b_dr = scope.own(site, "lora_embedding_B", &[o, r], Init::Normal(1.0))?;
            return Ok(Arc::new(EmbedHook { a_rv, b_dr, scale }));
        }
        let init = match self.init {
            LoraInit::Kaiming => Init::Uniform(1.0 / (i as f64).sqrt()),
            LoraInit::Gaussian => Init::Normal(1.0 / r as f64),
        };
        let a_ri = scope.own(site, "lora_A", &[r, i], init)?;
        let b_or = scope.own(site, "lora_B", &[o, r], Init::Zeros)?;
        let b_o = match self.bias {
            true => Some(scope.own(site, "lora_B.bias", &[o], Init::Zeros)?),
            false => None,
        };
        Ok(Arc::new(LinearHook { a_ri, b_or, b_o, scale, dropout: self.dropout }))
    }

    pub(crate) fn bind_targets(
        &self,
        model: &Arc<dyn Model>,
        targets: &[Target],
        scope: &mut Scope,
    ) -> Result<Policy> {
        let mut hooks = Hooks::none();
        for target in targets {
            hooks.bind(target.site.id, self.hook(target, scope)?);
        }
        Ok(Policy { model: model.clone(), hooks })
    }
}

impl Form for Lora {
    fn bind(&self, model: &Arc<dyn Model>, scope: &mut Scope) -> Result<Policy> {
        self.bind_targets(model, &self.targets(model.sites())?, scope)
    }
}

struct LinearHook {
    a_ri: Var,
    b_or: Var,
    b_o: Option<Var>,
    scale: f64,
    dropout: f64,
}

impl Hook for LinearHook {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let mut x_ni = x.to_dtype(DType::F32)?;
        if let Some(noise) = at.noise {
            x_ni = dropout(&x_ni, self.dropout, noise.split("lora.dropout"))?;
        }
        // The scale goes on the narrow product.
        let z_nr = (x_ni.matmul(&self.a_ri.t()?)? * self.scale)?;
        let mut add_no = z_nr.matmul(&self.b_or.t()?)?;
        if let Some(b_o) = &self.b_o {
            add_no = add_no.broadcast_add(&(b_o.as_tensor() * self.scale)?)?;
        }
        let add_no = add_no.to_dtype(y.dtype())?;
        Ok((y + add_no)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let delta_oi = (self.b_or.matmul(&self.a_ri)? * self.scale)?.detach();
        let w_oi = (lin.w_oi.to_dtype(DType::F32)? + delta_oi)?;
        let b_o = match (&lin.b_o, &self.b_o) {
            (Some(b), Some(add)) => Some((b + (add.as_tensor() * self.scale)?.detach())?),
            (None, Some(add)) => Some((add.as_tensor() * self.scale)?.detach()),
            (b, None) => b.clone(),
        };
        Ok(Some(Affine { w_oi, b_o }))
    }

    fn low_rank(&self) -> Option<LowRank> {
        self.b_o.is_none().then(|| LowRank {
            a_ri: self.a_ri.clone(),
            b_or: self.b_or.clone(),
            scale: self.scale as f32,
            dropout: self.dropout,
        })
    }
}

struct EmbedHook {
    a_rv: Var,
    b_dr: Var,
    scale: f64,
}

impl Hook for EmbedHook {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let ids = Tensor::from_slice(at.ids_n, at.ids_n.len(), y.device())?;
        let z_nr = (self.a_rv.index_select(&ids, 1)?.t()? * self.scale)?;
        let add_nd = z_nr.matmul(&self.b_dr.t()?)?.to_dtype(y.dtype())?;
        Ok((y + add_nd)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let delta_vd = (self.a_rv.t()?.matmul(&self.b_dr.t()?)? * self.scale)?.detach();
        let w_oi = (lin.w_oi.to_dtype(DType::F32)? + delta_vd)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}
