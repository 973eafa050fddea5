//! The order of training: which rows form which optimizer step, in every epoch.
//!
//! An epoch is a seeded permutation of all rows, cut into steps of at most `batch_tokens` tokens. A
//! longer row is a step of its own. Nothing is stored: an epoch's steps are computed from the
//! lengths, the seed and the epoch's number alone, so a resumed run needs only its [`Cursor`].

use luthier_core::Seed;
use serde::{Deserialize, Serialize};

/// Windows of this many steps are sorted by length when rows are grouped: wide enough for steps of
/// like rows, narrow enough that an epoch stays random.
const WINDOW_STEPS: usize = 50;

/// Where training stands in its order: the step that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Epochs that are finished.
    pub epoch: usize,
    /// Steps of this epoch that are finished.
    pub step: usize,
}

/// The endless, deterministic sequence of optimizer steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Tokens (positions) of every row.
    pub lengths: Vec<usize>,
    /// Most tokens in one optimizer step.
    pub batch_tokens: usize,
    /// Where the permutations come from.
    pub seed: Seed,
    /// Whether rows of like length share a step.
    pub group_by_length: bool,
}

impl Plan {
    /// The steps of one epoch: row indices, every row exactly once.
    pub fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        self::epoch(&self.lengths, self.batch_tokens, self.seed, epoch, self.group_by_length)
    }

    /// All steps from `cursor` on, over as many epochs as are asked for. With each step comes the
    /// cursor behind it, which is what a checkpoint taken after the step stores.
    pub fn steps_from(&self, cursor: Cursor) -> impl Iterator<Item = (Cursor, Vec<usize>)> + '_ {
        // Without rows there is no step in any epoch, and looking for one would never end.
        let last = if self.lengths.is_empty() { cursor.epoch } else { usize::MAX };
        (cursor.epoch..last).flat_map(move |epoch| {
            let steps = self.epoch(epoch);
            let n = steps.len();
            let done = if epoch == cursor.epoch { cursor.step } else { 0 };
            steps.into_iter().enumerate().skip(done).map(move |(i, rows)| {
                let next = i + 1;
                let behind = if next == n {
                    Cursor { epoch: epoch + 1, step: 0 }
                } else {
                    Cursor { epoch, step: next }
                };
                (behind, rows)
            })
        })
    }
}

/// The steps of epoch number `epoch`.
pub fn epoch(
    lengths: &[usize],
    batch_tokens: usize,
    seed: Seed,
    epoch: usize,
    group_by_length: bool,
) -> Vec<Vec<usize>> {
    let seed = seed.split("order").at(epoch as u64);
    let mut rows: Vec<usize> = (0..lengths.len()).collect();
    seed.split("rows").rng().shuffle(&mut rows);
    if !group_by_length {
        return pack(&rows, lengths, batch_tokens);
    }
    let mut steps = Vec::new();
    for mut window in pack(&rows, lengths, batch_tokens.saturating_mul(WINDOW_STEPS)) {
        // Stable, so rows of one length keep the order of the permutation.
        window.sort_by_key(|row| lengths[*row]);
        steps.extend(pack(&window, lengths, batch_tokens));
    }
    seed.split("steps").rng().shuffle(&mut steps);
    steps
}

/// The micro-batches of one step: its rows in order, each micro-batch at most `micro_tokens`
/// tokens, or one row.
pub fn micro(step: &[usize], lengths: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
    pack(step, lengths, micro_tokens)
}

/// Cuts `rows` into runs of at most `limit` tokens; a longer row is a run of its own.
fn pack(rows: &[usize], lengths: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0usize;
    for &row in rows {
        match runs.last_mut() {
            Some(run) if tokens.saturating_add(lengths[row]) <= limit => {
                run.push(row);
                tokens += lengths[row];
            }
            _ => {
                runs.push(vec![row]);
                tokens = lengths[row];
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(rows: &[usize], lengths: &[usize]) -> usize {
        rows.iter().map(|r| lengths[*r]).sum()
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_row_once_and_no_step_above_the_limit(
            lengths in prop::collection::vec(0usize..300, 0..200),
            batch_tokens in 0usize..600,
            seed in any::<u64>(),
            epoch in 0usize..5,
            group in any::<bool>(),
        ) {
            let steps = super::epoch(&lengths, batch_tokens, Seed(seed), epoch, group);
            let mut all: Vec<usize> = steps.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for step in &steps {
                prop_assert!(!step.is_empty());
                prop_assert!(step.len() == 1 || tokens(step, &lengths) <= batch_tokens);
                let parts = micro(step, &lengths, batch_tokens / 3);
                prop_assert_eq!(&parts.concat(), step);
                for part in &parts {
                    prop_assert!(part.len() == 1 || tokens(part, &lengths) <= batch_tokens / 3);
                }
            }
            prop_assert_eq!(&steps, &super::epoch(&lengths, batch_tokens, Seed(seed), epoch, group));
        }
    }

    #[test]
    fn steps_are_filled_until_the_next_row_would_not_fit() {
        assert_eq!(
            pack(&[0, 1, 2, 3, 4], &[3, 3, 4, 11, 1], 10),
            [vec![0, 1, 2], vec![3], vec![4]]
        );
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let lengths = vec![10; 64];
        let of = |seed, e| super::epoch(&lengths, 40, Seed(seed), e, false);
        assert_ne!(of(1, 0), of(1, 1));
        assert_ne!(of(1, 0), of(2, 0));
    }

    #[test]
    fn grouping_brings_like_lengths_together() {
        let lengths: Vec<usize> = (0..400).map(|i| 1 + (i * 37) % 97).collect();
        let spread = |group| -> usize {
            super::epoch(&lengths, 300, Seed(3), 0, group)
                .iter()
                .map(|s| {
                    let of = || s.iter().map(|r| lengths[*r]);
                    of().max().unwrap() - of().min().unwrap()
                })
                .sum()
        };
        assert!(spread(true) * 5 < spread(false), "{} {}", spread(true), spread(false));
    }

    #[test]
    fn a_cursor_continues_where_it_was_taken() {
        let plan = Plan {
            lengths: (0..23).map(|i| 5 + i % 7).collect(),
            batch_tokens: 30,
            seed: Seed(9),
            group_by_length: false,
        };
        let whole: Vec<_> = plan.steps_from(Cursor::default()).take(20).collect();
        assert!(whole.last().unwrap().0.epoch >= 2, "the run spans epochs");
        for cut in 1..19 {
            let rest: Vec<_> = plan.steps_from(whole[cut - 1].0).take(20 - cut).collect();
            assert_eq!(rest, whole[cut..]);
        }
        let empty = Plan { lengths: vec![], ..plan };
        assert_eq!(empty.steps_from(Cursor::default()).count(), 0);
    }
}
