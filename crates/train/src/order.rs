//! From the rows of a step to forward passes of bounded size.

use luthier_core::{Row, batch::pack};

/// Tokens a shard should have at least: smaller products leave the cores idle in packing.
const SHARD_TOKENS: usize = 256;
/// Shards at most.
const SHARDS: usize = 64;

/// Splits a step's rows, in order, into runs of at most `micro_tokens` tokens; a longer row stands
/// alone.
pub fn micro_batches(step: &[usize], rows: &[Row], micro_tokens: usize) -> Vec<Vec<usize>> {
    pack(step, |row| rows[row].len(), micro_tokens)
}

/// Splits a forward pass into shards that run side by side, each on its own core: rows go, longest
/// first, to the shard with the fewest tokens. How many there are depends on the tokens and on
/// `most`, never on the machine, so the sums of their gradients are the same everywhere.
pub fn shards(micro: &[usize], rows: &[Row], most: usize) -> Vec<Vec<usize>> {
    let tokens: usize = micro.iter().map(|i| rows[*i].len()).sum();
    // Two shards are worth it from half the size: they halve the time on two cores.
    let wanted = (tokens / SHARD_TOKENS).max(if tokens >= SHARD_TOKENS / 2 { 2 } else { 1 });
    let count = wanted.min(SHARDS).min(most).min(micro.len()).max(1);
    let mut by_length = micro.to_vec();
    by_length.sort_by_key(|i| (std::cmp::Reverse(rows[*i].len()), *i));
    let mut shards = vec![(0, Vec::new()); count];
    for row in by_length {
        let (load, shard) = shards.iter_mut().min_by_key(|(load, _)| *load).expect("count ≥ 1");
        *load += rows[row].len();
        shard.push(row);
    }
    shards.into_iter().map(|(_, shard)| shard).collect()
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
