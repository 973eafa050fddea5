//! The gated activation `silu(gate) · up`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::{
    math::exp,
    num::{Numbers, Precision},
    pool::{CHUNK, Kept, Part, read},
    simd::vectorised,
    tensor, threads,
};

vectorised! {
    fn forward_chunk(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((g, u), o) in gate.iter().zip(up).zip(out) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}

vectorised! {
    fn backward_chunk(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = gate.len();
        let (up, dy) = (&up[..n], &dy[..n]);
        let (d_gate, d_up) = (&mut d_gate[..n], &mut d_up[..n]);
        for i in 0..n {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * s;
            d_up[i] = dy[i] * silu;
            d_gate[i] = dy[i] * up[i] * (s + silu * (1.0 - s));
        }
    }
}

/// `silu(gate) · up`.
pub fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let tasks = out.chunks_mut(CHUNK).zip(gate.chunks(CHUNK).zip(up.chunks(CHUNK))).collect();
    threads::for_each(tasks, |(out, (gate, up)): (&mut [f32], (&[f32], &[f32]))| {
        forward_chunk(gate, up, out);
    });
}

/// [`forward`] from and to kept numbers.
pub fn kept(precision: Precision, gate: Numbers, up: Numbers) -> Kept {
    let (mut out, len) = (Kept::room(precision, gate.len()), gate.len());
    let tasks = out.parts(CHUNK).into_iter().enumerate().collect();
    threads::for_each(tasks, |(i, mut part): (usize, Part)| {
        let range = i * CHUNK..len.min((i + 1) * CHUNK);
        read(gate, range.clone(), |gate| {
            read(up, range, |up| part.fill(|out| forward_chunk(gate, up, out)));
        });
    });
    out
}

/// Gradients of `gate` and `up`, kept as `precision` multiplies them.
pub fn backward(precision: Precision, gate: Numbers, up: Numbers, dy: &[f32]) -> (Kept, Kept) {
    let (mut d_gate, mut d_up) = (Kept::room(precision, dy.len()), Kept::room(precision, dy.len()));
    let parts = d_gate.parts(CHUNK).into_iter().zip(d_up.parts(CHUNK));
    let tasks = parts.zip(dy.chunks(CHUNK)).enumerate().collect();
    type Pieces<'a> = (usize, ((Part<'a>, Part<'a>), &'a [f32]));
    threads::for_each(tasks, |(i, ((mut d_gate, mut d_up), dy)): Pieces| {
        let range = i * CHUNK..i * CHUNK + dy.len();
        read(gate, range.clone(), |gate| {
            read(up, range, |up| {
                d_gate.fill(|dg| d_up.fill(|du| backward_chunk(gate, up, dy, dg, du)));
            });
        });
    });
    (d_gate, d_up)
}

struct SwiGlu;

/// Gradients to write; gate, up and output gradient to read.
type Task<'a> = ((&'a mut [f32], &'a mut [f32]), ((&'a [f32], &'a [f32]), &'a [f32]));

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (tensor::slice(s1, l1)?, tensor::slice(s2, l2)?);
        let mut out = vec![0f32; gate.len()];
        forward(gate, up, &mut out);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = gate.elem_count();
        let (mut d_gate, mut d_up) = (vec![0f32; n], vec![0f32; n]);
        tensor::with(gate, |g| {
            tensor::with(up, |u| {
                tensor::with(dy, |dy| {
                    let grads = d_gate.chunks_mut(CHUNK).zip(d_up.chunks_mut(CHUNK));
                    let inputs = g.chunks(CHUNK).zip(u.chunks(CHUNK)).zip(dy.chunks(CHUNK));
                    threads::for_each(grads.zip(inputs).collect(), |t: Task| {
                        let ((dg, du), ((g, u), dy)) = t;
                        backward_chunk(g, u, dy, dg, du);
                    });
                })
            })
        })???;
        let dims = gate.shape().clone();
        Ok((Some(tensor::from_vec(d_gate, dims.clone())?), Some(tensor::from_vec(d_up, dims)?)))
    }
}

/// `silu(gate) · up`, elementwise (Shazeer 2020, "GLU Variants Improve Transformer").
pub fn swiglu(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
    gate_nf.contiguous()?.apply_op2(&up_nf.contiguous()?, SwiGlu)
}

/// [`swiglu`] in plain tensor operations.
pub fn naive_swiglu(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
    let sigmoid = (gate_nf.neg()?.exp()? + 1.0)?.recip()?;
    (gate_nf * sigmoid)? * up_nf
}
