//! The ends of the model backward without a graph: log-probabilities and the embedding table.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Ctx, Found, Gradient, Result, Tape, Taped};
use luthier_kernels::{HeadWeight, gemm::Output, nll::Pass, norm, pool::Buffer};

use super::{Decoder, fan::Read};
use crate::weight::{Norm, Weight};

/// What the final norm and the head kept.
struct HeadTape {
    norm: Norm,
    weight: Weight,
    h_md: Tensor,
    pass: Arc<Pass>,
}

impl Decoder {
    /// Whether the log-probabilities come from the fused head: it has no bias and no hook.
    pub(super) fn fused_head(&self, ctx: &Ctx) -> bool {
        let biased = self.head.as_ref().is_some_and(|head| head.bias.is_some());
        !biased && !ctx.hooks.watched(self.head_site)
    }

    pub(super) fn head_tape(
        &self,
        h_md: &Tensor,
        targets_m: &[u32],
        below: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Taped>> {
        if !self.fused_head(ctx) || ctx.hooks.watched(self.final_norm.site) {
            return Ok(None);
        }
        let h_md = h_md.contiguous()?;
        let (norm, weight) = (self.final_norm.clone(), self.head_weight().clone());
        let (scale, h) = (Read::new(&norm.scale_d)?, Read::new(&h_md)?);
        let mut x = vec![0f32; h.len()];
        norm::forward(&h, &scale, norm.eps, &mut x);
        let need_x = below || norm.scale_d.is_variable();
        let learned = matches!(weight, Weight::Learned(..));
        let (logp, pass) = Pass::new(weight.head(), x, targets_m, need_x)?;
        drop((scale, h));
        let logp_m = Tensor::from_vec(logp, targets_m.len(), h_md.device())?;
        let tape = HeadTape { norm, weight, h_md, pass: Arc::new(pass) };
        Ok(Some((logp_m, (need_x || learned).then(|| Box::new(tape) as _))))
    }

    pub(super) fn table_backward(
        &self,
        ids_n: &[u32],
        dh_nd: &Tensor,
        ctx: &mut Ctx,
        found: &mut Found,
    ) -> Result<bool> {
        let Weight::Learned(table, _) = &self.embed else { return Ok(false) };
        if ctx.hooks.watched(self.embed_site) {
            return Ok(false);
        }
        let dh_nd = dh_nd.contiguous()?;
        let (dh, ids, d) = (Buffer::copy(&Read::new(&dh_nd)?), ids_n.to_vec(), self.config.hidden);
        let add = move |sum: &mut [f32]| {
            for (id, dh) in ids.iter().zip(dh.chunks_exact(d)) {
                let row = &mut sum[*id as usize * d..][..d];
                row.iter_mut().zip(dh).for_each(|(sum, dh)| *sum += dh);
            }
            Ok(())
        };
        found(table, Gradient::Into(Box::new(add)))?;
        Ok(true)
    }
}

impl Tape for HeadTape {
    fn backward(
        self: Box<Self>,
        dlogp_m: &Tensor,
        need_dx: bool,
        found: &mut Found,
    ) -> Result<Option<Tensor>> {
        let HeadTape { norm, weight, h_md, pass } = *self;
        let dlogp_m = dlogp_m.contiguous()?;
        let g_m = Read::new(&dlogp_m)?.to_vec();
        let learns = norm.scale_d.is_variable();
        let dx = match need_dx || learns {
            true => Some(pass.grad_hidden(weight.head(), &g_m)?),
            false => None,
        };
        if let Weight::Learned(w, precision) = weight {
            let head = w.clone();
            let add = move |sum: &mut [f32]| {
                Ok(pass.grad_head(HeadWeight::Learned(&head, precision), &g_m, sum)?)
            };
            found(&w, Gradient::Into(Box::new(add)))?;
        }
        let Some(dx) = dx else { return Ok(None) };
        let (scale, h) = (Read::new(&norm.scale_d)?, Read::new(&h_md)?);
        if learns {
            let dw = norm::grad_scale((&*h).into(), scale.len(), norm.eps, &dx);
            let dw = Tensor::from_vec(dw, scale.len(), h_md.device())?;
            found(&norm.scale_d, Gradient::Dense(dw))?;
        }
        if !need_dx {
            return Ok(None);
        }
        let mut dh = vec![0f32; dx.len()];
        norm::backward((&*h).into(), &scale, norm.eps, &dx, Output::Set, &mut dh);
        Ok(Some(Tensor::from_vec(dh, h_md.shape().clone(), h_md.device())?))
    }
}
