//! Two languages with one grammar: a word of A has a twin in B, and some tokens both have.

use std::sync::Arc;

use luthier_core::{Error, Policy, Result, Rng, Row, Rows, Seed};
use luthier_kernels::threads;

use crate::measure;

/// Shared tokens, the words of A, those of B, the end of a line, the answers.
pub const VOCAB: usize = 95;

const CLASSES: usize = 4;
/// Words of a class in each language.
const WORDS: usize = 10;
/// First words of A and of B; what is below both have.
const A: u32 = 10;
const B: u32 = 50;
const END: u32 = 90;
/// The first of the answers, one for each class; no text holds them.
const ANSWER: u32 = 91;
/// Words and shared tokens of a line.
const LENGTH: usize = 24;
/// Rows of a forward pass.
const PASS: usize = 128;
/// By how many words the most frequent class of a labelled line leads.
const LEAD: usize = 2;

/// A line, and how many words of each class it has.
struct Line {
    tokens: Vec<u32>,
    counts: [usize; CLASSES],
}

impl Line {
    /// A line in A. Classes follow each other by a chain that goes to the next one with 0.7 and to
    /// each of the others with 0.1; within a class the word of rank `r` has a frequency of `1/r`.
    /// Every fourth token is a shared one: of the ten, each class has two of its own, which follow
    /// it with 0.8, and two follow any.
    fn draw(rng: &mut Rng) -> Self {
        let (mut tokens, mut counts) = (Vec::with_capacity(LENGTH + 1), [0; CLASSES]);
        let mut class = rng.below(CLASSES);
        for place in 0..LENGTH {
            if place % 4 == 3 {
                tokens.push(match rng.below(10) as u32 {
                    any @ 8.. => any,
                    own => 2 * class as u32 + own % 2,
                });
                continue;
            }
            if place > 0 {
                let step = if rng.uniform() < 0.7 { 1 } else { 2 + rng.below(CLASSES - 1) };
                class = (class + step) % CLASSES;
            }
            counts[class] += 1;
            tokens.push(A + (class * WORDS + ranked(rng)) as u32);
        }
        Line { tokens, counts }
    }

    /// The same with the words in B for which `which` says so.
    fn switched(mut self, mut which: impl FnMut() -> bool) -> Self {
        for token in self.tokens.iter_mut().filter(|token| **token >= A) {
            *token += if which() { B - A } else { 0 };
        }
        self
    }

    /// A row in which every token is to be read, the end too.
    fn read(mut self, example: usize) -> Row {
        self.tokens.push(END);
        Row::from_tokens(&self.tokens, &[1.0; LENGTH + 1], example)
    }

    /// The class that leads, if one does.
    fn leader(&self) -> Option<usize> {
        let best = (0..CLASSES).max_by_key(|class| self.counts[*class])?;
        let clear = |class: usize| class == best || self.counts[class] + LEAD <= self.counts[best];
        (0..CLASSES).all(clear).then_some(best)
    }

    /// A row that asks for the class that leads.
    fn ask(mut self, leader: usize, example: usize) -> Row {
        self.tokens.push(END);
        measure::row(&self.tokens, &[ANSWER + leader as u32], example)
    }
}

/// A rank from 0 with a frequency of one over its number from 1.
fn ranked(rng: &mut Rng) -> usize {
    let all: f64 = (1..=WORDS).map(|r| 1.0 / r as f64).sum();
    let mut left = rng.uniform() * all;
    for rank in 0..WORDS - 1 {
        left -= 1.0 / (rank + 1) as f64;
        if left < 0.0 {
            return rank;
        }
    }
    WORDS - 1
}

/// Lines of which `in_b` and `mixed` in a hundred are in B and in words of both; the rest are in A.
pub fn text(n: usize, in_b: usize, mixed: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut row = |example: usize| {
        let line = Line::draw(&mut rng);
        let kind = example % 100;
        if kind < in_b {
            line.switched(|| true).read(example)
        } else if kind < in_b + mixed {
            line.switched(|| rng.below(2) == 1).read(example)
        } else {
            line.read(example)
        }
    };
    (0..n).map(&mut row).collect()
}

/// Questions for the class that leads in a line of A, and word for word the same ones in B.
pub fn questions(n: usize, seed: Seed) -> (Vec<Row>, Vec<Row>) {
    let (mut rng, mut in_a, mut in_b) = (seed.rng(), Vec::new(), Vec::new());
    while in_a.len() < n {
        let line = Line::draw(&mut rng);
        let Some(leader) = line.leader() else { continue };
        let twin = Line { tokens: line.tokens.clone(), ..line }.switched(|| true);
        in_b.push(twin.ask(leader, in_a.len()));
        in_a.push(line.ask(leader, in_a.len()));
    }
    (in_a, in_b)
}

/// The share of questions of which the likeliest of the answers is the right one: a language that the
/// task was not learned in may well go on with a word.
pub fn right(policy: &Policy, questions: &[Row]) -> Result<f64> {
    let mut right = 0;
    for pass in questions.chunks(PASS) {
        let ids: Vec<u32> = pass.iter().flat_map(|row| row.ids.iter().copied()).collect();
        let rows = Arc::new(Rows::new(&pass.iter().map(Row::len).collect::<Vec<usize>>(), |_| 0));
        let logits = threads::together(|| policy.logits(&ids, rows.clone()))?.to_vec2::<f32>()?;
        for (row, end) in pass.iter().zip(&rows.offsets[1..]) {
            let none = || Error::failed(format!("row {}", row.example), "asks nothing");
            let answers = &logits[end.checked_sub(1).ok_or_else(none)?][ANSWER as usize..];
            let best = (0..CLASSES).max_by(|a, b| answers[*a].total_cmp(&answers[*b]));
            let asked = row.targets.last().copied().ok_or_else(none)?;
            right += usize::from(best == Some((asked - ANSWER) as usize));
        }
    }
    Ok(right as f64 / questions.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(word: u32) -> Option<usize> {
        (A..END).contains(&word).then(|| (word - A) as usize % (CLASSES * WORDS) / WORDS)
    }

    fn is_b(word: u32) -> bool {
        (B..END).contains(&word)
    }

    #[test]
    fn classes_follow_the_chain_and_shared_tokens_the_class_before() {
        let (mut next, mut all, mut first, mut told) = (0, 0, 0, 0);
        let rows = text(2000, 0, 0, Seed(1));
        for row in &rows {
            assert_eq!((row.len(), row.trained(), row.ids.len()), (LENGTH, LENGTH, LENGTH));
            assert_eq!(row.targets[LENGTH - 1], END);
            let words: Vec<u32> = row.ids.iter().copied().filter(|id| *id >= A).collect();
            assert_eq!(words.len(), 18);
            assert!(words.iter().all(|word| !is_b(*word)));
            for pair in words.windows(2) {
                let (before, after) = (class(pair[0]).unwrap(), class(pair[1]).unwrap());
                next += usize::from((before + 1) % CLASSES == after);
                all += 1;
            }
            first += words.iter().filter(|word| (**word - A).is_multiple_of(10)).count();
            for place in (3..LENGTH).step_by(4) {
                let (before, shared) = (class(row.ids[place - 1]).unwrap(), row.ids[place]);
                assert!(shared < A && (shared >= 8 || shared as usize / 2 == before));
                told += usize::from(shared < 8);
            }
        }
        let share = |n: usize, of: usize| n as f64 / of as f64;
        assert!((share(next, all) - 0.7).abs() < 0.01, "{next} of {all}");
        // The harmonic number of ten is 2.929.
        assert!((share(first, 18 * 2000) - 1.0 / 2.929).abs() < 0.01, "{first}");
        assert!((share(told, 6 * 2000) - 0.8).abs() < 0.02, "{told}");
    }

    #[test]
    fn pretraining_holds_little_of_b() {
        let rows = text(1000, 8, 2, Seed(2));
        let of_b = |row: &Row| row.ids.iter().filter(|id| is_b(**id)).count();
        let (whole, mixed): (Vec<usize>, Vec<usize>) =
            rows.iter().map(of_b).filter(|n| *n > 0).partition(|n| *n == 18);
        assert_eq!((whole.len(), mixed.len()), (80, 20));
        let words: usize = mixed.iter().sum();
        assert!((words as f64 / (18.0 * 20.0) - 0.5).abs() < 0.1, "{words}");
        assert!(text(50, 100, 0, Seed(3)).iter().all(|row| of_b(row) == 18));
    }

    #[test]
    fn questions_ask_for_the_class_that_leads_and_are_the_same_in_both_languages() {
        let (in_a, in_b) = questions(200, Seed(4));
        assert_eq!((in_a.len(), in_b.len()), (200, 200));
        let mut answers = [0; CLASSES];
        for (a, b) in in_a.iter().zip(&in_b) {
            let twin = |id: &u32| if (A..B).contains(id) { id + B - A } else { *id };
            assert_eq!(a.ids.iter().map(twin).collect::<Vec<u32>>(), b.ids);
            assert_eq!((&a.targets.last(), a.trained(), b.trained()), (&b.targets.last(), 1, 1));
            let answer = (a.targets.last().unwrap() - ANSWER) as usize;
            let mut counts = [0; CLASSES];
            a.ids.iter().filter_map(|id| class(*id)).for_each(|class| counts[class] += 1);
            for (class, n) in counts.iter().enumerate() {
                assert!(class == answer || n + LEAD <= counts[answer], "{counts:?}");
            }
            answers[answer] += 1;
            assert_eq!(a.ids.last(), Some(&END));
        }
        assert!(answers.iter().all(|n| *n > 25), "{answers:?}");
        assert_eq!(VOCAB, ANSWER as usize + CLASSES);
    }
}
