//! Facts, and sums and differences mod 100 that are worked in two steps, in digits.

use luthier_core::{Row, Seed};

use crate::measure;

/// Digits 0 to 9, then marks.
pub const VOCAB: usize = 14;
const FACT: u32 = 10;
const ADD: u32 = 11;
const SUBTRACT: u32 = 12;
const ARROW: u32 = 13;

pub const FACTS: usize = 512;
/// Differences to train on, to choose a rate by, to judge by.
pub const EXAMPLES: usize = 800;
pub const DEV: usize = 200;
pub const TEST: usize = 600;

/// What the base knows.
pub struct Known {
    pub facts: Vec<Row>,
    pub additions: Vec<Row>,
}

/// Subtractions of distinct pairs.
pub struct Data {
    pub train: Vec<Row>,
    pub dev: Vec<Row>,
    pub test: Vec<Row>,
}

fn digits(n: u32) -> [u32; 2] {
    [n / 10, n % 10]
}

/// `MARK a b → between result`: the tens of b first, then its ones, all mod 100.
fn worked(mark: u32, a: u32, b: u32, example: usize) -> Row {
    let step = |from: u32, by: u32| match mark {
        ADD => (from + by) % 100,
        _ => (from + 100 - by) % 100,
    };
    let between = step(a, b - b % 10);
    let answer = [digits(between), digits(step(between, b % 10))].concat();
    let prompt = [&[mark], &digits(a)[..], &digits(b)[..], &[ARROW]].concat();
    measure::row(&prompt, &answer, example)
}

/// All pairs of numbers below 100 in no order.
fn pairs(seed: Seed) -> Vec<(u32, u32)> {
    let mut pairs: Vec<(u32, u32)> = (0..10_000).map(|p| (p / 100, p % 100)).collect();
    seed.rng().shuffle(&mut pairs);
    pairs
}

impl Known {
    /// `FACT key → value` for distinct keys of three digits, and 500 sums.
    pub fn new() -> Self {
        let mut rng = Seed(16).split("facts").rng();
        let mut keys: Vec<u32> = (0..1000).collect();
        rng.shuffle(&mut keys);
        let mut fact = |(example, key): (usize, &u32)| {
            let [second, third] = digits(key % 100);
            let value = digits(rng.below(100) as u32);
            measure::row(&[FACT, key / 100, second, third, ARROW], &value, example)
        };
        let facts = keys[..FACTS].iter().enumerate().map(&mut fact).collect();
        Known { facts, additions: additions().split_off(9500) }
    }

    /// An epoch of pretraining: every fact twenty times, every sum.
    pub fn pretraining_rows(&self) -> Vec<Row> {
        (0..20).flat_map(|_| self.facts.iter().cloned()).chain(additions()).collect()
    }
}

fn additions() -> Vec<Row> {
    let pairs = pairs(Seed(16).split("additions"));
    pairs.into_iter().map(|(a, b)| worked(ADD, a, b, 0)).collect()
}

impl Data {
    pub fn new(seed: Seed) -> Self {
        let pairs = pairs(seed.split("subtractions")).into_iter().take(EXAMPLES + DEV + TEST);
        let one = |(i, (a, b))| worked(SUBTRACT, a, b, i);
        let mut train: Vec<Row> = pairs.enumerate().map(one).collect();
        let mut dev = train.split_off(EXAMPLES);
        let test = dev.split_off(DEV);
        Data { train, dev, test }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_worked_tens_first() {
        // 23 − 48: 23 − 40 is 83, 83 − 8 is 75.
        let row = worked(SUBTRACT, 23, 48, 0);
        assert_eq!(row.ids, [SUBTRACT, 2, 3, 4, 8, ARROW, 8, 3, 7]);
        assert_eq!(row.targets[5..], [8, 3, 7, 5]);
        assert_eq!(row.weights, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(worked(ADD, 75, 48, 0).targets[5..], [1, 5, 2, 3]);
    }

    #[test]
    fn keys_are_distinct_and_examples_do_not_meet() {
        let distinct = |rows: &[Row], of: std::ops::Range<usize>| {
            let mut keys: Vec<&[u32]> = rows.iter().map(|row| &row.ids[of.clone()]).collect();
            keys.sort_unstable();
            keys.dedup();
            keys.len()
        };
        let known = Known::new();
        assert_eq!((distinct(&known.facts, 1..4), known.facts.len()), (FACTS, FACTS));
        assert_eq!((distinct(&known.additions, 1..5), known.additions.len()), (500, 500));
        assert_eq!(known.pretraining_rows().len(), 20 * FACTS + 10_000);
        let Data { train, dev, test } = Data::new(Seed(3));
        assert_eq!([train.len(), dev.len(), test.len()], [EXAMPLES, DEV, TEST]);
        assert_eq!(distinct(&[train, dev, test].concat(), 1..5), EXAMPLES + DEV + TEST);
    }
}
