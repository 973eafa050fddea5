//! The order of training: which rows form which optimizer step, in every epoch.
//!
//! An epoch is a seeded permutation of all rows, cut into steps of at most `batch_tokens` tokens. A
//! longer row is a step of its own. Nothing is stored: an epoch's steps are computed from the
//! lengths, the seed and the epoch's number alone, so a resumed run needs only the number of its step.

use luthier_core::{Seed, batch::pack};

/// Windows of this many steps are sorted by length when rows are grouped: wide enough for steps of
/// like rows, narrow enough that an epoch stays random.
const WINDOW_STEPS: usize = 50;

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
    let length = |row: usize| lengths[row];
    if !group_by_length {
        return pack(&rows, length, batch_tokens);
    }
    let mut steps = Vec::new();
    for mut window in pack(&rows, length, batch_tokens.saturating_mul(WINDOW_STEPS)) {
        // Stable, so rows of one length keep the order of the permutation.
        window.sort_by_key(|row| lengths[*row]);
        steps.extend(pack(&window, length, batch_tokens));
    }
    seed.split("steps").rng().shuffle(&mut steps);
    steps
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
                let parts = pack(step, |i| lengths[i], batch_tokens / 3);
                prop_assert_eq!(&parts.concat(), step);
                for part in &parts {
                    prop_assert!(part.len() == 1 || tokens(part, &lengths) <= batch_tokens / 3);
                }
            }
            prop_assert_eq!(&steps, &super::epoch(&lengths, batch_tokens, Seed(seed), epoch, group));
        }
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
}
