//! What a caller may ask of a generation.

use std::collections::BTreeMap;

use luthier_core::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    Constrain, Sampler,
    constrain::{Ban, ForceEos, LogitBias, MinNewTokens},
};

/// How far and how to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generate {
    /// At most this many new tokens per prompt.
    pub max_new_tokens: usize,
    /// No end-of-sequence token before this many.
    pub min_new_tokens: usize,
    /// Prompt and new tokens together at most; 0 is no limit.
    pub max_context: usize,
    /// Sequences that are live at the same time.
    pub max_batch: usize,
    /// Prompt tokens read in one step; a longer prompt enters alone.
    pub prefill_tokens: usize,
    /// Tokens that end a sequence.
    pub eos: Vec<u32>,
    /// Strings that end a sequence and are not shown.
    pub stop: Vec<String>,
    /// Whether the last permitted token must be an end-of-sequence token.
    pub force_eos: bool,
    /// Tokens that are never chosen.
    pub ban: Vec<u32>,
    /// Numbers added to tokens' logits, by id.
    #[serde(deserialize_with = "by_token_id")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Whether to report log-probabilities.
    pub logprobs: bool,
    /// One source writes ahead, the others check what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<Draft>,
    /// How the token is chosen.
    pub sampler: Sampler,
}

/// Speculative decoding: who writes ahead, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// The place of the source that drafts among all.
    pub source: usize,
    /// Tokens that it drafts at a time.
    pub tokens: usize,
}

impl Default for Generate {
    fn default() -> Self {
        Generate {
            max_new_tokens: 256,
            min_new_tokens: 0,
            max_context: 0,
            max_batch: 32,
            prefill_tokens: 512,
            eos: Vec::new(),
            stop: Vec::new(),
            force_eos: false,
            ban: Vec::new(),
            logit_bias: BTreeMap::new(),
            logprobs: false,
            draft: None,
            sampler: Sampler::default(),
        }
    }
}

/// Keys of a TOML table or JSON object are strings; these must hold token ids.
fn by_token_id<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, f32>, D::Error> {
    let named = BTreeMap::<String, f32>::deserialize(from)?;
    let parse = |(key, bias): (String, f32)| match key.parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(D::Error::custom(format!("logit_bias: expected a token id, got `{key}`"))),
    };
    named.into_iter().map(parse).collect()
}

impl Generate {
    /// Refuses options that cannot be followed with `n_sources` sources.
    pub fn check(&self, n_sources: usize) -> Result<()> {
        self.sampler.check("decode.sampler")?;
        if let Some(draft) = self.draft {
            let at = "decode.draft";
            if draft.source >= n_sources {
                let what = format!("there is no source {} of {n_sources}", draft.source + 1);
                return Err(Error::input(format!("{at}.source"), what));
            }
            if draft.tokens == 0 {
                return Err(Error::input(format!("{at}.tokens"), "expected at least 1, got 0"));
            }
            if self.sampler.mirostat_tau > 0.0 {
                let what = "Mirostat changes its limit with every token, so none can be drafted";
                return Err(Error::input(at, what).hint("leave out one of the two"));
            }
        }
        if self.max_batch == 0 {
            return Err(Error::input("decode.max_batch", "expected at least 1, got 0"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input("decode.stop", "an empty string would stop everything")
                .hint("remove it from the list"));
        }
        if self.force_eos && self.eos.is_empty() {
            return Err(Error::input("decode.force_eos", "there is no end-of-sequence token")
                .hint("name one in decode.eos"));
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            let what = format!("expected a finite number, got {bias}");
            return Err(Error::input(format!("decode.logit_bias.{id}"), what)
                .hint("use decode.ban to forbid a token"));
        }
        Ok(())
    }

    /// How many tokens a prompt of `prompt` tokens may get.
    pub(crate) fn room(&self, prompt: usize) -> usize {
        match self.max_context {
            0 => self.max_new_tokens,
            context => self.max_new_tokens.min(context.saturating_sub(prompt)),
        }
    }

    /// The constraints these options name. The bias comes first, as in transformers, so that the
    /// bans have the last word.
    pub fn constraints(&self) -> Vec<Box<dyn Constrain>> {
        let mut parts: Vec<Box<dyn Constrain>> = Vec::new();
        if !self.logit_bias.is_empty() {
            parts.push(Box::new(LogitBias { bias: self.logit_bias.clone() }));
        }
        if !self.ban.is_empty() {
            parts.push(Box::new(Ban { ids: self.ban.clone() }));
        }
        if self.min_new_tokens > 0 {
            parts.push(Box::new(MinNewTokens { n: self.min_new_tokens, eos: self.eos.clone() }));
        }
        if self.force_eos {
            let (max_new_tokens, max_context) = (self.max_new_tokens, self.max_context);
            parts.push(Box::new(ForceEos { max_new_tokens, max_context, eos: self.eos.clone() }));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_a_round_trip_and_refuse_strangers() {
        let json = r#"{"max_new_tokens": 7, "logit_bias": {"12": -1.5}, "sampler": {"top_k": 3}}"#;
        let options: Generate = serde_json::from_str(json).unwrap();
        assert_eq!((options.max_new_tokens, options.logit_bias[&12]), (7, -1.5));
        assert_eq!((options.sampler.top_k, options.max_batch), (3, 32));
        let again = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Generate>(&again).unwrap(), options);
        let misspelt = serde_json::from_str::<Generate>(r#"{"max_tokens": 7}"#).unwrap_err();
        assert!(misspelt.to_string().contains("max_tokens"));
        let wrong = serde_json::from_str::<Generate>(r#"{"logit_bias": {"the": 1}}"#).unwrap_err();
        assert!(wrong.to_string().contains("`the`"));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for (options, key) in [
            (Generate { max_batch: 0, ..Generate::default() }, "decode.max_batch"),
            (Generate { stop: vec!["".into()], ..Generate::default() }, "decode.stop"),
            (Generate { force_eos: true, ..Generate::default() }, "decode.force_eos"),
            (
                Generate { draft: Some(Draft { source: 1, tokens: 4 }), ..Generate::default() },
                "decode.draft.source",
            ),
            (
                Generate { draft: Some(Draft { source: 0, tokens: 0 }), ..Generate::default() },
                "decode.draft.tokens",
            ),
        ] {
            let err = options.check(1).unwrap_err();
            assert!(err.to_string().starts_with(key) && err.exit_code() == 2, "{err}");
        }
    }
}
