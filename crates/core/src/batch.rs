//! Rows of tokens, and the flat, padding-free batch they form.

use std::sync::Arc;

use crate::{Error, Result};

/// One tokenised completion. Position `t` reads `ids[t]` and predicts `targets[t]`.
///
/// Inputs and targets are separate columns, so corrupting inputs never changes targets. A text of
/// `k` tokens is a row of `k − 1` positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Input token ids.
    pub ids: Vec<u32>,
    /// The token each position is asked to predict.
    pub targets: Vec<u32>,
    /// What each prediction counts; 0 is not trained.
    pub weights: Vec<f32>,
    /// Index of the example in its table.
    pub example: usize,
    /// The log-probability that a reference gives its targets, for objectives that compare with one.
    pub reference: f64,
    /// Which of several tasks it belongs to.
    pub task: usize,
    /// A number known of it: a class, a reward, whether it is wanted (1) or not (0).
    pub label: f64,
    /// An objective's own mark on each target; empty where there are none, which is all 0.
    pub tags: Vec<u8>,
    /// What a teacher said of the targets that are trained, where it was asked beforehand.
    pub teacher: Option<Arc<Told>>,
}

/// The likeliest tokens by a teacher, and their log-probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// How many for each target.
    pub k: usize,
    /// `k` token ids, the likeliest first, for each target of non-zero weight, in order.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub logps: Vec<f32>,
}

impl Row {
    /// A row from a text's tokens and the weight of each token as a target.
    ///
    /// `weights[i]` belongs to `tokens[i]`; the first token has no predictor, its weight is dropped.
    pub fn from_tokens(tokens: &[u32], weights: &[f32], example: usize) -> Self {
        assert_eq!(tokens.len(), weights.len(), "one weight per token");
        if tokens.len() < 2 {
            return Row { example, ..Row::default() };
        }
        Row {
            ids: tokens[..tokens.len() - 1].to_vec(),
            targets: tokens[1..].to_vec(),
            weights: weights[1..].to_vec(),
            example,
            ..Row::default()
        }
    }

    /// The same row behind `n` placeholders, which are not trained (see
    /// [`crate::Hooks::virtual_tokens`]).
    pub fn behind(mut self, n: usize) -> Self {
        for ids in [&mut self.ids, &mut self.targets] {
            ids.splice(0..0, std::iter::repeat_n(0, n));
        }
        self.weights.splice(0..0, std::iter::repeat_n(0.0, n));
        if !self.tags.is_empty() {
            self.tags.splice(0..0, std::iter::repeat_n(0, n));
        }
        self
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no position at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The mark on every target, where there are none 0.
    fn tags_n(&self) -> impl Iterator<Item = u8> {
        debug_assert!(self.tags.is_empty() || self.tags.len() == self.len());
        (0..self.len()).map(|i| self.tags.get(i).copied().unwrap_or(0))
    }

    /// Number of positions with a non-zero weight.
    pub fn trained(&self) -> usize {
        self.weights.iter().filter(|w| **w != 0.0).count()
    }
}

/// Where the rows of a flat run of tokens begin, and each token's position in its row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// `b + 1` offsets into the flat run; row `i` is `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<usize>,
    /// Position of each token within its sequence (not the row, when a cache holds earlier tokens).
    pub positions_n: Vec<u32>,
}

impl Rows {
    /// Rows of the given lengths, row `i` starting at position `start[i]`.
    pub fn new(lengths: &[usize], start: impl Fn(usize) -> usize) -> Self {
        let mut offsets = vec![0];
        let mut positions_n = Vec::with_capacity(lengths.iter().sum());
        for (i, len) in lengths.iter().enumerate() {
            offsets.push(offsets[i] + len);
            positions_n.extend((start(i)..start(i) + len).map(|p| p as u32));
        }
        Rows { offsets, positions_n }
    }

    /// One row of `n` tokens from position 0.
    pub fn single(n: usize) -> Self {
        Rows::new(&[n], |_| 0)
    }

    /// Number of rows.
    pub fn b(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens.
    pub fn n(&self) -> usize {
        self.positions_n.len()
    }

    /// The tokens of row `i`.
    pub fn range(&self, i: usize) -> std::ops::Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }
}

/// Rows laid end to end. There is no padding and no attention mask: rows know their bounds.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Input ids of all rows.
    pub ids_n: Vec<u32>,
    /// Target ids of all rows.
    pub targets_n: Vec<u32>,
    /// Target weights of all rows.
    pub weights_n: Vec<f32>,
    /// Bounds and positions.
    pub rows: Arc<Rows>,
    /// Example index of each row.
    pub examples_b: Vec<usize>,
    /// What a reference says of each row.
    pub references_b: Vec<f64>,
    /// The task of each row.
    pub tasks_b: Vec<usize>,
    /// The number known of each row.
    pub labels_b: Vec<f64>,
    /// The mark on every target.
    pub tags_n: Vec<u8>,
    /// What a teacher said of each row.
    pub teachers_b: Vec<Option<Arc<Told>>>,
}

impl Batch {
    /// Lays rows end to end.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let rows: Vec<&Row> = rows.into_iter().collect();
        let lengths: Vec<usize> = rows.iter().map(|r| r.len()).collect();
        Batch {
            ids_n: rows.iter().flat_map(|r| r.ids.iter().copied()).collect(),
            targets_n: rows.iter().flat_map(|r| r.targets.iter().copied()).collect(),
            weights_n: rows.iter().flat_map(|r| r.weights.iter().copied()).collect(),
            rows: Arc::new(Rows::new(&lengths, |_| 0)),
            examples_b: rows.iter().map(|r| r.example).collect(),
            references_b: rows.iter().map(|r| r.reference).collect(),
            tasks_b: rows.iter().map(|r| r.task).collect(),
            labels_b: rows.iter().map(|r| r.label).collect(),
            tags_n: rows.iter().flat_map(|r| r.tags_n()).collect(),
            teachers_b: rows.iter().map(|r| r.teacher.clone()).collect(),
        }
    }

    /// Number of tokens.
    pub fn n(&self) -> usize {
        self.ids_n.len()
    }

    /// Sum of the target weights.
    pub fn weight(&self) -> f64 {
        self.weights_n.iter().map(|w| f64::from(*w)).sum()
    }

    /// Indices of the positions with a non-zero weight.
    pub fn trained_m(&self) -> Vec<u32> {
        (0..self.n() as u32).filter(|i| self.weights_n[*i as usize] != 0.0).collect()
    }

    /// Refuses ids that the vocabulary does not have.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        let bad = self.ids_n.iter().chain(&self.targets_n).find(|id| **id as usize >= vocab);
        match bad {
            None => Ok(()),
            Some(id) => Err(Error::input(
                format!("token id {id}"),
                format!("out of range: the model's vocabulary has {vocab} tokens"),
            )
            .hint("the tokenizer belongs to another model; use the one beside the weights")),
        }
    }
}

/// Cuts `rows` into runs of at most `limit` tokens, in order; a longer row is a run of its own.
pub fn pack(rows: &[usize], length: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0usize;
    for &row in rows {
        match runs.last_mut() {
            Some(run) if tokens.saturating_add(length(row)) <= limit => {
                run.push(row);
                tokens += length(row);
            }
            _ => {
                runs.push(vec![row]);
                tokens = length(row);
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shifts_targets_and_keeps_inputs() {
        let row = Row::from_tokens(&[5, 6, 7], &[1.0, 0.0, 2.0], 3);
        assert_eq!((row.ids, row.targets, row.weights), (vec![5, 6], vec![6, 7], vec![0.0, 2.0]));
    }

    #[test]
    fn runs_are_filled_until_the_next_row_would_not_fit() {
        let lengths = [3, 3, 4, 11, 1];
        let runs = pack(&[0, 1, 2, 3, 4], |i| lengths[i], 10);
        assert_eq!(runs, [vec![0, 1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn a_batch_is_flat_and_knows_its_rows() {
        let a = Row::from_tokens(&[1, 2, 3], &[0.0, 1.0, 1.0], 0);
        let b = Row::from_tokens(&[4, 5], &[0.0, 0.5], 1);
        let batch = Batch::from_rows([&a, &b]);
        assert_eq!(batch.rows.offsets, [0, 2, 3]);
        assert_eq!(batch.rows.positions_n, [0, 1, 0]);
        assert_eq!(batch.weight(), 2.5);
        assert!(batch.check_vocab(6).is_ok() && batch.check_vocab(5).is_err());
    }
}
