//! Six tasks over three kinds of input. Tasks on one kind draw from one distribution: only the
//! instruction tells them apart.

use luthier_core::Rng;

/// What the tasks ask for, in their order.
pub const TASKS: [&str; 6] = ["parity", "largest", "sorted", "first", "same", "sentiment"];

/// Digits are the tokens 0 to 9, letters and the lexicon follow.
const DIGITS: usize = 10;
const LETTER: u32 = 10;
const LETTERS: usize = 8;
const LEXICON: u32 = 18;
/// The first half of the lexicon is good, the second bad.
const MEANINGS: usize = 30;
const EVEN: u32 = 48;
const ODD: u32 = 49;
const SAME: u32 = 50;
const DIFFERENT: u32 = 51;
const GOOD: u32 = 52;
const BAD: u32 = 53;
/// The first token that is neither input nor label.
pub const WORDS: u32 = 54;

/// An input and what may be said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// What the instruction is about.
    pub input: Vec<u32>,
    /// The right answer.
    pub answer: Vec<u32>,
    /// The right answer to the negated instruction.
    pub opposite: Vec<u32>,
    /// Two more labels, answers to other tasks among them.
    pub others: [Vec<u32>; 2],
}

impl Instance {
    /// One of a task, in which what is asked for and its opposite differ.
    pub fn new(task: usize, rng: &mut Rng) -> Self {
        loop {
            let input = match TASKS[task] {
                "sentiment" => (0..3).map(|_| LEXICON + rng.below(MEANINGS) as u32).collect(),
                "first" | "same" => letters(rng),
                _ => (0..3).map(|_| digit(rng)).collect(),
            };
            let made = Instance::of(task, input);
            if made.answer != made.opposite {
                return made;
            }
        }
    }

    /// What a task says of an input.
    pub fn of(task: usize, input: Vec<u32>) -> Self {
        let (first, last) = (input[0], input[input.len() - 1]);
        let (low, high) = (first.min(last), first.max(last));
        let most = input.iter().max().copied().unwrap_or_default();
        let least = input.iter().min().copied().unwrap_or_default();
        let ones = input.iter().filter(|d| **d == 1).count();
        let good = input.iter().filter(|w| **w < LEXICON + MEANINGS as u32 / 2).count();
        let yes = |holds: bool, yes, no| if holds { [yes, no] } else { [no, yes] };
        let one = |[answer, opposite]: [u32; 2]| [vec![answer], vec![opposite]];
        let next = |token: u32, from: u32, of: usize| from + (token - from + 1) % of as u32;
        let (said, others) = match TASKS[task] {
            "parity" => {
                let others = [first, next(first, 0, DIGITS)];
                (one(yes(ones % 2 == 0, EVEN, ODD)), one(others))
            }
            "largest" => (one([most, least]), one([EVEN, ODD])),
            "sorted" => ([vec![low, high], vec![high, low]], [vec![low, low], vec![high, high]]),
            "first" => (one([first, last]), one([SAME, DIFFERENT])),
            "same" => {
                let others = [first, next(first, LETTER, LETTERS)];
                (one(yes(first == last, SAME, DIFFERENT)), one(others))
            }
            _ => (one(yes(2 * good > input.len(), GOOD, BAD)), one([SAME, EVEN])),
        };
        let [answer, opposite] = said;
        Instance { input, answer, opposite, others }
    }

    /// Four labels in random order, and the place of the right one.
    pub fn labels(&self, rng: &mut Rng) -> (Vec<Vec<u32>>, usize) {
        let [a, b] = self.others.clone();
        let mut labels = vec![self.answer.clone(), self.opposite.clone(), a, b];
        rng.shuffle(&mut labels);
        let answer = labels.iter().position(|label| *label == self.answer).unwrap_or_default();
        (labels, answer)
    }
}

/// Ones are frequent, so that there is something to count.
fn digit(rng: &mut Rng) -> u32 {
    if rng.uniform() < 0.3 { 1 } else { rng.below(DIGITS) as u32 }
}

/// Four letters, of which the first and the last are often the same.
fn letters(rng: &mut Rng) -> Vec<u32> {
    let mut letters: Vec<u32> = (0..4).map(|_| LETTER + rng.below(LETTERS) as u32).collect();
    if rng.uniform() < 0.4 {
        letters[3] = letters[0];
    }
    letters
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    fn said(task: &str, input: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let task = TASKS.iter().position(|name| *name == task).unwrap();
        let made = Instance::of(task, input.to_vec());
        (made.answer, made.opposite)
    }

    #[test]
    fn tasks_say_what_they_are_called() {
        let one = |a, b| (vec![a], vec![b]);
        assert_eq!(said("parity", &[1, 7, 1]), one(EVEN, ODD));
        assert_eq!(said("parity", &[1, 7, 0]), one(ODD, EVEN));
        assert_eq!(said("largest", &[4, 9, 1]), one(9, 1));
        assert_eq!(said("sorted", &[8, 0, 3]), (vec![3, 8], vec![8, 3]));
        assert_eq!(said("first", &[12, 10, 11, 17]), one(12, 17));
        assert_eq!(said("same", &[12, 10, 11, 12]), one(SAME, DIFFERENT));
        assert_eq!(said("same", &[12, 10, 12, 11]), one(DIFFERENT, SAME));
        assert_eq!(said("sentiment", &[18, 47, 20]), one(GOOD, BAD));
        assert_eq!(said("sentiment", &[33, 47, 20]), one(BAD, GOOD));
    }

    #[test]
    fn labels_are_four_of_one_length_and_one_is_right() {
        let mut rng = Seed(1).rng();
        for task in 0..TASKS.len() {
            for _ in 0..200 {
                let made = Instance::new(task, &mut rng);
                let (mut labels, answer) = made.labels(&mut rng);
                assert_eq!(labels[answer], made.answer);
                assert!(labels.iter().all(|label| label.len() == made.answer.len()));
                labels.sort();
                labels.dedup();
                assert_eq!(labels.len(), 4, "{task}: {made:?}");
                assert!(made.input.iter().chain(labels.concat().iter()).all(|t| *t < WORDS));
            }
        }
    }
}
