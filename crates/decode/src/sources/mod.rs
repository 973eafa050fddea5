//! Where logits come from.

mod ngram;
mod policy;
mod reworded;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use luthier_core::{Cache, Ctx, Policy, Result, Rows};
use luthier_kernels::tensor;

pub use ngram::{Ngram, NgramSource};
pub use policy::PolicySource;
pub use reworded::Reworded;

/// The new tokens of every live sequence, laid end to end.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// New token ids: a whole prompt for a sequence that has just entered, else one or a few.
    pub ids_n: &'a [u32],
    /// Bounds of each sequence's new tokens, and their positions. A row that begins before the end of
    /// what was read takes the place of what came after its first position.
    pub rows: Arc<Rows>,
    /// Where each row's sequence is kept.
    pub slots_b: &'a [usize],
    /// Which slot's sequence each row goes on from; another one than its own is copied first.
    pub from_b: &'a [usize],
    /// Which prompt each row's sequence began with.
    pub prompts_b: &'a [usize],
    /// At how many of its last tokens each row is asked for logits.
    pub read_b: &'a [usize],
}

impl Step<'_> {
    /// The tokens at which logits are asked for, as indices into the flat run.
    pub fn asked(&self) -> Vec<u32> {
        let row = |(end, read): (&usize, &usize)| (end - read) as u32..*end as u32;
        self.rows.offsets[1..].iter().zip(self.read_b).flat_map(row).collect()
    }

    /// Readies a cache for the step: copies pasts, and forgets what is replaced.
    pub fn take_up(&self, cache: &mut Cache) {
        // Copies come first: a slot that is copied from may itself be read on in this step.
        let copied = self.from_b.iter().zip(self.slots_b).filter(|(from, slot)| from != slot);
        copied.for_each(|(from, slot)| cache.fork(*from, *slot));
        cache.select(self.slots_b.to_vec());
        for row in 0..self.rows.b() {
            cache.truncate(row, self.rows.positions_n[self.rows.offsets[row]] as usize);
        }
    }

    /// Replaces `logits_bv` by the first `vocab` logits at each token that is asked for; `h_nd` is the
    /// stream behind the last block.
    pub fn asked_logits(
        &self,
        policy: &Policy,
        h_nd: &Tensor,
        vocab: usize,
        logits_bv: &mut Vec<f32>,
    ) -> Result<()> {
        let asked_m = self.asked();
        let index = Tensor::from_slice(&asked_m, asked_m.len(), h_nd.device())?;
        let h_md = h_nd.index_select(&index, 0)?;
        // The head sees the tokens that are asked for, so hooks bound there are told of exactly these.
        let ids_m: Vec<u32> = asked_m.iter().map(|i| self.ids_n[*i as usize]).collect();
        let first = |row: usize| self.rows.range(row).end - self.read_b[row];
        let start = |row: usize| self.rows.positions_n[first(row)] as usize;
        let head_rows = Arc::new(Rows::new(self.read_b, start));
        let mut ctx = Ctx::new(&policy.hooks, head_rows, &ids_m);
        let logits = policy.model.unembed(&h_md, &mut ctx)?.to_dtype(DType::F32)?;
        let all = policy.model.vocab();
        logits_bv.clear();
        Ok(tensor::with(&logits, |logits| match vocab == all {
            true => logits_bv.extend_from_slice(logits),
            false => logits.chunks(all).for_each(|row| logits_bv.extend_from_slice(&row[..vocab])),
        })?)
    }
}

/// Gives logits for the tokens after those of a step, remembering the tokens it has seen.
pub trait Source {
    /// Number of tokens it knows.
    fn vocab(&self) -> usize;

    /// Reads the step's tokens and replaces `logits_bv` by the logits at the tokens that are asked
    /// for, row after row, flat.
    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()>;

    /// Forgets the sequence in `slot`.
    fn free(&mut self, slot: usize);
}
