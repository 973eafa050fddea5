//! A source that reads a prompt of its own before the common answer: another chat template, no prompt
//! at all, or a negative one.

use std::sync::Arc;

use luthier_core::{Error, Result, Rows};

use super::{Source, Step};

/// Puts its own prompt in the place of each sequence's, and all positions behind it.
pub struct Reworded<'a> {
    inner: Box<dyn Source + 'a>,
    own: Vec<Vec<u32>>,
    /// Lengths of the prompts that are replaced.
    common: Vec<usize>,
}

impl<'a> Reworded<'a> {
    /// `own[i]` takes the place of the common `prompts[i]`.
    pub fn new(
        inner: Box<dyn Source + 'a>,
        own: Vec<Vec<u32>>,
        prompts: &[Vec<u32>],
    ) -> Result<Self> {
        if own.len() != prompts.len() {
            let what = format!("expected {} prompts, got {}", prompts.len(), own.len());
            return Err(Error::failed("decode.sources", what));
        }
        if let Some(i) = own.iter().position(Vec::is_empty) {
            let what = "a source's own prompt has no token";
            return Err(Error::input(format!("prompt {}", i + 1), what)
                .hint("begin with the model's beginning-of-sequence token"));
        }
        let vocab = inner.vocab();
        if let Some(id) = own.iter().flatten().find(|id| **id as usize >= vocab) {
            let what = format!("token id {id} is out of range: the vocabulary has {vocab} tokens");
            return Err(Error::input("decode.sources", what));
        }
        Ok(Reworded { inner, own, common: prompts.iter().map(Vec::len).collect() })
    }
}

impl Source for Reworded<'_> {
    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let (mut ids_n, mut lengths, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, prompt) in step.prompts_b.iter().enumerate() {
            let range = step.rows.range(row);
            let start = step.rows.positions_n[range.start] as usize;
            let before = ids_n.len();
            let (own, common) = (&self.own[*prompt], self.common[*prompt]);
            // A row begins with the whole prompt or behind it.
            let new = match start {
                0 => {
                    ids_n.extend_from_slice(own);
                    starts.push(0);
                    range.start + common
                }
                _ => {
                    starts.push(start - common + own.len());
                    range.start
                }
            };
            ids_n.extend_from_slice(&step.ids_n[new..range.end]);
            lengths.push(ids_n.len() - before);
        }
        let rows = Arc::new(Rows::new(&lengths, |row| starts[row]));
        self.inner.step(&Step { ids_n: &ids_n, rows, ..step.clone() }, logits_bv)
    }

    fn free(&mut self, slot: usize) {
        self.inner.free(slot);
    }
}
