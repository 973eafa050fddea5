//! The gated activation `silu(gate) · up`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{math::exp, simd::vectorised, tensor};

const CHUNK: usize = 1 << 14;

vectorised! {
    fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((g, u), o) in gate.iter().zip(up).zip(out) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}

vectorised! {
    fn backward(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for i in 0..gate.len() {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * s;
            d_up[i] = dy[i] * silu;
            d_gate[i] = dy[i] * up[i] * (s + silu * (1.0 - s));
        }
    }
}

struct SwiGlu;

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
        let chunks =
            out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((o, g), u)| forward(g, u, o));
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
                    d_gate
                        .par_chunks_mut(CHUNK)
                        .zip(d_up.par_chunks_mut(CHUNK))
                        .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
                        .for_each(|((dg, du), ((g, u), dy))| backward(g, u, dy, dg, du));
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
