//! Numbers of each row of a table of logits, with a gradient of their own.
//!
//! What is said of one row, and how that changes with its logits, is all an operation writes; rows are
//! independent and go over all cores. Nothing of the vocabulary's size is kept but what is read: the
//! backward pass makes everything again.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};
use luthier_core::Result;
use luthier_kernels::{tensor, threads};

/// An operation over whole rows of logits, alone or beside those of another.
pub(crate) trait RowWise: Send + Sync + 'static {
    /// In errors and graphs.
    const NAME: &'static str;
    /// How many numbers a row has.
    const NUMBERS: usize;

    /// Refuses `m` rows over `v` tokens that do not fit what the operation was given.
    fn check(&self, m: usize, v: usize) -> candle_core::Result<()>;

    /// The numbers of row `i`, whose logits are `x`; `other` is empty where it stands alone.
    fn row(&self, i: usize, x: &[f32], other: &[f32], out: &mut [f32]);

    /// The gradient of `Σ g·numbers` by `x`, into `d`, which is 0.
    fn row_backward(&self, i: usize, x: &[f32], other: &[f32], g: &[f32], d: &mut [f32]);
}

/// The numbers of each row, `(m, numbers)`.
pub(crate) fn alone(logits_mv: &Tensor, op: impl RowWise) -> Result<Tensor> {
    Ok(logits_mv.contiguous()?.apply_op1(Rows(op))?)
}

/// The numbers of each row beside another's, `(m, numbers)`; no gradient reaches the other.
pub(crate) fn beside(logits_mv: &Tensor, other_mv: &Tensor, op: impl RowWise) -> Result<Tensor> {
    let other_mv = other_mv.detach().contiguous()?;
    Ok(logits_mv.contiguous()?.apply_op2(&other_mv, Rows(op))?)
}

/// Refuses anything but a target for each of `m` rows, and tokens beyond the `v` there are.
pub(crate) fn tokens<'a>(
    name: &str,
    (m, v): (usize, usize),
    targets_m: &'a [u32],
    others: impl IntoIterator<Item = &'a u32>,
) -> candle_core::Result<()> {
    if targets_m.len() != m {
        bail!("{name}: logits ({m}, {v}), {} targets", targets_m.len());
    }
    match targets_m.iter().chain(others).find(|t| **t as usize >= v) {
        Some(t) => bail!("{name}: token id {t} is beyond {v} logits"),
        None => Ok(()),
    }
}

struct Rows<T>(T);

impl<T: RowWise> Rows<T> {
    fn forward(&self, [m, v]: [usize; 2], x: &[f32], other: Option<&[f32]>) -> CpuStorage {
        let mut out = vec![0f32; m * T::NUMBERS];
        let rows = out.chunks_exact_mut(T::NUMBERS).zip(x.chunks_exact(v)).enumerate().collect();
        threads::for_each(rows, |(i, (out, x))| self.0.row(i, x, of(other, i, v), out));
        CpuStorage::F32(out)
    }

    fn backward(
        &self,
        logits_mv: &Tensor,
        other: Option<&[f32]>,
        g: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let (m, v) = logits_mv.dims2()?;
        let mut d = vec![0f32; m * v];
        tensor::with(logits_mv, |logits| {
            tensor::with(g, |g| {
                let given = logits.chunks_exact(v).zip(g.chunks_exact(T::NUMBERS));
                let rows = d.chunks_exact_mut(v).zip(given).enumerate().collect();
                threads::for_each(rows, |(i, (d, (x, g)))| {
                    self.0.row_backward(i, x, of(other, i, v), g, d);
                });
            })
        })??;
        Ok(Some(tensor::from_vec(d, (m, v))?))
    }

    fn dims(&self, logits: &Shape) -> candle_core::Result<[usize; 2]> {
        let (m, v) = logits.dims2()?;
        self.0.check(m, v)?;
        Ok([m, v])
    }
}

/// Row `i` of what stands beside.
fn of(other: Option<&[f32]>, i: usize, v: usize) -> &[f32] {
    other.map_or(&[], |other| &other[i * v..(i + 1) * v])
}

impl<T: RowWise> CustomOp1 for Rows<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let dims = self.dims(l.shape())?;
        let out = self.forward(dims, tensor::slice(s, l)?, None);
        Ok((out, (dims[0], T::NUMBERS).into()))
    }

    fn bwd(
        &self,
        logits_mv: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        self.backward(logits_mv, None, g)
    }
}

impl<T: RowWise> CustomOp2 for Rows<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let dims @ [m, v] = self.dims(l1.shape())?;
        if l2.shape().dims() != dims {
            bail!("{}: logits ({m}, {v}), the other's {:?}", T::NAME, l2.shape());
        }
        let out = self.forward(dims, tensor::slice(s1, l1)?, Some(tensor::slice(s2, l2)?));
        Ok((out, (m, T::NUMBERS).into()))
    }

    fn bwd(
        &self,
        logits_mv: &Tensor,
        other_mv: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let found = tensor::with(other_mv, |other| self.backward(logits_mv, Some(other), g))??;
        Ok((found, None))
    }
}
