//! A source that is no model: what came next, in given texts, where the last tokens were the same.
//!
//! Witten & Bell 1991 (as interpolated by Chen & Goodman 1998). With `h_k` the last `k` tokens, `c` counts
//! in the texts and `T(h)` the number of different tokens that follow `h` there:
//! `p_k(t) = (c(h_k t) + T(h_k) · p_{k−1}(t)) / (c(h_k) + T(h_k))`, from `p_{−1} = 1 / vocabulary` up to
//! the longest `k < n` for which `h_k` occurs. No token has probability 0. Mixed with a model's
//! probabilities by [`crate::combine::Mixture`], it answers from the texts where they have been there
//! before, as a memory of nearest neighbours does (Khandelwal et al. 2020), with equal tokens in the
//! place of near states.
//!
//! Texts are kept once, with their positions sorted by the `n` tokens that follow (8 bytes per token);
//! an occurrence is found by bisection. **Departures**: none.

use luthier_core::{Error, Result};

use super::{Source, Step};

/// Stands between texts; no token has this id.
const END: u32 = u32::MAX;

/// Texts, ready to be looked up.
pub struct Ngram {
    n: usize,
    text: Vec<u32>,
    /// Positions in the order of what follows them.
    order: Vec<u32>,
}

impl Ngram {
    /// Of these texts; at most `n − 1` tokens are looked up.
    pub fn new(texts: impl IntoIterator<Item = Vec<u32>>, n: usize) -> Result<Self> {
        if n == 0 {
            return Err(Error::input("n", "expected at least 1, got 0"));
        }
        let mut text: Vec<u32> = Vec::new();
        for one in texts {
            text.extend(one);
            text.push(END);
        }
        let Ok(len) = u32::try_from(text.len()) else {
            let what = format!("expected fewer than {} tokens, got {}", u32::MAX, text.len());
            return Err(Error::input("data", what).hint("name fewer texts"));
        };
        if text.iter().all(|token| *token == END) {
            return Err(Error::input("data", "has no token"));
        }
        let mut order: Vec<u32> = (0..len).filter(|at| text[*at as usize] != END).collect();
        let follow = |at: u32| &text[at as usize..(at as usize + n).min(text.len())];
        order.sort_unstable_by(|a, b| follow(*a).cmp(follow(*b)).then(a.cmp(b)));
        Ok(Ngram { n, text, order })
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.order.len()
    }

    /// The largest token.
    pub fn largest(&self) -> u32 {
        self.text.iter().filter(|token| **token != END).max().copied().unwrap_or(0)
    }

    /// What gives logits over the first `vocab` tokens, with room for `max_batch` live sequences.
    pub fn source(&self, max_batch: usize, vocab: usize) -> Result<NgramSource<'_>> {
        if self.largest() as usize >= vocab {
            let what = format!("has the token {}, the vocabulary {vocab} tokens", self.largest());
            return Err(Error::input("data", what));
        }
        let mut single_v = vec![1.0 / vocab as f64; vocab];
        self.mix(&[], &mut single_v);
        let (slots, p_v) = (vec![Vec::new(); max_batch], single_v.clone());
        Ok(NgramSource { ngram: self, single_v, slots, p_v })
    }

    /// Where `h` occurs, as places in the order.
    fn found(&self, h: &[u32]) -> std::ops::Range<usize> {
        let follow = |at: &u32| {
            let at = *at as usize;
            &self.text[at..(at + h.len()).min(self.text.len())]
        };
        let from = self.order.partition_point(|at| follow(at) < h);
        let len = self.order[from..].partition_point(|at| follow(at) == h);
        from..from + len
    }

    /// Puts what follows `h` on top of what is thought of shorter pasts; `false` where nothing does.
    fn mix(&self, h: &[u32], p_v: &mut [f64]) -> bool {
        let next = |place: usize| self.text.get(self.order[place] as usize + h.len()).copied();
        let mut counts: Vec<(u32, usize)> = Vec::new();
        let range = self.found(h);
        let mut place = range.start;
        while place < range.end {
            // Equal continuations lie together.
            let token = next(place).unwrap_or(END);
            let run = self.order[place..range.end]
                .partition_point(|at| self.text.get(*at as usize + h.len()) == Some(&token));
            if token != END {
                counts.push((token, run));
            }
            place += run.max(1);
        }
        if counts.is_empty() {
            return false;
        }
        let total: usize = counts.iter().map(|(_, count)| count).sum();
        let (all, different) = ((total + counts.len()) as f64, counts.len() as f64);
        p_v.iter_mut().for_each(|p| *p *= different / all);
        counts.iter().for_each(|(token, count)| p_v[*token as usize] += *count as f64 / all);
        true
    }
}

/// [`Ngram`] with the tokens of every live sequence.
pub struct NgramSource<'a> {
    ngram: &'a Ngram,
    /// What is thought without any past.
    single_v: Vec<f64>,
    slots: Vec<Vec<u32>>,
    p_v: Vec<f64>,
}

impl NgramSource<'_> {
    /// The log-probabilities after a past, at the end of `logits_bv`.
    fn after(&mut self, past: &[u32], logits_bv: &mut Vec<f32>) {
        self.p_v.copy_from_slice(&self.single_v);
        for k in 1..self.ngram.n.min(past.len() + 1) {
            // What does not occur occurs with no longer past either.
            if !self.ngram.mix(&past[past.len() - k..], &mut self.p_v) {
                break;
            }
        }
        logits_bv.extend(self.p_v.iter().map(|p| p.ln() as f32));
    }
}

impl Source for NgramSource<'_> {
    fn vocab(&self) -> usize {
        self.single_v.len()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let pairs = || step.from_b.iter().zip(step.slots_b).filter(|(from, slot)| from != slot);
        // All are copied before any is written: one slot may take the place of another.
        let copies: Vec<Vec<u32>> = pairs().map(|(from, _)| self.slots[*from].clone()).collect();
        for ((_, slot), copy) in pairs().zip(copies) {
            self.slots[*slot] = copy;
        }
        logits_bv.clear();
        for (row, (slot, read)) in step.slots_b.iter().zip(step.read_b).enumerate() {
            let range = step.rows.range(row);
            let mut past = std::mem::take(&mut self.slots[*slot]);
            past.truncate(step.rows.positions_n[range.start] as usize);
            past.extend_from_slice(&step.ids_n[range]);
            for end in past.len() + 1 - read..=past.len() {
                self.after(&past[..end], logits_bv);
            }
            self.slots[*slot] = past;
        }
        Ok(())
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot].clear();
    }
}
