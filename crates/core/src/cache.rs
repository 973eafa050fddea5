//! Keys and values of tokens already seen, one growing buffer per sequence and layer.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::Held;

/// Keys and values of one sequence at one layer, flat `(position, kv head, head width)`.
#[derive(Clone, Debug, Default)]
pub struct Kv {
    /// Keys after rotation.
    pub k: Held,
    /// Values.
    pub v: Held,
}

/// The keys and values of several live sequences.
///
/// Row `i` of a forward pass extends sequence `slots[i]`.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    sequences: Vec<Vec<Kv>>,
    notes: Vec<Notes>,
    lengths: Vec<usize>,
    slots: Vec<usize>,
}

/// What hooks remember of one sequence.
#[derive(Debug, Default)]
struct Notes(Mutex<BTreeMap<&'static str, u64>>);

impl Clone for Notes {
    fn clone(&self) -> Self {
        Notes(Mutex::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

impl Cache {
    /// Empty sequences for a model of `n_layers`; every sequence takes part in the next pass.
    pub fn new(n_sequences: usize, n_layers: usize) -> Self {
        Cache {
            sequences: vec![vec![Kv::default(); n_layers]; n_sequences],
            notes: vec![Notes::default(); n_sequences],
            lengths: vec![0; n_sequences],
            slots: (0..n_sequences).collect(),
        }
    }

    /// Chooses which sequences the rows of the next pass extend.
    pub fn select(&mut self, slots: Vec<usize>) {
        self.slots = slots;
    }

    /// The sequence that row `row` extends.
    pub fn slot(&self, row: usize) -> usize {
        self.slots[row]
    }

    /// Tokens held for the sequence of row `row` before this pass.
    pub fn len(&self, row: usize) -> usize {
        self.lengths[self.slots[row]]
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|l| *l == 0)
    }

    /// The buffers of the sequence of row `row` at `layer`.
    pub fn kv(&mut self, row: usize, layer: usize) -> &mut Kv {
        &mut self.sequences[self.slots[row]][layer]
    }

    /// The buffers of the sequence of row `row` at `layer`, to read.
    pub fn read(&self, row: usize, layer: usize) -> &Kv {
        &self.sequences[self.slots[row]][layer]
    }

    /// Keeps a hook's number for the sequence of row `row`; `key` is the hook's own.
    pub fn note(&self, row: usize, key: &'static str, value: u64) {
        let notes = &self.notes[self.slots[row]].0;
        notes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    /// The number that was kept for the sequence of row `row`.
    pub fn noted(&self, row: usize, key: &str) -> Option<u64> {
        let notes = &self.notes[self.slots[row]].0;
        notes.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Counts the tokens of a finished pass: `added[row]` for each row.
    pub fn advance(&mut self, added: impl IntoIterator<Item = usize>) {
        for (row, n) in added.into_iter().enumerate() {
            self.lengths[self.slots[row]] += n;
        }
    }

    /// Forgets the tokens of the sequence of row `row` from position `len` on. What hooks noted stays:
    /// they note what they saw in the prompt.
    pub fn truncate(&mut self, row: usize, len: usize) {
        let slot = self.slots[row];
        let held = self.lengths[slot];
        if len >= held {
            return;
        }
        for Kv { k, v } in &mut self.sequences[slot] {
            for numbers in [k, v] {
                // What a position holds depends on the layer's heads.
                numbers.truncate(numbers.len() / held * len);
            }
        }
        self.lengths[slot] = len;
    }

    /// Copies sequence `from` over sequence `to` (a shared prompt is read once).
    pub fn fork(&mut self, from: usize, to: usize) {
        self.sequences[to] = self.sequences[from].clone();
        self.notes[to] = self.notes[from].clone();
        self.lengths[to] = self.lengths[from];
    }

    /// Frees what a finished sequence held.
    pub fn clear(&mut self, sequence: usize) {
        self.sequences[sequence].iter_mut().for_each(|kv| *kv = Kv::default());
        self.notes[sequence] = Notes::default();
        self.lengths[sequence] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_can_be_cut_and_others_stay() {
        let mut cache = Cache::new(2, 2);
        for (layer, width) in [(0, 1), (1, 3)] {
            for row in 0..2 {
                let numbers = (0..5 * width).map(|x| x as f32).collect();
                cache.kv(row, layer).k = Held::F32(numbers);
                cache.kv(row, layer).v = Held::Bf16(vec![half::bf16::ONE; 5 * width]);
            }
        }
        cache.advance([5, 5]);
        cache.truncate(1, 2);
        cache.truncate(1, 4);
        assert_eq!((cache.len(0), cache.len(1)), (5, 2));
        for (layer, width) in [(0, 1), (1, 3)] {
            let Held::F32(k) = &cache.read(1, layer).k else { panic!("kept as it was") };
            assert_eq!((k.len(), k[2 * width - 1]), (2 * width, (2 * width - 1) as f32));
            assert_eq!(cache.read(1, layer).v.len(), 2 * width);
            assert_eq!(cache.read(0, layer).k.len(), 5 * width);
        }
    }

    #[test]
    fn notes_follow_their_sequence() {
        let mut cache = Cache::new(3, 1);
        cache.select(vec![2, 0]);
        cache.note(0, "pool", 7);
        assert_eq!((cache.noted(0, "pool"), cache.noted(1, "pool")), (Some(7), None));
        cache.fork(2, 0);
        cache.clear(2);
        assert_eq!((cache.noted(0, "pool"), cache.noted(1, "pool")), (None, Some(7)));
        assert_eq!(cache.clone().noted(1, "pool"), Some(7));
    }
}
