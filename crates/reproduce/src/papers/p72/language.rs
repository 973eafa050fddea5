//! Two languages that say the same things.
//!
//! A sentence has a subject, a verb and an object of one topic, perhaps with adjectives, and a number.
//! The first language, E, says `[adjective class] subject [plural] verb number [adjective class] object`:
//! an adjective carries the class of its noun, a plural subject its mark, and the verb the number of its
//! subject. The second, X, has a word of its own for each of E's and another order,
//! `object [adjective] subject [adjective] verb number`, and the verb's agreement alone.

use luthier_core::{Rng, Seed};

/// Words of a sentence are of one of these.
pub const TOPICS: usize = 24;
/// Words of a topic: nouns, verbs, adjectives.
const NOUNS: usize = 4;
const VERBS: usize = 3;
const ADJECTIVES: usize = 3;
const OF_TOPIC: usize = NOUNS + VERBS + ADJECTIVES;
/// Words of a language.
pub const WORDS: usize = TOPICS * OF_TOPIC;

const CLASS: u32 = 2 * WORDS as u32;
const PLURAL: u32 = CLASS + 2;
const NUMBER: u32 = PLURAL + 1;
const X_NUMBER: u32 = NUMBER + 2;
/// Begins a text.
pub const BEGIN: u32 = X_NUMBER + 2;
/// Ends it.
pub const END: u32 = BEGIN + 1;
/// Asks for X, and for E.
pub const INTO: [u32; 2] = [END + 1, END + 2];
/// Ends the question.
pub const COLON: u32 = END + 3;
/// All tokens.
pub const VOCAB: usize = COLON as usize + 1;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sentence {
    subject: u32,
    object: u32,
    verb: u32,
    plural: bool,
    /// Of subject and object.
    adjectives: [Option<u32>; 2],
}

impl Sentence {
    /// One of thirty-seven thousand.
    pub fn draw(rng: &mut Rng) -> Self {
        let topic = (rng.below(TOPICS) * OF_TOPIC) as u32;
        let mut word = |from: usize, n: usize| topic + (from + rng.below(n)) as u32;
        let (subject, object) = (word(0, NOUNS), word(0, NOUNS));
        let verb = word(NOUNS, VERBS);
        let mut adjective = || {
            // As often none as any.
            let drawn = rng.below(2 * ADJECTIVES);
            (drawn < ADJECTIVES).then_some(topic + (NOUNS + VERBS + drawn) as u32)
        };
        let adjectives = [adjective(), adjective()];
        Sentence { subject, object, verb, plural: rng.below(2) == 1, adjectives }
    }

    /// In E.
    pub fn e(&self) -> Vec<u32> {
        let mut said = Vec::new();
        let noun = |said: &mut Vec<u32>, noun: u32, adjective: Option<u32>| {
            said.extend(adjective.into_iter().flat_map(|a| [a, CLASS + noun % 2]));
            said.push(noun);
        };
        noun(&mut said, self.subject, self.adjectives[0]);
        said.extend(self.plural.then_some(PLURAL));
        said.extend([self.verb, NUMBER + u32::from(self.plural)]);
        noun(&mut said, self.object, self.adjectives[1]);
        said
    }

    /// In X.
    pub fn x(&self, lexicon: &[u32]) -> Vec<u32> {
        let word = |w: u32| lexicon[w as usize];
        let mut said = vec![word(self.object)];
        said.extend(self.adjectives[1].map(word));
        said.push(word(self.subject));
        said.extend(self.adjectives[0].map(word));
        said.extend([word(self.verb), X_NUMBER + u32::from(self.plural)]);
        said
    }
}

/// X's word for each of E's.
pub fn lexicon(seed: Seed) -> Vec<u32> {
    let mut words: Vec<u32> = (WORDS as u32..2 * WORDS as u32).collect();
    seed.rng().shuffle(&mut words);
    words
}

/// Sentences that none of `not` is.
pub fn sentences(n: usize, not: &[Sentence], seed: Seed) -> Vec<Sentence> {
    let not: std::collections::HashSet<&Sentence> = not.iter().collect();
    let mut rng = seed.rng();
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        let drawn = Sentence::draw(&mut rng);
        if !not.contains(&drawn) {
            all.push(drawn);
        }
    }
    all
}

/// A text by itself.
pub fn text(said: Vec<u32>) -> Vec<u32> {
    [&[BEGIN], &said[..], &[END]].concat()
}

/// Twice what two lists of tokens share over what they have.
pub fn f1(said: &[u32], expected: &[u32]) -> f64 {
    let mut left = expected.to_vec();
    let mut both = 0;
    for token in said {
        if let Some(at) = left.iter().position(|t| t == token) {
            left.swap_remove(at);
            both += 1;
        }
    }
    match said.len() + expected.len() {
        0 => 1.0,
        all => 2.0 * f64::from(both) / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_and_order_are_those_of_each_language() {
        // Topic 1: nouns 10 to 13, verbs 14 to 16, adjectives 17 to 19.
        let sentence = Sentence {
            subject: 11,
            object: 12,
            verb: 15,
            plural: true,
            adjectives: [Some(18), None],
        };
        assert_eq!(sentence.e(), [18, CLASS + 1, 11, PLURAL, 15, NUMBER + 1, 12]);
        let lexicon: Vec<u32> = (240..480).collect();
        assert_eq!(sentence.x(&lexicon), [252, 251, 258, 255, X_NUMBER + 1]);
        let one = Sentence { plural: false, adjectives: [None, Some(17)], ..sentence };
        assert_eq!(one.e(), [11, 15, NUMBER, 17, CLASS, 12]);
        assert_eq!((WORDS, VOCAB), (240, 492));
    }

    #[test]
    fn a_translation_says_all_and_sentences_are_new() {
        let some = sentences(300, &[], Seed(1));
        let others = sentences(300, &some, Seed(1));
        assert!(others.iter().all(|s| !some.contains(s)));
        let lexicon = lexicon(Seed(2));
        let mut sorted = lexicon.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (240..480).collect::<Vec<u32>>());
        // Two sentences that differ differ in both languages.
        let pairs: std::collections::HashMap<Vec<u32>, Vec<u32>> =
            some.iter().map(|s| (s.x(&lexicon), s.e())).collect();
        assert!(some.iter().all(|s| pairs[&s.x(&lexicon)] == s.e()));
        let lengths: Vec<usize> = some.iter().map(|s| s.e().len()).collect();
        assert!(lengths.iter().all(|n| (4..=9).contains(n)));
    }

    #[test]
    fn shared_tokens_count_as_often_as_both_have_them() {
        assert_eq!(f1(&[1, 2, 3], &[3, 2, 1]), 1.0);
        assert!((f1(&[1, 1, 2], &[1, 3]) - 0.4).abs() < 1e-12);
        assert_eq!((f1(&[], &[1]), f1(&[], &[])), (0.0, 1.0));
    }
}
