//! `γ ∘ y + β` over the rows of a matrix, forward and backward in one pass over memory each.
//!
//! Gradients of γ and β are sums over rows: pieces of a fixed number of rows are added up in order, so
//! threads do not show in them.

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use rayon::prelude::*;

/// Rows of a piece.
const ROWS: usize = 64;
/// Numbers below which one thread does it all.
const SMALL: usize = 1 << 16;

/// `scale ∘ y + shift`; what is `None` is 1 or 0.
pub(super) fn scale_shift(
    y: &Tensor,
    scale_d: Option<&Tensor>,
    shift_d: Option<&Tensor>,
) -> Result<Tensor> {
    let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    let part = |part: Option<&Tensor>| part.unwrap_or(&nothing).contiguous();
    y.contiguous()?.apply_op3(&part(scale_d)?, &part(shift_d)?, ScaleShift)
}

struct ScaleShift;

fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("expected contiguous f32"),
    }
}

/// A tensor's numbers, borrowed for a while.
struct Read<'a>(StorageRef<'a>, &'a Layout);

impl<'a> Read<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Read(storage, layout)
    }

    fn numbers(&self) -> Result<&[f32]> {
        match &*self.0 {
            Storage::Cpu(storage) => numbers(storage, self.1),
            _ => bail!("expected numbers on the CPU"),
        }
    }
}

/// Runs `task` on every item, side by side when there is enough to do.
fn for_each<T: Send, R: Send>(size: usize, items: Vec<T>, task: impl Fn(T) -> R + Sync) -> Vec<R> {
    match size < SMALL {
        true => items.into_iter().map(&task).collect(),
        false => items.into_par_iter().map(&task).collect(),
    }
}

fn forward_rows(y: &[f32], scale: &[f32], shift: &[f32], out: &mut [f32]) {
    let d = scale.len().max(shift.len());
    for (y, out) in y.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        match (scale, shift) {
            ([], shift) => {
                out.iter_mut().zip(y).zip(shift).for_each(|((out, y), b)| *out = y + b);
            }
            (scale, []) => {
                out.iter_mut().zip(y).zip(scale).for_each(|((out, y), s)| *out = y * s);
            }
            (scale, shift) => {
                let both = y.iter().zip(scale).zip(shift);
                out.iter_mut().zip(both).for_each(|(out, ((y, s), b))| *out = y * s + b);
            }
        }
    }
}

/// What some rows add to the gradients of scale and shift.
fn backward_rows(y: &[f32], dy: &[f32], d: usize, sums: &mut (Vec<f32>, Vec<f32>)) {
    let (d_scale, d_shift) = sums;
    for (y, dy) in y.chunks_exact(d).zip(dy.chunks_exact(d)) {
        if !d_scale.is_empty() {
            let both = y.iter().zip(dy);
            d_scale.iter_mut().zip(both).for_each(|(sum, (y, dy))| *sum += y * dy);
        }
        d_shift.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
}

fn forward(y: &[f32], scale: &[f32], shift: &[f32]) -> Vec<f32> {
    let d = scale.len().max(shift.len()).max(1);
    let mut out = vec![0f32; y.len()];
    let pieces = out.chunks_mut(ROWS * d).zip(y.chunks(ROWS * d)).collect();
    for_each(y.len(), pieces, |(out, y): (&mut [f32], &[f32])| forward_rows(y, scale, shift, out));
    out
}

/// Gradients of scale and shift, each empty where it is.
fn sums(y: &[f32], dy: &[f32], scale: &[f32], shift: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let d = scale.len().max(shift.len()).max(1);
    let zeros = || (vec![0f32; scale.len()], vec![0f32; shift.len()]);
    let pieces = y.chunks(ROWS * d).zip(dy.chunks(ROWS * d)).collect();
    let parts = for_each(y.len(), pieces, |(y, dy): (&[f32], &[f32])| {
        let mut part = zeros();
        backward_rows(y, dy, d, &mut part);
        part
    });
    let mut all = zeros();
    for (d_scale, d_shift) in &parts {
        all.0.iter_mut().zip(d_scale).for_each(|(sum, x)| *sum += x);
        all.1.iter_mut().zip(d_shift).for_each(|(sum, x)| *sum += x);
    }
    all
}

impl CustomOp3 for ScaleShift {
    fn name(&self) -> &'static str {
        "scale and shift"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (scale, shift) = (numbers(scale, scale_layout)?, numbers(shift, shift_layout)?);
        let width = y_layout.dims().last().copied().unwrap_or(0);
        if [scale, shift].iter().any(|part| !part.is_empty() && part.len() != width) {
            bail!("{} scales and {} shifts of {width} values", scale.len(), shift.len());
        }
        let out = forward(numbers(y, y_layout)?, scale, shift);
        Ok((CpuStorage::F32(out), y_layout.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = match (y.track_op(), scale.elem_count()) {
            (false, _) => None,
            (true, 0) => Some(d_out.clone()),
            (true, _) => Some(scale_shift(&d_out.detach(), Some(&scale.detach()), None)?),
        };
        let learned = |part: &Tensor| part.elem_count() > 0 && part.track_op();
        if !learned(scale) && !learned(shift) {
            return Ok((dy, None, None));
        }
        let (y, d_out) = (y.contiguous()?, d_out.contiguous()?);
        let [y, d_out, scale, shift] = [&y, &d_out, scale, shift].map(Read::new);
        let (d_scale, d_shift) =
            sums(y.numbers()?, d_out.numbers()?, scale.numbers()?, shift.numbers()?);
        let vector = |sum: Vec<f32>| match sum.len() {
            0 => Ok(None),
            d => Tensor::from_vec(sum, d, &Device::Cpu).map(Some),
        };
        Ok((dy, vector(d_scale)?, vector(d_shift)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use luthier_core::Seed;
    use luthier_testkit::{self as testkit, assert_close};

    use super::*;

    fn random(name: &str, dims: &[usize]) -> Var {
        Var::from_tensor(&testkit::random(dims, 1.0, Seed(3).split(name))).unwrap()
    }

    fn naive(y: &Tensor, scale: Option<&Tensor>, shift: Option<&Tensor>) -> Tensor {
        let y = scale.map_or(y.clone(), |scale| y.broadcast_mul(scale).unwrap());
        shift.map_or(y.clone(), |shift| y.broadcast_add(shift).unwrap())
    }

    #[test]
    fn one_pass_is_the_plain_operations() {
        // More than one piece, the last one short; and enough for several threads.
        for (n, d) in [(1, 3), (2 * ROWS + 5, 7), (900, 96)] {
            let (y, dy) = (random("y", &[n, d]), random("dy", &[n, d]));
            let (scale, shift) = (random("scale", &[d]), random("shift", &[d]));
            for (s, b) in [(true, true), (true, false), (false, true)] {
                let (s, b) = (s.then_some(scale.as_tensor()), b.then_some(shift.as_tensor()));
                let run = |out: Tensor| {
                    let grads = (&out * dy.as_tensor()).unwrap().sum_all().unwrap().backward();
                    let grads = grads.unwrap();
                    let of = |var: &Var| grads.get(var.as_tensor()).cloned();
                    (out, [of(&y), of(&scale), of(&shift)])
                };
                let (want, want_grads) = run(naive(&y, s, b));
                let (got, got_grads) = run(scale_shift(&y, s, b).unwrap());
                assert_close("out", &got, &want, 0.0, 0.0);
                for (got, want) in got_grads.iter().zip(&want_grads) {
                    match (got, want) {
                        (Some(got), Some(want)) => assert_close("grad", got, want, 1e-5, 1e-5),
                        (got, want) => assert_eq!(got.is_some(), want.is_some()),
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_show() {
        let (y, dy) = (random("y", &[1000, 80]), random("dy", &[1000, 80]));
        let (scale, shift) = (random("scale", &[80]), random("shift", &[80]));
        let run = |threads: usize| -> Vec<f32> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let out = scale_shift(&y, Some(&scale), Some(&shift)).unwrap();
                let grads = (out * dy.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
                grads.get(scale.as_tensor()).unwrap().to_vec1().unwrap()
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn another_width_is_refused() {
        let (y, scale) = (random("y", &[2, 3]), random("scale", &[4]));
        assert!(scale_shift(&y, Some(&scale), None).is_err());
    }
}
