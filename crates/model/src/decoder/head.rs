//! The ends of the model backward without a graph: log-probabilities and the embedding table.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Found, Gradient, Result, Tape, Taped};
use luthier_kernels::{HeadWeight, gemm::Output, nll::Pass, norm, pool::Buffer};

use super::fan::Read;
use crate::weight::{Norm, Weight};

/// What the final norm and the head kept.
struct HeadTape {
    norm: Norm,
    weight: Weight,
    h_md: Tensor,
    pass: Arc<Pass>,
}

/// Log-probabilities through norm and head, with their tape if anything learns here or, by `below`,
/// under it.
pub(super) fn forward(
    norm: Norm,
    weight: Weight,
    h_md: &Tensor,
    targets_m: &[u32],
    below: bool,
) -> Result<Taped> {
    let h_md = h_md.contiguous()?;
    let (scale, h) = (Read::new(&norm.scale_d)?, Read::new(&h_md)?);
    let mut x = vec![0f32; h.len()];
    norm::forward(&h, &scale, norm.eps, &mut x);
    let need_x = below || norm.scale_d.is_variable();
    let learned = weight.learned().is_some();
    let (logp, pass) = Pass::new(weight.head(), x, targets_m, need_x)?;
    drop((scale, h));
    let logp_m = Tensor::from_vec(logp, targets_m.len(), h_md.device())?;
    let tape = HeadTape { norm, weight, h_md, pass: Arc::new(pass) };
    Ok((logp_m, (need_x || learned).then(|| Box::new(tape) as _)))
}

/// Hands out the gradient of a table of which rows `ids_n` were read.
pub(super) fn add_rows(
    table: &Tensor,
    ids_n: &[u32],
    dh_nd: &Tensor,
    found: &mut Found,
) -> Result<()> {
    let (dh_nd, ids, (_, d)) = (dh_nd.contiguous()?, ids_n.to_vec(), table.dims2()?);
    let dh = Buffer::copy(&Read::new(&dh_nd)?);
    let add = move |sum: &mut [f32]| {
        for (id, dh) in ids.iter().zip(dh.chunks_exact(d)) {
            let row = &mut sum[*id as usize * d..][..d];
            row.iter_mut().zip(dh).for_each(|(sum, dh)| *sum += dh);
        }
        Ok(())
    };
    found(table, Gradient::Into(Box::new(add)))
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
        if let Some(w) = weight.learned() {
            let (head, precision) = (w.clone(), weight.precision());
            let add = move |sum: &mut [f32]| {
                Ok(pass.grad_head(HeadWeight::Learned(&head, precision), &g_m, sum)?)
            };
            found(w, Gradient::Into(Box::new(add)))?;
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
