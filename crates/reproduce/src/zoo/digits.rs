//! Small images of digits: pairs with eight questions about them, and single digits in eight domains.
//!
//! A pair is 10×16 numbers, a digit of a 5×7 font in each half, in one of four styles; a single digit
//! is 12×12 numbers, changed as its domain says. Places within a half or an image are drawn, noise is
//! added. Every set follows from its seed.

use luthier_core::{Rng, Seed};

/// Rows from top to bottom, five bits each, the left column highest.
const FONT: [[u8; 7]; 10] = [
    [0x0E, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0E],
    [0x04, 0x0C, 0x04, 0x04, 0x04, 0x04, 0x0E],
    [0x0E, 0x11, 0x01, 0x06, 0x08, 0x10, 0x1F],
    [0x1E, 0x01, 0x01, 0x0E, 0x01, 0x01, 0x1E],
    [0x02, 0x06, 0x0A, 0x12, 0x1F, 0x02, 0x02],
    [0x1F, 0x10, 0x1E, 0x01, 0x01, 0x11, 0x0E],
    [0x06, 0x08, 0x10, 0x1E, 0x11, 0x11, 0x0E],
    [0x1F, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
    [0x0E, 0x11, 0x11, 0x0E, 0x11, 0x11, 0x0E],
    [0x0E, 0x11, 0x11, 0x0F, 0x01, 0x02, 0x0C],
];

/// Which digit stands on the left.
pub const LEFT: usize = 0;
/// Which digit stands on the right.
pub const RIGHT: usize = 1;
/// The larger of the two.
pub const MAX: usize = 2;
/// The last digit of their sum.
pub const SUM: usize = 3;
/// By how much they differ.
pub const DIFFERENCE: usize = 4;
/// Which of the four styles.
pub const STYLE: usize = 5;
/// Whether the left digit is the larger one.
pub const GREATER: usize = 6;
/// The smaller of the two.
pub const MIN: usize = 7;
/// How many answers each question about a pair has.
pub const CLASSES: [usize; 8] = [10, 10, 10, 10, 10, 4, 2, 10];

/// How many domains of single digits there are.
pub const DOMAINS: usize = 8;
/// The domain of digits turned by a quarter, counter-clockwise.
pub const TURNED: usize = 2;

/// What is taken off every number, so that blank paper is not far from the mean.
const SHIFT: f32 = 0.3;

/// Images laid end to end, each with its answer to every question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Images {
    /// Numbers of an image.
    pub width: usize,
    /// All images, row by row.
    pub pixels_nd: Vec<f32>,
    /// Question by question, the answers image by image.
    pub answers: Vec<Vec<u32>>,
}

impl Images {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.answers.first().map_or(0, Vec::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of one image.
    pub fn image(&self, i: usize) -> &[f32] {
        &self.pixels_nd[i * self.width..][..self.width]
    }

    /// The first `n` images.
    pub fn first(&self, n: usize) -> Images {
        Images {
            width: self.width,
            pixels_nd: self.pixels_nd[..n * self.width].to_vec(),
            answers: self.answers.iter().map(|of| of[..n].to_vec()).collect(),
        }
    }

    /// All images of several sets with the same questions.
    pub fn join(sets: &[Images]) -> Images {
        let questions = sets.first().map_or(0, |set| set.answers.len());
        let of = |question: usize| {
            sets.iter().flat_map(|set| set.answers[question].iter().copied()).collect()
        };
        Images {
            width: sets.first().map_or(0, |set| set.width),
            pixels_nd: sets.iter().flat_map(|set| set.pixels_nd.iter().copied()).collect(),
            answers: (0..questions).map(of).collect(),
        }
    }
}

/// A digit of the font as 35 numbers, row by row.
pub fn glyph(digit: usize) -> [f32; 35] {
    std::array::from_fn(|at| f32::from((FONT[digit][at / 5] >> (4 - at % 5)) & 1))
}

/// `n` pairs of digits with the answers to all eight questions.
pub fn pairs(n: usize, seed: Seed) -> Images {
    let (mut rng, mut images) = (seed.rng(), blank(160, CLASSES.len(), n));
    for _ in 0..n {
        let (left, right) = (rng.below(10), rng.below(10));
        let style = rng.below(CLASSES[STYLE]);
        let mut paper = Paper::new(10, 16);
        for (digit, half) in [(left, 0), (right, 8)] {
            let (row, col) = (1 + rng.below(2), 1 + rng.below(2));
            paper.draw(digit, row, half + col);
        }
        paper = match style {
            0 => paper,
            1 => paper.inverted(),
            2 => paper.dilated(),
            _ => paper.striped(0.7),
        };
        paper.print(0.35, &mut rng, &mut images.pixels_nd);
        let answers = [
            left,
            right,
            left.max(right),
            (left + right) % 10,
            left.abs_diff(right),
            style,
            usize::from(left > right),
            left.min(right),
        ];
        images.answers.iter_mut().zip(answers).for_each(|(of, answer)| of.push(answer as u32));
    }
    images
}

/// `n` single digits of a domain with the only question which they are.
pub fn domain(domain: usize, n: usize, seed: Seed) -> Images {
    assert!(domain < DOMAINS, "there are {DOMAINS} domains, asked for number {domain}");
    let (mut rng, mut images) = (seed.rng(), blank(144, 1, n));
    for _ in 0..n {
        let digit = rng.below(10);
        let (row, col) = (1 + rng.below(3), 2 + rng.below(3));
        let mut paper = Paper::new(12, 12);
        paper.draw(digit, row, col);
        paper = match domain {
            0 => paper,
            1 => paper.inverted(),
            TURNED => paper.moved(|row, col| (col, 11 - row)),
            3 => paper.moved(|row, col| (row, 11 - col)),
            4 => paper.striped(0.6),
            5 => paper.dilated(),
            6 => paper.moved(|row, col| (col, row)),
            _ => paper.checked(),
        };
        paper.print(0.4, &mut rng, &mut images.pixels_nd);
        images.answers[0].push(digit as u32);
    }
    images
}

fn blank(width: usize, questions: usize, n: usize) -> Images {
    let answers = vec![Vec::with_capacity(n); questions];
    Images { width, pixels_nd: Vec::with_capacity(n * width), answers }
}

/// What an image is drawn on: 0 is blank, 1 is ink.
#[derive(Clone, Debug, PartialEq)]
struct Paper {
    rows: usize,
    cols: usize,
    ink: Vec<f32>,
}

impl Paper {
    fn new(rows: usize, cols: usize) -> Self {
        Paper { rows, cols, ink: vec![0.0; rows * cols] }
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.ink[row * self.cols + col]
    }

    fn draw(&mut self, digit: usize, row: usize, col: usize) {
        for (r, line) in glyph(digit).chunks_exact(5).enumerate() {
            self.ink[(row + r) * self.cols + col..][..5].copy_from_slice(line);
        }
    }

    /// The number at every place as `of` says.
    fn map(&self, of: impl Fn(usize, usize) -> f32) -> Paper {
        let place = |i: usize| of(i / self.cols, i % self.cols);
        Paper { ink: (0..self.ink.len()).map(place).collect(), ..*self }
    }

    /// The number at every place from the place that `from` says.
    fn moved(&self, from: impl Fn(usize, usize) -> (usize, usize)) -> Paper {
        self.map(|row, col| {
            let (row, col) = from(row, col);
            self.at(row, col)
        })
    }

    fn inverted(&self) -> Paper {
        self.map(|row, col| 1.0 - self.at(row, col))
    }

    /// The darkest of each place and its eight neighbours.
    fn dilated(&self) -> Paper {
        self.map(|row, col| {
            let rows = row.saturating_sub(1)..(row + 2).min(self.rows);
            let around =
                |r: usize| (col.saturating_sub(1)..(col + 2).min(self.cols)).map(move |c| (r, c));
            rows.flat_map(around).map(|(r, c)| self.at(r, c)).fold(0.0, f32::max)
        })
    }

    fn striped(&self, ink: f32) -> Paper {
        self.map(|row, col| (self.at(row, col) + ink * (row % 2) as f32).min(1.0))
    }

    fn checked(&self) -> Paper {
        self.map(|row, col| self.at(row, col) * ((row + col) % 2) as f32)
    }

    /// Adds the image with noise of deviation `noise` to those in `to`.
    fn print(&self, noise: f64, rng: &mut Rng, to: &mut Vec<f32>) {
        to.extend(self.ink.iter().map(|ink| ink + (noise * rng.normal()) as f32 - SHIFT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(digit: usize) -> Vec<String> {
        let line = |line: &[f32]| line.iter().map(|x| if *x > 0.0 { '#' } else { '.' }).collect();
        glyph(digit).chunks_exact(5).map(line).collect()
    }

    #[test]
    fn digits_read_from_left_to_right() {
        assert_eq!(drawn(2), [".###.", "#...#", "....#", "..##.", ".#...", "#....", "#####"]);
        assert_eq!(drawn(7)[..3], ["#####", "....#", "...#."]);
        // No two look alike.
        let all: Vec<[f32; 35]> = (0..10).map(glyph).collect();
        assert!((0..10).all(|i| all[..i].iter().all(|other| *other != all[i])));
    }

    #[test]
    fn paper_is_changed_as_the_domains_say() {
        let mut paper = Paper::new(12, 12);
        paper.draw(7, 1, 2);
        let turned = paper.moved(|row, col| (col, 11 - row));
        // The top bar of the seven (row 1, columns 2 to 6) stands on the left, from bottom to top.
        assert!((2..7).all(|col| turned.at(11 - col, 1) == 1.0));
        assert_eq!(turned.at(9, 2), 0.0);
        let mirrored = paper.moved(|row, col| (row, 11 - col));
        assert_eq!(mirrored.at(1, 9), 1.0);
        let sum = |paper: &Paper| paper.ink.iter().sum::<f32>();
        assert_eq!(sum(&turned), sum(&paper));
        assert_eq!(sum(&paper.inverted()), 144.0 - sum(&paper));
        let mut dot = Paper::new(12, 12);
        dot.ink[0] = 1.0;
        assert_eq!((sum(&dot.dilated()), dot.dilated().at(1, 1)), (4.0, 1.0));
        assert_eq!(sum(&dot.checked()), 0.0);
        assert_eq!((dot.striped(0.6).at(1, 0), dot.striped(0.6).at(0, 0)), (0.6, 1.0));
    }

    #[test]
    fn pairs_have_the_answers_that_their_digits_have() {
        let images = pairs(4000, Seed(1));
        assert_eq!((images.len(), images.width, images.pixels_nd.len()), (4000, 160, 640_000));
        let answer = |question: usize, i: usize| images.answers[question][i];
        for i in 0..images.len() {
            let (left, right) = (answer(LEFT, i), answer(RIGHT, i));
            assert_eq!(answer(MAX, i) + answer(MIN, i), left + right);
            assert_eq!(answer(MAX, i) - answer(MIN, i), answer(DIFFERENCE, i));
            assert_eq!(
                (answer(SUM, i), answer(GREATER, i)),
                ((left + right) % 10, u32::from(left > right))
            );
            assert!(CLASSES.iter().enumerate().all(|(q, n)| (answer(q, i) as usize) < *n));
        }
        // The most frequent larger digit is 9: 19 of 100 pairs.
        let nines = images.answers[MAX].iter().filter(|a| **a == 9).count() as f64 / 4000.0;
        assert!((nines - 0.19).abs() < 0.03, "{nines}");
        for style in 0..4 {
            let share = images.answers[STYLE].iter().filter(|a| **a == style).count() as f64 / 4e3;
            assert!((share - 0.25).abs() < 0.04, "{style}: {share}");
        }
        assert_eq!(images, pairs(4000, Seed(1)));
        assert_ne!(images.pixels_nd, pairs(4000, Seed(2)).pixels_nd);
    }

    #[test]
    fn domains_differ_in_their_ink_as_they_should() {
        let mean = |number: usize| {
            let images = domain(number, 500, Seed(3).at(number as u64));
            assert_eq!((images.len(), images.width), (500, 144));
            images.pixels_nd.iter().sum::<f32>() / images.pixels_nd.len() as f32 + SHIFT
        };
        let means: Vec<f32> = (0..DOMAINS).map(mean).collect();
        assert!((means[0] + means[1] - 1.0).abs() < 0.01, "{means:?}");
        for same in [2, 3, 6] {
            assert!((means[same] - means[0]).abs() < 0.01, "{means:?}");
        }
        assert!((means[7] - means[0] / 2.0).abs() < 0.02 && means[5] > 2.0 * means[0], "{means:?}");
        assert!(means[4] > means[0] + 0.2, "{means:?}");
    }

    #[test]
    fn sets_are_joined_and_cut() {
        let (a, b) = (domain(0, 3, Seed(1)), domain(1, 2, Seed(2)));
        let both = Images::join(&[a.clone(), b.clone()]);
        assert_eq!((both.len(), both.image(3)), (5, b.image(0)));
        assert_eq!(both.first(3), a);
        assert_eq!(both.answers[0][3..], b.answers[0]);
    }
}
