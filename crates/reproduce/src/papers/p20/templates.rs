//! Instructions: fillers, words of the task, and a place for the input.
//!
//! A task has eight words. The observed templates use four of them in eight frames. Others are made by
//! rule: other openings, word orders and closings, in one sentence or two, with any two of the words.

use luthier_core::{Rng, Row};

use super::tasks::{Instance, TASKS, WORDS};
use crate::measure;

/// Before an answer.
const ANSWER: u32 = WORDS;
const NOT: u32 = WORDS + 1;
const FILLER: u32 = WORDS + 2;
const FILLERS: u32 = 24;
const WORD: u32 = FILLER + FILLERS;
/// Words of a task.
const EACH: u32 = 8;
/// Of these, in observed templates.
const KNOWN: u32 = 4;
/// All tokens.
pub const VOCAB: usize = WORD as usize + EACH as usize * TASKS.len();

/// A place in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// A filler.
    F(u32),
    /// One of the two words of the template.
    C(usize),
    /// The input.
    X,
}
use Slot::{C, F, X};

/// Where nothing but the instruction is said before the input, mostly.
const OBSERVED: [&[Slot]; 8] = [
    &[C(0), F(0), C(1), F(1), X],
    &[F(2), C(0), C(1), F(3), X],
    &[F(4), F(5), C(0), C(1), F(6), X, F(7)],
    &[C(1), F(7), X],
    &[C(0), F(8), F(1), X],
    &[F(9), F(10), C(0), F(3), X],
    &[X, F(1), C(0), C(1)],
    &[F(11), C(1), F(6), X, F(12)],
];
const OPENINGS: [&[Slot]; 6] =
    [&[], &[F(13), F(1)], &[F(14), F(5)], &[F(16)], &[F(2), F(17)], &[F(23), F(7)]];
const BODIES: [&[Slot]; 6] = [
    &[C(0)],
    &[C(0), F(18), C(1)],
    &[C(1), F(0), C(0)],
    &[F(4), C(0), F(19)],
    &[F(9), C(1), F(15), C(0)],
    &[C(0), C(1)],
];
const CLOSINGS: [&[Slot]; 5] = [&[], &[F(7)], &[F(20)], &[F(21), F(22)], &[F(3)]];

/// An instruction of a task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    slots: Vec<Slot>,
    words: [u32; 2],
}

impl Template {
    /// The eight that the model is tuned on.
    pub fn observed(task: usize) -> Vec<Template> {
        let word = |i: u32| WORD + EACH * task as u32 + i % KNOWN;
        let template = |(i, slots): (u32, &&[Slot])| {
            let words = [word(i), word(i + 1 + i / KNOWN)];
            Template { slots: slots.to_vec(), words }
        };
        (0..).zip(&OBSERVED).map(template).collect()
    }

    /// Another one, made by rule.
    pub fn other(task: usize, rng: &mut Rng) -> Template {
        let mut words: Vec<u32> = (0..EACH).map(|i| WORD + EACH * task as u32 + i).collect();
        rng.shuffle(&mut words);
        let opening = OPENINGS[rng.below(OPENINGS.len())];
        let body = BODIES[rng.below(BODIES.len())];
        let closing = CLOSINGS[rng.below(CLOSINGS.len())];
        let slots: [&[Slot]; 4] = match rng.below(2) {
            0 => [opening, body, &[X], closing],
            _ => [opening, &[X], body, closing],
        };
        Template { slots: slots.concat(), words: [words[0], words[1]] }
    }

    /// What stands before the answer; `negated` asks for the opposite.
    pub fn prompt(&self, input: &[u32], negated: bool) -> Vec<u32> {
        let (mut prompt, mut negate) = (Vec::new(), negated);
        for slot in &self.slots {
            match slot {
                F(filler) => prompt.push(FILLER + filler),
                C(word) => {
                    prompt.extend(std::mem::take(&mut negate).then_some(NOT));
                    prompt.push(self.words[*word]);
                }
                X => prompt.extend(input),
            }
        }
        prompt.push(ANSWER);
        prompt
    }

    /// Whether another one uses the same words in the same order.
    pub fn says(&self, other: &Template) -> bool {
        self.prompt(&[0], false) == other.prompt(&[0], false)
    }

    /// The row that trains the right answer to an instance.
    pub fn row(&self, instance: &Instance, negated: bool, example: usize) -> Row {
        let answer = if negated { &instance.opposite } else { &instance.answer };
        measure::row(&self.prompt(&instance.input, negated), answer, example)
    }

    /// The same behind other words.
    pub fn row_behind(
        &self,
        words: &[u32],
        instance: &Instance,
        negated: bool,
        example: usize,
    ) -> Row {
        let answer = if negated { &instance.opposite } else { &instance.answer };
        let prompt = [words, &self.prompt(&instance.input, negated)].concat();
        measure::row(&prompt, answer, example)
    }
}

/// Words that may stand before an instruction, about any task; two times of five there are none.
pub fn words(rng: &mut Rng) -> Vec<u32> {
    let n = [0, 0, 6, 10, 14][rng.below(5)];
    let task = rng.below(TASKS.len());
    (0..n).map(|_| token(task, rng)).collect()
}

fn token(task: usize, rng: &mut Rng) -> u32 {
    match rng.uniform() < 0.6 {
        true => WORD + EACH * task as u32 + rng.below(EACH as usize) as u32,
        false => FILLER + rng.below(FILLERS as usize) as u32,
    }
}

/// A text about a task without an instruction in it: words of the task between fillers.
pub fn text(task: usize, rng: &mut Rng) -> Row {
    let tokens: Vec<u32> = (0..12).map(|_| token(task, rng)).collect();
    Row::from_tokens(&tokens, &vec![1.0; tokens.len()], 0)
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn observed_templates_use_half_of_the_words_and_each_is_another() {
        for task in 0..TASKS.len() {
            let mut observed = Template::observed(task);
            let first = WORD + EACH * task as u32;
            assert!(observed.iter().all(|t| t.words[0] != t.words[1]));
            let known = first..first + KNOWN;
            assert!(observed.iter().flat_map(|t| t.words).all(|word| known.contains(&word)));
            observed.sort();
            observed.dedup();
            assert_eq!(observed.len(), 8);
        }
    }

    #[test]
    fn a_negation_stands_before_the_first_word_of_the_task() {
        let template = &Template::observed(0)[1];
        let [a, b] = template.words;
        let (f, g) = (FILLER + 2, FILLER + 3);
        assert_eq!(template.prompt(&[7, 8], false), [f, a, b, g, 7, 8, ANSWER]);
        assert_eq!(template.prompt(&[7, 8], true), [f, NOT, a, b, g, 7, 8, ANSWER]);
    }

    /// No template made by rule is an observed one in other words, or in the same.
    #[test]
    fn other_templates_have_frames_of_their_own() {
        let mut rng = Seed(2).rng();
        for _ in 0..2000 {
            let other = Template::other(rng.below(6), &mut rng);
            assert_eq!(other.slots.iter().filter(|slot| **slot == X).count(), 1);
            assert!(other.slots.iter().any(|slot| matches!(slot, C(_))));
            assert!(!OBSERVED.contains(&&other.slots[..]), "{other:?}");
            assert!(other.prompt(&[0; 4], true).iter().all(|t| (*t as usize) < VOCAB));
        }
    }
}
