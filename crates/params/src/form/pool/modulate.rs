//! What the chosen entries do at a site: one product per entry in use, over all its tokens.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use luthier_core::{At, Error, Hook, Result};

use super::chooser::Chosen;
use crate::passing::Passing;

/// The variables of all entries at one site.
pub(super) enum Entries {
    Lora {
        /// A `(r, in)` and B `(out, r)`.
        factors: Vec<(Var, Var)>,
        scale: f64,
        /// Whether the addition reads the site's output.
        on_output: bool,
    },
    Ia3(Vec<Var>),
}

/// Applies the entries that a pass has chosen.
pub(super) struct Modulator {
    pub(super) entries: Entries,
    pub(super) chosen: Arc<Passing<Arc<Chosen>>>,
}

impl Hook for Modulator {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let chosen = self.chosen.get(at.rows).ok_or_else(|| {
            Error::failed(&at.site.name, "the pool has chosen no entry for these rows")
                .hint("a pass through a pool begins at the embedding")
        })?;
        if chosen.groups.is_empty() {
            return Ok(y);
        }
        match &self.entries {
            Entries::Lora { factors, scale, on_output } => {
                let x = if *on_output { &y } else { x };
                let add = additions(&chosen, factors, *scale, &x.to_dtype(DType::F32)?)?;
                Ok((&y + add)?)
            }
            Entries::Ia3(factors) => scaled(&chosen, factors, &y),
        }
    }
}

/// `s · x · Aᵀ · Bᵀ` with the factors of each token's entry, `(n, o)`.
fn additions(chosen: &Chosen, factors: &[(Var, Var)], scale: f64, x_ni: &Tensor) -> Result<Tensor> {
    let add = |entry: usize, x: &Tensor| -> Result<Tensor> {
        let (a_ri, b_or) = &factors[entry];
        Ok((x.matmul(&a_ri.t()?)? * scale)?.matmul(&b_or.t()?)?)
    };
    if let [one] = chosen.groups.as_slice()
        && one.len == chosen.n
    {
        return add(one.entry, &x_ni.contiguous()?);
    }
    let mut parts = Vec::with_capacity(chosen.groups.len() + 1);
    for group in &chosen.groups {
        parts.push(add(group.entry, &x_ni.contiguous()?.index_select(&group.tokens, 0)?)?);
    }
    let rest = chosen.n - chosen.groups.iter().map(|g| g.len).sum::<usize>();
    if rest > 0 {
        let (_, o) = parts[0].dims2()?;
        parts.push(Tensor::zeros((rest, o), DType::F32, x_ni.device())?);
    }
    Ok(Tensor::cat(&parts, 0)?.index_select(&chosen.place_n, 0)?)
}

/// `l ∘ y` with the vector of each token's entry.
fn scaled(chosen: &Chosen, factors: &[Var], y_no: &Tensor) -> Result<Tensor> {
    if let [one] = chosen.groups.as_slice()
        && one.len == chosen.n
    {
        return Ok(y_no.broadcast_mul(&factors[one.entry])?);
    }
    let mut vectors = Vec::with_capacity(chosen.groups.len() + 1);
    for group in &chosen.groups {
        vectors.push(factors[group.entry].unsqueeze(0)?);
    }
    vectors.push(vectors[0].ones_like()?);
    Ok((y_no * Tensor::cat(&vectors, 0)?.index_select(&chosen.group_n, 0)?)?)
}
