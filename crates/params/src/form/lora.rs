//! LoRA (Hu et al. 2021): a low-rank addition to chosen weights, with PEFT's settings and meaning.
//!
//! Linear sites: `y ← y + s · (dropout(x) · Aᵀ · Bᵀ + b)`, folded `W + s · B · A`, `bias + s · b`.
//! Embedding: `y ← y + s · A[:, ids]ᵀ · Bᵀ`, folded `E + s · (B · A)ᵀ`.
//! `s = alpha / r`, or `alpha / √r` with `rslora`.
//!
//! `init` says where A and B begin at linear sites; everywhere but with `pissa`, `olora`, `loftq` and
//! `orthogonal` (whose A and B are random with a product of 0) B begins at 0:
//!
//! | `init` | A and B |
//! |---|---|
//! | `kaiming`, `gaussian` | A uniform within `1 / √in`, or normal with deviation `1 / r` |
//! | `pissa` (Meng et al. 2024) | `s B A` is the weight's best approximation of rank r |
//! | `olora` (Büyükakyüz 2024) | `B A` from the first r columns of its QR decomposition |
//! | `loftq` (Li et al. 2023) | `s B A` is the best approximation of what quantising the base lost |
//! | `eva` | A from a probe of the site's inputs: [`Eva`] |
//!
//! With `pissa` and `olora` the weight gives up what the factors begin as, `W − s · B₀ · A₀`; here by a
//! constant hook, so that the base stays the base. **Departures**: (1) a rank above the smaller width
//! of a site is refused when training, because the surplus can learn nothing; (2) `loftq` makes one
//! round, for more of them would need another base, and divides by s, which PEFT leaves out.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;
use luthier_core::{Error, Hook, Policy, Result, SiteInfo, SiteKind, SiteMap};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Bound, Form, Globs, Init, Scope, globs::overrides};

mod dora;
mod eva;
mod factor;
mod hook;
mod start;

pub use eva::Eva;
use start::{Known, Start};

pub(crate) const KEY: &str = "train.params.lora";

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
    /// Learn the lengths of the weight's rows apart from their directions.
    pub dora: bool,
    /// Whether the addition has a bias of its own.
    pub bias: bool,
    /// Where A and B begin.
    pub init: LoraInit,
    /// Sites to adapt.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// How `init = "eva"` measures and gives out ranks.
    #[serde(skip_serializing_if = "Eva::is_default")]
    pub eva: Eva,
    /// Other ranks, by glob.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other values of alpha, by glob.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// Where the factors begin at linear sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// A uniform within `1 / √in`, B at 0.
    #[default]
    Kaiming,
    /// A normal with deviation `1 / r`, B at 0.
    Gaussian,
    /// Both random, their product 0.
    Orthogonal,
    /// At the weight's leading singular vectors, which the weight gives up.
    Pissa,
    /// At the first columns of the weight's QR decomposition, which the weight gives up.
    Olora,
    /// At what a quantised weight lacks of the exact one.
    Loftq,
    /// A at the main directions of the site's inputs, B at 0.
    Eva,
}

impl LoraInit {
    /// Whether the weight gives up what the factors begin as.
    pub(crate) fn removes(self) -> bool {
        matches!(self, LoraInit::Pissa | LoraInit::Olora)
    }
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            dora: false,
            bias: false,
            init: LoraInit::Kaiming,
            at: "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}".into(),
            exclude: Globs::default(),
            eva: Eva::default(),
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

impl<'s> Target<'s> {
    pub(crate) fn new(site: &'s SiteInfo, r: usize, alpha: f64, rslora: bool) -> Self {
        let by = if rslora { (r as f64).sqrt() } else { r as f64 };
        Target { site, r, alpha, scale: alpha / by }
    }

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
    /// Whether a probe must first measure the inputs of [`Lora::targets`]: `S.components`, `S.ratio`
    /// and `S.singular_values` for each linear site S among them.
    pub fn needs_activations(&self) -> bool {
        self.init == LoraInit::Eva
    }

    /// Whether the weights of [`Lora::targets`] must be given as they were before the base was
    /// quantised: `S.weight` for each linear site S among them.
    pub fn needs_weights(&self) -> bool {
        self.init == LoraInit::Loftq
    }

    /// The sites that would be adapted and how, for a plan. Settings without a meaning are refused.
    pub fn targets<'s>(&self, sites: &'s SiteMap) -> Result<Vec<Target<'s>>> {
        self.check()?;
        let targets = self.resolve(sites)?;
        for target in &targets {
            let ((i, o), Target { site, r, .. }) = (target.widths(), target);
            let key = || format!("{KEY}.{}", if *r == self.r { "r" } else { "rank_pattern" });
            if *r == 0 || *r > i.min(o) {
                let what =
                    format!("{}: expected a rank from 1 to {}, got {r}", site.name, i.min(o));
                return Err(Error::input(key(), what));
            }
            let linear = matches!(site.kind, SiteKind::Linear { .. });
            if linear && self.init == LoraInit::Orthogonal && !r.is_multiple_of(2) {
                let what = format!("{}: init = \"orthogonal\" needs an even rank", site.name);
                return Err(Error::input(key(), format!("{what}, got {r}")));
            }
            if self.bias && !linear {
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
            Target::new(site, r.unwrap_or(self.r), alpha.unwrap_or(self.alpha), self.rslora)
        };
        Ok(found.into_iter().zip(ranks).zip(alphas).map(target).collect())
    }

    /// The table that binds just these sites with these ranks and alphas.
    pub(crate) fn exactly(mut self, sites: &[(&SiteInfo, usize, f64)]) -> Self {
        let ranks = sites.iter().filter(|(_, r, _)| *r != self.r);
        self.rank_pattern = ranks.map(|(s, r, _)| (s.name.clone(), *r)).collect();
        let alphas = sites.iter().filter(|(_, _, alpha)| *alpha != self.alpha);
        self.alpha_pattern = alphas.map(|(s, _, alpha)| (s.name.clone(), *alpha)).collect();
        self.at = Globs(sites.iter().map(|(site, ..)| site.name.clone()).collect());
        self.exclude = Globs::default();
        self
    }

    /// The table that binds the variables of `bound` again, which this one did: where ranks were
    /// measured, they are written out, and sites without one are left out.
    pub(crate) fn settled(self, bound: &Bound) -> Result<Self> {
        if self.init != LoraInit::Eva {
            return Ok(self);
        }
        let mut found = Vec::new();
        for target in self.resolve(bound.policy.model.sites())? {
            let Target { site, r, alpha, .. } = target;
            let a_ri = bound.var(&format!("{}.lora_A", site.name));
            match (site.kind, a_ri.and_then(|a_ri| a_ri.dims().first())) {
                (SiteKind::Linear { .. }, None) => {}
                (SiteKind::Linear { .. }, Some(now)) => {
                    found.push((site, *now, self.eva.alpha(alpha, r, *now)));
                }
                _ => found.push((site, r, alpha)),
            }
        }
        Ok(self.clone().exactly(&found))
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
        if self.dora && self.bias {
            return Err(Error::input(format!("{KEY}.dora"), "cannot be combined with bias = true")
                .hint("PEFT has no file for both; keep one of them"));
        }
        if self.init != LoraInit::Eva && !self.eva.is_default() {
            return Err(Error::input(format!("{KEY}.eva"), "is set, but init is another")
                .hint("set init = \"eva\""));
        }
        self.eva.check()
    }

    fn bind_one(
        &self,
        policy: &mut Policy,
        target: &Target,
        start: Start,
        scope: &mut Scope,
    ) -> Result<()> {
        let (Target { site, r, scale, .. }, (i, o)) = (*target, target.widths());
        let model = policy.model.clone();
        let mut bind = |hook: Arc<dyn Hook>| policy.hooks.bind(site.id, hook);
        let mut own = |part: &str, dims: &[usize], init: Init, at: Option<Tensor>| match at {
            Some(at) => scope.own_at(site, part, &at),
            None => scope.own(site, part, dims, init),
        };
        if let SiteKind::Embed { .. } = site.kind {
            // The other way round than at a linear site: the lookup is 0, so the start is no change.
            let a_rv = own("lora_embedding_A", &[r, i], Init::Zeros, None)?;
            let b_dr = own("lora_embedding_B", &[o, r], Init::Normal(1.0), None)?;
            let low = hook::Embed { a_rv, b_dr, scale };
            if self.dora {
                let m_d = own(MAGNITUDE, &[o], Init::Ones, start.lengths)?;
                bind(Arc::new(dora::Table::new(low, m_d, &model, site.id)));
            } else {
                bind(Arc::new(low));
            }
            return Ok(());
        }
        let init = match self.init {
            LoraInit::Gaussian => Init::Normal(1.0 / r as f64),
            _ => Init::Uniform(1.0 / (i as f64).sqrt()),
        };
        let a_ri = own("lora_A", &[r, i], init, start.a_ri)?;
        let b_or = own("lora_B", &[o, r], Init::Zeros, start.b_or)?;
        // Before the addition: DoRA's lengths are those of the weight without it.
        if let Some(removed) = &start.removed {
            bind(Arc::new(removed.clone()));
        }
        if self.dora {
            let m_o = own(MAGNITUDE, &[o], Init::Ones, start.lengths)?;
            let (vars, place) = ([a_ri, b_or, m_o], (&model, site.id));
            let hook = dora::Linear::new(vars, scale, self.dropout, place, start.removed)?;
            bind(Arc::new(hook));
            return Ok(());
        }
        let b_o = match self.bias {
            true => Some(own("lora_B.bias", &[o], Init::Zeros, None)?),
            false => None,
        };
        bind(Arc::new(hook::Linear { a_ri, b_or, b_o, scale, dropout: self.dropout }));
        Ok(())
    }

    fn bind_started(
        &self,
        mut policy: Policy,
        targets: Vec<(Target, Start)>,
        scope: &mut Scope,
    ) -> Result<Policy> {
        for (target, start) in targets {
            self.bind_one(&mut policy, &target, start, scope)?;
        }
        Ok(policy)
    }

    pub(crate) fn bind_targets(
        &self,
        policy: Policy,
        targets: &[Target],
        scope: &mut Scope,
    ) -> Result<Policy> {
        let model = policy.model.as_ref();
        let mut known = Vec::with_capacity(targets.len());
        for target in targets {
            refuse_learned(target.site, scope)?;
            known.push(Known::of(self, target, scope));
        }
        let start = |(target, known)| Start::of(self, model, target, known);
        let starts: Vec<Start> = targets.par_iter().zip(known).map(start).collect::<Result<_>>()?;
        let targets = targets.iter().copied().zip(starts).collect();
        self.bind_started(policy, targets, scope)
    }
}

/// DoRA's vector of lengths, under PEFT's name.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// A weight that learns itself has no use for an addition.
fn refuse_learned(site: &SiteInfo, scope: &Scope) -> Result<()> {
    let Some(module) = &site.module else { return Ok(()) };
    let name = format!("{module}.weight");
    if scope.params().iter().any(|p| p.name == name) {
        let what = format!("names {}, whose weight learns as a whole", site.name);
        let hint = format!("exclude = \"{}\" in one of the two tables", site.name);
        return Err(Error::input(format!("{KEY}.at"), what).hint(hint));
    }
    Ok(())
}

impl Form for Lora {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        let targets = self.targets(model.sites())?;
        if self.init != LoraInit::Eva || scope.is_given() {
            return self.bind_targets(policy, &targets, scope);
        }
        for Target { site, .. } in &targets {
            refuse_learned(site, scope)?;
        }
        let mut settled = self.eva.settle(self.rslora, targets, scope)?;
        if self.dora {
            settled
                .par_iter_mut()
                .try_for_each(|(target, start)| start.measure(model.as_ref(), target))?;
        }
        self.bind_started(policy, settled, scope)
    }
}
