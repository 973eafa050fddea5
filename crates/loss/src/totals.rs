//! What a whole step holds, so that means over it are exact however it is cut into passes.

use std::collections::BTreeMap;

use luthier_core::Batch;

use crate::normaliser::weight;

/// Sizes of some rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Sum of the weights of their targets; a negative one counts by its size.
    pub weight: f64,
    /// Targets of non-zero weight.
    pub tokens: usize,
    /// Rows with such a target.
    pub rows: usize,
}

/// Sizes of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Of all rows.
    pub all: Total,
    /// Of the rows of each task that has a trained target in the step.
    pub tasks: BTreeMap<usize, Total>,
    /// What the objective's sum over the step is divided by; 0 until somebody has asked it.
    pub by: f64,
}

impl Totals {
    /// The sizes of a step.
    pub fn of<'a>(step: impl IntoIterator<Item = &'a Batch>) -> Self {
        let mut totals = Totals::default();
        step.into_iter().for_each(|batch| totals.add(batch));
        totals
    }

    /// Counts a further batch.
    pub fn add(&mut self, batch: &Batch) {
        for row in 0..batch.rows.b() {
            let weights = &batch.weights_n[batch.rows.range(row)];
            let tokens = weights.iter().filter(|w| **w != 0.0).count();
            if tokens == 0 {
                continue;
            }
            let weight = weight(weights);
            for total in [&mut self.all, self.tasks.entry(batch.tasks_b[row]).or_default()] {
                total.weight += weight;
                total.tokens += tokens;
                total.rows += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;

    use super::*;

    #[test]
    fn a_step_is_counted_by_task_whatever_its_cut() {
        let row = |weights: &[f32], task| Row {
            ids: vec![0; weights.len()],
            targets: vec![0; weights.len()],
            weights: weights.to_vec(),
            task,
            ..Row::default()
        };
        let rows = [row(&[1.0, 0.0, 0.5], 2), row(&[0.0], 1), row(&[2.0], 0), row(&[1.0], 2)];
        let whole = Totals::of([&Batch::from_rows(&rows)]);
        let total = |weight, tokens, rows| Total { weight, tokens, rows };
        assert_eq!(whole.all, total(4.5, 4, 3));
        assert_eq!(whole.tasks, BTreeMap::from([(0, total(2.0, 1, 1)), (2, total(2.5, 3, 2))]));
        let parts = rows.chunks(1).map(Batch::from_rows).collect::<Vec<Batch>>();
        assert_eq!(Totals::of(&parts), whole);
    }
}
