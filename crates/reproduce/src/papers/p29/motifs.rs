//! Texts that are a class's motif with jitter, in the style that is known and in a new one.

use luthier_core::{Rng, Row, Seed};

use crate::measure;

const LETTERS: usize = 24;
const STRIPE: u32 = 24;
const FIRST_CLASS: u32 = 25;
const CLASSES: usize = 40;
/// Letters, stripe, classes.
pub const VOCAB: usize = LETTERS + 1 + CLASSES;

/// Letters of a motif, and of a text.
pub const LENGTH: usize = 16;
/// How often a letter is another one.
const JITTER: f64 = 0.05;

/// Classes whose texts in the new style are trained on; the others keep the known style.
pub const STYLED: std::ops::Range<usize> = 0..CLASSES / 2;
pub const OTHERS: std::ops::Range<usize> = CLASSES / 2..CLASSES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The motif.
    Known,
    /// The motif in the letters from the other end, and a stripe at every fourth place.
    New,
}

/// Different letters in a cycle.
fn motif(class: usize) -> [u32; LENGTH] {
    let mut letters: Vec<u32> = (0..LETTERS as u32).collect();
    Seed(29).split("motif").at(class as u64).rng().shuffle(&mut letters);
    std::array::from_fn(|i| letters[i])
}

/// The motif from anywhere on, with jitter.
fn text(class: usize, rng: &mut Rng) -> [u32; LENGTH] {
    let (motif, from) = (motif(class), rng.below(LENGTH));
    std::array::from_fn(|i| match rng.uniform() < JITTER {
        true => rng.below(LETTERS) as u32,
        false => motif[(from + i) % LENGTH],
    })
}

fn styled(text: [u32; LENGTH], style: Style) -> [u32; LENGTH] {
    let at = |i: usize| match style {
        Style::Known => text[i],
        Style::New if i % 4 == 3 => STRIPE,
        Style::New => LETTERS as u32 - 1 - text[i],
    };
    std::array::from_fn(at)
}

/// `n` texts, of these classes in turn.
pub fn rows(classes: std::ops::Range<usize>, n: usize, style: Style, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut row = |(example, class): (usize, usize)| {
        let text = styled(text(class, &mut rng), style);
        measure::row(&[FIRST_CLASS + class as u32], &text, example)
    };
    classes.cycle().take(n).enumerate().map(&mut row).collect()
}

/// Texts of all classes in the known style.
pub fn pretraining_rows(n: usize) -> Vec<Row> {
    rows(0..CLASSES, n, Style::Known, Seed(29).split("pretraining"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_style_turns_letters_around_and_has_a_stripe() {
        let text = [0, 23, 5, 6, 1, 2, 3, 4, 0, 0, 0, 0, 9, 9, 9, 9];
        let new = [23, 0, 18, 24, 22, 21, 20, 24, 23, 23, 23, 24, 14, 14, 14, 24];
        assert_eq!((styled(text, Style::New), styled(text, Style::Known)), (new, text));
    }

    #[test]
    fn a_text_is_its_motif_but_for_the_jitter() {
        let rows = rows(3..5, 400, Style::Known, Seed(1));
        let mut off = 0;
        for (i, row) in rows.iter().enumerate() {
            let class = 3 + i % 2;
            assert_eq!(row.ids[0], FIRST_CLASS + class as u32);
            assert!(row.weights.iter().all(|w| *w == 1.0) && row.len() == LENGTH);
            let motif = motif(class);
            let follows =
                |a: u32, b: u32| (0..LENGTH).any(|i| motif[i] == a && motif[(i + 1) % LENGTH] == b);
            off += row.targets.windows(2).filter(|pair| !follows(pair[0], pair[1])).count();
        }
        // A letter that is off spoils two pairs of 15 a text: about 2 · 5 % of them.
        let share = off as f64 / (400.0 * 15.0);
        assert!((0.07..0.12).contains(&share), "{share}");
        let mut letters = motif(7).to_vec();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), LENGTH);
    }
}
