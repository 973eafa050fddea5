//! A policy with its cache of keys and values.

use std::sync::Arc;

use luthier_core::{Cache, Ctx, Policy, Result, Rows};

use super::{Source, Step};

/// A policy that reads every token once.
pub struct PolicySource<'a> {
    policy: &'a Policy,
    cache: Cache,
    vocab: usize,
}

impl<'a> PolicySource<'a> {
    /// A policy with room for `max_batch` live sequences.
    pub fn new(policy: &'a Policy, max_batch: usize) -> Self {
        let vocab = policy.model.vocab();
        PolicySource { policy, cache: Cache::new(max_batch, policy.model.n_layers()), vocab }
    }

    /// The same with the first `vocab` tokens alone: what another model's table of embeddings does not
    /// reach is padding.
    pub fn narrowed(self, vocab: usize) -> Self {
        PolicySource { vocab: vocab.min(self.vocab), ..self }
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
        self.vocab
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let behind = behind_placeholders(step, self.policy.hooks.virtual_tokens);
        let step = match &behind {
            None => step,
            Some((ids_n, rows)) => &Step { ids_n, rows: rows.clone(), ..step.clone() },
        };
        let rows = &step.rows;
        step.take_up(&mut self.cache);
        let mut ctx = Ctx::new(&self.policy.hooks, rows.clone(), step.ids_n);
        ctx.cache = Some(&mut self.cache);
        let h_nd = self.policy.hidden(&mut ctx)?;
        step.asked_logits(self.policy, &h_nd, self.vocab, logits_bv)
    }

    fn free(&mut self, slot: usize) {
        self.cache.clear(slot);
    }
}
