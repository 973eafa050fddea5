//! The search for one prompt: its running beams and the answers that it keeps.

use std::{cmp::Ordering, ops::Range};

use super::{Beam, EarlyStopping, Found};
use crate::{Finish, Generate, Generated, TokenText, generate::Reading};

/// When a text ends, and what becomes of it.
pub(super) struct Ends<'a> {
    pub options: &'a Generate,
    pub tokens: &'a dyn TokenText,
    pub beam: &'a Beam,
}

impl Ends<'_> {
    /// The text of an answer and where a stop string cuts it.
    fn text(&self, ids: &[u32]) -> (String, Option<usize>) {
        let eos = ids.last().is_some_and(|id| self.options.eos.contains(id));
        let text = self.tokens.decode(&ids[..ids.len() - usize::from(eos)]);
        let found = self.options.stop.iter().filter_map(|s| Some((text.find(s)?, s.len())));
        let cut = found.min_by_key(|(at, len)| (at + len, *at)).map(|(at, _)| at);
        (text, cut)
    }

    /// Why an answer ends here, if it does.
    fn finish(&self, ids: &[u32], room: usize) -> Option<Finish> {
        if ids.last().is_some_and(|id| self.options.eos.contains(id)) {
            return Some(Finish::Eos);
        }
        if !self.options.stop.is_empty() && self.text(ids).1.is_some() {
            return Some(Finish::Stop);
        }
        (ids.len() == room).then_some(Finish::Length)
    }
}

/// A text on its way.
struct Running {
    tokens: Vec<u32>,
    score: f32,
    slot: usize,
    /// Whose past it goes on from.
    from: usize,
}

/// A text that has ended.
struct Kept {
    tokens: Vec<u32>,
    score: f32,
    finish: Finish,
}

/// One prompt's search.
pub(super) struct Search {
    pub prompt: usize,
    pub done: bool,
    ids: Vec<u32>,
    room: usize,
    slots: Range<usize>,
    beams: Vec<Running>,
    kept: Vec<Kept>,
    /// Whether a running beam may still pass a kept one.
    improves: bool,
}

/// A continuation by one token.
#[derive(Clone, Copy)]
struct Next {
    beam: usize,
    id: u32,
    score: f32,
}

/// Best first; of equals the earlier beam, then the lower id.
fn best_first(a: &Next, b: &Next) -> Ordering {
    b.score.total_cmp(&a.score).then(a.beam.cmp(&b.beam)).then(a.id.cmp(&b.id))
}

impl Search {
    /// A search that begins; its beams live in `each` slots from `first` on.
    pub fn new(prompt: usize, ids: &[u32], room: usize, first: usize, each: usize) -> Self {
        let begin = Running { tokens: Vec::new(), score: 0.0, slot: first, from: first };
        Search {
            prompt,
            done: false,
            ids: ids.to_vec(),
            room,
            slots: first..first + each,
            beams: vec![begin],
            kept: Vec::new(),
            improves: true,
        }
    }

    /// The slots that belong to it.
    pub fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// How many beams run.
    pub fn running(&self) -> usize {
        self.beams.len()
    }

    /// What its beams read next.
    pub fn readings(&self) -> impl Iterator<Item = Reading<'_>> {
        self.beams.iter().map(|beam| {
            let (ids, start) = match beam.tokens.len() {
                0 => (&self.ids[..], 0),
                n => (&beam.tokens[n - 1..], self.ids.len() + n - 1),
            };
            Reading { ids, start, slot: beam.slot, from: beam.from, prompt: self.prompt, read: 1 }
        })
    }

    /// Prompt and tokens of its beams.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &[u32])> {
        self.beams.iter().map(|beam| (self.prompt, &beam.tokens[..]))
    }

    /// Takes the scores of all continuations.
    pub fn advance(&mut self, logp_bv: &[Vec<f32>], ends: &Ends) {
        let n = ends.beam.num_beams;
        let best = self.best(logp_bv, ends.options.eos.len().max(1).saturating_add(1) * n);
        let length = self.beams[0].tokens.len() + 1;
        let candidates: Vec<(Next, Vec<u32>, Option<Finish>)> = (best.into_iter())
            .map(|next| {
                let tokens = [&self.beams[next.beam].tokens[..], &[next.id]].concat();
                let finish = ends.finish(&tokens, self.room);
                (next, tokens, finish)
            })
            .collect();
        let all_end = candidates.iter().all(|(_, _, finish)| finish.is_some());
        let full = self.kept.len() == n && ends.beam.early_stopping == EarlyStopping::When(true);
        let mut going = Vec::new();
        for (rank, (next, tokens, finish)) in candidates.into_iter().enumerate() {
            match finish {
                None => going.push((next, tokens)),
                Some(finish) if rank < n && !full && self.improves => {
                    let score = next.score / (length as f32).powf(ends.beam.length_penalty);
                    self.kept.push(Kept { tokens, score, finish });
                }
                Some(_) => {}
            }
        }
        // A stable sort: of equals, what was kept before stays before.
        self.kept.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.kept.truncate(n);
        going.truncate(n);
        self.go_on(going);
        self.improves &= self.may_improve(length, ends.beam);
        let stops = ends.beam.early_stopping == EarlyStopping::When(true) && self.kept.len() == n;
        self.done = !self.improves || stops || all_end || self.beams.is_empty();
    }

    /// The best `most` continuations of all beams, best first.
    fn best(&self, logp_bv: &[Vec<f32>], most: usize) -> Vec<Next> {
        let mut all: Vec<Next> = Vec::new();
        for (beam, logp_v) in logp_bv.iter().enumerate() {
            let score = self.beams[beam].score;
            let next = (0u32..).zip(logp_v).map(|(id, l)| Next { beam, id, score: score + l });
            let mut own: Vec<Next> = next.filter(|n| n.score > f32::NEG_INFINITY).collect();
            if own.len() > most {
                own.select_nth_unstable_by(most - 1, best_first);
                own.truncate(most);
            }
            all.extend(own);
        }
        all.sort_unstable_by(best_first);
        all.truncate(most);
        all
    }

    /// The next beams: the first child of a beam stays in its slot, others get free ones.
    fn go_on(&mut self, going: Vec<(Next, Vec<u32>)>) {
        let parents: Vec<usize> = self.beams.iter().map(|beam| beam.slot).collect();
        let mut taken: Vec<usize> = going.iter().map(|(next, _)| parents[next.beam]).collect();
        taken.sort_unstable();
        taken.dedup();
        let mut free = self.slots.clone().filter(|slot| !taken.contains(slot));
        let mut stays: Vec<usize> = taken.clone();
        let mut beams = Vec::with_capacity(going.len());
        for (Next { beam, score, .. }, tokens) in going {
            let from = parents[beam];
            let slot = match stays.iter().position(|slot| *slot == from) {
                Some(at) => stays.swap_remove(at),
                None => free.next().expect("there are twice as many slots as beams"),
            };
            beams.push(Running { tokens, score, slot, from });
        }
        self.beams = beams;
    }

    /// Whether the best running beam could pass the worst kept answer.
    fn may_improve(&self, length: usize, beam: &Beam) -> bool {
        let Some(best) = self.beams.first() else { return false };
        let never = matches!(beam.early_stopping, EarlyStopping::Never(_));
        let reach = if never && beam.length_penalty > 0.0 { self.room } else { length };
        let possible = best.score / (reach as f32).powf(beam.length_penalty);
        let worst = self.kept.last().map_or(f32::NEG_INFINITY, |kept| kept.score);
        self.kept.len() < beam.num_beams || possible > worst
    }

    /// What was found, best first.
    pub fn finish(self, ends: &Ends) -> Vec<Found> {
        let found = |Kept { tokens, score, finish }| {
            let (mut text, cut) = ends.text(&tokens);
            text.truncate(cut.unwrap_or(text.len()));
            let generated = Generated { tokens, text, finish, logprobs: Vec::new() };
            Found { generated, score }
        };
        self.kept.into_iter().map(found).collect()
    }
}
