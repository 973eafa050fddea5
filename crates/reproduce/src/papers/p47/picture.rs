//! Small pictures of digits and letters as rows of tokens, in two renderings.

use luthier_core::{Rng, Row, Seed};

use crate::measure;

/// 10 digits and 10 letters, each 7 lines of 5 points.
const GLYPHS: [[u8; 7]; 20] = [
    [0x0E, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0E],
    [0x04, 0x0C, 0x04, 0x04, 0x04, 0x04, 0x0E],
    [0x0E, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1F],
    [0x1F, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0E],
    [0x02, 0x06, 0x0A, 0x12, 0x1F, 0x02, 0x02],
    [0x1F, 0x10, 0x1E, 0x01, 0x01, 0x11, 0x0E],
    [0x06, 0x08, 0x10, 0x1E, 0x11, 0x11, 0x0E],
    [0x1F, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
    [0x0E, 0x11, 0x11, 0x0E, 0x11, 0x11, 0x0E],
    [0x0E, 0x11, 0x11, 0x0F, 0x01, 0x02, 0x0C],
    [0x0E, 0x11, 0x11, 0x1F, 0x11, 0x11, 0x11],
    [0x0E, 0x11, 0x10, 0x10, 0x10, 0x11, 0x0E],
    [0x1F, 0x10, 0x10, 0x1E, 0x10, 0x10, 0x1F],
    [0x1F, 0x10, 0x10, 0x1E, 0x10, 0x10, 0x10],
    [0x11, 0x11, 0x11, 0x1F, 0x11, 0x11, 0x11],
    [0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11],
    [0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1F],
    [0x1E, 0x11, 0x11, 0x1E, 0x10, 0x10, 0x10],
    [0x1F, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04],
    [0x11, 0x11, 0x0A, 0x04, 0x0A, 0x11, 0x11],
];
const HEIGHT: usize = 7;
const WIDTH: usize = 5;
const DIGITS: usize = 10;

/// Points on a side of a picture, which is cut into patches of 2 × 2.
const SIDE: usize = 8;
const PATCHES: usize = SIDE * SIDE / 4;

/// Patches are tokens 0 to 15; then what asks, the 20 names that pretraining knows, and the 10 names
/// of the digits that it does not.
const ASK: u32 = 16;
const KNOWN: u32 = ASK + 1;
const NEW: u32 = KNOWN + GLYPHS.len() as u32;
/// Tokens.
pub const VOCAB: usize = NEW as usize + DIGITS;

/// How a glyph becomes a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rendering {
    /// As it is.
    Plain,
    /// With strokes of twice the width, the upper part a point to the right, dark for light.
    New,
}

type Picture = [[bool; SIDE]; SIDE];

/// The names of digits that pretraining does not know.
pub fn new_names() -> Vec<u32> {
    (NEW..NEW + DIGITS as u32).collect()
}

/// All glyphs as they are, asked for by the names of pretraining.
pub fn known(n: usize, noise: f64, seed: Seed) -> Vec<Row> {
    rows(n, GLYPHS.len(), Rendering::Plain, KNOWN, noise, seed)
}

/// Digits in the new rendering, asked for by their new names.
pub fn new(n: usize, noise: f64, seed: Seed) -> Vec<Row> {
    rows(n, DIGITS, Rendering::New, NEW, noise, seed)
}

fn rows(
    n: usize,
    kinds: usize,
    rendering: Rendering,
    names: u32,
    noise: f64,
    seed: Seed,
) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut row = |example: usize| {
        let kind = example % kinds;
        let mut prompt = tokens(&draw(kind, rendering, noise, &mut rng));
        prompt.push(ASK);
        measure::row(&prompt, &[names + kind as u32], example)
    };
    (0..n).map(&mut row).collect()
}

/// A glyph somewhere in the picture, each point of which is wrong with probability `noise`.
fn draw(kind: usize, rendering: Rendering, noise: f64, rng: &mut Rng) -> Picture {
    let new = rendering == Rendering::New;
    let width = WIDTH + if new { 2 } else { 0 };
    let (down, right) = (rng.below(SIDE - HEIGHT + 1), rng.below(SIDE - width + 1));
    let mut picture = Picture::default();
    for (y, line) in GLYPHS[kind].iter().enumerate() {
        for x in (0..WIDTH).filter(|x| line >> (WIDTH - 1 - x) & 1 == 1) {
            // A lean of one point over the height is about 10°.
            let x = right + x + usize::from(new && y < HEIGHT / 2);
            picture[down + y][x] = true;
            picture[down + y][x + usize::from(new)] = true;
        }
    }
    for point in picture.iter_mut().flatten() {
        *point ^= new;
        *point ^= rng.uniform() < noise;
    }
    picture
}

/// Patches line by line.
fn tokens(picture: &Picture) -> Vec<u32> {
    let patch = |i: usize| {
        let (y, x) = (i / (SIDE / 2) * 2, i % (SIDE / 2) * 2);
        let points = [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)];
        points.iter().fold(0, |token, (y, x)| 2 * token + u32::from(picture[*y][*x]))
    };
    (0..PATCHES).map(patch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(picture: &Picture) -> Vec<String> {
        let point = |p: &bool| if *p { '#' } else { '.' };
        picture.iter().map(|points| points.iter().map(point).collect()).collect()
    }

    #[test]
    fn a_seven_in_both_renderings() {
        // Seeds until the glyph stands in the corner.
        let in_the_corner = |rendering| {
            let mut drawn = (0..).map(|i| draw(7, rendering, 0.0, &mut Seed(i).rng()));
            let corner = rendering == Rendering::Plain;
            let first = |p: &Picture| p[0][usize::from(!corner)] == corner && p[1][7] != corner;
            lines(&drawn.find(first).unwrap())
        };
        let plain = in_the_corner(Rendering::Plain);
        assert_eq!(plain[..4], ["#####...", "....#...", "...#....", "..#....."]);
        assert_eq!(plain[4..], [".#......", ".#......", ".#......", "........"]);
        let new = in_the_corner(Rendering::New);
        assert_eq!(new[..4], ["#......#", "#####..#", "####..##", "##..####"]);
        assert_eq!(new[4..], ["#..#####", "#..#####", "#..#####", "########"]);
    }

    #[test]
    fn patches_are_read_line_by_line() {
        let mut picture = Picture::default();
        picture[0][3] = true;
        picture[2][0] = true;
        picture[7][7] = true;
        let mut wanted = vec![0; PATCHES];
        (wanted[1], wanted[4], wanted[15]) = (4, 8, 1);
        assert_eq!(tokens(&picture), wanted);
    }

    #[test]
    fn glyphs_differ_and_a_row_asks_for_a_name_alone() {
        for (i, glyph) in GLYPHS.iter().enumerate() {
            assert!(glyph.iter().all(|line| *line < 1 << WIDTH));
            assert!(!GLYPHS[..i].contains(glyph), "{i}");
        }
        let (known, new) = (known(40, 0.05, Seed(1)), new(40, 0.05, Seed(1)));
        for row in known.iter().chain(&new) {
            assert_eq!((row.len(), row.trained(), row.ids[PATCHES]), (PATCHES + 1, 1, ASK));
        }
        let name = |row: &Row| row.targets[PATCHES];
        assert_eq!((name(&known[19]), name(&known[20])), (NEW - 1, KNOWN));
        assert_eq!((name(&new[9]), name(&new[10])), (VOCAB as u32 - 1, NEW));
        let of: Vec<u32> = new.iter().take(DIGITS).map(name).collect();
        assert_eq!(of, new_names());
    }
}
