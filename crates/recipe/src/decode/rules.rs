//! `[decode.constrain]` for one tokenizer: texts become tokens.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use luthier_core::{Error, Result, io};
use luthier_decode::{
    Constrain,
    constrain::{Dry, Format, Grammar, LogitBias, RisingEnd, Seen, Vocabulary},
};
use luthier_model::Tokenizer;

use super::{Rules, words};

/// The constraints, in the order in which they act.
pub(super) fn constraints(rules: &Rules, tokenizer: &Tokenizer) -> Result<Vec<Arc<dyn Constrain>>> {
    let eos = tokenizer.eos_ids().to_vec();
    let mut all: Vec<Arc<dyn Constrain>> = Vec::new();
    if !rules.shift.is_empty() {
        all.push(Arc::new(LogitBias { bias: shift(&rules.shift, tokenizer)? }));
    }
    if let Some(rule) = &rules.rising_end {
        all.push(Arc::new(RisingEnd { eos: eos.clone(), ..rule.clone() }));
    }
    if let Some(rule) = &rules.seen {
        let mark = tokenizer.encode(&rule.after)?;
        all.push(Arc::new(Seen { mark, eos: eos.clone(), ..rule.clone() }));
    }
    if let Some(rule) = &rules.dry {
        // The last token of a breaker's text, as it is cut behind another letter.
        let breaker = |text: &String| -> Result<Option<u32>> {
            Ok(tokenizer.encode(&format!("a{text}"))?.last().copied())
        };
        let mut breakers = Vec::new();
        for text in &rule.sequence_breakers {
            breakers.extend(breaker(text)?);
        }
        all.push(Arc::new(Dry { breakers, ..rule.clone() }));
    }
    // The form comes last, for what it forbids is forbidden.
    if let Some(format) = format(rules)? {
        let vocabulary = Vocabulary::new(words(tokenizer), &eos)?;
        all.push(Arc::new(Grammar::new(&format, &vocabulary)?));
    }
    Ok(all)
}

/// The form of an answer.
fn format(rules: &Rules) -> Result<Option<Format>> {
    if let Some(path) = &rules.json_schema {
        return schema(path).map(|schema| Some(Format::JsonSchema(schema)));
    }
    if let Some(path) = &rules.grammar {
        return Ok(Some(Format::Grammar(io::read_text(path)?)));
    }
    let choice = || (!rules.choice.is_empty()).then(|| Format::Choice(rules.choice.clone()));
    Ok(rules.regex.clone().map(Format::Regex).or_else(choice))
}

fn schema(path: &Path) -> Result<serde_json::Value> {
    let text = io::read_text(path)?;
    serde_json::from_str(&text).map_err(|e| {
        let at = format!("{}:{}", path.display(), e.line());
        Error::input(at, format!("is no JSON: {e}"))
    })
}

/// Words to ids; a word of several tokens cannot be shifted, and is told of.
fn shift(words: &BTreeMap<String, f32>, tokenizer: &Tokenizer) -> Result<BTreeMap<u32, f32>> {
    let (mut bias, mut left_out) = (BTreeMap::new(), Vec::new());
    for (text, by) in words {
        let id = match tokenizer.id(text) {
            Some(id) => Some(id),
            None => match tokenizer.encode(text)?.as_slice() {
                [one] => Some(*one),
                _ => None,
            },
        };
        match id {
            // Two spellings of one token count once, as the rule means them.
            Some(id) => {
                bias.insert(id, *by);
            }
            None => left_out.push(format!("{text:?}")),
        }
    }
    if !left_out.is_empty() {
        let what = "are not single tokens of this model and stay as they are";
        tracing::warn!("decode.constrain.shift: {} {what}", left_out.join(", "));
    }
    Ok(bias)
}
