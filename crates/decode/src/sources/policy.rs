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

/// The step with `n` placeholders before each sequence that begins, and all positions behind them.
fn behind_placeholders(step: &Step, n: usize) -> Option<(Vec<u32>, Arc<Rows>)> {
    if n == 0 {
        return None;
    }
    let (mut ids_n, mut lengths, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..step.rows.b() {
        let range = step.rows.range(row);
        let start = step.rows.positions_n[range.start] as usize;
        let before = if start == 0 { n } else { 0 };
        ids_n.extend(std::iter::repeat_n(0, before));
        ids_n.extend_from_slice(&step.ids_n[range.clone()]);
        lengths.push(before + range.len());
        starts.push(if start == 0 { 0 } else { start + n });
    }
    Some((ids_n, Arc::new(Rows::new(&lengths, |row| starts[row]))))
}

impl Source for PolicySource<'_> {
    fn vocab(&self) -> usize {
        self.policy.model.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let behind = behind_placeholders(step, self.policy.hooks.virtual_tokens);
        let step = match &behind {
            None => step,
            Some((ids_n, rows)) => &Step { ids_n, rows: rows.clone(), slots_b: step.slots_b },
        };
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
