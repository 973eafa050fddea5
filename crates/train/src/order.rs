//! From the rows of a step to forward passes of bounded size.

use luthier_core::{Row, batch::pack};

/// Splits a step's rows, in order, into runs of at most `micro_tokens` tokens; a longer row stands
/// alone.
pub fn micro_batches(step: &[usize], rows: &[Row], micro_tokens: usize) -> Vec<Vec<usize>> {
    pack(step, |row| rows[row].len(), micro_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_and_no_run_too_long() {
        let rows: Vec<Row> = [3, 4, 9, 1, 1, 5]
            .iter()
            .map(|n| Row {
                ids: vec![0; *n],
                targets: vec![0; *n],
                weights: vec![1.0; *n],
                example: 0,
            })
            .collect();
        let split = micro_batches(&[0, 1, 2, 3, 4, 5], &rows, 7);
        assert_eq!(split, [vec![0, 1], vec![2], vec![3, 4, 5]]);
    }
}
