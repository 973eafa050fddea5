#![doc = include_str!("../../../docs/seams/decode.md")]

pub mod choose;
pub mod combine;
pub mod constrain;
pub mod generate;
pub mod sources;
pub mod text;

pub use choose::Sampler;
pub use combine::Combine;
pub use constrain::Constrain;
pub use generate::{Finish, Generate, Generated, Parts, generate, generate_from};
pub use sources::Source;
pub use text::TokenText;

/// What a sequence holds when its next token is to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct SoFar<'a> {
    /// The prompt's token ids.
    pub prompt: &'a [u32],
    /// The ids generated after it.
    pub tokens: &'a [u32],
}

pub use luthier_core::Method;

/// Every choice this seam offers.
pub const METHODS: &[Method] = &[
    Method::usual("identity", "one model's logits as they are"),
    Method::usual("linear", "weighted sum of several models' logits"),
    Method::usual("logit_bias", "add a number to chosen tokens' logits"),
    Method::usual("ban", "never choose these tokens"),
    Method::usual("min_new_tokens", "no end-of-sequence token before this many tokens"),
    Method::usual("force_eos", "the last permitted token ends the sequence"),
    Method::usual("stop", "end at a string, which is never shown"),
    Method::usual("greedy", "the most probable token, lowest id on a tie (temperature = 0)"),
    Method::usual("repetition_penalty", "make tokens of the prompt and the answer less probable"),
    Method::usual("frequency_penalty", "subtract in proportion to a token's count in the answer"),
    Method::usual("presence_penalty", "subtract once for every token already in the answer"),
    Method::usual("temperature", "divide the logits before sampling"),
    Method::usual("top_k", "sample among the k most probable tokens"),
    Method::usual("top_p", "sample among the fewest tokens that hold this much probability"),
    Method::usual("min_p", "sample among tokens at least this probable relative to the best"),
];
