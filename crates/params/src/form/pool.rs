//! L2M (Schmied et al. 2023): a pool of modulators, of which every row uses the one whose key is
//! nearest to its prompt.
//!
//! Query `q` of a row: the mean of its prompt's embeddings at the input of the blocks, where the
//! prompt is every token up to the one that predicts the first trained token, and the whole row
//! where nothing says what is trained. Entry `i* = argmax cos(q, kᵢ)`, while decoding chosen once
//! per sequence. In training on a task that is not the first, `argmax νᵢ · (cos(q, kᵢ) + 1) / 2`, with
//! `νᵢ ∝ 1 / (nᵢ + 1e-6)` of the shares `n` of rows that entry `i` has had when the task begins.
//!
//! A task is a round: a run of its own that continues from the pool so far, or a file among several
//! with `data.sequential`. Counts are kept with the pool, so [`switch`] finds them as a round begins.
//!
//! `lora`: `y ← y + α/r · x · Aᵀ · Bᵀ`, in the MLP with `y` in place of `x`, as published;
//! `ia3`: `y ← l ∘ y`. Minimised besides: `−pull_coef · mean cos(q, k_{i*})` over rows. Gradients
//! reach the chosen entries alone, so every entry has variables of its own. Nothing folds.
//!
//! **Departures**: (1) `n` counts rows over all passes, where the release takes the mean of the passes'
//! shares: passes of other sizes count the same. (2) `min_cosine`: outside of training a prompt whose
//! nearest key is farther uses no entry, in place of keys that stand for the old tasks. (3) The
//! optimizer begins anew with every task: what another task left in its memory moves nothing.

use std::sync::Arc;

use luthier_core::{Error, Mask, Policy, Result, SiteInfo, SiteKind};
use serde::{Deserialize, Serialize};

use crate::{Choice, Form, Globs, Init, Scope, passing::Passing};

mod chooser;
mod modulate;

pub use chooser::{penalties, score, switch};

use chooser::{COUNTS, Chooser, PENALTIES, Task};
use modulate::{Entries, Modulator as Hooked};

const KEY: &str = "train.params.pool";

/// `[train.params.pool]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Number of entries.
    pub size: usize,
    /// What an entry does at a site.
    pub modulator: Modulator,
    /// Rank, for `lora`.
    pub r: usize,
    /// Numerator of the scale, for `lora`.
    pub alpha: f64,
    /// Sites to modulate; without it queries, values and gates for `lora`, keys, values and the MLP's
    /// activation for `ia3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Globs>,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// How strongly chosen keys are pulled to the queries that chose them.
    pub pull_coef: f64,
    /// Whether entries that earlier tasks used are avoided in training.
    pub count_penalty: bool,
    /// Below this nothing is modulated outside of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine: Option<f64>,
}

/// What an entry does at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modulator {
    /// A low-rank addition.
    #[default]
    Lora,
    /// A factor on every value.
    Ia3,
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            size: 30,
            modulator: Modulator::Lora,
            r: 8,
            alpha: 16.0,
            at: None,
            exclude: Globs::default(),
            pull_coef: 0.5,
            count_penalty: true,
            min_cosine: None,
        }
    }
}

impl Pool {
    fn check(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::input(format!("{KEY}.{key}"), what));
        let lora = self.modulator == Modulator::Lora;
        if self.size == 0 {
            return refuse("size", "expected a number from 1 up, got 0".into());
        }
        if lora && !(self.alpha.is_finite() && self.alpha != 0.0) {
            return refuse("alpha", format!("expected a number other than 0, got {}", self.alpha));
        }
        if !(self.pull_coef.is_finite() && self.pull_coef >= 0.0) {
            let what = format!("expected a number from 0 up, got {}", self.pull_coef);
            return refuse("pull_coef", what);
        }
        match self.min_cosine {
            Some(least) if !(-1.0..=1.0).contains(&least) => {
                refuse("min_cosine", format!("expected a number from -1 to 1, got {least}"))
            }
            _ => Ok(()),
        }
    }

    fn globs(&self) -> Globs {
        match (&self.at, self.modulator) {
            (Some(at), _) => at.clone(),
            (None, Modulator::Lora) => "layers.*.{attn.{q,v},mlp.gate}".into(),
            (None, Modulator::Ia3) => "layers.*.{attn.{k,v},mlp.act}".into(),
        }
    }

    fn fits(&self, site: &SiteInfo) -> bool {
        match site.kind {
            SiteKind::Linear { .. } => true,
            SiteKind::Activation { .. } => {
                self.modulator == Modulator::Ia3 && !site.name.ends_with("attn.pattern")
            }
            SiteKind::Embed { .. } | SiteKind::Norm { .. } => false,
        }
    }

    /// The variables of every entry at a site.
    fn entries(&self, site: &SiteInfo, scope: &mut Scope) -> Result<Entries> {
        let (i, o) = match site.kind {
            SiteKind::Linear { i, o, .. } => (i, o),
            SiteKind::Embed { d, .. } | SiteKind::Norm { d } | SiteKind::Activation { d } => (d, d),
        };
        if self.modulator == Modulator::Ia3 {
            let own = |e: usize| scope.own(site, &format!("pool_{e}.ia3_l"), &[o], Init::Ones);
            return Ok(Entries::Ia3((0..self.size).map(own).collect::<Result<_>>()?));
        }
        let on_output = site.name.contains(".mlp.");
        let i = if on_output { o } else { i };
        if self.r == 0 || self.r > i.min(o) {
            let what =
                format!("{}: expected a rank from 1 to {}, got {}", site.name, i.min(o), self.r);
            return Err(Error::input(format!("{KEY}.r"), what));
        }
        let mut factors = Vec::with_capacity(self.size);
        for e in 0..self.size {
            let init = Init::Uniform(1.0 / (i as f64).sqrt());
            let a_ri = scope.own(site, &format!("pool_{e}.lora_A"), &[self.r, i], init)?;
            let b_or = scope.own(site, &format!("pool_{e}.lora_B"), &[o, self.r], Init::Zeros)?;
            factors.push((a_ri, b_or));
        }
        Ok(Entries::Lora { factors, scale: self.alpha / self.r as f64, on_output })
    }
}

impl Form for Pool {
    fn bind(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        self.check()?;
        let model = policy.model.clone();
        let sites = model.sites();
        let embed = sites.get("embed");
        let embed = embed.ok_or_else(|| Error::failed("embed", "this model has no such site"))?;
        let key =
            |e: usize| scope.shared(&format!("pool.{e}.key"), &[model.width()], Init::Uniform(1.0));
        let keys = (0..self.size).map(key).collect::<Result<_>>()?;
        let counts = scope.shared(COUNTS, &[self.size], Init::Zeros)?;
        let penalties = scope.shared(PENALTIES, &[self.size], Init::Zeros)?;
        // What is counted is kept with the variables, but no gradient moves it.
        for name in [COUNTS, PENALTIES] {
            scope.mask(name, Mask::new(Vec::new())?)?;
        }
        let chosen = Arc::new(Passing::default());
        let chooser = Chooser {
            keys,
            counts,
            penalties: self.count_penalty.then_some(penalties),
            pull_coef: self.pull_coef,
            min_cosine: self.min_cosine,
            chosen: chosen.clone(),
        };
        policy.hooks.bind(embed.id, Arc::new(chooser));
        let fits = |site: &SiteInfo| self.fits(site);
        for site in self.globs().sites(sites, KEY, &self.exclude, fits)? {
            let entries = self.entries(site, scope)?;
            policy.hooks.bind(site.id, Arc::new(Hooked { entries, chosen: chosen.clone() }));
        }
        // An entry that no row chose stays to the bit where it was.
        scope.optional(|name| name.contains("pool"));
        Ok(policy)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        self.count_penalty.then(|| Box::new(Task) as Box<dyn Choice>)
    }
}
