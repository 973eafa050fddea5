//! Linear maps with a frozen weight (no gradient for it, ever) or a learned one.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::{
    blocks::Blocks,
    gemm::{Output, Term, View, product},
    num::{Held, Numbers, Precision, hold},
    tensor,
};

/// `y = x wᵀ` for row-major `x` (n, i) and `w` (o, i).
fn forward(precision: Precision, x: &[f32], w: View, n: usize, o: usize, i: usize) -> Vec<f32> {
    let mut y = vec![0f32; n * o];
    let term = Term { a: View::rows(x, i), b: w.t(), k: i };
    product(precision, n, o, &[term], Output::Set, &mut y, o);
    y
}

/// `dx = dy w` for row-major `dy` (n, o) and `w` (o, i).
fn grad_input(precision: Precision, dy: &[f32], w: View, n: usize, o: usize, i: usize) -> Vec<f32> {
    let mut dx = vec![0f32; n * i];
    let term = Term { a: View::rows(dy, o), b: w, k: o };
    product(precision, n, i, &[term], Output::Set, &mut dx, i);
    dx
}

/// `dw = dyᵀ x` for row-major `dy` (n, o) and `x` (n, i).
fn grad_weight(
    precision: Precision,
    dy: &[f32],
    x: &[f32],
    n: usize,
    o: usize,
    i: usize,
) -> Vec<f32> {
    let mut dw = vec![0f32; o * i];
    let term = Term { a: View::rows(dy, o).t(), b: View::rows(x, i), k: n };
    product(precision, o, i, &[term], Output::Set, &mut dw, i);
    dw
}

/// A weight that is never learned: rows of outputs, in f32, in bf16 or quantised.
#[derive(Clone, Debug)]
pub struct Frozen {
    rows: Arc<Rows>,
    precision: Precision,
    o: usize,
    i: usize,
}

#[derive(Debug)]
enum Rows {
    Held(Held),
    Blocks(Blocks),
}

impl Frozen {
    /// From row-major `(o, i)` numbers, multiplied and held in `precision`.
    pub fn new(w_oi: Vec<f32>, o: usize, i: usize, precision: Precision) -> Result<Self> {
        let held = match precision {
            Precision::F32 => Held::F32(w_oi),
            Precision::Bf16 => {
                let mut held = Held::default();
                hold(&mut held, precision, &w_oi);
                held
            }
        };
        Frozen::held(held, o, i)
    }

    /// From row-major `(o, i)` numbers, multiplied as they are held.
    pub fn held(w_oi: Held, o: usize, i: usize) -> Result<Self> {
        if w_oi.len() != o * i {
            bail!("a ({o}, {i}) weight needs {} numbers, got {}", o * i, w_oi.len());
        }
        let precision = match w_oi {
            Held::F32(_) => Precision::F32,
            Held::Bf16(_) => Precision::Bf16,
        };
        Ok(Frozen { rows: Arc::new(Rows::Held(w_oi)), precision, o, i })
    }

    /// Quantised rows, never expanded as a whole, multiplied in `precision`.
    pub fn quantised(blocks: Blocks, precision: Precision) -> Self {
        let (o, i) = blocks.dims();
        Frozen { rows: Arc::new(Rows::Blocks(blocks)), precision, o, i }
    }

    /// Output and input width.
    pub fn dims(&self) -> (usize, usize) {
        (self.o, self.i)
    }

    /// How many bytes its numbers take.
    pub fn bytes(&self) -> usize {
        match &*self.rows {
            Rows::Held(Held::F32(w)) => size_of_val(&w[..]),
            Rows::Held(Held::Bf16(w)) => size_of_val(&w[..]),
            Rows::Blocks(blocks) => blocks.size(),
        }
    }

    /// The arithmetic of its products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The numbers, row-major `(o, i)`.
    pub fn numbers(&self) -> Numbers<'_> {
        match &*self.rows {
            Rows::Held(held) => held.into(),
            Rows::Blocks(blocks) => Numbers::Blocks(blocks),
        }
    }

    /// As a matrix `(o, i)`.
    pub fn view(&self) -> View<'_> {
        View::rows(self.numbers(), self.i)
    }

    /// The weight as an f32 tensor (a copy).
    pub fn dense(&self) -> Result<Tensor> {
        let mut w = vec![0f32; self.o * self.i];
        self.numbers().read(0, &mut w);
        tensor::from_vec(w, (self.o, self.i))
    }

    /// Some rows of the weight, `(m, i)`: an embedding look-up without backward.
    pub fn gather(&self, ids_m: &[u32]) -> Result<Tensor> {
        let mut out = vec![0f32; ids_m.len() * self.i];
        for (id, out) in ids_m.iter().zip(out.chunks_exact_mut(self.i.max(1))) {
            if *id as usize >= self.o {
                bail!("row {id} of a table with {} rows", self.o)
            }
            self.numbers().read(*id as usize * self.i, out);
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
        let Frozen { o, i: wi, precision, .. } = self.0;
        if i != wi {
            bail!("linear: input is {i} wide, the weight takes {wi}");
        }
        let y = forward(precision, tensor::slice(s, l)?, self.0.view(), n, o, i);
        Ok((CpuStorage::F32(y), (n, o).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (n, i) = x.dims2()?;
        let w = &self.0;
        let dx = tensor::with(dy, |dy| grad_input(w.precision, dy, w.view(), n, w.o, i))?;
        Ok(Some(tensor::from_vec(dx, (n, i))?))
    }
}

struct LearnedOp(Precision);

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
        let w = View::rows(tensor::slice(s2, l2)?, i);
        let y = forward(self.0, tensor::slice(s1, l1)?, w, n, o, i);
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
                let dx = tensor::with(w, |w| grad_input(self.0, dy, View::rows(w, i), n, o, i))?;
                Some(tensor::from_vec(dx, (n, i))?)
            } else {
                None
            };
            let dw = if w.track_op() {
                let dw = tensor::with(x, |x| grad_weight(self.0, dy, x, n, o, i))?;
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
pub fn linear(x_ni: &Tensor, w_oi: &Tensor, precision: Precision) -> Result<Tensor> {
    x_ni.contiguous()?.apply_op2(&w_oi.contiguous()?, LearnedOp(precision))
}

/// [`linear`] in plain tensor operations.
pub fn naive_linear(x_ni: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    x_ni.matmul(&w_oi.t()?)
}
