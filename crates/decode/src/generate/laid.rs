//! The new tokens of several sequences, laid end to end for a step.

use std::sync::Arc;

use luthier_core::Rows;

use crate::sources::Step;

/// What one sequence reads in a step.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    /// New tokens.
    pub ids: &'a [u32],
    /// The position of the first.
    pub start: usize,
    /// Where the sequence is kept.
    pub slot: usize,
    /// Whose past it goes on from.
    pub from: usize,
    /// Its prompt.
    pub prompt: usize,
    /// At how many of the last tokens logits are asked for.
    pub read: usize,
}

/// All of them.
pub(crate) struct Laid {
    ids_n: Vec<u32>,
    rows: Arc<Rows>,
    slots_b: Vec<usize>,
    from_b: Vec<usize>,
    prompts_b: Vec<usize>,
    read_b: Vec<usize>,
}

impl Laid {
    pub fn new<'a>(all: impl Iterator<Item = Reading<'a>>) -> Self {
        let all: Vec<Reading> = all.collect();
        let lengths: Vec<usize> = all.iter().map(|r| r.ids.len()).collect();
        Laid {
            ids_n: all.iter().flat_map(|r| r.ids.iter().copied()).collect(),
            rows: Arc::new(Rows::new(&lengths, |i| all[i].start)),
            slots_b: all.iter().map(|r| r.slot).collect(),
            from_b: all.iter().map(|r| r.from).collect(),
            prompts_b: all.iter().map(|r| r.prompt).collect(),
            read_b: all.iter().map(|r| r.read).collect(),
        }
    }

    pub fn step(&self) -> Step<'_> {
        Step {
            ids_n: &self.ids_n,
            rows: self.rows.clone(),
            slots_b: &self.slots_b,
            from_b: &self.from_b,
            prompts_b: &self.prompts_b,
            read_b: &self.read_b,
        }
    }
}
