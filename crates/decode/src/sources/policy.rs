//! A policy with its cache of keys and values.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use luthier_core::{Cache, Ctx, Policy, Result, Rows};
use luthier_kernels::tensor;

use super::{Source, Step};

/// A policy that reads every token once.
pub struct PolicySource<'a> {
    policy: &'a Policy,
    cache: Cache,
}

impl<'a> PolicySource<'a> {
    /// A policy with room for `max_batch` live sequences.
    pub fn new(policy: &'a Policy, max_batch: usize) -> Self {
        PolicySource { policy, cache: Cache::new(max_batch, policy.model.n_layers()) }
    }
}

impl Source for PolicySource<'_> {
    fn vocab(&self) -> usize {
        self.policy.model.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let rows = &step.rows;
        self.cache.select(step.slots_b.to_vec());
        let mut ctx = Ctx::new(&self.policy.hooks, rows.clone(), step.ids_n);
        ctx.cache = Some(&mut self.cache);
        let h_nd = self.policy.hidden(&mut ctx)?;
        let last_b: Vec<u32> = rows.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
        let h_bd =
            h_nd.index_select(&Tensor::from_slice(&last_b, last_b.len(), h_nd.device())?, 0)?;
        // The head sees one token per row, so hooks bound there are told of exactly these.
        let ids_b: Vec<u32> = last_b.iter().map(|i| step.ids_n[*i as usize]).collect();
        let at = |i: usize| rows.positions_n[last_b[i] as usize] as usize;
        let head_rows = Arc::new(Rows::new(&vec![1; last_b.len()], at));
        let mut ctx = Ctx::new(&self.policy.hooks, head_rows, &ids_b);
        let logits = self.policy.model.unembed(&h_bd, &mut ctx)?.to_dtype(DType::F32)?;
        logits_bv.clear();
        Ok(tensor::with(&logits, |logits| logits_bv.extend_from_slice(logits))?)
    }

    fn free(&mut self, slot: usize) {
        self.cache.clear(slot);
    }
}
