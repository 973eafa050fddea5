//! What a run will need, before it starts.

use luthier_core::{Model, SiteKind};
use serde::Serialize;

/// Sizes that memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Numbers in the base weights.
    pub parameters: u64,
    /// Numbers that learn.
    pub trainable: u64,
    /// Of these, numbers that replace base weights (full fine-tuning): not stored twice.
    pub in_place: u64,
    /// Tokens that are in the model at the same time: those of the shards running side by side.
    pub live_tokens: u64,
    /// Of these, tokens with a non-zero weight.
    pub live_trained: u64,
    /// Shards of the largest pass: each has gradients of its own.
    pub shards: u64,
    /// Numbers of the largest learned tensor.
    pub largest: u64,
    /// Optimizer buffers per learned number (AdamW 2, SGD 0 or 1).
    pub buffers: u64,
    /// Whether block activations are kept.
    pub keep: bool,
}

/// Peak memory by what takes it, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Base weights.
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

/// f32 numbers that one token leaves in one kept block, and at the block being worked on.
fn block_numbers(model: &dyn Model) -> u64 {
    let sites = model.sites();
    let layer0 = sites.iter().filter(|s| s.layer == Some(0));
    let widths: u64 = layer0
        .map(|s| match s.kind {
            // A linear's output, and the LoRA sum on top of it.
            SiteKind::Linear { o, .. } => o as u64,
            SiteKind::Norm { d } => d as u64,
            _ => 0,
        })
        .sum();
    let attn = sites.get("layers.0.attn.q").and_then(|s| s.linear()).map_or(0, |(_, o)| o as u64);
    let kv = sites.get("layers.0.attn.k").and_then(|s| s.linear()).map_or(0, |(_, o)| o as u64);
    let act = sites.get("layers.0.mlp.up").and_then(|s| s.linear()).map_or(0, |(_, o)| o as u64);
    // Outputs of linears and norms, rotated q and k, attention output, gated activation, two
    // residual sums and the block's input.
    widths + attn * 2 + kv + act + 3 * model.width() as u64
}

/// Estimates the peak. `adapted` is how many numbers per token and layer the hooks' sums add.
pub fn memory(model: &dyn Model, sizes: Sizes, adapted: u64) -> Memory {
    const F32: u64 = 4;
    let layers = model.n_layers() as u64;
    let per_block = block_numbers(model) + adapted;
    let kept_blocks = if sizes.keep { layers } else { 0 };
    // The block in backward holds its graph and gradients of the same size.
    let tokens = sizes.live_tokens;
    let stream = layers * model.width() as u64;
    let head = 3 * model.width() as u64 * sizes.live_trained;
    let activations = F32 * (tokens * (per_block * (kept_blocks + 2) + stream) + head);
    // The numbers, the sum of their gradients, each shard's own, and the optimizer's buffers.
    let sets = 2 + sizes.buffers + if sizes.shards > 1 { sizes.shards } else { 0 };
    // While the gradient of a table is summed (embedding, tied head, accumulation) it exists about
    // four times.
    let learned = sizes.trainable * sets - sizes.in_place + 4 * sizes.largest;
    Memory { weights: F32 * sizes.parameters, learned: F32 * learned, activations, rest: 60 << 20 }
}
