//! Where each assistant turn is in the rendered text.
//!
//! Templates with `{% generation %}` say so. For all others the conversation is rendered again up to
//! the turn: what the template adds between "the assistant is about to speak" and "the assistant has
//! spoken" is the assistant's. Templates that rewrite earlier turns (dropping old reasoning) spoil
//! that comparison; then a marked content shows where the turn ended up.

use std::ops::Range;

use luthier_core::{Error, Example, Result, Turn};
use serde_json::Value;

use super::{Span, conversation};
use crate::tokenizer::Tokenizer;

/// Letters that no conversation holds and no template trims, capitalises or splits.
const MARK: &str = "qzxjvkwqzluthierxjqvzk";

pub struct Speech<'a> {
    pub example: &'a Example,
    pub turns: &'a [&'a Turn],
    pub messages: &'a [Value],
    pub tokenizer: &'a Tokenizer,
}

impl Speech<'_> {
    /// The whole text, and the spans of its turns in order. Turns that cannot be found are left to
    /// the template when their weight is 0, or when `everything` is trained anyway.
    pub fn locate(&self, weights: &[f32], everything: bool) -> Result<(String, Vec<Span>)> {
        let whole = self.tokenizer.chat(&conversation(self.example, self.messages, false))?;
        let text = whole.text;
        let assistants: Vec<usize> =
            (0..self.turns.len()).filter(|i| self.turns[*i].role == "assistant").collect();
        let marked = self.tokenizer.template().is_some_and(|t| t.marks_generation());
        let mut given = if marked { whole.generation } else { Vec::new() };
        if marked {
            given = self.match_blocks(given, &assistants, weights)?;
        }
        let others = self.others(&text, &assistants);
        let mut spans: Vec<Span> = Vec::new();
        let mut cursor = 0;
        for (i, turn) in self.turns.iter().enumerate() {
            let needed = weights[i] != 0.0 && (!everything || turn.weight.is_some());
            let mut exact = true;
            let mut range = match assistants.binary_search(&i) {
                Ok(nth) if marked => given.get(nth).cloned().map(|r| self.close(&text, r)),
                Ok(_) if needed => Some(self.spoken(&text, cursor, i)?),
                Ok(_) => self.spoken(&text, cursor, i).ok(),
                Err(_) => match &others {
                    Some(places) => places[i].clone(),
                    None if needed => self.marked(&text, cursor, i, 0, "")?,
                    None => {
                        exact = false;
                        quoted(&text, cursor, turn)
                    }
                },
            };
            if turn.weight.is_some_and(|w| w != 0.0) {
                range = range.map(|r| self.close(&text, r));
            }
            let Some(range) = range.filter(|r| !exact || r.start >= cursor) else {
                match needed {
                    true => return Err(self.lost(i)),
                    false => continue,
                }
            };
            if exact {
                cursor = range.end;
                // A guess that turns out to lie in another turn was a wrong guess.
                while spans.last().is_some_and(|s| s.range.end > range.start) {
                    spans.pop();
                }
            }
            spans.push(Span { turn: i, role: turn.role.clone(), range, weight: weights[i] });
        }
        Ok((text, spans))
    }

    fn render(&self, messages: &[Value], open: bool) -> Result<String> {
        Ok(self.tokenizer.chat(&conversation(self.example, messages, open))?.text)
    }

    fn lost(&self, turn: usize) -> Error {
        let what = format!(
            "turn {} ({}) cannot be found in the text that the chat template makes",
            turn + 1,
            self.turns[turn].role
        );
        Error::input(self.tokenizer.name(), what)
            .hint("mark the assistant's words with {% generation %} … {% endgeneration %} in the template, or switch the turn off with \"weight\": 0")
    }

    /// One range per assistant turn from the template's blocks; several blocks cannot be told apart
    /// unless their number is the number of turns.
    fn match_blocks(
        &self,
        blocks: Vec<Range<usize>>,
        assistants: &[usize],
        weights: &[f32],
    ) -> Result<Vec<Range<usize>>> {
        if blocks.len() == assistants.len() || assistants.iter().all(|i| weights[*i] == 0.0) {
            return Ok(blocks);
        }
        let what = format!(
            "the chat template marks {} stretches as generated, the conversation has {} assistant turns",
            blocks.len(),
            assistants.len()
        );
        Err(Error::input(self.tokenizer.name(), what))
    }

    /// Ends a range at its end-of-turn token: takes the token in when it follows directly, leaves
    /// blanks after it out.
    fn close(&self, text: &str, range: Range<usize>) -> Range<usize> {
        let kept = text[range.clone()].trim_end();
        let specials = || {
            let ids = self.tokenizer.eos_ids().iter();
            ids.filter_map(|id| self.tokenizer.token(*id))
        };
        if specials().any(|token| kept.ends_with(&token)) {
            return range.start..range.start + kept.len();
        }
        let behind = &text[range.end..];
        let blanks = behind.len() - behind.trim_start().len();
        let found = specials().find(|token| behind[blanks..].starts_with(token.as_str()));
        range.start..range.end + found.map_or(0, |token| blanks + token.len())
    }

    /// The assistant's turn `i`, searched behind `cursor`.
    fn spoken(&self, text: &str, cursor: usize, i: usize) -> Result<Range<usize>> {
        let opened = self.render(&self.messages[..i], true)?;
        let last = i + 1 == self.messages.len();
        let spoken = if last { None } else { Some(self.render(&self.messages[..=i], false)?) };
        let upto = spoken.as_deref().unwrap_or(text);
        if upto.starts_with(&opened) && text.starts_with(upto) && opened.len() >= cursor {
            return Ok(self.trim(text, opened.len()..upto.len()));
        }
        let closed = self.render(&self.messages[..i], false).unwrap_or_default();
        let header = &opened[common(&opened, &closed)..];
        for kept in kept_reasoning(&self.turns[i].content) {
            if let Some(found) = self.marked(text, cursor, i, kept, header)? {
                return Ok(found);
            }
        }
        // A turn without words of its own (tool calls): its whole rendering, wherever it went.
        if let Some(said) = upto.strip_prefix(opened.as_str()) {
            let whole = format!("{header}{}", said.trim_end());
            if let Some(at) = text[cursor..].find(&whole) {
                let begin = cursor + at;
                return Ok(self.trim(text, begin + header.len()..begin + whole.len()));
            }
        }
        Err(self.lost(i))
    }

    /// Replaces what follows the first `kept` bytes of the turn's content by a mark. If everything
    /// else renders the same, the mark stands where the content stood.
    fn marked(
        &self,
        text: &str,
        cursor: usize,
        i: usize,
        kept: usize,
        header: &str,
    ) -> Result<Option<Range<usize>>> {
        let content = &self.turns[i].content;
        let mut messages = self.messages.to_vec();
        messages[i]["content"] = Value::from(format!("{}{MARK}", &content[..kept]));
        // The template may refuse the changed conversation; then this way is closed, no more.
        let Ok(changed) = self.render(&messages, false) else { return Ok(None) };
        let Some((before, after)) = changed.split_once(MARK) else { return Ok(None) };
        let fits = text.len() >= before.len() + after.len()
            && before.len() >= cursor
            && text.starts_with(before)
            && text.ends_with(after);
        if !fits {
            return Ok(None);
        }
        // Between header and content the template may have put what the model would say itself.
        let begin = match before[cursor..].rfind(header) {
            Some(at) if !header.is_empty() => cursor + at + header.len(),
            _ => before.len(),
        };
        let end = text.len() - after.len();
        Ok(Some(self.close(text, begin..end)))
    }

    /// A range that may reach past the end of the turn, cut behind its last special token.
    fn trim(&self, text: &str, range: Range<usize>) -> Range<usize> {
        let kept = text[range.clone()].trim_end();
        let special =
            |token: &str| self.tokenizer.id(token).is_some_and(|id| self.tokenizer.is_special(id));
        let eos = self.tokenizer.eos_ids().iter().filter_map(|id| self.tokenizer.token(*id));
        if eos.into_iter().any(|token| kept.ends_with(&token)) || ends_special(kept, special) {
            return range.start..range.start + kept.len();
        }
        range
    }

    /// Where the words of all turns but the assistant's stand: rendered once more with marks in
    /// their place, the text between the marks must be the same. `None` if it is not.
    fn others(&self, text: &str, assistants: &[usize]) -> Option<Vec<Option<Range<usize>>>> {
        let mut messages = self.messages.to_vec();
        let marked: Vec<usize> = (0..self.turns.len())
            .filter(|i| assistants.binary_search(i).is_err() && !self.turns[*i].content.is_empty())
            .collect();
        for i in &marked {
            messages[*i]["content"] = Value::from(format!("{MARK}{i}z"));
        }
        let skeleton = self.render(&messages, false).ok()?;
        let mut places = vec![None; self.turns.len()];
        let (mut rest, mut cursor) = (skeleton.as_str(), 0);
        for i in marked {
            // A template may leave a turn out altogether.
            let Some((literal, after)) = rest.split_once(&format!("{MARK}{i}z")) else { continue };
            cursor += text[cursor..].starts_with(literal).then_some(literal.len())?;
            let words = self.turns[i].content.as_str();
            let next = after.split(MARK).next().unwrap_or_default();
            let variants = [words, words.trim(), words.trim_end(), words.trim_start()];
            let fits =
                |w: &&str| text[cursor..].strip_prefix(*w).is_some_and(|t| t.starts_with(next));
            let words = variants.into_iter().find(fits)?;
            places[i] = Some(cursor..cursor + words.len());
            cursor += words.len();
            rest = after;
        }
        (text[cursor..] == *rest).then_some(places)
    }
}

/// A turn whose words stand somewhere in the text as they are; good enough to show, not to train.
fn quoted(text: &str, cursor: usize, turn: &Turn) -> Option<Range<usize>> {
    let words = turn.content.trim();
    let begin = cursor + text[cursor..].find(words).filter(|_| !words.is_empty())?;
    Some(begin..begin + words.len())
}

/// Whether `text` ends in `<…>` or `[…]` spelling a special token.
fn ends_special(text: &str, special: impl Fn(&str) -> bool) -> bool {
    text.char_indices().rev().take(64).any(|(i, c)| matches!(c, '<' | '[') && special(&text[i..]))
}

/// Bytes that two texts share from the beginning, on a character boundary of the first.
fn common(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=same).rev().find(|i| a.is_char_boundary(*i)).unwrap_or(0)
}

/// How much of a content to keep in front of the mark: nothing, or the reasoning that a template
/// might treat apart.
fn kept_reasoning(content: &str) -> Vec<usize> {
    let mut kept = vec![0];
    if let Some(at) = content.rfind("</think>") {
        kept.push(at + "</think>".len());
    }
    kept
}
