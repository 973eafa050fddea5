//! Trainable tokens (PEFT's `TRAINABLE_TOKENS`): chosen rows of the embedding are learned.
//!
//! `E[t] ← v_t` for the chosen tokens t, which begin at `E[t]`; computed as `y + (v − e)[t]` with the
//! rows `e` as they are in the base, so that the start changes no bit. Where the head is the embedding,
//! it follows: `logits[t] ← logits[t] + x · (v − e)_t`. Folded into the table's rows. **Departures**:
//! none.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Tensor, Var};
use luthier_core::{
    Affine, At, Error, Hook, Model, Policy, Result, SiteId, SiteInfo, SiteKind, SiteMap,
};
use serde::{Deserialize, Serialize};

use crate::{Form, Globs, Scope};

const KEY: &str = "train.params.tokens";

/// `[train.params.tokens]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Ids of the tokens that are learned.
    pub token_indices: Vec<u32>,
    /// Tables whose rows these are: `embed`, or with a head of its own `["embed", "logits"]`.
    pub at: Globs,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens { token_indices: Vec::new(), at: "embed".into() }
    }
}

/// The variable's part of its name, which is PEFT's.
pub(crate) const ROWS: &str = "trainable_tokens_delta";

/// Whether the head is the embedding table: then learning it means learning that one.
pub(crate) fn tied(model: &dyn Model) -> Result<bool> {
    let (Some(embed), Some(head)) = (model.sites().get("embed"), model.sites().get("logits"))
    else {
        return Ok(false);
    };
    let (_, vars) = model.learn(&[head.id])?;
    let table = format!("{}.weight", embed.module.as_deref().unwrap_or(&embed.name));
    Ok(vars.iter().any(|(name, _)| *name == table))
}

impl Tokens {
    /// The tables whose rows learn.
    pub(crate) fn targets<'s>(&self, sites: &'s SiteMap) -> Result<Vec<&'s SiteInfo>> {
        let is_table =
            |s: &SiteInfo| matches!(s.kind, SiteKind::Embed { .. }) || s.name == "logits";
        self.at.sites(sites, KEY, &Globs::default(), is_table)
    }

    fn check(&self, rows: usize) -> Result<()> {
        let key = format!("{KEY}.token_indices");
        let mut sorted = self.token_indices.clone();
        sorted.sort_unstable();
        let Some(last) = sorted.last() else {
            return Err(Error::input(key, "names no token")
                .hint("token_indices = [1, 2, …]; `luthier show` prints the ids of a text"));
        };
        if *last as usize >= rows {
            let what = format!("expected ids below {rows}, got {last}");
            return Err(Error::input(key, what));
        }
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::input(key, format!("names token {} twice", pair[0]))),
            None => Ok(()),
        }
    }

    fn hook(&self, site: &SiteInfo, model: &dyn Model, scope: &mut Scope) -> Result<Arc<Rows>> {
        let (rows, _) = widths(site);
        self.check(rows)?;
        let name = format!("{}.weight", site.module.as_deref().unwrap_or(&site.name));
        if scope.params().iter().any(|p| p.name == name) {
            let what = format!("names {}, all rows of which are learned", site.name);
            return Err(Error::input(format!("{KEY}.at"), what)
                .hint("leave it out here or in train.params.full"));
        }
        let ids = Tensor::new(self.token_indices.as_slice(), &candle_core::Device::Cpu)?;
        let start_kd = model.affine(site.id)?.w_oi.to_dtype(DType::F32)?.index_select(&ids, 0)?;
        let rows_kd = scope.own_at(site, ROWS, &start_kd)?;
        let indices = self.token_indices.iter().zip(0u32..);
        let index = indices.map(|(token, row)| (*token, row)).collect();
        Ok(Arc::new(Rows { ids, index, start_kd, rows_kd }))
    }
}

/// Rows and columns of a table.
fn widths(site: &SiteInfo) -> (usize, usize) {
    match site.kind {
        SiteKind::Embed { v, d } => (v, d),
        SiteKind::Linear { i, o, .. } => (o, i),
        SiteKind::Norm { d } | SiteKind::Activation { d } => (d, d),
    }
}

impl Form for Tokens {
    fn bind(&self, mut policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let model = policy.model.clone();
        let sites = model.sites();
        let targets = self.targets(sites)?;
        let head = if tied(model.as_ref())? { sites.get("logits") } else { None };
        if let Some(head) = head
            && targets.iter().any(|site| site.id == head.id)
        {
            let what = "names logits, which is the embedding in this model";
            return Err(
                Error::input(format!("{KEY}.at"), what).hint("at = \"embed\": the head follows")
            );
        }
        for site in targets {
            let hook = self.hook(site, model.as_ref(), scope)?;
            let follows: Option<SiteId> = head.map(|head| head.id);
            for id in [site.id].into_iter().chain(follows) {
                policy.hooks.bind(id, hook.clone());
            }
        }
        Ok(policy)
    }
}

/// Chosen rows of a table, read by token at the embedding and by every output at the head.
struct Rows {
    ids: Tensor,
    /// Where a token's row is among the chosen ones.
    index: HashMap<u32, u32>,
    /// As they are in the base.
    start_kd: Tensor,
    rows_kd: Var,
}

impl Rows {
    fn moved(&self) -> Result<Tensor> {
        Ok((self.rows_kd.as_tensor() - &self.start_kd)?)
    }
}

impl Hook for Rows {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let moved_kd = self.moved()?;
        let (k, d) = moved_kd.dims2()?;
        if let SiteKind::Linear { .. } = at.site.kind {
            let add_nk = x.to_dtype(DType::F32)?.matmul(&moved_kd.t()?)?.to_dtype(y.dtype())?;
            return Ok(y.index_add(&self.ids, &add_nk, 1)?);
        }
        // One more row, of zeros, for all other tokens.
        let zeros_1d = Tensor::zeros((1, d), DType::F32, y.device())?;
        let row = |id: &u32| self.index.get(id).copied().unwrap_or(k as u32);
        let rows_n: Vec<u32> = at.ids_n.iter().map(row).collect();
        let rows_n = Tensor::new(rows_n, y.device())?;
        let add_nd = Tensor::cat(&[&moved_kd, &zeros_1d], 0)?.index_select(&rows_n, 0)?;
        Ok((&y + add_nd.to_dtype(y.dtype())?)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let (v, d) = lin.w_oi.dims2()?;
        let mut table = lin.w_oi.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (now, before) = (self.rows_kd.to_vec2::<f32>()?, self.start_kd.to_vec2::<f32>()?);
        for (token, row) in &self.index {
            let (now, before) = (&now[*row as usize], &before[*row as usize]);
            let to = &mut table[*token as usize * d..][..d];
            for ((to, now), before) in to.iter_mut().zip(now).zip(before) {
                // Exactly the learned number, unless another hook has changed the row too.
                *to = if *to == *before { *now } else { *to + (now - before) };
            }
        }
        let w_oi = Tensor::from_vec(table, (v, d), lin.w_oi.device())?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}
