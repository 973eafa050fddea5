//! Linear maps with a frozen weight (no gradient for it, ever) or a learned one.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    gemm::{Cores, View, gemm},
    math::dot,
    tensor,
};

/// Below this many rows a product is bound by reading the weight: dot products beat packing.
const FEW_ROWS: usize = 4;

/// `y = x wᵀ` for row-major `x` (n, i) and `w` (o, i).
pub(crate) fn forward(x: &[f32], w: &[f32], n: usize, o: usize, i: usize) -> Vec<f32> {
    let mut y = vec![0f32; n * o];
    if n == 0 || o == 0 || i == 0 {
        return y;
    }
    if n <= FEW_ROWS {
        let part = o.div_ceil(8 * rayon::current_num_threads()).max(16);
        for (x, y) in x.chunks_exact(i).zip(y.chunks_exact_mut(o)) {
            y.par_chunks_mut(part).zip(w.par_chunks(part * i)).for_each(|(y, w)| {
                for (y, w) in y.iter_mut().zip(w.chunks_exact(i)) {
                    *y = dot(x, w);
                }
            });
        }
        return y;
    }
    gemm(n, o, i, 1.0, View::rows(x, i), View::rows(w, i).t(), 0.0, &mut y, o, Cores::All);
    y
}

/// `dx = dy w` for row-major `dy` (n, o) and `w` (o, i).
pub(crate) fn grad_input(dy: &[f32], w: &[f32], n: usize, o: usize, i: usize) -> Vec<f32> {
    let mut dx = vec![0f32; n * i];
    gemm(n, i, o, 1.0, View::rows(dy, o), View::rows(w, i), 0.0, &mut dx, i, Cores::All);
    dx
}

/// `dw = dyᵀ x` for row-major `dy` (n, o) and `x` (n, i).
pub(crate) fn grad_weight(dy: &[f32], x: &[f32], n: usize, o: usize, i: usize) -> Vec<f32> {
    let mut dw = vec![0f32; o * i];
    gemm(o, i, n, 1.0, View::rows(dy, o).t(), View::rows(x, i), 0.0, &mut dw, i, Cores::All);
    dw
}

/// A weight that is never learned, in the layout the products like best.
#[derive(Clone, Debug)]
pub struct Frozen {
    w: Arc<Vec<f32>>,
    o: usize,
    i: usize,
}

impl Frozen {
    /// From row-major `(o, i)` numbers.
    pub fn new(w_oi: Vec<f32>, o: usize, i: usize) -> Result<Self> {
        if w_oi.len() != o * i {
            bail!("a ({o}, {i}) weight needs {} numbers, got {}", o * i, w_oi.len());
        }
        Ok(Frozen { w: Arc::new(w_oi), o, i })
    }

    /// Output and input width.
    pub fn dims(&self) -> (usize, usize) {
        (self.o, self.i)
    }

    /// The weight as a tensor (a copy).
    pub fn dense(&self) -> Result<Tensor> {
        tensor::from_vec(self.w.to_vec(), (self.o, self.i))
    }

    pub(crate) fn rows(&self) -> &[f32] {
        &self.w
    }

    /// Some rows of the weight, `(m, i)`: an embedding look-up without backward.
    pub fn gather(&self, ids_m: &[u32]) -> Result<Tensor> {
        let mut out = Vec::with_capacity(ids_m.len() * self.i);
        for id in ids_m {
            let Some(row) = self.w.chunks_exact(self.i).nth(*id as usize) else {
                bail!("row {id} of a table with {} rows", self.o)
            };
            out.extend_from_slice(row);
        }
        tensor::from_vec(out, (ids_m.len(), self.i))
    }

    /// `x wᵀ`, `(n, i)` to `(n, o)`; the backward computes the gradient of `x` only.
    pub fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        x_ni.contiguous()?.apply_op1(FrozenOp(self.clone()))
    }
}

struct FrozenOp(Frozen);

impl CustomOp1 for FrozenOp {
    fn name(&self) -> &'static str {
        "linear_frozen"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, i) = l.shape().dims2()?;
        let Frozen { w, o, i: wi } = &self.0;
        if i != *wi {
            bail!("linear: input is {i} wide, the weight takes {wi}");
        }
        let y = forward(tensor::slice(s, l)?, w, n, *o, i);
        Ok((CpuStorage::F32(y), (n, *o).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (n, i) = x.dims2()?;
        let dx = tensor::with(dy, |dy| grad_input(dy, &self.0.w, n, self.0.o, i))?;
        Ok(Some(tensor::from_vec(dx, (n, i))?))
    }
}

struct LearnedOp;

impl CustomOp2 for LearnedOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, i), (o, wi)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if i != wi {
            bail!("linear: input is {i} wide, the weight takes {wi}");
        }
        let y = forward(tensor::slice(s1, l1)?, tensor::slice(s2, l2)?, n, o, i);
        Ok((CpuStorage::F32(y), (n, o).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, i), (o, _)) = (x.dims2()?, w.dims2()?);
        tensor::with(dy, |dy| -> Result<_> {
            let dx = if x.track_op() {
                let dx = tensor::with(w, |w| grad_input(dy, w, n, o, i))?;
                Some(tensor::from_vec(dx, (n, i))?)
            } else {
                None
            };
            let dw = if w.track_op() {
                let dw = tensor::with(x, |x| grad_weight(dy, x, n, o, i))?;
                Some(tensor::from_vec(dw, (o, i))?)
            } else {
                None
            };
            Ok((dx, dw))
        })?
    }
}

/// `x wᵀ` with a learned weight; gradients are computed for those operands that need one (candle's
/// own product always computes both).
pub fn linear(x_ni: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    x_ni.contiguous()?.apply_op2(&w_oi.contiguous()?, LearnedOp)
}

/// [`linear`] in plain tensor operations.
pub fn naive_linear(x_ni: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    x_ni.matmul(&w_oi.t()?)
}
