//! Decoding one token at a time.

use luthier_core::Result;

use super::Tokenizer;

/// Turns ids into text as they arrive.
///
/// Bytes of an unfinished character wait for the tokens that complete it, and decoders that look at
/// their neighbours (a leading blank that only the first word loses) see them.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens already told, then those that wait.
    window: Vec<u32>,
    told: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Stream { tokenizer, window: Vec::new(), told: 0 }
    }

    /// The text that `id` completes; empty while a character is unfinished. Special tokens are
    /// silent.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let (before, now) = self.texts()?;
        if now.ends_with('\u{FFFD}') || now.len() < before.len() {
            return Ok(String::new());
        }
        let new = now.get(before.len()..).unwrap_or_default().to_string();
        if !new.is_empty() {
            self.window.drain(..self.told);
            self.told = self.window.len();
        }
        Ok(new)
    }

    /// What is left when no more tokens come: an unfinished character shows as `�`.
    pub fn finish(self) -> Result<String> {
        let (before, now) = self.texts()?;
        Ok(now.get(before.len()..).unwrap_or_default().to_string())
    }

    fn texts(&self) -> Result<(String, String)> {
        Ok((
            self.tokenizer.decode(&self.window[..self.told])?,
            self.tokenizer.decode(&self.window)?,
        ))
    }
}
