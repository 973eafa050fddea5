//! Learned virtual tokens at the beginning of every row: prompt tuning (Lester et al. 2021) and prefix
//! tuning (Li and Liang 2021), as the soft prompts that make phrasings of an instruction agree
//! (Sun et al. 2024) use them.
//!
//! There is no padding, so a virtual token is a token: every row begins with `n_virtual` placeholders
//! of any id, and what stands at positions below `n_virtual` is replaced. `prompt`: the embedding,
//! `h[p] ← P[p]`. `prefix`: keys and values of every layer, `k[p] ← K[p]`, `v[p] ← V[p]`, the keys
//! before rotation (and after their norm, where they have one). Placeholders are never trained and
//! a cache holds them like other tokens. Nothing folds.
//!
//! **Departures**: (1) `init = "vocab"` by default: embeddings of randomly chosen tokens and, for a
//! prefix, the keys and values these tokens have as a text; PEFT's `RANDOM`, normal with deviation 1,
//! is `"random"`. (2) A prefix is learned as it is, without an MLP in front of it.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, Var};
use luthier_core::{At, Ctx, Error, Hook, Hooks, Model, Policy, Result, Rows, SiteInfo, SiteMap};
use serde::{Deserialize, Serialize};

use crate::{Form, Init, Scope};

pub mod peft;

const KEY: &str = "train.params.prompt";

/// `[train.params.prompt]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
    /// How many virtual tokens.
    pub n_virtual: usize,
    /// What of them is learned.
    pub kind: PromptKind,
    /// Where it begins.
    pub init: PromptInit,
}

/// What is learned of a virtual token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// Its embedding.
    #[default]
    Prompt,
    /// Its keys and values in every layer.
    Prefix,
}

/// Where virtual tokens begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// As tokens of the vocabulary, chosen by the seed.
    #[default]
    Vocab,
    /// Normal with deviation 1.
    Random,
}

impl Default for Prompt {
    fn default() -> Self {
        Prompt { n_virtual: 10, kind: PromptKind::Prompt, init: PromptInit::Vocab }
    }
}

/// The sites of one layer where a prefix stands.
#[derive(Clone, Copy, Debug)]
pub struct PrefixSites<'s> {
    /// Keys: the projection, or their norm.
    pub k: &'s SiteInfo,
    /// Values.
    pub v: &'s SiteInfo,
    /// Numbers of all heads of a token.
    pub width: usize,
}

impl Form for Prompt {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        if self.n_virtual == 0 {
            let what = "expected a number from 1 up, got 0";
            return Err(Error::input(format!("{KEY}.n_virtual"), what));
        }
        match self.kind {
            PromptKind::Prompt => self.bind_prompt(policy, scope),
            PromptKind::Prefix => self.bind_prefix(policy, scope),
        }
    }
}

impl Prompt {
    fn bind_prompt(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        let site = embed_site(model.sites())?;
        let dims = [self.n_virtual, model.width()];
        let prompt_vd = match self.start(scope) {
            PromptInit::Random => scope.own(site, "prompt", &dims, Init::Normal(1.0))?,
            PromptInit::Vocab => {
                let (ids, hooks) = (self.tokens(&*model, scope), Hooks::none());
                let mut ctx = Ctx::new(&hooks, Arc::new(Rows::single(ids.len())), &ids);
                scope.own_at(site, "prompt", &model.embed(&ids, &mut ctx)?)?
            }
        };
        policy.hooks.bind(site.id, Arc::new(Virtual(prompt_vd)));
        Ok(policy)
    }

    fn bind_prefix(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        let layers = prefix_sites(model.sites(), model.n_layers())?;
        let found = match self.start(scope) {
            PromptInit::Random => None,
            PromptInit::Vocab => Some(self.read(&policy, &layers, scope)?),
        };
        for (i, (site, width)) in sides(&layers).enumerate() {
            let rows_vw = match &found {
                Some(found) => scope.own_at(site, "prefix", &found[i])?,
                None => {
                    let dims = [self.n_virtual, width];
                    scope.own(site, "prefix", &dims, Init::Normal(1.0))?
                }
            };
            policy.hooks.bind(site.id, Arc::new(Virtual(rows_vw)));
        }
        Ok(policy)
    }

    /// The kind of start; a drawn one need not be computed where values are given.
    fn start(&self, scope: &Scope) -> PromptInit {
        if scope.is_given() { PromptInit::Random } else { self.init }
    }

    /// The tokens that virtual ones begin as.
    fn tokens(&self, model: &dyn Model, scope: &Scope) -> Vec<u32> {
        let mut rng = scope.seed("prompt.tokens").rng();
        (0..self.n_virtual).map(|_| rng.below(model.vocab()) as u32).collect()
    }

    /// Keys and values of the tokens that virtual ones begin as, at every side of every layer.
    fn read(&self, policy: &Policy, layers: &[PrefixSites], scope: &Scope) -> Result<Vec<Tensor>> {
        let ids = self.tokens(&*policy.model, scope);
        let mut watched = policy.clone();
        let seen: Vec<Arc<Seen>> = sides(layers).map(|_| Arc::default()).collect();
        for ((site, _), seen) in sides(layers).zip(&seen) {
            watched.hooks.bind(site.id, seen.clone());
        }
        let mut ctx = Ctx::new(&watched.hooks, Arc::new(Rows::single(ids.len())), &ids);
        watched.hidden(&mut ctx)?;
        let take = |((site, width), seen): ((&SiteInfo, usize), &Arc<Seen>)| -> Result<Tensor> {
            let value = seen.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            let missing = || Error::failed(&site.name, "was not passed");
            Ok(value.ok_or_else(missing)?.reshape((self.n_virtual, width))?)
        };
        sides(layers).zip(&seen).map(take).collect()
    }
}

fn embed_site(sites: &SiteMap) -> Result<&SiteInfo> {
    sites.get("embed").ok_or_else(|| Error::failed("embed", "this model has no such site"))
}

/// Where a prefix stands in each layer of a model.
pub fn prefix_sites(sites: &SiteMap, n_layers: usize) -> Result<Vec<PrefixSites<'_>>> {
    let layer = |l: usize| {
        let site = |part: &str| sites.get(&format!("layers.{l}.attn.{part}"));
        let (k, v) = (site("k")?, site("v")?);
        let (_, width) = k.linear()?;
        Some(PrefixSites { k: site("k_norm").unwrap_or(k), v, width })
    };
    let found: Option<Vec<_>> = (0..n_layers).map(layer).collect();
    found.ok_or_else(|| {
        Error::input(
            format!("{KEY}.kind"),
            "this model has no keys and values to put a prefix before",
        )
        .hint("set kind = \"prompt\"")
    })
}

/// Keys, then values, layer by layer.
fn sides<'a>(layers: &'a [PrefixSites<'a>]) -> impl Iterator<Item = (&'a SiteInfo, usize)> {
    layers.iter().flat_map(|at| [(at.k, at.width), (at.v, at.width)])
}

/// Stands at the positions of virtual tokens.
struct Virtual(Var);

impl Hook for Virtual {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (virtuals, width) = self.0.dims2()?;
        let positions_n = &at.rows.positions_n;
        if positions_n.iter().all(|p| *p as usize >= virtuals) {
            return Ok(y);
        }
        let n = positions_n.len();
        let from = |(t, p): (usize, &u32)| {
            let p = *p as usize;
            (if p < virtuals { n + p } else { t }) as u32
        };
        let index: Vec<u32> = positions_n.iter().enumerate().map(from).collect();
        let index_n = Tensor::from_vec(index, n, y.device())?;
        // The norm of keys sees every head by itself.
        let y_nw = y.reshape((n, width))?;
        let replaced = Tensor::cat(&[&y_nw, self.0.as_tensor()], 0)?.index_select(&index_n, 0)?;
        Ok(replaced.reshape(y.dims())?)
    }
}

/// Keeps what it saw last.
#[derive(Default)]
struct Seen(Mutex<Option<Tensor>>);

impl Hook for Seen {
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(y.detach());
        Ok(y)
    }
}
