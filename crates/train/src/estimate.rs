//! What a run will need, before it starts.

use luthier_core::{Model, SiteKind};
use serde::Serialize;

/// f32 numbers of the block in work, per number that it keeps: its values again, their gradients,
/// and what products need to be laid out.
const BLOCK_IN_WORK: u64 = 3;
/// f32 numbers of the head in work, per width and trained token: input, normalised input, gradient.
const HEAD_IN_WORK: u64 = 3;
/// Program, tokenizer, work space.
const REST: u64 = 60 << 20;
/// Bytes of an f32.
const F32: u64 = 4;

/// Sizes that memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Numbers in the weights that do not learn.
    pub frozen: u64,
    /// Numbers that learn; always f32.
    pub trainable: u64,
    /// Tokens of the largest pass.
    pub live_tokens: u64,
    /// Of these, tokens with a non-zero weight.
    pub live_trained: u64,
    /// Optimizer buffers per learned number (AdamW 2, SGD 0 or 1).
    pub buffers: u64,
    /// Whether weights and kept activations are bf16.
    pub halves: bool,
    /// How blocks are computed.
    pub block: Block,
    /// Whether block activations are kept.
    pub keep: bool,
}

/// How blocks are computed, which says what they keep.
#[derive(Clone, Copy, Debug)]
pub enum Block {
    /// Forward and backward of a whole block.
    ByHand {
        /// Ranks of all low-rank additions in one block.
        ranks: u64,
    },
    /// A graph of tensor operations, in f32.
    ByOperation {
        /// Numbers per token that hooks add to those of one block.
        added: u64,
    },
}

/// Peak memory by what takes it, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Weights that do not learn.
    pub weights: u64,
    /// Learned numbers, their gradients and optimizer buffers.
    pub learned: u64,
    /// Values between forward and backward.
    pub activations: u64,
    /// Program, tokenizer, work space.
    pub rest: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.learned + self.activations + self.rest
    }
}

/// Numbers that one token leaves in one block.
fn block_numbers(model: &dyn Model, block: Block) -> u64 {
    let out = |part: &str| {
        let site = model.sites().get(&format!("layers.0.{part}"));
        site.and_then(|s| s.linear()).map_or(0, |(_, o)| o as u64)
    };
    let (d, attn) = (model.width() as u64, out("attn.q"));
    let (kv, f) = (out("attn.k"), out("mlp.up"));
    match block {
        // h before and between, q and z, k and v, gate and up, x Aᵀ of every addition.
        Block::ByHand { ranks } => 2 * (d + attn + kv + f) + ranks,
        // Outputs of linears and norms, rotated q and k, attention output, gated activation, two
        // residual sums and the block's input.
        Block::ByOperation { added } => {
            let layer0 = model.sites().iter().filter(|s| s.layer == Some(0));
            let outputs: u64 = layer0
                .map(|s| match s.kind {
                    SiteKind::Linear { o, .. } => o as u64,
                    SiteKind::Norm { d } => d as u64,
                    _ => 0,
                })
                .sum();
            outputs + attn * 2 + kv + f + 3 * d + added
        }
    }
}

/// Estimates the peak.
pub fn memory(model: &dyn Model, sizes: Sizes) -> Memory {
    let (layers, d) = (model.n_layers() as u64, model.width() as u64);
    let per_block = block_numbers(model, sizes.block);
    let (number, in_work) = match sizes.block {
        Block::ByHand { .. } if sizes.halves => (F32 / 2, BLOCK_IN_WORK),
        Block::ByHand { .. } => (F32, BLOCK_IN_WORK),
        // Its graph and gradients of the same size.
        Block::ByOperation { .. } => (F32, 2),
    };
    // A block keeps its inside or, to compute it again, its input.
    let kept = layers * if sizes.keep { number * per_block } else { F32 * d };
    let work = F32 * in_work * per_block;
    let head = F32 * HEAD_IN_WORK * d * sizes.live_trained;
    // The numbers and the sum of their gradients.
    let sets = 2 + sizes.buffers;
    Memory {
        weights: sizes.frozen * if sizes.halves { F32 / 2 } else { F32 },
        learned: F32 * sizes.trainable * sets,
        activations: sizes.live_tokens * (kept + work) + head,
        rest: REST,
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;
    use luthier_testkit::{Fake, Shape};

    use super::*;

    #[test]
    fn memory_is_affine_in_tokens_and_bf16_halves_what_is_kept() {
        // One linear of width 10 beside a stream of 6: 2 · (6 + 10) + 7 = 39 numbers per block.
        let model = Fake::new(Shape { layers: 5, ..Shape::default() }, Seed(0));
        let sizes = Sizes {
            frozen: 1000,
            trainable: 10,
            live_tokens: 0,
            live_trained: 0,
            buffers: 2,
            halves: false,
            block: Block::ByHand { ranks: 7 },
            keep: true,
        };
        let of = |live_tokens, keep, halves| {
            memory(&model, Sizes { live_tokens, keep, halves, ..sizes })
        };
        let at = |tokens, halves| of(tokens, true, halves).activations;
        assert_eq!(at(0, false), 0);
        // Five blocks kept, and three times one in work.
        assert_eq!([at(100, false), at(300, false)], [100 * 8 * 39 * 4, 300 * 8 * 39 * 4]);
        assert_eq!(at(100, true), 100 * (5 * 39 * 2 + 3 * 39 * 4));
        assert_eq!(of(100, false, false).activations, 100 * (5 * 6 * 4 + 3 * 39 * 4));
        assert_eq!([of(0, true, false).weights, of(0, true, true).weights], [4000, 2000]);
        assert_eq!(of(0, true, false).learned, 4 * 10 * 4);
        let trained = Sizes { live_trained: 11, ..sizes };
        assert_eq!(memory(&model, trained).activations, 4 * 3 * 6 * 11);
    }
}
