//! Logits at the last token of every row, from the stream after the last block.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use luthier_core::{Ctx, Policy, Result, Rows};
use luthier_kernels::tensor;

/// Replaces `logits_bv` by the logits behind each row of a pass that has just run, flat `(b, v)`.
pub(crate) fn last_logits(
    policy: &Policy,
    h_nd: &Tensor,
    ids_n: &[u32],
    rows: &Rows,
    logits_bv: &mut Vec<f32>,
) -> Result<()> {
    let last_b: Vec<u32> = rows.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
    let index = Tensor::from_slice(&last_b, last_b.len(), h_nd.device())?;
    let h_bd = h_nd.index_select(&index, 0)?;
    // The head sees one token per row, so hooks bound there are told of exactly these.
    let ids_b: Vec<u32> = last_b.iter().map(|i| ids_n[*i as usize]).collect();
    let at = |i: usize| rows.positions_n[last_b[i] as usize] as usize;
    let head_rows = Arc::new(Rows::new(&vec![1; last_b.len()], at));
    let mut ctx = Ctx::new(&policy.hooks, head_rows, &ids_b);
    let logits = policy.model.unembed(&h_bd, &mut ctx)?.to_dtype(DType::F32)?;
    logits_bv.clear();
    Ok(tensor::with(&logits, |logits| logits_bv.extend_from_slice(logits))?)
}
