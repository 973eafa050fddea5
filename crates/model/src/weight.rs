//! A weight is frozen (never gets a gradient) or learned (a variable).

use candle_core::{Tensor, Var};
use luthier_core::{Affine, Result, SiteId};
use luthier_kernels::{Frozen, HeadWeight, linear, num::Precision, rms_norm};

/// A matrix stored `(out, in)`.
#[derive(Clone)]
pub enum Weight {
    /// Packed for speed; its backward yields the input's gradient only.
    Frozen(Frozen),
    /// A variable and the arithmetic of products with it.
    Learned(Var, Precision),
}

impl Weight {
    /// `x wᵀ`, `(n, i)` to `(n, o)`.
    pub fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.apply(x_ni)?,
            Weight::Learned(w_oi, precision) => linear(x_ni, w_oi, *precision)?,
        })
    }

    /// Rows of the matrix by index, `(n, i)`.
    pub fn gather(&self, ids_n: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.gather(ids_n)?,
            Weight::Learned(w_vd, _) => {
                let index = Tensor::from_slice(ids_n, ids_n.len(), w_vd.device())?;
                w_vd.index_select(&index, 0)?
            }
        })
    }

    /// The numbers as a detached f32 tensor.
    pub fn dense(&self) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.dense()?,
            Weight::Learned(w_oi, _) => w_oi.as_detached_tensor(),
        })
    }

    /// The arithmetic of products with it.
    pub fn precision(&self) -> Precision {
        match self {
            Weight::Frozen(w) => w.precision(),
            Weight::Learned(_, precision) => *precision,
        }
    }

    /// As the head of a fused log-probability.
    pub fn head(&self) -> HeadWeight<'_> {
        match self {
            Weight::Frozen(w) => HeadWeight::Frozen(w),
            Weight::Learned(w_vd, precision) => HeadWeight::Learned(w_vd, *precision),
        }
    }

    /// The same numbers as a variable of its own.
    pub fn learn(&mut self) -> Result<Var> {
        let var = Var::from_tensor(&self.dense()?.copy()?)?;
        *self = Weight::Learned(var.clone(), self.precision());
        Ok(var)
    }
}

/// A linear map at a site.
#[derive(Clone)]
pub struct Linear {
    /// Where it stands.
    pub site: SiteId,
    /// `(out, in)`.
    pub weight: Weight,
    /// `(out,)`; a variable when learned.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `x wᵀ + b`.
    pub fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        let y_no = self.weight.apply(x_ni)?;
        Ok(match &self.bias {
            Some(b_o) => y_no.broadcast_add(b_o)?,
            None => y_no,
        })
    }

    /// Weight and bias in f32.
    pub fn affine(&self) -> Result<Affine> {
        let b_o = self.bias.as_ref().map(Tensor::detach);
        Ok(Affine { w_oi: self.weight.dense()?, b_o })
    }
}

/// An RMS norm at a site.
#[derive(Clone)]
pub struct Norm {
    /// Where it stands.
    pub site: SiteId,
    /// `(d,)`; a variable when learned.
    pub scale_d: Tensor,
    /// Added to the mean square.
    pub eps: f64,
}

impl Norm {
    /// Normalises the last dimension.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.scale_d, self.eps)?)
    }
}

/// Replaces a vector by a variable with the same numbers.
pub fn learn_vector(slot: &mut Tensor) -> Result<Var> {
    let var = Var::from_tensor(&slot.detach().copy()?)?;
    *slot = var.as_tensor().clone();
    Ok(var)
}
