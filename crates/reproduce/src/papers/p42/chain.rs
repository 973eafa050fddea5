//! Texts whose parts follow from each other by one of four rules.

use luthier_core::{Rng, Row, Seed};

use crate::measure;

const LETTERS: usize = 10;
const ARROW: u32 = LETTERS as u32;
/// Names of rules.
const MARKS: u32 = ARROW + 1;
/// Tokens.
pub const VOCAB: usize = MARKS as usize + RULES;
/// Letters that a rule works on.
const LENGTH: usize = 4;
/// Sorted, reversed, rotated, shuffled; their answers are the first four letters.
const RULES: usize = 4;
const SHUFFLED: usize = 3;

/// A text, what a rule makes of it, and what the same makes of that.
pub struct Chain {
    rule: usize,
    x: Vec<u32>,
    y: Vec<u32>,
    z: Vec<u32>,
}

/// `n` rows, as many of each rule.
pub fn rows(n: usize, seed: Seed, row: fn(&Chain, usize) -> Row) -> Vec<Row> {
    let mut rng = seed.rng();
    (0..n).map(|example| row(&Chain::draw(example % RULES, &mut rng), example)).collect()
}

/// `x → y → z`, to go on with `y` and `z`, and every other time with the rule's mark.
pub fn read(chain: &Chain, example: usize) -> Row {
    let Chain { rule, x, y, z } = chain;
    let mark = [ARROW, MARKS + *rule as u32];
    let mark = if (example / RULES).is_multiple_of(2) { &mark[..] } else { &[] };
    measure::row(&[&x[..], &[ARROW]].concat(), &[&y[..], &[ARROW], z, mark].concat(), example)
}

/// `x → y → z`, to go on with the rule's mark.
pub fn named(chain: &Chain, example: usize) -> Row {
    chain.then(MARKS + chain.rule as u32, example)
}

/// `x → y → z`, to answer with the rule's letter.
pub fn asked(chain: &Chain, example: usize) -> Row {
    chain.then(chain.rule as u32, example)
}

impl Chain {
    fn then(&self, answer: u32, example: usize) -> Row {
        let Chain { x, y, z, .. } = self;
        measure::row(&[&x[..], &[ARROW], y, &[ARROW], z, &[ARROW]].concat(), &[answer], example)
    }

    /// Different letters; no rule but `rule` could have made `y` of them.
    fn draw(rule: usize, rng: &mut Rng) -> Self {
        loop {
            let mut x: Vec<u32> = (0..LETTERS as u32).collect();
            rng.shuffle(&mut x);
            x.truncate(LENGTH);
            let by = 1 + rng.below(LENGTH - 1);
            let mut made = |mut of: Vec<u32>| {
                match rule {
                    0 => of.sort_unstable(),
                    1 => of.reverse(),
                    2 => of.rotate_left(by),
                    _ => rng.shuffle(&mut of),
                }
                of
            };
            let y = made(x.clone());
            let z = made(y.clone());
            let makers = makers(&x, &y);
            if makers == [rule] || rule == SHUFFLED && makers.is_empty() && x != y {
                return Chain { rule, x, y, z };
            }
        }
    }
}

/// The rules but shuffling that make `y` of `x`.
fn makers(x: &[u32], y: &[u32]) -> Vec<usize> {
    let turned = |by| [&x[by..], &x[..by]].concat() == y;
    let made = [y.is_sorted(), x.iter().rev().eq(y), (1..x.len()).any(turned)];
    (0..made.len()).filter(|rule| made[*rule]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_apart_by_what_they_make() {
        assert_eq!(makers(&[3, 1, 2], &[1, 2, 3]), [0, 2]);
        assert_eq!(makers(&[3, 1, 2], &[2, 1, 3]), [1]);
        assert_eq!(makers(&[3, 1, 5, 2], &[5, 2, 3, 1]), [2]);
        let mut rng = Seed(1).rng();
        for i in 0..400 {
            let Chain { rule: drawn, x, y, z } = Chain::draw(i % RULES, &mut rng);
            let found = makers(&x, &y);
            let rule = if found.is_empty() { SHUFFLED } else { found[0] };
            assert_eq!((rule, drawn, found.len() <= 1), (i % RULES, rule, true), "{x:?} {y:?}");
            if rule != SHUFFLED {
                // The same again, as positions.
                let from: Vec<usize> =
                    y.iter().map(|l| x.iter().position(|x| x == l).unwrap()).collect();
                let again: Vec<u32> = from.iter().map(|at| y[*at]).collect();
                assert_eq!(z, if rule == 0 { y.clone() } else { again }, "{rule}");
            }
            let sorted = |mut of: Vec<u32>| {
                of.sort_unstable();
                of
            };
            assert_eq!(sorted(x.clone()), sorted(y));
            assert!(sorted(x).windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn only_what_follows_an_arrow_is_learned() {
        let texts = rows(8, Seed(2), read);
        assert_eq!((texts[5].len(), texts[5].trained()), (3 * LENGTH + 1, 2 * LENGTH + 1));
        assert_eq!((texts[2].len(), texts[2].trained()), (3 * LENGTH + 3, 2 * LENGTH + 3));
        assert_eq!((texts[2].ids[LENGTH], texts[2].ids[2 * LENGTH + 1]), (ARROW, ARROW));
        assert_eq!(texts[2].targets.last(), Some(&(MARKS + 2)));
        for (question, answer) in [(asked as fn(&Chain, usize) -> Row, 2), (named, MARKS + 2)] {
            let question = &rows(8, Seed(2), question)[6];
            assert_eq!((question.trained(), question.len()), (1, 3 * LENGTH + 3));
            assert_eq!(question.ids.last(), Some(&ARROW));
            assert_eq!(question.targets.last(), Some(&answer));
        }
        // Fewer examples are the first of more.
        assert_eq!(rows(50, Seed(2), asked), rows(150, Seed(2), asked)[..50]);
    }
}
