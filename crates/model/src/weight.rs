//! A weight is frozen (never gets a gradient) or dense (a variable where it learns).

use candle_core::{Tensor, Var};
use luthier_core::{Affine, Result, SiteId};
use luthier_kernels::{Frozen, HeadWeight, linear, num::Precision, rms_norm};

/// A matrix stored `(out, in)`.
#[derive(Clone)]
pub enum Weight {
    /// Packed for speed; its backward yields the input's gradient only.
    Frozen(Frozen),
    /// f32 numbers and the arithmetic of products with them: a variable where they learn, a
    /// constant in a variable's memory where they rest.
    Dense(Tensor, Precision),
}

impl Weight {
    /// `x wᵀ`, `(n, i)` to `(n, o)`.
    pub fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.apply(x_ni)?,
            Weight::Dense(w_oi, precision) => linear(x_ni, w_oi, *precision)?,
        })
    }

    /// Rows of the matrix by index, `(n, i)`.
    pub fn gather(&self, ids_n: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.gather(ids_n)?,
            Weight::Dense(w_vd, _) => {
                let index = Tensor::from_slice(ids_n, ids_n.len(), w_vd.device())?;
                w_vd.index_select(&index, 0)?
            }
        })
    }

    /// The numbers as a detached f32 tensor.
    pub fn dense(&self) -> Result<Tensor> {
        Ok(match self {
            Weight::Frozen(w) => w.dense()?,
            Weight::Dense(w_oi, _) => w_oi.detach(),
        })
    }

    /// The arithmetic of products with it.
    pub fn precision(&self) -> Precision {
        match self {
            Weight::Frozen(w) => w.precision(),
            Weight::Dense(_, precision) => *precision,
        }
    }

    /// As the head of a fused log-probability.
    pub fn head(&self) -> HeadWeight<'_> {
        match self {
            Weight::Frozen(w) => HeadWeight::Frozen(w),
            Weight::Dense(w_vd, precision) => HeadWeight::Learned(w_vd, *precision),
        }
    }

    /// The same numbers as a variable of its own.
    pub fn learn(&mut self) -> Result<Var> {
        let var = Var::from_tensor(&self.dense()?.copy()?)?;
        *self = Weight::Dense(var.as_tensor().clone(), self.precision());
        Ok(var)
    }

    /// The variable, where it learns.
    pub fn learned(&self) -> Option<&Tensor> {
        match self {
            Weight::Dense(w, _) if w.is_variable() => Some(w),
            _ => None,
        }
    }

    /// Makes a variable that does not learn a constant in the same memory.
    pub fn rest(&mut self, learns: &dyn Fn(&Tensor) -> bool) {
        if let Weight::Dense(w, _) = self {
            rest(w, learns);
        }
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

/// Makes a variable that does not learn a constant in the same memory.
pub fn rest(w: &mut Tensor, learns: &dyn Fn(&Tensor) -> bool) {
    if w.is_variable() && !learns(w) {
        *w = w.detach();
    }
}

/// Replaces a vector by a variable with the same numbers.
pub fn learn_vector(slot: &mut Tensor) -> Result<Var> {
    let var = Var::from_tensor(&slot.detach().copy()?)?;
    *slot = var.as_tensor().clone();
    Ok(var)
}
