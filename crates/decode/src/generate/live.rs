//! One sequence while it grows.

use super::{Finish, Generate, Generated, Reading};
use crate::{TokenText, constrain::Stops, text::Incremental};

/// A sequence that occupies a slot.
pub(super) struct Live {
    /// Index of its prompt.
    pub sequence: usize,
    /// Where the sources keep what they know of it.
    pub slot: usize,
    /// Tokens the sources have not read.
    pub unread: Vec<u32>,
    /// Number of tokens they have read.
    pub read: usize,
    /// What was generated.
    pub tokens: Vec<u32>,
    /// Set with the last token.
    pub ended: Option<Finish>,
    /// What choosing remembers from token to token.
    pub memory: f32,
    logprobs: Vec<f32>,
    text: String,
    incremental: Incremental,
    stops: Stops,
}

impl Live {
    pub fn new(sequence: usize, slot: usize, prompt: &[u32], options: &Generate) -> Self {
        Live {
            sequence,
            slot,
            unread: prompt.to_vec(),
            read: 0,
            tokens: Vec::new(),
            ended: None,
            memory: options.sampler.begin(),
            logprobs: Vec::new(),
            text: String::new(),
            incremental: Incremental::default(),
            stops: Stops::new(&options.stop),
        }
    }

    /// `ids` from where it stands, with logits at the last `read`.
    pub fn reading<'a>(&self, ids: &'a [u32], read: usize) -> Reading<'a> {
        let (slot, prompt) = (self.slot, self.sequence);
        Reading { ids, start: self.read, slot, from: slot, prompt, read }
    }

    /// Takes the next token and returns the text that is certain with it.
    pub fn accept(
        &mut self,
        token: u32,
        logprob: Option<f32>,
        room: usize,
        options: &Generate,
        tokens: &dyn TokenText,
    ) -> String {
        self.read += self.unread.len();
        self.unread.clear();
        self.unread.push(token);
        self.tokens.push(token);
        self.logprobs.extend(logprob);

        let eos = options.eos.contains(&token);
        let last = eos || self.tokens.len() == room;
        let shown = &self.tokens[..self.tokens.len() - usize::from(eos)];
        let (mut piece, stopped) = self.stops.push(&self.incremental.push(shown, last, tokens));
        if stopped {
            self.ended = Some(Finish::Stop);
        } else if last {
            piece.push_str(&self.stops.finish());
            self.ended = Some(if eos { Finish::Eos } else { Finish::Length });
        }
        self.text.push_str(&piece);
        piece
    }

    pub fn finish(self, finish: Finish) -> Generated {
        Generated { tokens: self.tokens, text: self.text, finish, logprobs: self.logprobs }
    }
}
