//! How far a run goes, and the forward passes of a step.

use std::collections::BTreeMap;

use luthier_core::{Row, batch::pack};
use serde::{Deserialize, Serialize};

use crate::config::Train;

/// What holds rows of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupByTask {
    /// A forward pass; a step has several.
    Pass,
    /// A step.
    Step,
}

/// Steps and tokens of one round: all epochs, cut at the requested length.
pub fn extent(
    config: &Train,
    order: &dyn Fn(usize) -> Vec<Vec<usize>>,
    rows: &[Row],
) -> (u64, u64) {
    let (mut steps, mut tokens, mut left, mut epoch) = (0, 0, config.epochs, 0);
    let most = config.max_steps.unwrap_or(u64::MAX);
    while left > 0.0 && steps < most {
        let all = order(epoch);
        let share = (all.len() as f64 * left.min(1.0)).ceil() as u64;
        let taken = share.min(most - steps);
        steps += taken;
        let read = |step: &Vec<usize>| step.iter().map(|i| rows[*i].len() as u64).sum::<u64>();
        tokens += all.iter().take(taken as usize).map(read).sum::<u64>();
        left -= 1.0;
        epoch += 1;
    }
    (steps, tokens)
}

/// Round and steps made in it after `step` steps of rounds of these lengths.
pub fn place(lengths: &[u64], step: u64) -> (usize, u64) {
    let mut left = step;
    for (round, steps) in lengths.iter().enumerate() {
        if left < *steps {
            return (round, left);
        }
        left -= steps;
    }
    (lengths.len(), left)
}

/// Splits a step's rows, in order, into runs of at most `micro_tokens` tokens; a longer row stands
/// alone. Every `unit` rows belong together and share a run.
pub fn micro_batches(
    step: &[usize],
    rows: &[Row],
    micro_tokens: usize,
    unit: usize,
) -> Vec<Vec<usize>> {
    let units: Vec<&[usize]> = step.chunks(unit).collect();
    let tokens = |unit: usize| units[unit].iter().map(|row| rows[*row].len()).sum::<usize>();
    let runs = pack(&(0..units.len()).collect::<Vec<usize>>(), tokens, micro_tokens);
    let rows = |run: &Vec<usize>| run.iter().flat_map(|unit| units[*unit]).copied().collect();
    runs.iter().map(rows).collect()
}

/// Splits a step's rows by their tasks; those of a task stay in order.
pub fn by_task(step: &[usize], rows: &[Row]) -> Vec<Vec<usize>> {
    let mut tasks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in step {
        tasks.entry(rows[*row].task).or_default().push(*row);
    }
    tasks.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_belongs_to_a_round() {
        let at = |step| place(&[3, 2], step);
        assert_eq!([at(0), at(2), at(3), at(4), at(5)], [(0, 0), (0, 2), (1, 0), (1, 1), (2, 0)]);
    }

    #[test]
    fn a_run_of_one_task_keeps_its_order() {
        let rows: Vec<Row> =
            [2, 0, 2, 1, 0].into_iter().map(|task| Row { task, ..Row::default() }).collect();
        assert_eq!(by_task(&[4, 2, 3, 0, 1], &rows), [vec![4, 1], vec![3], vec![2, 0]]);
        assert_eq!(by_task(&[0, 2], &rows), [[0, 2]]);
    }

    #[test]
    fn every_row_once_and_no_run_too_long() {
        let rows: Vec<Row> = [3, 4, 9, 1, 1, 5]
            .iter()
            .map(|n| Row {
                ids: vec![0; *n],
                targets: vec![0; *n],
                weights: vec![1.0; *n],
                ..Row::default()
            })
            .collect();
        let split = |step: &[usize], limit, unit| micro_batches(step, &rows, limit, unit);
        let all = [0, 1, 2, 3, 4, 5];
        assert_eq!(split(&all, 7, 1), [vec![0, 1], vec![2], vec![3, 4, 5]]);
        // Pairs of 7, 10 and 6 tokens.
        assert_eq!(split(&all, 7, 2), [vec![0, 1], vec![2, 3], vec![4, 5]]);
        assert_eq!(split(&[2, 3, 4, 5, 0, 1], 17, 2), [vec![2, 3, 4, 5], vec![0, 1]]);
    }
}
