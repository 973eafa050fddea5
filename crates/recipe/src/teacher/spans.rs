//! A teacher with other tokens: what it says of spans that end at the same character for both.
//!
//! Both word an example by their own templates; compared are the texts of the trained turns, which are
//! the same. Cut where a token of the one and a token of the other end at the same byte, a turn falls
//! into spans. Of a span that is one token for both, the teacher's likeliest tokens are stored under the
//! ids of student's tokens with exactly the same bytes, those without such a token left out. Of any
//! other span one number is stored: the teacher's log-probability of its text, the sum over its tokens.
//! The tokens that close a turn mean the same, and are a span of one token.
//!
//! **Departures**: (1) the probability of a span's text is that of one way to cut it, the tokenizer's;
//! (2) a first token that reaches over the beginning of a turn belongs to no span.

use std::collections::HashMap;

use luthier_core::{Error, Result, Row, batch::Told};
use luthier_loss::term::distil::{INSIDE, NONE, SPAN};
use luthier_model::{Tokenizer, render::Rendered};

use super::Spoken;
use crate::decode::words;

/// An example as both have it, and which of their tokens belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Aligned {
    /// What the teacher is asked.
    pub teacher: Row,
    /// For each trained target of the student, in order, the span that it belongs to.
    spans: Vec<Option<usize>>,
    /// How many tokens of student and teacher each span has, and where the teacher's begin among its
    /// trained targets.
    sizes: Vec<(usize, usize, usize)>,
    /// The spans that close a turn.
    closing: Vec<usize>,
}

/// Tokens of one trained turn: their index, and where each ends in the turn's text.
struct Turn<'a> {
    text: &'a str,
    tokens: Vec<(usize, usize)>,
    /// The first token begins where the text does.
    whole: bool,
    close: Option<usize>,
}

/// Finds the spans of an example that both have rendered; `at` names it.
pub fn aligned(
    at: &str,
    student: (&Rendered, &Tokenizer),
    teacher: (&Rendered, &Tokenizer),
) -> Result<Aligned> {
    let (ours, theirs) = (turns(student.0, student.1), turns(teacher.0, teacher.1));
    let same =
        ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a.text == b.text);
    if !same {
        let differ = ours.iter().zip(&theirs).find(|(a, b)| a.text != b.text);
        let what = match differ {
            Some((a, b)) => {
                format!("the two templates word an answer as {:?} and {:?}", a.text, b.text)
            }
            None => format!(
                "has {} trained turns for one and {} for the other",
                ours.len(),
                theirs.len()
            ),
        };
        return Err(Error::input(at, what)
            .hint("only answers may be trained (loss_on = \"assistant\") across tokenizers"));
    }
    // Pairs of token lists.
    let mut found: Vec<(Vec<usize>, Vec<usize>, bool)> = Vec::new();
    for (own, other) in ours.iter().zip(&theirs) {
        found.extend(cut(own, other).into_iter().map(|(a, b)| (a, b, false)));
        if let (Some(own), Some(other)) = (own.close, other.close) {
            found.push((vec![own], vec![other], true));
        }
    }
    // A token is a target of the position before it.
    let mut weights = vec![0.0; teacher.0.tokens.len()];
    found.iter().flat_map(|(_, theirs, _)| theirs).for_each(|i| weights[*i] = 1.0);
    let mut place = vec![0; weights.len()];
    let mut next = 0;
    for (i, weight) in weights.iter().enumerate().skip(1) {
        place[i] = next;
        next += usize::from(*weight != 0.0);
    }
    let span_of: HashMap<usize, usize> = found
        .iter()
        .enumerate()
        .flat_map(|(span, (ours, _, _))| ours.iter().map(move |i| (*i, span)))
        .collect();
    let trained = (1..student.0.tokens.len()).filter(|i| student.0.weights[*i] != 0.0);
    Ok(Aligned {
        teacher: Row::from_tokens(&teacher.0.tokens, &weights, teacher.0.row.example),
        spans: trained.map(|i| span_of.get(&i).copied()).collect(),
        sizes: found.iter().map(|(a, b, _)| (a.len(), b.len(), place[b[0]])).collect(),
        closing: (0..found.len()).filter(|span| found[*span].2).collect(),
    })
}

/// The trained turns of an example, with what of their text is made of ordinary tokens.
fn turns<'a>(rendered: &'a Rendered, tokenizer: &Tokenizer) -> Vec<Turn<'a>> {
    let mut all = Vec::new();
    // The first token of a row has no predictor.
    let mut next = 1;
    for span in rendered.spans.iter().filter(|span| span.weight != 0.0 && !span.range.is_empty()) {
        let begin = span.range.start;
        let mut turn = Turn { text: "", tokens: Vec::new(), whole: true, close: None };
        let mut end = begin;
        while next < rendered.tokens.len() {
            let covers = &rendered.offsets[next];
            let later = covers.start >= span.range.end && !covers.is_empty();
            if later {
                break;
            }
            if rendered.weights[next] != 0.0 && covers.end >= begin {
                match tokenizer.is_special(rendered.tokens[next]) {
                    true if turn.close.is_none() => turn.close = Some(next),
                    true => {}
                    false if turn.close.is_none() && covers.end > begin => {
                        turn.whole &= !turn.tokens.is_empty() || covers.start == begin;
                        end = covers.end;
                        turn.tokens.push((next, covers.end - begin));
                    }
                    false => {}
                }
            }
            next += 1;
        }
        turn.text = rendered.text.get(begin..end).unwrap_or_default();
        all.push(turn);
    }
    all
}

/// Token lists between ends that both have.
fn cut(own: &Turn, other: &Turn) -> Vec<(Vec<usize>, Vec<usize>)> {
    let (mut spans, mut i, mut j) = (Vec::new(), 0, 0);
    let (mut a, mut b): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut whole = own.whole && other.whole;
    // Of several tokens of one character only the last ends with it.
    let ends = |tokens: &[(usize, usize)], at: usize| {
        tokens.get(at + 1).is_none_or(|(_, later)| *later > tokens[at].1)
    };
    while i < own.tokens.len() && j < other.tokens.len() {
        let (mine, theirs) = (own.tokens[i].1, other.tokens[j].1);
        let same = mine == theirs && ends(&own.tokens, i) && ends(&other.tokens, j);
        if same {
            a.push(own.tokens[i].0);
            b.push(other.tokens[j].0);
            (i, j) = (i + 1, j + 1);
            let span = (std::mem::take(&mut a), std::mem::take(&mut b));
            if whole {
                spans.push(span);
            }
            whole = true;
        } else if mine < theirs || (mine == theirs && !ends(&own.tokens, i)) {
            a.push(own.tokens[i].0);
            i += 1;
        } else {
            b.push(other.tokens[j].0);
            j += 1;
        }
    }
    spans
}

/// The student's token for every token of the teacher, where both are the same bytes.
pub(super) fn translated(teacher: &Tokenizer, student: &Tokenizer) -> Vec<Option<u32>> {
    let mut ids: HashMap<Vec<u8>, u32> = HashMap::new();
    for (id, word) in words(student).into_iter().enumerate() {
        if let Some(word) = word {
            ids.entry(word).or_insert(id as u32);
        }
    }
    words(teacher).into_iter().map(|word| ids.get(&word?).copied()).collect()
}

impl Aligned {
    /// What is stored for the student's row, of which `targets` are the trained ones. `closes` are the
    /// tokens that close a turn: the student's, and all of the teacher's.
    pub(super) fn told(
        &self,
        spoken: &Spoken,
        translated: &[Option<u32>],
        closes: (u32, &[u32]),
        targets: &[u32],
    ) -> Told {
        let k = spoken.told.k;
        let mut told = Told { k, ..Told::default() };
        let mut left: Vec<usize> = self.sizes.iter().map(|(tokens, _, _)| *tokens).collect();
        for (span, target) in self.spans.iter().zip(targets) {
            let mut entries: Vec<(u32, f32)> = Vec::with_capacity(k);
            match span.map(|span| (span, self.sizes[span])) {
                None => {}
                Some((span, (1, 1, at))) => {
                    let close = if self.closing.contains(&span) { *target } else { closes.0 };
                    let ids = &spoken.told.ids[at * k..][..k];
                    for (id, logp) in ids.iter().zip(&spoken.told.logps[at * k..][..k]) {
                        let own = match closes.1.contains(id) {
                            true => Some(close),
                            false => translated.get(*id as usize).copied().flatten(),
                        };
                        // Of several ways to close a turn the likeliest stands for all.
                        let own = own.filter(|own| entries.iter().all(|(known, _)| known != own));
                        entries.extend(own.map(|own| (own, *logp)));
                    }
                }
                Some((span, (_, theirs, at))) => {
                    left[span] -= 1;
                    let logp: f32 = spoken.targets[at..at + theirs].iter().sum();
                    entries.push(if left[span] == 0 { (SPAN, logp) } else { (INSIDE, 0.0) });
                }
            }
            entries.resize(k, (NONE, f32::NEG_INFINITY));
            told.ids.extend(entries.iter().map(|(id, _)| id));
            told.logps.extend(entries.iter().map(|(_, logp)| logp));
        }
        told
    }

    /// Trained targets that belong to a span, and all of them.
    pub(super) fn covered(&self) -> (usize, usize) {
        (self.spans.iter().flatten().count(), self.spans.len())
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Example, Form, Turn};
    use luthier_model::{
        render::{RenderOptions, render},
        tokenizer::GgufVocab,
    };

    use super::*;

    /// Bytes, and some words of several: ids 256 to 259 are `he`, `ll`, `hell`, ` o`.
    fn larger() -> Tokenizer {
        let bytes = Tokenizer::bytes();
        let mut tokens: Vec<String> = (0..256).map(|id| bytes.token(id).unwrap()).collect();
        tokens.extend(["he", "ll", "hell", "Ġo", "<eos>"].map(String::from));
        let types = [vec![1; 260], vec![3]].concat();
        let merges = ["h e", "l l", "he ll", "Ġ o"].map(String::from).to_vec();
        let (file, model) = ("larger".to_string(), "gpt2".to_string());
        let eos = Some(260);
        let vocab = GgufVocab { file, model, tokens, types, merges, eos, ..GgufVocab::default() };
        Tokenizer::from_gguf(vocab).unwrap()
    }

    fn rendered(answer: &str, tokenizer: &Tokenizer) -> Rendered {
        let prompt = vec![Turn::new("user", "say: ")];
        let mut example = Example::new("a.jsonl", 1, prompt, Some(Turn::new("assistant", answer)));
        example.form = Form::Raw;
        render(&example, 0, tokenizer, &RenderOptions::default()).unwrap()
    }

    fn texts(rendered: &Rendered, tokens: &[usize]) -> String {
        tokens.iter().map(|i| &rendered.text[rendered.offsets[*i].clone()]).collect()
    }

    #[test]
    fn texts_fall_into_spans_where_both_end_at_the_same_byte() {
        let (small, large) = (Tokenizer::bytes(), larger());
        let (a, b) = (rendered("hello é o", &small), rendered("hello é o", &large));
        let (ours, theirs) = (turns(&a, &small), turns(&b, &large));
        let found = cut(&ours[0], &theirs[0]);
        let shown: Vec<(String, usize, usize)> =
            found.iter().map(|(own, other)| (texts(&b, other), own.len(), other.len())).collect();
        // A character of two bytes is one span, of two tokens on both sides.
        let want = [("hell", 4, 1), ("o", 1, 1), (" ", 1, 1), ("éé", 2, 2), (" o", 2, 1)];
        assert_eq!(shown, want.map(|(text, a, b)| (text.to_string(), a, b)));
    }

    #[test]
    fn what_the_teacher_says_of_a_span_is_stored_at_its_end() {
        let (small, large) = (Tokenizer::bytes(), larger());
        let (a, b) = (rendered("hello o", &small), rendered("hello o", &large));
        let aligned = aligned("a", (&a, &small), (&b, &large)).unwrap();
        // hell · o · ␣o · end
        assert_eq!(aligned.teacher.trained(), 4);
        assert_eq!(aligned.covered(), (8, 8));
        let at = |byte: u8| u32::from(byte);
        let ids = vec![258, at(b'h'), at(b'o'), 256, 259, at(b'x'), 260, at(b'!')];
        let told = Told { k: 2, ids, logps: (1..9).map(|i| -(i as f32)).collect() };
        let spoken = Spoken { told, targets: vec![-0.5, -0.25, -2.0, -0.125] };
        let trained = a.row.targets.iter().zip(&a.row.weights).filter(|(_, w)| **w != 0.0);
        let targets: Vec<u32> = trained.map(|(t, _)| *t).collect();
        let stored = aligned.told(&spoken, &translated(&large, &small), (257, &[260]), &targets);
        let pairs: Vec<(u32, f32)> =
            stored.ids.iter().copied().zip(stored.logps.iter().copied()).collect();
        let none = (NONE, f32::NEG_INFINITY);
        let inside = [(INSIDE, 0.0), none];
        let want = [
            inside,
            inside,
            inside,
            [(SPAN, -0.5), none],
            // `he` is no token of the student.
            [(at(b'o'), -3.0), none],
            inside,
            [(SPAN, -2.0), none],
            [(257, -7.0), (at(b'!'), -8.0)],
        ];
        assert_eq!(pairs, want.concat());
    }

    #[test]
    fn answers_that_are_worded_otherwise_are_refused() {
        let (small, large) = (Tokenizer::bytes(), larger());
        let (a, b) = (rendered("hello", &small), rendered("hallo", &large));
        let error = aligned("a.jsonl:1", (&a, &small), (&b, &large)).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:1: ") && error.contains("hallo"), "{error}");
    }

    #[test]
    fn one_tokenizer_with_itself_has_spans_of_one_token() {
        let small = Tokenizer::bytes();
        let a = rendered("hello", &small);
        let same = aligned("a", (&a, &small), (&a, &small)).unwrap();
        assert!(same.sizes.iter().all(|(own, other, _)| (*own, *other) == (1, 1)));
        assert_eq!(same.teacher, a.row);
    }
}
