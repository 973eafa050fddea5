//! The weights themselves are learned, all of them or some.
//!
//! No hook and no equation: the model hands out variables in place of its weights, by their Hugging
//! Face names. With `freeze_layers` the lowest blocks and the embedding stay as they are, with
//! `reinit_layers` the highest blocks begin anew (Tinn et al. 2023, paper 22): linear maps at
//! N(0, 0.02²), biases at 0, norms at 1, as in pretraining.
//! **Departures**: (1) decoders have no pooler or new head to redraw with the top blocks.

use luthier_core::{Error, Param, Policy, Result, SiteInfo};
use serde::{Deserialize, Serialize};

use super::{tokens, weights};
use crate::{Form, Globs, Scope, own};

const KEY: &str = "train.params.full";

/// Standard deviation of a linear map at the start of pretraining, as in most configurations.
const INITIALIZER_RANGE: f64 = 0.02;

/// `[train.params.full]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Full {
    /// Sites whose weights are learned.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Which tensors of a site.
    pub parts: Parts,
    /// Lowest blocks that stay as they are, and the embedding with them.
    pub freeze_layers: usize,
    /// Highest blocks that begin anew.
    pub reinit_layers: usize,
}

/// Which tensors of a site learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parts {
    /// Weight and bias.
    #[default]
    All,
    /// The weight.
    Weight,
    /// The bias (BitFit).
    Bias,
}

impl Default for Full {
    fn default() -> Self {
        Full {
            at: "**".into(),
            exclude: Globs::default(),
            parts: Parts::All,
            freeze_layers: 0,
            reinit_layers: 0,
        }
    }
}

impl Parts {
    pub(crate) fn has(self, name: &str) -> bool {
        match self {
            Parts::All => true,
            Parts::Weight => !name.ends_with(".bias"),
            Parts::Bias => name.ends_with(".bias"),
        }
    }
}

impl Full {
    fn learns(&self, site: &SiteInfo) -> bool {
        match site.layer {
            Some(layer) => layer >= self.freeze_layers,
            None => self.freeze_layers == 0 || site.name != "embed",
        }
    }

    fn check(&self, layers: usize) -> Result<()> {
        for (key, n) in
            [("freeze_layers", self.freeze_layers), ("reinit_layers", self.reinit_layers)]
        {
            if n > layers {
                let what = format!("expected at most the model's {layers} blocks, got {n}");
                return Err(Error::input(format!("{KEY}.{key}"), what));
            }
        }
        if self.freeze_layers + self.reinit_layers > layers {
            let what = format!(
                "{} blocks, and {KEY}.freeze_layers keeps some of them",
                self.reinit_layers
            );
            return Err(Error::input(format!("{KEY}.reinit_layers"), what)
                .hint("a block either begins anew or stays as it is"));
        }
        Ok(())
    }
}

impl Form for Full {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        let layers = model.n_layers();
        self.check(layers)?;
        let mut sites = self.at.sites(model.sites(), KEY, &self.exclude, weights::has_weight)?;
        // A tied head is the embedding: what keeps the one keeps the other.
        let keeps_table = self.freeze_layers > 0 && tokens::tied(model.as_ref())?;
        sites.retain(|site| self.learns(site) && !(keeps_table && site.name == "logits"));
        let first = scope.params().len();
        let policy = weights::learn(policy, &sites, |name, _| self.parts.has(name), scope)?;
        if scope.params().len() == first {
            let what = "names no tensor that could learn";
            return Err(Error::input(format!("{KEY}.parts"), what)
                .hint("this model has no biases: train.params.ssf with scale = false adds some"));
        }
        if self.reinit_layers > 0 && !scope.is_given() {
            let anew = |name: &str| {
                let site = name.rsplit_once('.').and_then(|(m, _)| model.sites().by_module(m));
                site.and_then(|s| s.layer).is_some_and(|l| l >= layers - self.reinit_layers)
            };
            for Param { name, var, .. } in scope.params()[first..].iter().filter(|p| anew(&p.name))
            {
                let mut rng = scope.seed("reinit").split(name).rng();
                let n = var.elem_count();
                let values = match (var.rank(), name.ends_with(".bias")) {
                    (2, _) => (0..n).map(|_| (INITIALIZER_RANGE * rng.normal()) as f32).collect(),
                    (_, true) => vec![0.0; n],
                    (_, false) => vec![1.0; n],
                };
                own::set(var, values)?;
            }
        }
        Ok(policy)
    }
}
