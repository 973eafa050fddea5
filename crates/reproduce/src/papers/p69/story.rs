//! Small stories about who has how many of what; a word, or a number from 0 to 60, is a token.

use luthier_core::{Rng, Row, Seed};

use crate::measure;

/// Numbers are their own tokens.
const MOST: u32 = 60;
const PEOPLE: u32 = MOST + 1;
const THINGS: u32 = PEOPLE + 10;
/// Verbs for getting and for losing something.
const GAINS: u32 = THINGS + 10;
const LOSSES: u32 = GAINS + 3;
const HAS: u32 = LOSSES + 3;
const HOW_MANY: u32 = HAS + 1;
const ASK: u32 = HAS + 2;
const STOP: u32 = HAS + 3;
const PLUS: u32 = HAS + 4;
const MINUS: u32 = HAS + 5;
const EQUALS: u32 = HAS + 6;
/// Tokens.
pub const VOCAB: usize = EQUALS as usize + 1;

struct Person {
    name: u32,
    thing: u32,
    first: u32,
    /// Whether something was gained, and how much of it.
    changes: Vec<(bool, u32)>,
}

impl Person {
    fn now(&self) -> u32 {
        self.changes.iter().fold(self.first, |now, change| after(now, *change))
    }

    fn question(&self) -> [u32; 5] {
        [HOW_MANY, self.thing, HAS, self.name, ASK]
    }
}

fn after(now: u32, (gained, by): (bool, u32)) -> u32 {
    if gained { now + by } else { now - by }
}

/// `now ± by = then .`
fn equation(now: u32, change: (bool, u32)) -> [u32; 6] {
    let sign = if change.0 { PLUS } else { MINUS };
    [now, sign, change.1, EQUALS, after(now, change), STOP]
}

/// A change by 1 to 9 that leaves a number which there is.
fn change(now: u32, rng: &mut Rng) -> (bool, u32) {
    let by = 1 + rng.below(9) as u32;
    let gained = rng.below(2) == 0;
    (now < by || gained && now + by <= MOST, by)
}

/// What `people` people have, and what happens to the first `active` of them.
fn story(people: usize, active: usize, events: usize, rng: &mut Rng) -> (Vec<u32>, Vec<Person>) {
    let drawn = |from: u32, rng: &mut Rng| -> Vec<u32> {
        let mut all: Vec<u32> = (from..from + 10).collect();
        rng.shuffle(&mut all);
        all
    };
    let (names, things) = (drawn(PEOPLE, rng), drawn(THINGS, rng));
    let person = |(name, thing): (&u32, &u32)| {
        let first = 5 + rng.below(36) as u32;
        Person { name: *name, thing: *thing, first, changes: Vec::new() }
    };
    let mut all: Vec<Person> = names.iter().zip(&things).take(people).map(person).collect();
    // Who comes first in the text is not who is asked about.
    let mut order: Vec<usize> = (0..people).collect();
    rng.shuffle(&mut order);
    let mut text: Vec<u32> = Vec::new();
    for person in order.iter().map(|i| &all[*i]) {
        text.extend([person.name, HAS, person.first, person.thing, STOP]);
    }
    for _ in 0..events {
        let person = &mut all[rng.below(active)];
        let change = change(person.now(), rng);
        let verb = if change.0 { GAINS } else { LOSSES } + rng.below(3) as u32;
        text.extend([person.name, verb, change.1, person.thing, STOP]);
        person.changes.push(change);
    }
    (text, all)
}

/// Texts that know numbers, stories, and questions about what did not change: `n` of them.
pub fn reading(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut one = |example| {
        let text = match rng.below(4) {
            0 => {
                let mut text = Vec::new();
                for _ in 0..5 {
                    let now = rng.below(MOST as usize + 1) as u32;
                    text.extend(equation(now, change(now, &mut rng)));
                }
                text
            }
            1 => {
                let (first, by) = (rng.below(16) as u32, 1 + rng.below(4) as u32);
                (0..12).map(|k| first + k * by).collect()
            }
            2 => story(2, 2, 3, &mut rng).0,
            _ => unchanged(&mut rng).concat(),
        };
        measure::row(&text[..1], &text[1..], example)
    };
    (0..n).map(&mut one).collect()
}

/// A story, with the question what somebody has to whom nothing happens, and the answer.
fn unchanged(rng: &mut Rng) -> [Vec<u32>; 2] {
    let (mut prompt, people) = story(3, 2, 1, rng);
    let idle = &people[2];
    prompt.extend(idle.question());
    [prompt, vec![idle.first, idle.thing, STOP]]
}

/// Questions as in [`reading`], of which the answer alone counts: `n` of them.
pub fn questions(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut one = |example| {
        let [prompt, answer] = unchanged(&mut rng);
        measure::row(&prompt, &answer, example)
    };
    (0..n).map(&mut one).collect()
}

/// Stories in which somebody's number changes, the question how many there are now, and the answer
/// with its working: `n` of them.
pub fn problems(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut one = |example| {
        let (mut prompt, people) = story(2, 2, 3, &mut rng);
        let asked = usize::from(people[1].changes.len() > people[0].changes.len());
        let asked = &people[asked];
        prompt.extend(asked.question());
        let (mut now, mut answer) = (asked.first, Vec::new());
        for change in &asked.changes {
            answer.extend(equation(now, *change));
            now = after(now, *change);
        }
        answer.extend([now, asked.thing, STOP]);
        measure::row(&prompt, &answer, example)
    };
    (0..n).map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_follow_from_their_stories_and_are_all_that_is_trained() {
        for row in problems(200, Seed(1)) {
            let text: Vec<u32> = [&row.ids[..1], &row.targets[..]].concat();
            let trained = row.weights.iter().filter(|w| **w == 1.0).count();
            let (prompt, answer) = text.split_at(text.len() - trained);
            assert_eq!((prompt[prompt.len() - 5], prompt[prompt.len() - 1]), (HOW_MANY, ASK));
            let (thing, name) = (prompt[prompt.len() - 4], prompt[prompt.len() - 2]);
            // Read again, sentence by sentence.
            let mut now = 0i64;
            for sentence in prompt[..prompt.len() - 5].chunks(5).filter(|s| s[0] == name) {
                assert_eq!((sentence[3], sentence[4]), (thing, STOP));
                match sentence[1] {
                    HAS => now = i64::from(sentence[2]),
                    verb if verb < LOSSES => now += i64::from(sentence[2]),
                    _ => now -= i64::from(sentence[2]),
                }
            }
            let (working, last) = answer.split_at(answer.len() - 3);
            assert_eq!(last, [now as u32, thing, STOP]);
            assert!(working.len() >= 12 && working.len().is_multiple_of(6));
            for e in working.chunks(6) {
                let signed = i64::from(e[2]) * if e[1] == PLUS { 1 } else { -1 };
                assert_eq!(i64::from(e[0]) + signed, i64::from(e[4]));
                assert_eq!((e[3], e[5]), (EQUALS, STOP));
            }
        }
    }

    #[test]
    fn all_texts_are_of_the_vocabulary_and_problems_are_not_among_what_was_read() {
        let (read, asked) = (reading(400, Seed(2)), problems(400, Seed(3)));
        for row in read.iter().chain(&asked) {
            assert!(row.ids.iter().chain(&row.targets).all(|id| (*id as usize) < VOCAB));
        }
        // What was read answers with a number and its thing at once.
        let working = |row: &Row| {
            let ask = row.targets.iter().position(|id| *id == ASK);
            ask.map(|at| row.targets[at + 2] == PLUS || row.targets[at + 2] == MINUS)
        };
        assert!(read.iter().filter_map(working).all(|works| !works));
        assert!(asked.iter().filter_map(working).all(|works| works));
        assert!(read.iter().filter_map(working).count() > 50);
    }
}
