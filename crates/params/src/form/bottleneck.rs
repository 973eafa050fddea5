//! Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021, He et al. 2022) and, with
//! `[train.params.bottleneck.phm]`, Compacter (Karimi Mahabadi et al. 2021), with adapter-hub's settings.
//!
//! `y ← y + s · U(φ(D(y)))` on the values of a site, `D x = x · Wᵀ + b` to `width / reduction_factor`
//! numbers and `U` back. Behind a sub-layer that is `attn.out`, `mlp.out`; adapter-hub's
//! `original_ln_before` reads the stream instead, which is `resid_mid`, `resid_post`. `parallel`: the
//! same addition to the sub-layer's output, from the stream in front of its norm. Nothing folds.
//!
//! **Departures**: (1) U begins at 0 (adapter-hub's `mam_adapter`), so that the start changes nothing;
//! adapter-hub's usual start is `init_weights = "bert"`. (2) With `phm`, the narrow width is rounded
//! down to a multiple of the division, where adapter-hub refuses.

use std::sync::Arc;

use candle_core::{Tensor, Var};
use luthier_core::{At, Error, Hook, Policy, Result, SiteInfo, SiteKind, SiteMap};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Init, Scope, dropout::dropout, passing::Passing};

pub mod hub;
mod phm;

pub use phm::{Phm, kronecker_sum};

const KEY: &str = "train.params.bottleneck";

/// `[train.params.bottleneck]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bottleneck {
    /// Sites whose values are adapted.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// The site's width over the narrow one.
    pub reduction_factor: f64,
    /// What stands between the two maps.
    pub non_linearity: NonLinearity,
    /// Whether the input is that of the sub-layer, not its output.
    pub parallel: bool,
    /// On the addition.
    pub scaling: Scaling,
    /// Share of the addition that is dropped in training.
    pub dropout: f64,
    /// How the maps begin; not with `phm`.
    pub init_weights: InitWeights,
    /// Both maps as sums of Kronecker products: Compacter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phm: Option<Phm>,
}

/// By its name in transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonLinearity {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent.
    GeluNew,
    /// `x · sigmoid(x)`.
    #[serde(alias = "silu")]
    Swish,
}

/// A number, or variables that begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, \"learned\" or \"channel\"")]
pub enum Scaling {
    /// This number.
    By(f64),
    /// Something that learns.
    Learned(LearnedScaling),
}

/// What of a scale learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedScaling {
    /// One number for the site.
    Learned,
    /// One number for each of its values.
    Channel,
}

/// How the two maps begin; biases begin at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// D uniform within `1 / √width`, U at 0.
    #[default]
    MamAdapter,
    /// Both normal with deviation 0.02.
    Bert,
}

impl Default for Bottleneck {
    fn default() -> Self {
        Bottleneck {
            at: "layers.*.{attn,mlp}.out".into(),
            exclude: Globs::default(),
            reduction_factor: 16.0,
            non_linearity: NonLinearity::Relu,
            parallel: false,
            scaling: Scaling::By(1.0),
            dropout: 0.0,
            init_weights: InitWeights::MamAdapter,
            phm: None,
        }
    }
}

impl Bottleneck {
    fn check(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::input(format!("{KEY}.{key}"), what));
        if !(self.reduction_factor.is_finite() && self.reduction_factor > 0.0) {
            let what = format!("expected a number above 0, got {}", self.reduction_factor);
            return refuse("reduction_factor", what);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("expected at least 0 and below 1, got {}", self.dropout);
            return refuse("dropout", what);
        }
        match self.scaling {
            Scaling::By(by) if !by.is_finite() || by == 0.0 => {
                refuse("scaling", format!("expected a number other than 0, got {by}"))
            }
            _ => self.phm.as_ref().map_or(Ok(()), Phm::check),
        }
    }

    /// The narrow width of a site with `d` values.
    pub fn narrow(&self, d: usize) -> usize {
        let narrow = ((d as f64 / self.reduction_factor) as usize).max(1);
        match &self.phm {
            Some(phm) => (narrow / phm.division).max(1) * phm.division,
            None => narrow,
        }
    }

    fn adapter(&self, site: &SiteInfo, d: usize, scope: &mut Scope) -> Result<Adapter> {
        let b = self.narrow(d);
        let scaling = match self.scaling {
            Scaling::By(by) => Factor::By(by),
            Scaling::Learned(learned) => {
                let len = if learned == LearnedScaling::Learned { 1 } else { d };
                Factor::Learned(scope.own(site, "adapter_scaling", &[len], Init::Ones)?)
            }
        };
        Ok(Adapter {
            down: self.map(site, "adapter_down", (d, b), scope)?,
            up: self.map(site, "adapter_up", (b, d), scope)?,
            phi: self.non_linearity,
            scaling,
            dropout: self.dropout,
        })
    }

    fn map(
        &self,
        site: &SiteInfo,
        part: &str,
        (i, o): (usize, usize),
        scope: &mut Scope,
    ) -> Result<Map> {
        if let Some(phm) = &self.phm {
            return Ok(Map::Phm(phm.layer(site, part, (i, o), scope)?));
        }
        let init = match (self.init_weights, part) {
            (InitWeights::Bert, _) => Init::Normal(0.02),
            (_, "adapter_down") => Init::Uniform(1.0 / (i as f64).sqrt()),
            _ => Init::Zeros,
        };
        Ok(Map::Dense {
            w_oi: scope.own(site, &format!("{part}.weight"), &[o, i], init)?,
            b_o: scope.own(site, &format!("{part}.bias"), &[o], Init::Zeros)?,
        })
    }
}

impl Form for Bottleneck {
    fn bind(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        self.check()?;
        let model = policy.model.clone();
        let sites = model.sites();
        for site in self.at.sites(sites, KEY, &self.exclude, |s| width(s).is_some())? {
            let d = width(site).expect("only sites with a width were asked for");
            let norm = if self.parallel { Some(norm_before(sites, site)?) } else { None };
            let adapter = self.adapter(site, d, scope)?;
            let Some(norm) = norm else {
                policy.hooks.bind(site.id, Arc::new(Serial(adapter)));
                continue;
            };
            let left = Arc::new(Passing::default());
            policy.hooks.bind(norm.id, Arc::new(Reader { adapter, left: left.clone() }));
            policy.hooks.bind(site.id, Arc::new(Adder(left)));
        }
        Ok(policy)
    }
}

/// How many values a site has per token.
fn width(site: &SiteInfo) -> Option<usize> {
    match site.kind {
        SiteKind::Activation { .. } if site.name.ends_with("attn.pattern") => None,
        SiteKind::Activation { d } => Some(d),
        SiteKind::Linear { o, .. } => Some(o),
        SiteKind::Embed { .. } | SiteKind::Norm { .. } => None,
    }
}

/// The norm at the beginning of the sub-layer whose output is at `site`.
fn norm_before<'s>(sites: &'s SiteMap, site: &SiteInfo) -> Result<&'s SiteInfo> {
    let norm = match site.name.strip_suffix(".out") {
        Some(part) if part.ends_with(".attn") || part.ends_with(".mlp") => {
            sites.get(&format!("{part}_norm"))
        }
        _ => None,
    };
    norm.ok_or_else(|| {
        let what = format!("{} is not the output of a sub-layer behind a norm", site.name);
        Error::input(format!("{KEY}.parallel"), what)
            .hint("parallel adapters stand at layers.*.attn.out and layers.*.mlp.out")
    })
}

/// A learned map.
enum Map {
    Dense { w_oi: Var, b_o: Var },
    Phm(phm::Layer),
}

impl Map {
    fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        match self {
            Map::Dense { w_oi, b_o } => Ok(x_ni.matmul(&w_oi.t()?)?.broadcast_add(b_o)?),
            Map::Phm(layer) => layer.apply(x_ni),
        }
    }
}

enum Factor {
    By(f64),
    Learned(Var),
}

struct Adapter {
    down: Map,
    up: Map,
    phi: NonLinearity,
    scaling: Factor,
    dropout: f64,
}

impl Adapter {
    /// `s · U(φ(D(x)))`.
    fn addition(&self, at: &At, x_nd: &Tensor) -> Result<Tensor> {
        let (_n, _d) = x_nd.dims2()?;
        let z_nb = self.phi.apply(&self.down.apply(&x_nd.contiguous()?)?)?;
        let y_nd = self.up.apply(&z_nb)?;
        let y_nd = match &self.scaling {
            Factor::By(by) if *by == 1.0 => y_nd,
            Factor::By(by) => (y_nd * *by)?,
            Factor::Learned(by) => y_nd.broadcast_mul(by)?,
        };
        match at.noise {
            Some(noise) => Ok(dropout(&y_nd, self.dropout, noise.split("bottleneck.dropout"))?),
            None => Ok(y_nd),
        }
    }
}

impl NonLinearity {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            NonLinearity::Relu => x.relu()?,
            NonLinearity::Gelu => x.gelu_erf()?,
            NonLinearity::GeluNew => x.gelu()?,
            NonLinearity::Swish => x.silu()?,
        })
    }
}

/// Adds to the values it reads.
struct Serial(Adapter);

impl Hook for Serial {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok((&y + self.0.addition(at, &y)?)?)
    }
}

/// Reads the stream in front of a norm, for an [`Adder`].
struct Reader {
    adapter: Adapter,
    left: Arc<Passing<Tensor>>,
}

impl Hook for Reader {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.left.put(at.rows, self.adapter.addition(at, x)?);
        Ok(y)
    }
}

/// Adds what a [`Reader`] has left.
struct Adder(Arc<Passing<Tensor>>);

impl Hook for Adder {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let missing = || Error::failed(&at.site.name, "the norm of this sub-layer was not passed");
        Ok((y + self.0.take(at.rows).ok_or_else(missing)?)?)
    }
}
