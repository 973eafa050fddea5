//! DoRA (Liu et al. 2024): the weight's direction moves by a low-rank addition, its length by a vector.
//!
//! Linear sites: `y = m / ‖W + s B A‖ ∘ (W + s B A) x + b`, lengths of rows; folded
//! `m / ‖W + s B A‖ ∘ (W + s B A)`. Embedding: `y = m / ‖E + s (B A)ᵀ‖ ∘ (E + s (B A)ᵀ)[ids]`,
//! lengths of columns. Lengths are constants in the backward pass (section 4.3 of the paper). With
//! dropout in training, what differs from the plain layer reads the dropped input, as in PEFT:
//! `y = W x + b + (m / ‖·‖ − 1) ∘ W x̃ + m / ‖·‖ ∘ s B A x̃`. **Departures**: none.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var};
use luthier_core::{Affine, At, Hook, Model, Result, SiteId, SiteInfo};
use rayon::prelude::*;

use super::hook::{Embed, Removed, dropped};

/// Lengths of the rows of `w + add`.
pub(super) fn row_lengths(w: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
    let (rows, cols) = w.dims2()?;
    let (mut sums, added) = (numbers(w)?, add.map(numbers).transpose()?);
    if let Some(added) = added {
        sums.par_iter_mut().zip(added).for_each(|(w, a)| *w += a);
    }
    let lengths: Vec<f32> = sums.par_chunks_exact(cols).map(length).collect();
    Ok(Tensor::from_vec(lengths, rows, w.device())?)
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// In eight lanes, which the compiler computes side by side.
fn length(row: &[f32]) -> f32 {
    let (eights, rest) = row.as_chunks::<8>();
    let mut lanes = [0f64; 8];
    for eight in eights {
        lanes.iter_mut().zip(eight).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    let rest: f64 = rest.iter().map(|x| f64::from(*x).powi(2)).sum();
    (lanes.iter().sum::<f64>() + rest).sqrt() as f32
}

/// Lengths of the columns of `w + add`.
pub(super) fn column_lengths(w: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
    let (_, cols) = w.dims2()?;
    let (mut values, added) = (numbers(w)?, add.map(numbers).transpose()?);
    for (w, a) in values.iter_mut().zip(added.iter().flatten()) {
        *w += a;
    }
    let mut sums = vec![0f64; cols];
    for row in values.chunks_exact(cols) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
    }
    let lengths: Vec<f32> = sums.into_iter().map(|sum| sum.sqrt() as f32).collect();
    Ok(Tensor::from_vec(lengths, cols, w.device())?)
}

/// The lengths that belong to the factors' numbers as they were last seen: decoding asks for the same
/// ones at every token.
#[derive(Default)]
struct Lengths(Mutex<Option<(Vec<f32>, Tensor)>>);

impl Lengths {
    fn of(&self, factors: [&Var; 2], compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let mut now = Vec::new();
        for factor in factors {
            now.extend(factor.flatten_all()?.to_vec1::<f32>()?);
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, lengths)) = &*seen
            && *at == now
        {
            return Ok(lengths.clone());
        }
        let lengths = compute()?;
        *seen = Some((now, lengths.clone()));
        Ok(lengths)
    }
}

/// At a linear map.
pub(super) struct Linear {
    a_ri: Var,
    b_or: Var,
    m_o: Var,
    scale: f64,
    dropout: f64,
    /// The weights that lengths are taken of, which never change.
    model: Arc<dyn Model>,
    site: SiteId,
    bias: Option<Tensor>,
    removed: Option<Removed>,
    lengths: Lengths,
}

impl Linear {
    /// With its variables `A`, `B`, `m`; `removed` is what another hook has taken off the weight.
    pub fn new(
        [a_ri, b_or, m_o]: [Var; 3],
        scale: f64,
        dropout: f64,
        (model, site): (&Arc<dyn Model>, SiteId),
        removed: Option<Removed>,
    ) -> Result<Self> {
        let (model, bias) = (model.clone(), model.affine(site)?.b_o);
        let lengths = Lengths::default();
        Ok(Linear { a_ri, b_or, m_o, scale, dropout, model, site, bias, removed, lengths })
    }

    /// The weight without what was taken off.
    fn weight(&self) -> Result<Tensor> {
        let w_oi = self.model.affine(self.site)?.w_oi;
        match &self.removed {
            Some(removed) => removed.from(&w_oi),
            None => Ok(w_oi.to_dtype(DType::F32)?),
        }
    }

    fn delta(&self) -> Result<Tensor> {
        Ok((self.b_or.matmul(&self.a_ri)? * self.scale)?.detach())
    }

    /// `m / ‖W + s B A‖`, a function of m alone.
    fn factor(&self) -> Result<Tensor> {
        let lengths = self
            .lengths
            .of([&self.a_ri, &self.b_or], || row_lengths(&self.weight()?, Some(&self.delta()?)))?;
        Ok((self.m_o.as_tensor() / lengths)?)
    }
}

impl Hook for Linear {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let x_ni = dropped(at, x, self.dropout)?;
        let y_no = y.to_dtype(DType::F32)?;
        let plain_no = match &self.bias {
            _ if at.noise.is_some() && self.dropout > 0.0 => {
                x_ni.contiguous()?.apply_op1(Through { w_oi: self.weight()? })?
            }
            Some(b_o) => y_no.broadcast_sub(b_o)?,
            None => y_no.clone(),
        };
        let factor_o = self.factor()?;
        let z_nr = (x_ni.matmul(&self.a_ri.t()?)? * self.scale)?;
        let low_no = z_nr.matmul(&self.b_or.t()?)?.broadcast_mul(&factor_o)?;
        let more_no = (plain_no.broadcast_mul(&(factor_o - 1.0)?)? + low_no)?;
        Ok((y_no + more_no)?.to_dtype(y.dtype())?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let (w_oi, delta_oi) = (lin.w_oi.to_dtype(DType::F32)?, self.delta()?);
        let lengths_o = row_lengths(&w_oi, Some(&delta_oi))?;
        let factor_o1 = (self.m_o.as_detached_tensor() / lengths_o)?.unsqueeze(1)?;
        let w_oi = (w_oi + delta_oi)?.broadcast_mul(&factor_o1)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}

/// At the embedding.
pub(super) struct Table {
    low: Embed,
    m_d: Var,
    model: Arc<dyn Model>,
    site: SiteId,
    lengths: Lengths,
}

impl Table {
    /// With its addition and the lengths `m`.
    pub fn new(low: Embed, m_d: Var, model: &Arc<dyn Model>, site: SiteId) -> Self {
        Table { low, m_d, model: model.clone(), site, lengths: Lengths::default() }
    }
}

impl Hook for Table {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let lengths_d = self.lengths.of([&self.low.a_rv, &self.low.b_dr], || {
            column_lengths(&self.model.affine(self.site)?.w_oi, Some(&self.low.delta()?))
        })?;
        let factor_d = (self.m_d.as_tensor() / lengths_d)?;
        let sum_nd = (y.to_dtype(DType::F32)? + self.low.addition(at)?)?;
        Ok(sum_nd.broadcast_mul(&factor_d)?.to_dtype(y.dtype())?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let (w_vd, delta_vd) = (lin.w_oi.to_dtype(DType::F32)?, self.low.delta()?);
        let lengths_d = column_lengths(&w_vd, Some(&delta_vd))?;
        let factor_d = (self.m_d.as_detached_tensor() / lengths_d)?;
        let w_oi = (w_vd + delta_vd)?.broadcast_mul(&factor_d)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }
}

/// `x Wᵀ` with a constant `W`, whose backward pass yields the input's gradient only.
struct Through {
    w_oi: Tensor,
}

impl CustomOp1 for Through {
    fn name(&self) -> &'static str {
        "through"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("a product expects contiguous f32")
        };
        let x_ni =
            Tensor::from_slice(&data[start..end], layout.shape().clone(), self.w_oi.device())?;
        let y_no = x_ni.matmul(&self.w_oi.t()?)?;
        let shape = y_no.shape().clone();
        Ok((CpuStorage::F32(y_no.flatten_all()?.to_vec1::<f32>()?), shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.matmul(&self.w_oi)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn lengths_are_those_of_rows_and_columns_of_the_sum() {
        let new = |x: &[[f32; 2]; 2]| Tensor::new(x, &Device::Cpu).unwrap();
        let (w, add) = (new(&[[3.0, 4.0], [0.0, 2.0]]), new(&[[0.0, 8.0], [5.0, -2.0]]));
        let of = |x: Result<Tensor>| x.unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(of(row_lengths(&w, None)), [5.0, 2.0]);
        assert_eq!(of(row_lengths(&w, Some(&add))), [153f32.sqrt(), 5.0]);
        assert_eq!(of(column_lengths(&w, None)), [3.0, 20f32.sqrt()]);
        assert_eq!(of(column_lengths(&w, Some(&add))), [34f32.sqrt(), 12.0]);
    }

    #[test]
    fn lengths_are_computed_again_when_a_factor_moves() {
        let var = |x: f32| Var::new(&[[x]], &Device::Cpu).unwrap();
        let (a, b, lengths) = (var(1.0), var(2.0), Lengths::default());
        let mut asked = 0;
        let mut ask = || {
            let found = lengths.of([&a, &b], || {
                asked += 1;
                Ok(a.as_detached_tensor())
            });
            found.unwrap();
        };
        ask();
        ask();
        b.set(&Tensor::new(&[[3f32]], &Device::Cpu).unwrap()).unwrap();
        ask();
        assert_eq!(asked, 2);
    }
}
