//! A small language in which verbs agree with their subject in number, near or far.

use luthier_core::{Rng, Row, Seed};

use crate::measure;

/// Words 0 to 58, then the answers.
pub const VOCAB: usize = 61;
/// What a task answers; no sentence holds them.
pub const ANSWERS: [u32; 2] = [59, 60];

const THE: u32 = 0;
const END: u32 = 1;
const THAT: u32 = 2;
/// First word of a kind and how many there are; nouns and verbs have as many plurals after them.
const NOUNS: (u32, usize) = (3, 10);
const VERBS: (u32, usize) = (23, 9);
const ADJECTIVES: (u32, usize) = (41, 8);
const PREPOSITIONS: (u32, usize) = (49, 4);
const ADVERBS: (u32, usize) = (53, 6);

/// A sentence and where its main verb stands.
pub struct Sentence {
    pub words: Vec<u32>,
    pub verb: usize,
}

fn one(kind: (u32, usize), rng: &mut Rng) -> u32 {
    kind.0 + rng.below(kind.1) as u32
}

fn of_number(kind: (u32, usize), plural: bool, rng: &mut Rng) -> u32 {
    one(kind, rng) + if plural { kind.1 as u32 } else { 0 }
}

impl Sentence {
    /// One of three grammars: `the (adj)* N (adv)* V`, `the N prep the (adj) N V (adv)`, and
    /// `the N that V the N V (adv)`. The subject is the first noun; other nouns have a number of
    /// their own.
    pub fn draw(rng: &mut Rng) -> Self {
        let (subject, other) = (rng.below(2) == 1, rng.below(2) == 1);
        let mut words = vec![THE];
        let grammar = rng.below(3);
        if grammar == 0 {
            (0..rng.below(3)).for_each(|_| words.push(one(ADJECTIVES, rng)));
        }
        words.push(of_number(NOUNS, subject, rng));
        match grammar {
            0 => (0..rng.below(3)).for_each(|_| words.push(one(ADVERBS, rng))),
            1 => {
                words.extend([one(PREPOSITIONS, rng), THE]);
                (0..rng.below(2)).for_each(|_| words.push(one(ADJECTIVES, rng)));
                words.push(of_number(NOUNS, other, rng));
            }
            _ => {
                words.extend([THAT, of_number(VERBS, subject, rng), THE]);
                words.push(of_number(NOUNS, other, rng));
            }
        }
        let verb = words.len();
        words.push(of_number(VERBS, subject, rng));
        if grammar > 0 {
            (0..rng.below(2)).for_each(|_| words.push(one(ADVERBS, rng)));
        }
        words.push(END);
        Sentence { words, verb }
    }

    /// The same with the main verb in the other number.
    pub fn broken(mut self) -> Self {
        let (first, n) = (VERBS.0, VERBS.1 as u32);
        let word = &mut self.words[self.verb];
        *word = if *word < first + n { *word + n } else { *word - n };
        self
    }
}

/// Rows of two sentences to read: every word counts. Of two, so that the model knows the end of a
/// sentence as something that it reads.
pub fn text(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut row = |example| {
        let mut words = Sentence::draw(&mut rng).words;
        words.extend(Sentence::draw(&mut rng).words);
        let weights = vec![1.0; words.len()];
        Row::from_tokens(&words, &weights, example)
    };
    (0..n).map(&mut row).collect()
}

/// Whether a sentence obeys agreement, answered at its end; every other one does.
pub fn task(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut row = |example: usize| {
        let mut sentence = Sentence::draw(&mut rng);
        let broken = example % 2 == 1;
        if broken {
            sentence = sentence.broken();
        }
        measure::row(&sentence.words, &[ANSWERS[usize::from(broken)]], example)
    };
    (0..n).map(&mut row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plural(kind: (u32, usize), word: u32) -> Option<bool> {
        let n = kind.1 as u32;
        (kind.0..kind.0 + 2 * n).contains(&word).then(|| word >= kind.0 + n)
    }

    #[test]
    fn the_main_verb_agrees_with_the_first_noun_until_it_is_broken() {
        let mut rng = Seed(1).rng();
        let (mut far, mut attracted) = (0, 0);
        for _ in 0..500 {
            let sentence = Sentence::draw(&mut rng);
            let words = sentence.words.clone();
            let nouns: Vec<(usize, bool)> = words
                .iter()
                .enumerate()
                .filter_map(|(at, word)| Some((at, plural(NOUNS, *word)?)))
                .collect();
            let verb = plural(VERBS, words[sentence.verb]);
            assert_eq!(verb, Some(nouns[0].1));
            far = far.max(sentence.verb - nouns[0].0);
            attracted += usize::from(nouns.len() == 2 && nouns[1].1 != nouns[0].1);
            let at = sentence.verb;
            let broken = sentence.broken();
            assert_eq!(plural(VERBS, broken.words[at]), Some(!nouns[0].1));
            let others = words.iter().zip(&broken.words).filter(|(a, b)| a != b).count();
            assert_eq!(others, 1);
            assert!(words.iter().all(|word| !ANSWERS.contains(word)));
        }
        assert_eq!(far, 5);
        assert!(attracted > 100, "{attracted}");
    }

    #[test]
    fn questions_are_balanced_and_ask_for_the_answer_alone() {
        let rows = task(100, Seed(2));
        assert!(rows.iter().all(|row| row.trained() == 1 && *row.ids.last().unwrap() == END));
        let broken = rows.iter().filter(|r| *r.targets.last().unwrap() == ANSWERS[1]).count();
        assert_eq!(broken, 50);
        let read = text(50, Seed(3));
        assert!(read.iter().all(|row| row.trained() == row.len()));
        let inner = |row: &Row| row.ids.iter().filter(|word| **word == END).count();
        assert!(read.iter().all(|row| inner(row) == 1 && row.targets.last() == Some(&END)));
    }
}
