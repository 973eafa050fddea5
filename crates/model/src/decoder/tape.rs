//! A block backward, from what its forward pass kept.

use candle_core::Tensor;
use luthier_core::{Found, Gradient, Result, Tape};
use luthier_kernels::{
    attention::{self, Inputs},
    gemm::Output,
    norm,
    pool::{Buffer, Kept},
    rope::turn_heads,
    swiglu,
};

use super::{
    fan::{Input, Read},
    fused::{Block, Saved},
};
use crate::weight::Norm;

/// A block and what it kept.
pub(super) struct BlockTape {
    pub(super) block: Block,
    pub(super) saved: Saved,
}

impl Tape for BlockTape {
    fn backward(
        self: Box<Self>,
        dy_nd: &Tensor,
        need_dx: bool,
        found: &mut Found,
    ) -> Result<Option<Tensor>> {
        let BlockTape { block, saved } = *self;
        let dy = dy_nd.contiguous()?;
        let mut dh = Read::new(&dy)?.to_vec();
        let reached = block.backward(saved, &mut dh, need_dx, found)?;
        let dims = (block.n, block.d);
        Ok(if reached { Some(Tensor::from_vec(dh, dims, dy_nd.device())?) } else { None })
    }
}

fn learns(norm: &Norm) -> bool {
    norm.scale_d.is_variable()
}

impl Block {
    /// Turns `dh` from the gradient of the output into that of the input, if `need_dx`; stops
    /// below the lowest thing that learns otherwise and returns false.
    fn backward(
        &self,
        saved: Saved,
        dh: &mut [f32],
        need_dx: bool,
        found: &mut Found,
    ) -> Result<bool> {
        let (n, d, precision, layer) = (self.n, self.d, self.precision, &self.layer);
        let q_width = self.heads.q_width();
        let [t_qkv, t_o, t_mlp, t_down] = &saved.t;
        let (qkv, o) = (self.branches([0, 1, 2]), self.branches([3]));
        let (mlp, down) = (self.branches([4, 5]), self.branches([6]));
        let (qkv, o) = (self.fan(&qkv, d), self.fan(&o, q_width));
        let (mlp, down) = (self.fan(&mlp, d), self.fan(&down, self.f));
        // What must be reached, from the bottom up.
        let need_x = need_dx || learns(&layer.attn_norm);
        let qk_learns = layer.qk_norm.as_ref().is_some_and(|(q, k)| learns(q) || learns(k));
        let need_z = need_x || qk_learns || qkv.learns();
        let need_mid = need_z || o.learns();
        let need_mlp_x = need_mid || learns(&layer.mlp_norm);
        let need_act = need_mlp_x || mlp.learns();

        let dy = Kept::copy(precision, dh);
        let act = || swiglu::kept(precision, saved.gate.numbers(), saved.up.numbers());
        let mut d_act = Buffer::new(if need_act { n * self.f } else { 0 });
        let dx = need_act.then_some(&mut d_act[..]);
        down.backward(Input::Again(&act), t_down.as_ref(), &[&dy], dx, found)?;
        if !need_act {
            return Ok(false);
        }
        let (d_gate, d_up) =
            swiglu::backward(precision, saved.gate.numbers(), saved.up.numbers(), &d_act);
        drop(d_act);

        // One buffer serves both norms.
        let mut dx = Buffer::new(n * d);
        let mid_scale = Read::new(&layer.mlp_norm.scale_d)?;
        let eps = layer.mlp_norm.eps;
        let x = || norm::kept(precision, saved.h_mid.numbers(), &mid_scale, eps);
        let to = need_mlp_x.then_some(&mut dx[..]);
        mlp.backward(Input::Again(&x), t_mlp.as_ref(), &[&d_gate, &d_up], to, found)?;
        drop((d_gate, d_up));
        if !need_mlp_x {
            return Ok(false);
        }
        self.norm_backward(
            &layer.mlp_norm,
            &saved.h_mid,
            &dx,
            need_mid.then_some(&mut *dh),
            found,
        )?;
        if !need_mid {
            return Ok(false);
        }

        let dy = Kept::copy(precision, dh);
        let mut dz = Buffer::new(if need_z { n * q_width } else { 0 });
        let to = need_z.then_some(&mut dz[..]);
        o.backward(Input::Kept(&saved.z), t_o.as_ref(), &[&dy], to, found)?;
        drop(dy);
        if !need_z {
            return Ok(false);
        }
        let [dq, dk, dv] = self.attention_backward(&saved, &dz, found)?;
        drop(dz);

        let scale = Read::new(&layer.attn_norm.scale_d)?;
        let x = || norm::kept(precision, saved.h.numbers(), &scale, layer.attn_norm.eps);
        let to = need_x.then_some(&mut dx[..]);
        qkv.backward(Input::Again(&x), t_qkv.as_ref(), &[&dq, &dk, &dv], to, found)?;
        if !need_x {
            return Ok(false);
        }
        self.norm_backward(&layer.attn_norm, &saved.h, &dx, need_dx.then_some(&mut *dh), found)?;
        Ok(need_dx)
    }

    /// Gradients of the three projections' outputs.
    fn attention_backward(
        &self,
        saved: &Saved,
        dz: &[f32],
        found: &mut Found,
    ) -> Result<[Kept; 3]> {
        let [q, k, v] = saved.qkv.each_ref().map(Kept::numbers);
        let inputs = Inputs { q, k, v, z: saved.z.numbers(), lse: &saved.lse };
        let mut dq = Buffer::new(q.len());
        let (mut dk, mut dv) = (Buffer::new(k.len()), Buffer::new(v.len()));
        attention::backward(self.heads, &self.rows, inputs, dz, &mut dq, &mut dk, &mut dv);
        if let Some(angles) = &self.angles {
            turn_heads(&mut dq, angles, self.heads.e, true);
            turn_heads(&mut dk, angles, self.heads.e, true);
        }
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&self.layer.qk_norm, &saved.plain_qk) {
            for (norm, x, dx) in [(q_norm, q, &mut dq), (k_norm, k, &mut dk)] {
                let dy = Buffer::copy(dx);
                dx.fill(0.0);
                self.norm_backward(norm, x, &dy, Some(dx), found)?;
            }
        }
        Ok([dq, dk, dv].map(|x| Kept::take(self.precision, x)))
    }

    /// Adds the gradient of a norm's input to `dx` and hands out that of its scale.
    fn norm_backward(
        &self,
        norm: &Norm,
        x: &Kept,
        dy: &[f32],
        dx: Option<&mut [f32]>,
        found: &mut Found,
    ) -> Result<()> {
        let scale = Read::new(&norm.scale_d)?;
        if let Some(dx) = dx {
            norm::backward(x.numbers(), &scale, norm.eps, dy, Output::Add, dx);
        }
        if learns(norm) {
            let dw = norm::grad_scale(x.numbers(), scale.len(), norm.eps, dy);
            let dw = Tensor::from_vec(dw, scale.len(), norm.scale_d.device())?;
            found(&norm.scale_d, Gradient::Dense(dw))?;
        }
        Ok(())
    }
}
