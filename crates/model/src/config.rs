//! What a model is made of: sizes, switches and ids, whichever file they came from.
//!
//! `hf` reads both generations of `config.json`, `gguf` reads GGUF keys, `json` writes
//! `config.json`, `rope` holds rotary frequencies. The defaults for absent keys are those of
//! transformers' configuration classes, because its files leave out what equals the default.

mod gguf;
mod hf;
mod json;
mod keys;
mod rope;

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

pub use rope::{Rope, Scaling};

/// How the classes of models end that score labels instead of tokens.
const SCORING: &str = "SequenceClassification";

/// The supported architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama 2 and 3, SmolLM 1 and 2, and all that use the same class.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: a norm on every query and key head.
    Qwen3,
    /// SmolLM3: every fourth layer without rotary positions.
    SmolLM3,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 5] =
        [Arch::Llama, Arch::Mistral, Arch::Qwen2, Arch::Qwen3, Arch::SmolLM3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Mistral => "mistral",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::SmolLM3 => "smollm3",
        }
    }

    /// The same for a model that scores labels.
    pub fn scoring_class(self) -> String {
        self.class().replace("CausalLM", SCORING)
    }

    /// The class in `architectures` of `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Arch::Llama => "LlamaForCausalLM",
            Arch::Mistral => "MistralForCausalLM",
            Arch::Qwen2 => "Qwen2ForCausalLM",
            Arch::Qwen3 => "Qwen3ForCausalLM",
            Arch::SmolLM3 => "SmolLM3ForCausalLM",
        }
    }
}

/// Sizes, switches and ids of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub arch: Arch,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Longest sequence it was made for.
    pub max_positions: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// How many labels the head scores, where it scores labels instead of tokens.
    pub labels: Option<usize>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether query and key heads are normalised.
    pub qk_norm: bool,
    /// Beginning-of-text id.
    pub bos: Option<u32>,
    /// Ids that end a text.
    pub eos: Vec<u32>,
    /// Padding id (luthier never pads; it is kept for saving).
    pub pad: Option<u32>,
    /// How many positions back a sliding layer sees.
    pub sliding_window: Option<usize>,
    /// Per layer: whether it is a sliding one.
    pub sliding_layers: Vec<bool>,
    /// Per layer: true where rotary positions are *not* applied.
    pub no_rope_layers: Vec<bool>,
    /// `config.json` as it was read, to be written back; empty for a GGUF file.
    pub raw: Map<String, Value>,
    /// `generation_config.json` as it was read; empty where there was none.
    pub generation: Map<String, Value>,
}

/// No size in a model may exceed this: it keeps every product far from overflow.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1000;

impl ModelConfig {
    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How many positions back `layer` sees; `None` is all of them.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.sliding_layers.get(layer).copied().unwrap_or(false))
    }

    /// Lets go of special ids outside of the vocabulary, as small models made from a big model's
    /// settings have them: no text contains them, and none can be produced.
    fn forget_impossible_ids(&mut self, at: &str) {
        let vocab = self.vocab;
        let possible = |id: &u32| {
            let ok = (*id as usize) < vocab;
            if !ok {
                tracing::warn!(
                    "{at}: special token id {id} is outside of the vocabulary ({vocab})"
                );
            }
            ok
        };
        self.eos.retain(possible);
        self.bos = self.bos.filter(possible);
        self.pad = self.pad.filter(possible);
    }

    /// Refuses sizes that cannot be a model; `at` names the file.
    pub fn check(&self, at: &str) -> Result<()> {
        let sizes = [
            ("hidden size", self.hidden, MAX_SIZE),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of attention heads", self.heads, MAX_SIZE),
            ("number of key/value heads", self.kv_heads, MAX_SIZE),
            ("head width", self.head_dim, MAX_SIZE),
            ("MLP width", self.ffn, MAX_SIZE),
            ("vocabulary size", self.vocab, MAX_SIZE),
            ("query width", self.heads.saturating_mul(self.head_dim), MAX_SIZE),
        ];
        for (what, got, most) in sizes {
            if got == 0 || got > most {
                return Err(Error::input(at, format!("{what}: expected 1 to {most}, got {got}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let what = format!(
                "{} attention heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            );
            return Err(Error::input(at, what));
        }
        if !self.head_dim.is_multiple_of(2) {
            let what = format!("head width: expected an even number, got {}", self.head_dim);
            return Err(Error::input(at, what));
        }
        if self.max_positions == 0 || self.max_positions > u32::MAX as usize {
            let what = format!("longest sequence: got {}", self.max_positions);
            return Err(Error::input(at, what));
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            let what = format!("rms_norm_eps: expected between 0 and 1, got {}", self.rms_eps);
            return Err(Error::input(at, what));
        }
        if self.sliding_window == Some(0) {
            return Err(Error::input(at, "sliding_window: expected at least 1, got 0"));
        }
        self.rope.check(at)
    }
}
