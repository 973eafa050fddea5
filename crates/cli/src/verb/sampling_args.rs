//! How text is sampled: the flags that generate and chat share.

use luthier_core::{Error, Result};
use luthier_decode::{Generate, Sampler};
use luthier_recipe::Opened;
use serde_json::{Map, Value};

/// How the next token is chosen, and when to stop.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Fewest new tokens: until then an answer does not end by itself
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_new_tokens: usize,
    /// Divides the logits; 0 always takes the most probable token [default: 0; in a chat what the
    /// model's generation_config.json recommends, or 0.7]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Only the best tokens that together hold share H of the entropy
    #[arg(long, value_name = "H", allow_negative_numbers = true)]
    pub top_h: Option<f32>,
    /// Only the K most probable tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together hold probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Only tokens at least P times as probable as the best
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1: makes tokens that were there before less probable
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Mirostat 2: keeps the surprise of the tokens around so many bits
    #[arg(long, value_name = "TAU", allow_negative_numbers = true)]
    pub mirostat_tau: Option<f32>,
    /// Mirostat 2: how fast it follows
    #[arg(long, value_name = "ETA", allow_negative_numbers = true, requires = "mirostat_tau")]
    pub mirostat_eta: Option<f32>,
    /// End the answer at this text, which is not shown; \n is a line end (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text [default: 0]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// Options for `opened`, where `usual` is what holds without flags.
    pub fn options(&self, opened: &Opened, usual: Sampler) -> Result<Generate> {
        let sampler = Sampler {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_h: self.top_h.unwrap_or(usual.top_h),
            top_k: self.top_k.unwrap_or(usual.top_k),
            mirostat_tau: self.mirostat_tau.unwrap_or(usual.mirostat_tau),
            mirostat_eta: self.mirostat_eta.unwrap_or(usual.mirostat_eta),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            seed: self.seed.unwrap_or(usual.seed),
            ..usual
        };
        sampler.check("sampling").map_err(by_flag)?;
        if self.max_new_tokens == 0 {
            return Err(Error::input("--max-new-tokens", "expected at least 1, got 0"));
        }
        if self.min_new_tokens > self.max_new_tokens {
            let what = format!(
                "{} is more than --max-new-tokens {}",
                self.min_new_tokens, self.max_new_tokens
            );
            return Err(Error::input("--min-new-tokens", what));
        }
        let narrowing = [
            ("--top-h", self.top_h.is_some_and(|h| h != 0.0)),
            ("--mirostat-tau", self.mirostat_tau.is_some_and(|tau| tau != 0.0)),
            ("--top-k", self.top_k.is_some_and(|k| k != 0)),
            ("--top-p", self.top_p.is_some_and(|p| p != 1.0)),
            ("--min-p", self.min_p.is_some_and(|p| p != 0.0)),
        ];
        if let (true, Some((flag, _))) =
            (sampler.temperature == 0.0, narrowing.iter().find(|(_, given)| *given))
        {
            return Err(Error::input(*flag, "changes nothing at temperature 0")
                .hint("add --temperature 0.7, or leave the flag out"));
        }
        let stop: Vec<String> = self.stop.iter().map(|text| unescaped(text)).collect();
        if stop.iter().any(String::is_empty) {
            return Err(Error::input("--stop", "an empty text would stop everything"));
        }
        Ok(Generate {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            max_context: opened.config.max_positions,
            eos: opened.tokenizer.eos_ids().to_vec(),
            stop,
            sampler,
            ..Generate::default()
        })
    }
}

/// The sampling that a model's own generation_config.json recommends, if it recommends any.
pub fn recommended(generation: &Map<String, Value>) -> Option<Sampler> {
    let number = |key: &str| generation.get(key).and_then(Value::as_f64).map(|x| x as f32);
    let known = ["temperature", "top_k", "top_p", "min_p"];
    let sampling = generation.get("do_sample").and_then(Value::as_bool);
    if sampling == Some(false) || !known.iter().any(|key| number(key).is_some()) {
        return None;
    }
    let usual = Sampler::default();
    Some(Sampler {
        temperature: number("temperature").unwrap_or(1.0),
        top_k: number("top_k").map_or(usual.top_k, |k| k as usize),
        top_p: number("top_p").unwrap_or(usual.top_p),
        min_p: number("min_p").unwrap_or(usual.min_p),
        repetition_penalty: number("repetition_penalty").unwrap_or(usual.repetition_penalty),
        ..usual
    })
}

/// A shell hands `\n` over as two characters.
fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

/// `sampling.top_p` is `--top-p` to whoever typed it.
fn by_flag(error: Error) -> Error {
    match error {
        Error::Input { at, what, hint } => {
            let name = at.rsplit('.').next().unwrap_or_default().replace('_', "-");
            Error::Input { at: format!("--{name}"), what, hint }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_recommendation_is_read_where_there_is_one() {
        let read = |text: &str| recommended(&serde_json::from_str(text).unwrap());
        let given = read(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20}"#).unwrap();
        assert_eq!((given.temperature, given.top_k, given.top_p), (0.6, 20, 1.0));
        assert_eq!(read(r#"{"eos_token_id": 2}"#), None);
        assert_eq!(read(r#"{"do_sample": false, "temperature": 0.6}"#), None);
    }
}
