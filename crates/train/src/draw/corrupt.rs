//! Masked Thought (Chen et al. 2024, paper 11): a share of the answer that the model reads is hidden,
//! so that the next token must follow from the question and from earlier steps.
//!
//! At step `t` of `T`, every input that was a trained target before is replaced with probability
//!
//! `p(t) = min(mask_ratio, mask_ratio · t / (mask_warmup_ratio · T + 1))`
//!
//! by the mask token or, with probability `replace_rate` (always, with `noise = "random"`), by a token
//! drawn from the vocabulary. Targets and weights stay: every target counts, masked or not. Another
//! draw at every visit. A prompt is never touched, so the token that predicts the first of the answer is
//! always clean; of a conversation, every trained turn is an answer.
//!
//! **Departures**: (1) the mask is a row that the tables have, the padding token's unless `mask_token`
//! says otherwise (the authors name this an alternative): a token that the data do not use, or a row beyond the
//! tokenizer's last token. With `mask_token_init = "mean"` it begins and learns as a row that is added
//! ([`super::fresh`]), but for one that the head would have: that is asked for nowhere.
//! (2) `drop`, which takes masked positions out of attention, is left out: a hidden token is still asked for
//! what follows it, and attention knows rows, which are read whole, and no tokens that later ones pass over.
//! (3) The authors draw in the
//! collator, so that a step's share follows the micro-batch; here it follows the optimizer's step.

use luthier_core::{Error, Result, Row, Seed};
use serde::{Deserialize, Serialize};

const KEY: &str = "train.corrupt";

/// `[train.corrupt]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Corrupt {
    /// Share of the answer's inputs that is hidden at last.
    pub mask_ratio: f64,
    /// Share of the run over which that grows from 0.
    pub mask_warmup_ratio: f64,
    /// What stands in their place.
    pub noise: Noise,
    /// Share of the hidden ones that become a token drawn from the vocabulary instead of the mask.
    pub replace_rate: f64,
    /// The mask: a token by its text, as the vocabulary spells it, or by its id; the padding token where
    /// nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_token: Option<MaskToken>,
    /// What the mask is read as when training begins.
    pub mask_token_init: MaskInit,
}

/// What a mask is read as when training begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskInit {
    /// As the token that it is.
    #[default]
    Own,
    /// As the mean of all tokens, like a token that is new.
    Mean,
}

/// What stands in the place of what is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// The mask token.
    #[default]
    Mask,
    /// Any token of the vocabulary.
    Random,
}

/// A token of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MaskToken {
    /// By its id.
    Id(u32),
    /// As the vocabulary spells it.
    Text(String),
}

impl Default for Corrupt {
    fn default() -> Self {
        Corrupt {
            mask_ratio: 0.4,
            mask_warmup_ratio: 0.66,
            noise: Noise::Mask,
            replace_rate: 0.0,
            mask_token: None,
            mask_token_init: MaskInit::Own,
        }
    }
}

impl Corrupt {
    /// Refuses settings that cannot be meant.
    pub fn check(&self) -> Result<()> {
        for (key, share) in [
            ("mask_ratio", self.mask_ratio),
            ("mask_warmup_ratio", self.mask_warmup_ratio),
            ("replace_rate", self.replace_rate),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let what = format!("expected a share from 0 to 1, got {share}");
                return Err(Error::input(format!("{KEY}.{key}"), what));
            }
        }
        Ok(())
    }

    /// The share that is hidden at a step, of which `step` came before, of `of`.
    pub fn rate(&self, step: u64, of: u64) -> f64 {
        let grown = step as f64 / (self.mask_warmup_ratio * of as f64 + 1.0);
        self.mask_ratio * grown.min(1.0)
    }

    /// Hides inputs of rows, each with probability `rate`; every row has draws of its own.
    pub fn apply(&self, rows: &mut [Row], rate: f64, mask: u32, vocab: usize, seed: Seed) {
        if rate == 0.0 {
            return;
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let mut rng = seed.at(i as u64).rng();
            // Input t is what was asked for at t − 1.
            for (id, asked) in row.ids.iter_mut().skip(1).zip(&row.weights) {
                // As many draws for every token, so that none hangs on what became of those before.
                let (hide, replace) = (rng.uniform() < rate, rng.uniform() < self.replace_rate);
                let drawn = rng.below(vocab) as u32;
                if *asked != 0.0 && hide {
                    let random = replace || self.noise == Noise::Random;
                    *id = if random { drawn } else { mask };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 99;

    /// A prompt of `prompt` tokens and an answer of `answer`.
    fn row(prompt: usize, answer: usize) -> Row {
        let tokens: Vec<u32> = (0..(prompt + answer) as u32).collect();
        let weights = [vec![0.0; prompt], vec![1.0; answer]].concat();
        Row::from_tokens(&tokens, &weights, 0)
    }

    #[test]
    fn the_share_grows_over_two_thirds_of_the_run() {
        let at = |step| Corrupt::default().rate(step, 900);
        for (step, want) in [(0, 0.0), (100, 0.0672), (297, 0.1997), (595, 0.4), (899, 0.4)] {
            assert!((at(step) - want).abs() < 5e-5, "{step}: {}", at(step));
        }
        let none = Corrupt { mask_warmup_ratio: 0.0, ..Corrupt::default() };
        assert_eq!((none.rate(0, 900), none.rate(1, 900)), (0.0, 0.4));
    }

    #[test]
    fn answers_alone_are_hidden_as_often_as_is_said() {
        // 100 tokens of an answer are read (the last one is only asked for).
        let (rows, clean) = (vec![row(30, 101); 400], row(30, 101));
        let mut hidden = rows.clone();
        Corrupt::default().apply(&mut hidden, 0.4, MASK + 200, 1000, Seed(5));
        let mut counts = Vec::new();
        for row in &hidden {
            assert_eq!((&row.targets, &row.weights), (&clean.targets, &clean.weights));
            assert_eq!(row.ids[..30], clean.ids[..30], "the prompt");
            counts.push(row.ids.iter().filter(|id| **id == MASK + 200).count() as f64);
        }
        let mean = counts.iter().sum::<f64>() / 400.0;
        let spread = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 399.0;
        assert!((mean - 40.0).abs() < 1.0 && (spread.sqrt() - 4.9).abs() < 0.7, "{mean} {spread}");
        // Another row, another draw; the same seed, the same draw.
        assert_ne!(hidden[0], hidden[1]);
        let mut again = rows;
        Corrupt::default().apply(&mut again, 0.4, MASK + 200, 1000, Seed(5));
        assert_eq!(hidden, again);
    }

    #[test]
    fn only_what_was_asked_for_may_be_hidden() {
        // A question, an answer, a question, an answer.
        let weights = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0];
        let mut rows = vec![Row::from_tokens(&[1, 2, 3, 4, 5, 6, 7, 8], &weights, 0)];
        Corrupt::default().apply(&mut rows, 1.0, MASK, 100, Seed(1));
        assert_eq!(rows[0].ids, [1, 2, MASK, MASK, 5, 6, MASK]);
        assert_eq!(rows[0].targets, [2, 3, 4, 5, 6, 7, 8]);
        let mut none = vec![row(3, 4)];
        Corrupt::default().apply(&mut none, 0.0, MASK, 100, Seed(1));
        assert_eq!(none, [row(3, 4)]);
    }

    #[test]
    fn random_tokens_come_from_the_whole_vocabulary() {
        let random = Corrupt { noise: Noise::Random, ..Corrupt::default() };
        let half = Corrupt { replace_rate: 0.5, ..Corrupt::default() };
        let hidden = |corrupt: &Corrupt| {
            let mut rows = vec![row(1, 2001)];
            corrupt.apply(&mut rows, 1.0, 7000, 50, Seed(2));
            rows.remove(0).ids.split_off(1)
        };
        let mut seen = hidden(&random);
        assert!(seen.iter().all(|id| *id < 50));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 50);
        let masks = hidden(&half).iter().filter(|id| **id == 7000).count();
        assert!((900..1100).contains(&masks), "{masks}");
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_key() {
        for (text, key) in [
            ("mask_ratio = 1.5", "mask_ratio"),
            ("mask_warmup_ratio = -0.1", "mask_warmup_ratio"),
            ("replace_rate = 2.0", "replace_rate"),
        ] {
            let corrupt: Corrupt = toml::from_str(text).unwrap();
            let error = corrupt.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("train.corrupt.{key}: ")), "{error}");
        }
        let id: Corrupt = toml::from_str("mask_token = 12").unwrap();
        let text: Corrupt = toml::from_str("mask_token = \"<mask>\"").unwrap();
        assert_eq!(id.mask_token, Some(MaskToken::Id(12)));
        assert_eq!(text.mask_token, Some(MaskToken::Text("<mask>".into())));
        assert!(toml::from_str::<Corrupt>("noise = \"drop\"").is_err());
    }
}
