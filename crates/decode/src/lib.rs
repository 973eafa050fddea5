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

/// One entry of [`METHODS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Number of the paper in `papers/`, when there is one.
    pub paper: Option<u32>,
    /// The key a recipe uses.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
}

const fn method(name: &'static str, about: &'static str) -> Method {
    Method { paper: None, name, about }
}

/// Every choice this seam offers.
pub const METHODS: &[Method] = &[
    method("identity", "one model's logits as they are"),
    method("linear", "weighted sum of several models' logits"),
    method("logit_bias", "add a number to chosen tokens' logits"),
    method("ban", "never choose these tokens"),
    method("min_new_tokens", "no end-of-sequence token before this many tokens"),
    method("force_eos", "the last permitted token ends the sequence"),
    method("stop", "end at a string, which is never shown"),
    method("greedy", "the most probable token, lowest id on a tie (temperature = 0)"),
    method("repetition_penalty", "make tokens of the prompt and the answer less probable"),
    method("frequency_penalty", "subtract in proportion to a token's count in the answer"),
    method("presence_penalty", "subtract once for every token already in the answer"),
    method("temperature", "divide the logits before sampling"),
    method("top_k", "sample among the k most probable tokens"),
    method("top_p", "sample among the fewest tokens that hold this much probability"),
    method("min_p", "sample among tokens at least this probable relative to the best"),
];
