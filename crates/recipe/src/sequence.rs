//! `data.sequential`: the files of the training data one after another, each in a round of its own.

use std::sync::Arc;

use luthier_core::{Error, Result};
use luthier_data::Plan;
use luthier_params::Params;

use crate::prepare::Prepared;

/// The rows of every round; of all of them when the data are not sequential.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence(Vec<Vec<usize>>);

impl Sequence {
    /// Every round reads everything.
    pub fn whole() -> Self {
        Sequence(Vec::new())
    }

    /// A round for each file, in the order in which their first examples stand in the table.
    pub fn files(train: &Prepared, params: &Params) -> Result<Self> {
        if params.rounds() > 1 {
            let what = "the form under train.params has rounds of its own";
            return Err(Error::input("data.sequential", what)
                .hint("train on one file after another with train.continue_from"));
        }
        let file = |example: usize| &train.table.examples[example].origin.file;
        let mut files: Vec<&Arc<str>> = Vec::new();
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        for (i, row) in train.rows.iter().enumerate() {
            let file = file(row.example);
            let round = files.iter().position(|known| *known == file).unwrap_or_else(|| {
                files.push(file);
                rounds.push(Vec::new());
                files.len() - 1
            });
            rounds[round].push(i);
        }
        if let [only] = files.as_slice() {
            let what = format!("wants several files, and every row is from {only}");
            return Err(Error::input("data.sequential", what)
                .hint("name them in order: data.train = [\"first.jsonl\", \"second.jsonl\"]"));
        }
        Ok(Sequence(rounds))
    }

    /// How many rounds the data ask for.
    pub fn rounds(&self) -> usize {
        self.0.len().max(1)
    }

    /// An epoch's steps in a round, where `plan` is that of all rows.
    pub fn epoch(&self, plan: &Plan, round: usize, epoch: usize) -> Vec<Vec<usize>> {
        let Some(rows) = self.0.get(round) else { return plan.epoch(epoch) };
        let own = |of: &[usize]| rows.iter().filter_map(|row| of.get(*row).copied()).collect();
        let (lengths, tasks) = (own(&plan.lengths), own(&plan.tasks));
        let mut steps = Plan { lengths, tasks, ..plan.clone() }.epoch(epoch);
        steps.iter_mut().flatten().for_each(|row| *row = rows[*row]);
        steps
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;
    use luthier_data::{Order, Size};

    use super::*;

    #[test]
    fn a_round_reads_its_rows_and_only_those() {
        let plan = Plan {
            lengths: vec![5, 1, 7, 2, 3],
            unit: 1,
            size: Size::Rows(2),
            seed: Seed(3),
            order: Order::Shuffled,
            tasks: Vec::new(),
        };
        let sequence = Sequence(vec![vec![0, 2, 3], vec![1, 4]]);
        assert_eq!(sequence.rounds(), 2);
        let read = |round, epoch| {
            let mut rows: Vec<usize> =
                sequence.epoch(&plan, round, epoch).into_iter().flatten().collect();
            rows.sort_unstable();
            rows
        };
        for epoch in 0..3 {
            assert_eq!(read(0, epoch), [0, 2, 3]);
            assert_eq!(read(1, epoch), [1, 4]);
        }
        // Rows go by their own lengths, which limits of tokens count.
        let tight = Plan { size: Size::Tokens(5), order: Order::File, ..plan.clone() };
        assert_eq!(sequence.epoch(&tight, 0, 0), [vec![0], vec![2], vec![3]]);
        assert_eq!(sequence.epoch(&tight, 1, 0), [vec![1, 4]]);
        let tasks = vec![0, 0, 1, 1, 0];
        let apart = Plan { tasks, size: Size::Rows(9), order: Order::File, ..plan.clone() };
        assert_eq!(sequence.epoch(&apart, 0, 0), [vec![0], vec![2, 3]]);
        assert_eq!(sequence.epoch(&apart, 1, 0), [vec![1, 4]]);
        let whole = Sequence::whole();
        assert_eq!((whole.rounds(), whole.epoch(&plan, 0, 1)), (1, plan.epoch(1)));
    }
}
