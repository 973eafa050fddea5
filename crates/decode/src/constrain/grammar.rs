//! Answers of a given form: a JSON schema, a regular expression, a choice of texts, a Lark grammar.
//!
//! The `llguidance` crate walks a trie of the vocabulary's bytes along its parser; what comes out is the
//! set of tokens that the form allows next. The answer may end where the form is complete, and must where
//! nothing can follow.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Constrain;
use crate::SoFar;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A value that this JSON schema allows.
    JsonSchema(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in llguidance's variant of Lark's notation.
    Grammar(String),
}

impl Format {
    fn grammar(&self) -> Result<TopLevelGrammar> {
        Ok(match self {
            Format::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Format::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Format::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
            Format::Choice(texts) => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    return Err(Error::input(self.key(), "expected texts, got an empty one"));
                }
                // Strings of Lark are quoted as JSON's are.
                let quoted = texts.iter().map(|text| Value::from(text.as_str()).to_string());
                let choice: Vec<String> = quoted.collect();
                TopLevelGrammar::from_lark(format!("start: {}", choice.join(" | ")))
            }
        })
    }

    /// Its key in a recipe.
    fn key(&self) -> &'static str {
        match self {
            Format::JsonSchema(_) => "decode.constrain.json_schema",
            Format::Regex(_) => "decode.constrain.regex",
            Format::Choice(_) => "decode.constrain.choice",
            Format::Grammar(_) => "decode.constrain.grammar",
        }
    }
}

/// The bytes that every token stands for.
#[derive(Clone)]
pub struct Vocabulary {
    env: TokEnv,
    eos: Vec<u32>,
}

impl Vocabulary {
    /// `words[id]` are the bytes of token `id`, `None` for a special token, which no form allows; `eos`
    /// are those that end an answer.
    pub fn new(words: Vec<Option<Vec<u8>>>, eos: &[u32]) -> Result<Self> {
        let Some(end) = eos.first().copied() else {
            return Err(Error::input("decode.constrain", "there is no end-of-sequence token")
                .hint("an answer of a given form has to end"));
        };
        if let Some(id) = eos.iter().find(|id| **id as usize >= words.len()) {
            let what = format!("end-of-sequence id {id} is outside of the {} tokens", words.len());
            return Err(Error::input("decode.constrain", what));
        }
        let special =
            |id: usize| [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{id}>").as_bytes()].concat();
        let words: Vec<Vec<u8>> =
            words.into_iter().enumerate().map(|(i, w)| w.unwrap_or_else(|| special(i))).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(eos)));
        Ok(Vocabulary { env, eos: eos.to_vec() })
    }
}

/// A parser and the tokens it has read.
struct Begun {
    read: Vec<u32>,
    matcher: Matcher,
}

/// Leaves the tokens that a form allows.
pub struct Grammar {
    fresh: Mutex<Matcher>,
    /// Parsers of sequences on their way; what is allowed follows from the tokens alone, so which of
    /// them reads on is a matter of speed.
    begun: Mutex<Vec<Begun>>,
    eos: Vec<u32>,
}

/// Parsers kept: more sequences are seldom live at a time.
const KEPT: usize = 64;

impl Grammar {
    /// The constraint to `format`, or why it cannot be one.
    pub fn new(format: &Format, vocabulary: &Vocabulary) -> Result<Self> {
        let refused = |e: String| Error::input(format.key(), e.trim().to_string());
        // Without slices: they pay for grammars that allow most of the vocabulary most of the time.
        let factory = ParserFactory::new(&vocabulary.env, InferenceCapabilities::default(), &[]);
        let mut factory = factory.map_err(|e| refused(e.to_string()))?;
        factory.quiet();
        let parser = factory.create_parser(format.grammar()?);
        let matcher = Matcher::new(Ok(parser.map_err(|e| refused(format!("{e:#}")))?));
        if let Some(error) = matcher.get_error() {
            return Err(refused(error));
        }
        let (fresh, begun) = (Mutex::new(matcher), Mutex::new(Vec::new()));
        Ok(Grammar { fresh, begun, eos: vocabulary.eos.clone() })
    }

    /// The parser that has read most of `tokens`, or a new one.
    fn take(&self, tokens: &[u32]) -> Begun {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = begun.iter().enumerate().filter(|(_, b)| tokens.starts_with(&b.read));
        // One that has read nothing is not better than a new one.
        let best = fits.max_by_key(|(_, b)| b.read.len()).filter(|(_, b)| !b.read.is_empty());
        match best.map(|(i, _)| i) {
            Some(i) => begun.swap_remove(i),
            None => {
                drop(begun);
                let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
                Begun { read: Vec::new(), matcher: fresh.deep_clone() }
            }
        }
    }

    /// Leaves what is allowed; false where the parser gives up.
    fn mask(&self, one: &mut Begun, tokens: &[u32], logits_v: &mut [f32]) -> bool {
        let new = &tokens[one.read.len()..];
        one.read.extend_from_slice(new);
        let Ok(allowed) =
            (one.matcher.consume_tokens(new)).and_then(|()| one.matcher.compute_mask_or_eos())
        else {
            return false;
        };
        let ends = self.eos.iter().any(|id| allowed.is_allowed(*id));
        for (id, logit) in logits_v.iter_mut().enumerate() {
            let stays = match self.eos.contains(&(id as u32)) {
                true => ends,
                false => id < allowed.len() && allowed.is_allowed(id as u32),
            };
            if !stays {
                *logit = f32::NEG_INFINITY;
            }
        }
        true
    }
}

impl Constrain for Grammar {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let mut one = self.take(so_far.tokens);
        if !self.mask(&mut one, so_far.tokens, logits_v) {
            // Nothing is allowed after a text that is not of the form; choosing says so.
            return logits_v.fill(f32::NEG_INFINITY);
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.len() >= KEPT {
            begun.remove(0);
        }
        begun.push(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as tokens, a few longer ones, and two ends.
    fn vocabulary() -> (Vec<Option<Vec<u8>>>, Vec<u32>) {
        let mut words: Vec<Option<Vec<u8>>> = (0..=255u8).map(|b| Some(vec![b])).collect();
        words.extend(["{\"", "\":", "true", "ab", "abc"].map(|w| Some(w.as_bytes().to_vec())));
        words.extend([None, None, None]);
        (words, vec![262, 263])
    }

    /// Tokens allowed after the bytes of `text`.
    fn allowed(grammar: &Grammar, text: &str) -> Vec<u32> {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let mut logits = vec![0.0; 264];
        grammar.constrain(&SoFar { prompt: &[1, 2], tokens: &tokens }, &mut logits);
        (0..264).filter(|id| logits[*id as usize] == 0.0).collect()
    }

    fn of(format: Format) -> Grammar {
        let (words, eos) = vocabulary();
        Grammar::new(&format, &Vocabulary::new(words, &eos).unwrap()).unwrap()
    }

    #[test]
    fn a_choice_allows_its_texts_and_then_the_end() {
        let grammar = of(Format::Choice(vec!["abc".into(), "abd".into(), "x\"y".into()]));
        let a = u32::from(b'a');
        assert_eq!(allowed(&grammar, ""), [a, u32::from(b'x'), 259, 260]);
        assert_eq!(allowed(&grammar, "ab"), [u32::from(b'c'), u32::from(b'd')]);
        assert_eq!(allowed(&grammar, "x\"y"), [262, 263]);
        assert!(allowed(&grammar, "zz").is_empty());
        // Whatever was asked before, the answer is the same.
        assert_eq!(allowed(&grammar, "ab"), [u32::from(b'c'), u32::from(b'd')]);
    }

    #[test]
    fn a_regex_may_end_where_it_matches() {
        let grammar = of(Format::Regex("[0-9]{2,3}".into()));
        let digits: Vec<u32> = (b'0'..=b'9').map(u32::from).collect();
        assert_eq!(allowed(&grammar, "4"), digits);
        assert_eq!(allowed(&grammar, "42"), [&digits[..], &[262, 263]].concat());
        assert_eq!(allowed(&grammar, "421"), [262, 263]);
    }

    #[test]
    fn a_schema_leads_to_json() {
        let schema = serde_json::json!({
            "type": "object", "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"], "additionalProperties": false,
        });
        let grammar = of(Format::JsonSchema(schema));
        assert!(allowed(&grammar, "").contains(&256));
        assert!(allowed(&grammar, "{\"ok\":").contains(&258));
        assert!(!allowed(&grammar, "{\"ok\":").contains(&u32::from(b'1')));
        assert!(allowed(&grammar, "{\"ok\":true}").contains(&262));
        assert!(!allowed(&grammar, "{\"ok\":true").contains(&262));
    }

    #[test]
    fn a_lark_grammar_counts_its_brackets() {
        let grammar = of(Format::Grammar("start: \"(\" start? \")\"".into()));
        assert_eq!(allowed(&grammar, "(("), [u32::from(b'('), u32::from(b')')]);
        assert_eq!(allowed(&grammar, "(())"), [262, 263]);
    }

    #[test]
    fn what_is_no_form_is_refused_by_its_key() {
        let (words, eos) = vocabulary();
        let vocabulary = Vocabulary::new(words.clone(), &eos).unwrap();
        for (format, key) in [
            (Format::Regex("(".into()), "decode.constrain.regex"),
            (Format::Grammar("start: nothing".into()), "decode.constrain.grammar"),
            (Format::Choice(vec![]), "decode.constrain.choice"),
            (Format::JsonSchema(serde_json::json!({"type": "sock"})), "decode.constrain.json"),
        ] {
            let error = Grammar::new(&format, &vocabulary).err().expect("no form");
            assert!(error.to_string().starts_with(key) && error.exit_code() == 2, "{error}");
        }
        assert!(Vocabulary::new(words, &[]).is_err());
    }
}
