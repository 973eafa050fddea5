//! `[decode]`: whose logits, how they become one, what may come next, and how a token is chosen.
//!
//! A table of a recipe, and what `--decode FILE` reads. [`Decoding::open`] makes of it what runs.

mod ngram;
mod open;
mod prompts;
mod rectified;
mod rules;
mod vocabulary;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use luthier_core::{Error, Result};
use luthier_decode::{
    Beam, Sampler,
    combine::Kind as Combine,
    constrain::{Dry, RisingEnd, Seen},
};
use serde::{Deserialize, Serialize};

pub use ngram::Texts;
pub use open::{Decoding, Job};
pub use rectified::CopilotBy;
pub use vocabulary::{compare, words};

/// The table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decode {
    /// Answers drawn for each prompt, of which the one with the best mean log-probability is given.
    pub best_of: usize,
    /// Answers drawn for each prompt, of which the one that most agree on is given.
    pub self_consistency: usize,
    /// Who gives logits besides `policy` (the model with its adapter) and `base` (without).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Source>,
    /// How they become one.
    pub combine: Combine,
    /// What may come next.
    pub constrain: Rules,
    /// How a token is chosen; on the command line, flags come first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// Search in the place of choosing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beam: Option<Beam>,
    /// One source writes ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<DraftBy>,
}

impl Default for Decode {
    fn default() -> Self {
        Decode {
            best_of: 1,
            self_consistency: 1,
            sources: BTreeMap::new(),
            combine: Combine::default(),
            constrain: Rules::default(),
            sampler: None,
            beam: None,
            draft: None,
        }
    }
}

/// `[decode.sources.NAME]`: a model and the prompt it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// `policy`, `base` (the same without its adapter), a built-in name, a hub id, a folder or a file.
    pub model: String,
    /// Folder of an adapter for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// What tuning contributes to each block, times this number: what an adapter does, or what the
    /// model differs by from `base`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaled: Option<f64>,
    /// For `scaled`: what the model was tuned from, where that is no adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Its probabilities are corrected by what was trained beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copilot: Option<CopilotBy>,
    /// In the place of a model: what came next in these texts after the same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ngram: Option<Texts>,
    /// How the prompt is worded.
    pub template: Template,
    /// Another system turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Another text in the last user turn: what the answer should not follow, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl Default for Source {
    fn default() -> Self {
        Source {
            model: POLICY.to_string(),
            adapter: None,
            scaled: None,
            base: None,
            copilot: None,
            ngram: None,
            template: Template::Same,
            system: None,
            user: None,
        }
    }
}

/// How a source's prompt is worded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// By the policy's chat template: all read the same tokens, unless `system` or `user` differ.
    #[default]
    Same,
    /// By the source's own chat template.
    Own,
    /// The turns' words as they are.
    Raw,
    /// The last token of the policy's prompt and nothing else, as unconditional sources have it in
    /// transformers.
    LastToken,
}

/// `[decode.draft]`: speculative decoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftBy {
    /// The source that writes ahead; its logits have a part in the combination.
    pub source: String,
    /// Tokens at a time.
    #[serde(default = "draft_tokens")]
    pub tokens: usize,
}

/// The paper of the emulated speculation names no number; drafts of this length pay elsewhere.
fn draft_tokens() -> usize {
    5
}

/// `[decode.constrain]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// A file with a JSON schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<PathBuf>,
    /// A regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// A few texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choice: Vec<String>,
    /// A file with a Lark grammar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<PathBuf>,
    /// Words by what is added to their logits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub shift: BTreeMap<String, f32>,
    /// The end grows likelier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rising_end: Option<RisingEnd>,
    /// What is there already gets less likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// Repetitions of stretches get less likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry: Option<Dry>,
}

/// The model that is asked, with its adapter.
pub const POLICY: &str = "policy";
/// The same without.
pub const BASE: &str = "base";

impl Decode {
    /// Places files as the recipe means them, relative to its own folder.
    pub fn rebase(&mut self, base: &Path) {
        for source in self.sources.values_mut() {
            for model in [&mut source.model].into_iter().chain(&mut source.base) {
                let local = base.join(&*model);
                // A model may be a name; it is a path only if something stands there.
                if !model.is_empty() && ![POLICY, BASE].contains(&&**model) && local.exists() {
                    *model = local.display().to_string();
                }
            }
            source.adapter.iter_mut().for_each(|dir| *dir = base.join(&*dir));
            source.copilot.iter_mut().for_each(|by| by.folder = base.join(&by.folder));
            source.ngram.iter_mut().for_each(|texts| texts.data = base.join(&texts.data));
        }
        let rules = &mut self.constrain;
        for file in [&mut rules.json_schema, &mut rules.grammar].into_iter().flatten() {
            *file = base.join(&*file);
        }
    }

    /// Answers that are drawn for each prompt.
    pub fn several(&self) -> usize {
        self.best_of.max(self.self_consistency)
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<()> {
        for (key, n) in [("best_of", self.best_of), ("self_consistency", self.self_consistency)] {
            if n == 0 {
                return Err(Error::input(format!("decode.{key}"), "expected at least 1, got 0"));
            }
        }
        if self.best_of > 1 && self.self_consistency > 1 {
            let what = "contradicts self_consistency: both choose among several answers";
            return Err(Error::input("decode.best_of", what).hint("keep one of the two"));
        }
        if let Some(beam) = &self.beam {
            beam.check()?;
            if self.several() > 1 {
                let what = "a search finds the same answer every time";
                return Err(Error::input("decode.beam", what)
                    .hint("leave out best_of and self_consistency"));
            }
        }
        self.sources.iter().try_for_each(|(name, source)| source.check(name))?;
        self.constrain.check()
    }
}

impl Source {
    fn check(&self, name: &str) -> Result<()> {
        let at = format!("decode.sources.{name}");
        if self.base.is_some() && self.scaled.is_none() {
            return Err(Error::input(format!("{at}.base"), "is for `scaled`, which is not given"));
        }
        if self.copilot.is_some() && (self.scaled.is_some() || self.ngram.is_some()) {
            let what =
                "contradicts scaled and ngram: a copilot knows the errors of a model as it is";
            return Err(Error::input(format!("{at}.copilot"), what));
        }
        let Some(texts) = &self.ngram else { return Ok(()) };
        if self.model != POLICY || self.adapter.is_some() || self.scaled.is_some() {
            let what = "contradicts model, adapter and scaled: texts have no weights";
            return Err(Error::input(format!("{at}.ngram"), what));
        }
        texts.check(&format!("{at}.ngram"))
    }
}

impl Rules {
    fn check(&self) -> Result<()> {
        let forms = [
            ("json_schema", self.json_schema.is_some()),
            ("regex", self.regex.is_some()),
            ("choice", !self.choice.is_empty()),
            ("grammar", self.grammar.is_some()),
        ];
        let given: Vec<&str> = forms.iter().filter(|(_, given)| *given).map(|(n, _)| *n).collect();
        if let [first, second, ..] = given.as_slice() {
            let what = format!("contradicts decode.constrain.{second}: an answer has one form");
            return Err(Error::input(format!("decode.constrain.{first}"), what));
        }
        if let Some((text, bias)) = self.shift.iter().find(|(_, bias)| !bias.is_finite()) {
            let what = format!("expected a finite number for `{text}`, got {bias}");
            return Err(Error::input("decode.constrain.shift", what));
        }
        self.rising_end.as_ref().map_or(Ok(()), RisingEnd::check)?;
        self.seen.as_ref().map_or(Ok(()), Seen::check)?;
        self.dry.as_ref().map_or(Ok(()), Dry::check)
    }
}

#[cfg(test)]
mod tests;
