//! LoRA at a linear map and at the embedding, and the constant part that some ways to begin take away.

use candle_core::{DType, Tensor, Var};
use luthier_core::{Affine, At, Hook, LowRank, Result, SiteInfo};

use crate::dropout::dropout;

/// `y ← y + s · (dropout(x) · Aᵀ · Bᵀ + b)`.
pub(super) struct Linear {
    pub a_ri: Var,
    pub b_or: Var,
    pub b_o: Option<Var>,
    pub scale: f64,
    pub dropout: f64,
}

/// The input as the addition sees it in training.
pub(super) fn dropped(at: &At, x_ni: &Tensor, p: f64) -> Result<Tensor> {
    let x_ni = x_ni.to_dtype(DType::F32)?;
    Ok(match at.noise {
        Some(noise) => dropout(&x_ni, p, noise.split("lora.dropout"))?,
        None => x_ni,
    })
}

impl Hook for Linear {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let x_ni = dropped(at, x, self.dropout)?;
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
            a_ri: self.a_ri.as_tensor().clone(),
            b_or: self.b_or.as_tensor().clone(),
            scale: self.scale as f32,
            dropout: self.dropout,
        })
    }
}

/// `y ← y − s · x · Aᵀ · Bᵀ` with constant factors: what a weight is without its leading part.
#[derive(Clone)]
pub(super) struct Removed {
    pub a_ri: Tensor,
    pub b_or: Tensor,
    pub scale: f64,
}

impl Removed {
    /// A weight without it.
    pub fn from(&self, w_oi: &Tensor) -> Result<Tensor> {
        let part_oi = (self.b_or.matmul(&self.a_ri)? * self.scale)?;
        Ok((w_oi.to_dtype(DType::F32)? - part_oi)?)
    }
}

impl Hook for Removed {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let z_nr = (x.to_dtype(DType::F32)?.matmul(&self.a_ri.t()?)? * self.scale)?;
        let part_no = z_nr.matmul(&self.b_or.t()?)?.to_dtype(y.dtype())?;
        Ok((y - part_no)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        Ok(Some(Affine { w_oi: self.from(&lin.w_oi)?, b_o: lin.b_o.clone() }))
    }

    fn low_rank(&self) -> Option<LowRank> {
        let (a_ri, b_or) = (self.a_ri.clone(), self.b_or.clone());
        Some(LowRank { a_ri, b_or, scale: -self.scale as f32, dropout: 0.0 })
    }
}

/// `y ← y + s · A[:, ids]ᵀ · Bᵀ`.
pub(super) struct Embed {
    pub a_rv: Var,
    pub b_dr: Var,
    pub scale: f64,
}

impl Embed {
    /// What is added to the rows of `at`.
    pub fn addition(&self, at: &At) -> Result<Tensor> {
        let ids = Tensor::from_slice(at.ids_n, at.ids_n.len(), self.a_rv.device())?;
        let z_nr = (self.a_rv.index_select(&ids, 1)?.t()? * self.scale)?;
        Ok(z_nr.matmul(&self.b_dr.t()?)?)
    }

    /// What is added to the table.
    pub fn delta(&self) -> Result<Tensor> {
        Ok((self.a_rv.t()?.matmul(&self.b_dr.t()?)? * self.scale)?.detach())
    }
}

impl Hook for Embed {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let add_nd = self.addition(at)?.to_dtype(y.dtype())?;
        Ok((y + add_nd)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let w_oi = (lin.w_oi.to_dtype(DType::F32)? + self.delta()?)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}
