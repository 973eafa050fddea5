//! The order of training: which rows form which optimizer step, in every epoch.
//!
//! An epoch is a seeded permutation of all rows (or their order in the file), cut into steps of at most
//! so many tokens or rows. A row above the limit of tokens is a step of its own. Nothing is stored: an
//! epoch's steps are computed from the lengths, the seed and the epoch's number alone, so a resumed run
//! needs only the number of its step.

use std::collections::BTreeMap;

use luthier_core::{Seed, batch::pack};

/// Windows of this many steps are sorted by length when rows are grouped: wide enough for steps of
/// like rows, narrow enough that an epoch stays random.
const WINDOW_STEPS: usize = 50;

/// How much one optimizer step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// At most so many tokens, but at least one row.
    Tokens(usize),
    /// So many rows, or units of them; the last step of an epoch has what is left.
    Rows(usize),
}

/// The order in which rows come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// A new permutation in every epoch.
    #[default]
    Shuffled,
    /// The same, where rows of like length share a step.
    Grouped,
    /// The order of the file, in every epoch.
    File,
}

/// The endless, deterministic sequence of optimizer steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Tokens (positions) of every row.
    pub lengths: Vec<usize>,
    /// How many neighbouring rows are a unit, which no step parts: 1 where each stands for itself.
    pub unit: usize,
    /// What one optimizer step takes.
    pub size: Size,
    /// Where the permutations come from.
    pub seed: Seed,
    /// How rows follow each other.
    pub order: Order,
    /// The task of every row, where a step holds rows of one task; empty where tasks mix. A unit is of the
    /// task of its first row.
    pub tasks: Vec<usize>,
}

impl Plan {
    /// The steps of one epoch: row indices, every row exactly once, the rows of a unit in order.
    pub fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = self.lengths.chunks(self.unit).map(|u| u.iter().sum()).collect();
        let rows = |unit: usize| {
            let first = unit * self.unit;
            first..(first + self.unit).min(self.lengths.len())
        };
        let seed = self.seed.split("order").at(epoch as u64);
        let steps = match self.tasks.is_empty() {
            true => self.steps((0..lengths.len()).collect(), &lengths, seed),
            false => self.steps_by_task(&lengths, seed),
        };
        steps.into_iter().map(|step| step.into_iter().flat_map(rows).collect()).collect()
    }

    /// The steps of one epoch as indices of units: those of each task, which come in any order.
    fn steps_by_task(&self, lengths: &[usize], seed: Seed) -> Vec<Vec<usize>> {
        let mut tasks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for unit in 0..lengths.len() {
            tasks.entry(self.tasks[unit * self.unit]).or_default().push(unit);
        }
        let own = |(task, units)| self.steps(units, lengths, seed.split("task").at(task as u64));
        let mut steps: Vec<Vec<usize>> = tasks.into_iter().flat_map(own).collect();
        if self.order != Order::File {
            seed.split("tasks").rng().shuffle(&mut steps);
        }
        steps
    }

    /// The steps that these units form.
    fn steps(&self, mut units: Vec<usize>, lengths: &[usize], seed: Seed) -> Vec<Vec<usize>> {
        if self.order != Order::File {
            seed.split("rows").rng().shuffle(&mut units);
        }
        if self.order != Order::Grouped {
            return self.cut(&units, lengths, 1);
        }
        let mut steps = Vec::new();
        for mut window in self.cut(&units, lengths, WINDOW_STEPS) {
            // Stable, so units of one length keep the order of the permutation.
            window.sort_by_key(|unit| lengths[*unit]);
            steps.extend(self.cut(&window, lengths, 1));
        }
        seed.split("steps").rng().shuffle(&mut steps);
        steps
    }

    /// Runs of `units`, each as large as `steps` steps.
    fn cut(&self, units: &[usize], lengths: &[usize], steps: usize) -> Vec<Vec<usize>> {
        match self.size {
            Size::Tokens(n) => pack(units, |unit| lengths[unit], n.saturating_mul(steps)),
            Size::Rows(n) => {
                units.chunks(n.saturating_mul(steps).max(1)).map(<[usize]>::to_vec).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(rows: &[usize], lengths: &[usize]) -> usize {
        rows.iter().map(|r| lengths[*r]).sum()
    }

    fn steps(
        lengths: &[usize],
        size: Size,
        seed: u64,
        epoch: usize,
        order: Order,
    ) -> Vec<Vec<usize>> {
        Plan { lengths: lengths.to_vec(), unit: 1, size, seed: Seed(seed), order, tasks: vec![] }
            .epoch(epoch)
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_row_once_and_no_step_above_the_limit(
            lengths in prop::collection::vec(0usize..300, 0..200),
            limit in 0usize..600,
            by_rows in any::<bool>(),
            seed in any::<u64>(),
            epoch in 0usize..5,
            order in prop::sample::select(vec![Order::Shuffled, Order::Grouped, Order::File]),
        ) {
            let limit = if by_rows { limit / 50 + 1 } else { limit };
            let size = if by_rows { Size::Rows(limit) } else { Size::Tokens(limit) };
            let steps = super::tests::steps(&lengths, size, seed, epoch, order);
            let all: Vec<usize> = steps.concat();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &(0..lengths.len()).collect::<Vec<_>>());
            if order == Order::File {
                prop_assert_eq!(&all, &sorted);
            }
            for step in &steps {
                prop_assert!(!step.is_empty());
                match by_rows {
                    true => prop_assert!(step.len() <= limit),
                    false => prop_assert!(step.len() == 1 || tokens(step, &lengths) <= limit),
                }
            }
            if by_rows && order != Order::Grouped {
                // Only the last step may be short.
                prop_assert!(steps.iter().rev().skip(1).all(|step| step.len() == limit));
            }
            prop_assert_eq!(&steps, &super::tests::steps(&lengths, size, seed, epoch, order));
        }
    }

    proptest! {
        #[test]
        fn units_stay_whole_and_are_ordered_as_rows_of_their_length(
            lengths in prop::collection::vec(0usize..300, 0..60),
            unit in 1usize..4,
            limit in 1usize..900,
            by_rows in any::<bool>(),
            seed in any::<u64>(),
            order in prop::sample::select(vec![Order::Shuffled, Order::Grouped, Order::File]),
        ) {
            let size = if by_rows { Size::Rows(limit % 7 + 1) } else { Size::Tokens(limit) };
            // A unit of rows that share its length is ordered as one row is.
            let split: Vec<usize> = lengths
                .iter()
                .flat_map(|n| (0..unit).map(move |i| if i == 0 { *n } else { 0 }))
                .collect();
            let plan = Plan { lengths: split, unit, size, seed: Seed(seed), order, tasks: vec![] };
            let of_rows = super::tests::steps(&lengths, size, seed, 1, order);
            let want: Vec<Vec<usize>> = of_rows
                .iter()
                .map(|step| step.iter().flat_map(|u| u * unit..(u + 1) * unit).collect())
                .collect();
            prop_assert_eq!(plan.epoch(1), want);
        }
    }

    proptest! {
        #[test]
        fn a_step_of_one_task_is_one_that_its_rows_form_alone(
            rows in prop::collection::vec((1usize..300, 0usize..4), 0..120),
            limit in 1usize..900,
            by_rows in any::<bool>(),
            seed in any::<u64>(),
            order in prop::sample::select(vec![Order::Shuffled, Order::Grouped, Order::File]),
        ) {
            let size = if by_rows { Size::Rows(limit % 7 + 1) } else { Size::Tokens(limit) };
            let (lengths, tasks): (Vec<usize>, Vec<usize>) = rows.into_iter().unzip();
            let plan =
                Plan { lengths: lengths.clone(), unit: 1, size, seed: Seed(seed), order, tasks };
            let steps = plan.epoch(2);
            let mut all: Vec<usize> = steps.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for step in &steps {
                prop_assert!(step.iter().all(|row| plan.tasks[*row] == plan.tasks[step[0]]));
                match size {
                    Size::Rows(n) => prop_assert!(step.len() <= n),
                    Size::Tokens(n) => prop_assert!(step.len() == 1 || tokens(step, &lengths) <= n),
                }
            }
            if let Size::Rows(n) = size && order != Order::Grouped {
                // A step that is short is the last of its task.
                let short = steps.iter().filter(|step| step.len() < n);
                let mut seen: Vec<usize> = short.map(|step| plan.tasks[step[0]]).collect();
                let count = seen.len();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), count);
            }
            prop_assert_eq!(&steps, &plan.epoch(2));
        }
    }

    #[test]
    fn steps_of_tasks_come_mixed_and_other_rows_change_nothing() {
        let tasks: Vec<usize> = (0..90).map(|i| usize::from(i >= 60)).collect();
        let plan = Plan {
            lengths: vec![3; 90],
            unit: 1,
            size: Size::Rows(4),
            seed: Seed(3),
            order: Order::Shuffled,
            tasks,
        };
        let steps = plan.epoch(0);
        let of = |steps: &[Vec<usize>]| -> Vec<usize> {
            steps.iter().map(|step| plan.tasks[step[0]]).collect()
        };
        let turns = of(&steps).windows(2).filter(|pair| pair[0] != pair[1]).count();
        // 15 and 8 steps: one after another would be one turn.
        assert!(steps.len() == 23 && turns > 5, "{:?}", of(&steps));
        assert_ne!(of(&steps), of(&plan.epoch(1)));
        let file = Plan { order: Order::File, ..plan.clone() }.epoch(0);
        assert_eq!((file[0].clone(), file[15].clone()), (vec![0, 1, 2, 3], vec![60, 61, 62, 63]));
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let lengths = vec![10; 64];
        let of = |seed, e| steps(&lengths, Size::Tokens(40), seed, e, Order::Shuffled);
        assert_ne!(of(1, 0), of(1, 1));
        assert_ne!(of(1, 0), of(2, 0));
        // Rows of one length: four of them are 40 tokens.
        assert_eq!(of(1, 0), steps(&lengths, Size::Rows(4), 1, 0, Order::Shuffled));
    }

    #[test]
    fn the_files_order_is_that_of_the_file_in_every_epoch() {
        let lengths = [5, 1, 9, 2, 2];
        for epoch in [0, 3] {
            let by_rows = steps(&lengths, Size::Rows(2), 7, epoch, Order::File);
            assert_eq!(by_rows, [vec![0, 1], vec![2, 3], vec![4]]);
            let by_tokens = steps(&lengths, Size::Tokens(10), 7, epoch, Order::File);
            assert_eq!(by_tokens, [vec![0, 1], vec![2], vec![3, 4]]);
        }
    }

    #[test]
    fn grouping_brings_like_lengths_together() {
        let lengths: Vec<usize> = (0..400).map(|i| 1 + (i * 37) % 97).collect();
        for size in [Size::Tokens(300), Size::Rows(6)] {
            let spread = |order| -> usize {
                steps(&lengths, size, 3, 0, order)
                    .iter()
                    .map(|s| {
                        let of = || s.iter().map(|r| lengths[*r]);
                        of().max().unwrap() - of().min().unwrap()
                    })
                    .sum()
            };
            let (grouped, shuffled) = (spread(Order::Grouped), spread(Order::Shuffled));
            assert!(grouped * 5 < shuffled, "{size:?}: {grouped} {shuffled}");
        }
    }
}
