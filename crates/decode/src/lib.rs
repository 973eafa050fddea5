#![doc = include_str!("../../../docs/seams/decode.md")]

pub mod beam;
pub mod beam_sampling;
pub mod best;
pub mod choose;
pub mod combine;
pub mod constrain;
pub mod generate;
pub mod scaled;
pub mod sources;
pub mod text;

pub use beam::{Beam, Found, beam_search};
pub use beam_sampling::{BeamSampling, Contrasted};
pub use choose::Sampler;
pub use combine::Combine;
pub use constrain::Constrain;
pub use generate::{Draft, Finish, Generate, Generated, Parts, generate, generate_from};
pub use scaled::{Scaled, ScaledSource};
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
    Method::usual("mixture", "weighted sum of several models' probabilities"),
    Method::of(43, "emulate", "what tuning did to small models, on top of a large one"),
    Method::usual("proxy", "towards an expert and away from another, on top of a third model"),
    Method::usual("contrastive", "what an expert finds likelier than an amateur, if plausible"),
    Method::usual("cfg", "classifier-free guidance: with a prompt against without it"),
    Method::of(40, "copilot", "a pilot's probabilities, moved by the errors a copilot expects"),
    Method::usual("logit_bias", "add a number to chosen tokens' logits"),
    Method::usual("ban", "never choose these tokens"),
    Method::usual("min_new_tokens", "no end-of-sequence token before this many tokens"),
    Method::usual("force_eos", "the last permitted token ends the sequence"),
    Method::of(45, "rising_end", "the end grows likelier with an answer's length"),
    Method::of(45, "seen", "tokens of the question and the answer get less likely, once each"),
    Method::of(45, "shift", "a number added to the logits of a few words, given as text"),
    Method::usual("dry", "tokens that would go on repeating an earlier stretch get less likely"),
    Method::usual("json_schema", "only JSON that a schema allows"),
    Method::usual("regex", "only text that a regular expression matches"),
    Method::usual("choice", "only one of a few texts"),
    Method::usual("grammar", "only text of a Lark grammar"),
    Method::usual("stop", "end at a string, which is never shown"),
    Method::usual("greedy", "the most probable token, lowest id on a tie (temperature = 0)"),
    Method::usual("repetition_penalty", "make tokens of the prompt and the answer less probable"),
    Method::usual("frequency_penalty", "subtract in proportion to a token's count in the answer"),
    Method::usual("presence_penalty", "subtract once for every token already in the answer"),
    Method::usual("temperature", "divide the logits before sampling"),
    Method::usual("top_h", "sample among the best tokens with a share of the entropy"),
    Method::usual("top_k", "sample among the k most probable tokens"),
    Method::usual("top_p", "sample among the fewest tokens that hold this much probability"),
    Method::usual("min_p", "sample among tokens at least this probable relative to the best"),
    Method::usual("mirostat", "sample so that the tokens' surprise stays near a target"),
    Method::usual("draft", "speculative decoding: one source writes ahead, the others check"),
    Method::usual("beam", "beam search: the best texts, not the best tokens"),
    Method::usual("best_of", "of several answers the one with the best mean log-probability"),
    Method::usual("self_consistency", "of several answers the one that most agree on"),
    Method::of(27, "scaled", "a source: what tuning contributes to each block, times alpha"),
    Method::usual("ngram", "a source: what came next in given texts after the same tokens"),
    Method::of(17, "beam_sampling", "texts that the tuned model likes better than its base does"),
];
