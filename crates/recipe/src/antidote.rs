//! Weights that matter most on chosen data, set to 0 (Antidote; Huang et al. 2025, paper 04): what a few
//! harmful examples did to an aligned model is taken out after tuning, whatever the tuning was.
//!
//! The tuned model reads the data once; every factor of a LoRA is a linear map of its own (A reads the
//! site's input, B reads `x Aᵀ`), scored by [`luthier_probe::wanda`]; of every output row the share
//! `dense_ratio` with the largest scores becomes 0: `w ← w ∘ (1 − marks)`. All scores are those of the
//! model as it was. The base is never touched, so `dense_ratio = 1` gives it back. Without an adapter
//! the queries, keys and values of the model itself are pruned.
//!
//! **Departures**: (1) the original's shares by layers' outliers, which its results do not use, are not
//! there.

mod slope;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use luthier_core::{
    Affine, At, Batch, Ctx, Error, Hook, Hooks, Param, Policy, Result, Row, Seed, SiteInfo,
    batch::pack,
};
use luthier_kernels::threads;
use luthier_params::{Bound, Full, Params};
use luthier_probe::wanda::{self, InputNorms, Scope};
use luthier_train::sum::Gradients;
use serde::{Deserialize, Serialize};

/// Tokens of a pass.
const PASS: usize = 4096;

/// What is pruned, and by which score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Antidote {
    /// Share of every row that becomes 0.
    pub dense_ratio: f64,
    /// What a weight is judged by.
    pub score: Score,
    /// Within what the largest are looked for.
    pub per: Scope,
    /// Sites; without it all of an adapter, or queries, keys and values of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Of random scores.
    pub seed: u64,
}

/// What a weight is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Its size times the norm of its inputs on the data.
    #[default]
    Wanda,
    /// Its size.
    Magnitude,
    /// Its size times the slope of the answers' likelihood, `|w · dL/dw|`.
    Grad,
    /// Chance: the control.
    Random,
}

impl Score {
    /// Whether it reads data.
    pub fn reads(self) -> bool {
        matches!(self, Score::Wanda | Score::Grad)
    }
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Its name.
    pub name: String,
    /// Numbers in it.
    pub numbers: usize,
    /// Of these, set to 0 now.
    pub pruned: usize,
}

impl Default for Antidote {
    fn default() -> Self {
        let (score, per) = (Score::Wanda, Scope::Row);
        Antidote { dense_ratio: 0.1, score, per, at: None, seed: 0 }
    }
}

/// A matrix of a site that is replaced by its pruned self.
struct Replaced {
    w_oi: Tensor,
    b_o: Option<Tensor>,
}

impl Hook for Replaced {
    fn after(&self, _at: &At, x: &Tensor, _y: Tensor) -> Result<Tensor> {
        let y_no = x.to_dtype(DType::F32)?.matmul(&self.w_oi.t()?)?;
        Ok(match &self.b_o {
            Some(b_o) => y_no.broadcast_add(b_o)?,
            None => y_no,
        })
    }

    fn fold(&self, _site: &SiteInfo, _lin: &Affine) -> Result<Option<Affine>> {
        Ok(Some(Affine { w_oi: self.w_oi.clone(), b_o: self.b_o.clone() }))
    }
}

impl Antidote {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.dense_ratio) {
            return Ok(());
        }
        let what = format!("expected a share between 0 and 1, got {}", self.dense_ratio);
        Err(Error::input("antidote.dense_ratio", what))
    }

    /// Prunes the factors of a LoRA in place. `rows` are read whole, prompts and answers alike.
    pub fn adapter(&self, bound: &Bound, rows: &[Row]) -> Result<Vec<Pruned>> {
        self.check()?;
        let sites = bound.policy.model.sites();
        let mut chosen: Vec<(&SiteInfo, &Param, &Param)> = Vec::new();
        for param in &bound.params {
            let Some((site, part)) = split(sites, &param.name) else {
                let what =
                    "is no factor of a LoRA at a linear map, which is all that can be pruned";
                return Err(Error::input(&param.name, what)
                    .hint("luthier adapter convert makes a plain LoRA of most adapters"));
            };
            if part == "lora_A" {
                let b = format!("{}.lora_B", site.name);
                let other = bound.params.iter().find(|p| p.name == b);
                chosen.push((site, param, other.ok_or_else(|| Error::failed(&b, "is missing"))?));
            }
        }
        if let Some(glob) = &self.at {
            let named = sites.find("antidote.at", glob, |site| {
                chosen.iter().any(|(adapted, _, _)| adapted.id == site.id)
            })?;
            chosen.retain(|(site, _, _)| named.iter().any(|named| named.id == site.id));
        }
        let norms: Vec<Arc<InputNorms>> = chosen
            .iter()
            .map(|(_, a, _)| Ok(Arc::new(InputNorms::behind(a.var.as_detached_tensor().copy()?))))
            .collect::<Result<_>>()?;
        let hooks = chosen.iter().map(|(site, _, _)| *site).zip(&norms);
        self.read(&bound.policy, hooks, rows)?;
        let slopes = match self.score {
            Score::Grad => slope::slopes(&bound.policy, &bound.params, rows)?,
            _ => Gradients::new(),
        };
        let mut done = Vec::new();
        for ((_, a, b), norms) in chosen.iter().zip(&norms) {
            let squares = match self.score {
                Score::Wanda => Some((norms.squares()?, norms.narrow_squares()?)),
                _ => None,
            };
            let (of_a, of_b) = squares.unzip();
            for (param, squares) in [(a, of_a), (b, of_b)] {
                let weight = param.var.as_tensor();
                let by = (squares.as_deref(), slopes.get(&param.name));
                let (pruned, tensor) = self.prune(&param.name, weight, by)?;
                param.var.set(&tensor)?;
                done.push(pruned);
            }
        }
        Ok(done)
    }

    /// The model with matrices of its own pruned.
    pub fn model(&self, policy: &Policy, rows: &[Row]) -> Result<(Policy, Vec<Pruned>)> {
        self.check()?;
        let sites = policy.model.sites();
        let glob = self.at.as_deref().unwrap_or("layers.*.attn.{q,k,v}");
        let chosen = sites.find("antidote.at", glob, |site| site.linear().is_some())?;
        if let Some(site) = chosen.iter().find(|site| policy.hooks.watched(site.id)) {
            return Err(Error::input(&site.name, "an adapter is bound here")
                .hint("prune the adapter, or fold it into the model first"));
        }
        let norms: Vec<Arc<InputNorms>> = chosen.iter().map(|_| Arc::default()).collect();
        self.read(policy, chosen.iter().copied().zip(&norms), rows)?;
        let slopes = match self.score {
            Score::Grad => {
                let full = Full { at: glob.into(), ..Full::default() };
                let form = Params { full: Some(full), ..Params::default() };
                let bound = form.bind(&policy.model, Seed(0))?;
                let hooks = policy.hooks.clone();
                let policy = Policy { model: bound.policy.model.clone(), hooks };
                slope::slopes(&policy, &bound.params, rows)?
            }
            _ => Gradients::new(),
        };
        let (mut hooks, mut done) = (policy.hooks.clone(), Vec::new());
        for (site, norms) in chosen.iter().zip(&norms) {
            let Affine { w_oi, b_o } = policy.model.affine(site.id)?;
            let squares = match self.score {
                Score::Wanda => Some(norms.squares()?),
                _ => None,
            };
            let weight = site.module.as_ref().map(|module| format!("{module}.weight"));
            let slope = weight.and_then(|name| slopes.get(&name));
            let (pruned, w_oi) = self.prune(&site.name, &w_oi, (squares.as_deref(), slope))?;
            hooks.bind(site.id, Arc::new(Replaced { w_oi, b_o }));
            done.push(pruned);
        }
        Ok((Policy { model: policy.model.clone(), hooks }, done))
    }

    /// Lets the policy read all rows while `hooks` watch, if their norms are asked for.
    fn read<'a>(
        &self,
        policy: &Policy,
        watch: impl Iterator<Item = (&'a SiteInfo, &'a Arc<InputNorms>)>,
        rows: &[Row],
    ) -> Result<()> {
        if rows.is_empty() && self.score.reads() {
            return Err(Error::input("antidote", "there is no row to score weights by")
                .hint("name data, or judge by magnitude"));
        }
        if self.score != Score::Wanda {
            return Ok(());
        }
        let mut hooks = Hooks::none();
        watch.for_each(|(site, norms)| hooks.bind(site.id, norms.clone()));
        let hooks = policy.hooks.clone().and(&hooks);
        let policy = Policy { model: policy.model.clone(), hooks };
        let whole: Vec<Row> = rows.iter().map(whole).collect();
        let all: Vec<usize> = (0..whole.len()).collect();
        for pass in pack(&all, |row| whole[row].len(), PASS) {
            let batch = Batch::from_rows(pass.iter().map(|row| &whole[*row]));
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            threads::together(|| policy.hidden(&mut ctx))?;
        }
        Ok(())
    }

    /// A matrix with its marked numbers at 0.
    fn prune(
        &self,
        name: &str,
        w: &Tensor,
        (squares, slope): (Option<&[f64]>, Option<&Tensor>),
    ) -> Result<(Pruned, Tensor)> {
        let (o, i) = w.dims2()?;
        let scores = match self.score {
            Score::Random => wanda::random(o * i, Seed(self.seed).split("antidote").split(name)),
            Score::Grad => slope::scores(w, slope)?,
            Score::Wanda | Score::Magnitude => wanda::scores(w, squares)?,
        };
        let marked = wanda::largest(&scores, i, self.dense_ratio, self.per);
        let mut numbers = w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let harmful = numbers.iter_mut().zip(&marked).filter(|(_, marked)| **marked);
        harmful.for_each(|(number, _)| *number = 0.0);
        let pruned = marked.iter().filter(|marked| **marked).count();
        let about = Pruned { name: name.to_string(), numbers: o * i, pruned };
        Ok((about, Tensor::from_vec(numbers, (o, i), &Device::Cpu)?))
    }
}

/// The linear site of a LoRA's factor, and which factor it is.
fn split<'s>(sites: &'s luthier_core::SiteMap, name: &str) -> Option<(&'s SiteInfo, &'static str)> {
    let parts = ["lora_A", "lora_B"];
    let (site, part) = name.rsplit_once('.')?;
    let part = parts.into_iter().find(|known| *known == part)?;
    sites.get(site).filter(|site| site.linear().is_some()).map(|site| (site, part))
}

/// A row that is read through its last target.
fn whole(row: &Row) -> Row {
    let mut ids = row.ids.clone();
    ids.extend(row.targets.last());
    let n = ids.len();
    Row { ids, targets: vec![0; n], weights: vec![0.0; n], example: row.example, ..Row::default() }
}

#[cfg(test)]
mod tests;
