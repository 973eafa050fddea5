//! Where a right text and a similar wrong one differ: line by line, and within lines that take each
//! other's place, character by character.
//!
//! Lines are compared as `difflib` compares them. A line that only one side has is marked there; so are
//! lines that replace each other, and in those the characters that fewest edits change. Where one side has
//! nothing to mark, because the other only has more, it is the line that follows the gap (the last one
//! where none follows). Blank lines and comments never count: lines that begin with `//`, `#!`, or `#` and
//! a space.

use std::ops::Range;

use luthier_core::{Error, Result};
use luthier_loss::term::fait::{LINE, TOKEN};

use super::matching::{changed, runs};

/// A mark for every byte of the right and of the wrong text: 0, [`LINE`], or [`LINE`] with [`TOKEN`].
pub fn differing(right: &str, wrong: &str) -> Result<[Vec<u8>; 2]> {
    let (of_right, of_wrong) = (Lines::of(right), Lines::of(wrong));
    let mut marks = [vec![0; right.len()], vec![0; wrong.len()]];
    // Lines where one side has nothing of its own.
    let mut gaps: [Vec<usize>; 2] = Default::default();
    for [a, b] in of_right.differing(&of_wrong) {
        let sides = [(&of_right, &a), (&of_wrong, &b)];
        for (side, (lines, range)) in sides.into_iter().enumerate() {
            for line in range.clone().filter(|line| lines.counts(*line)) {
                marks[side][lines.0[line].clone()].fill(LINE);
            }
            let (other, others) = sides[1 - side];
            if range.is_empty() && others.clone().any(|line| other.counts(line)) {
                gaps[side].push(range.start);
            }
        }
        if !a.is_empty() && !b.is_empty() {
            let [a, b] = [of_right.bytes(&a), of_wrong.bytes(&b)];
            let characters = |text: &str, range: &Range<usize>| -> Vec<(usize, char)> {
                text[range.clone()].char_indices().map(|(at, c)| (range.start + at, c)).collect()
            };
            let texts = [characters(right, &a), characters(wrong, &b)];
            let [x, y] =
                [0, 1].map(|side| texts[side].iter().map(|(_, c)| *c).collect::<Vec<char>>());
            let Some(found) = changed(&x, &y) else {
                let what = format!("{} and {} characters differ in one piece", x.len(), y.len());
                return Err(Error::input("variants", what).hint("shorter answers, or nearer ones"));
            };
            for (side, (text, found)) in texts.iter().zip(found).enumerate() {
                for ((at, c), _) in text.iter().zip(found).filter(|(_, changed)| *changed) {
                    let bytes = &mut marks[side][*at..at + c.len_utf8()];
                    // Only what is in a line that counts.
                    bytes.iter_mut().filter(|mark| **mark != 0).for_each(|mark| *mark |= TOKEN);
                }
            }
        }
    }
    for (side, lines) in [&of_right, &of_wrong].into_iter().enumerate() {
        if marks[side].iter().any(|mark| *mark != 0) {
            continue;
        }
        for gap in &gaps[side] {
            let after = (*gap..lines.0.len()).find(|line| lines.counts(*line));
            let line = after.or_else(|| (0..*gap).rev().find(|line| lines.counts(*line)));
            if let Some(line) = line {
                marks[side][lines.0[line].clone()].fill(LINE);
            }
        }
    }
    Ok(marks)
}

/// The mark of each token, from the bytes it covers.
pub fn of_tokens<'a>(marks: &[u8], covers: impl IntoIterator<Item = &'a Range<usize>>) -> Vec<u8> {
    let of = |range: &Range<usize>| {
        marks.get(range.clone()).unwrap_or_default().iter().fold(0, |all, mark| all | mark)
    };
    covers.into_iter().map(of).collect()
}

/// The lines of a text, without their ends, and the text.
struct Lines<'t>(Vec<Range<usize>>, &'t str);

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let mut begin = 0;
        let line = |line: &str| {
            let own = line.trim_end_matches(['\n', '\r']).len();
            let range = begin..begin + own;
            begin += line.len();
            range
        };
        Lines(text.split_inclusive('\n').map(line).collect(), text)
    }

    fn line(&self, line: usize) -> &'t str {
        &self.1[self.0[line].clone()]
    }

    /// Whether a line is more than blank or a comment.
    fn counts(&self, line: usize) -> bool {
        let line = self.line(line).trim();
        let comment = line == "#" || ["//", "#!", "# "].iter().any(|mark| line.starts_with(mark));
        !line.is_empty() && !comment
    }

    /// From the beginning of the first to the end of the last of some lines.
    fn bytes(&self, lines: &Range<usize>) -> Range<usize> {
        self.0[lines.start].start..self.0[lines.end - 1].end
    }

    /// Lines of this text and lines of another that stand in the same place and are not the same.
    fn differing(&self, other: &Lines) -> Vec<[Range<usize>; 2]> {
        let [a, b] =
            [self, other].map(|l| (0..l.0.len()).map(|i| l.line(i)).collect::<Vec<&str>>());
        let (mut at, mut differing) = ([0, 0], Vec::new());
        let ends = [(a.len(), b.len(), 0)];
        let shared = runs(&a, &b).into_iter().map(|run| (run.a, run.b, run.size));
        for (in_a, in_b, size) in shared.chain(ends) {
            if at != [in_a, in_b] {
                differing.push([at[0]..in_a, at[1]..in_b]);
            }
            at = [in_a + size, in_b + size];
        }
        differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text with marked bytes as they are and all others as dots.
    fn shown(text: &str, marks: &[u8], bit: u8) -> String {
        let show = |(c, mark): (char, &u8)| if mark & bit != 0 || c == '\n' { c } else { '.' };
        text.chars().zip(marks).map(show).collect()
    }

    fn of(right: &str, wrong: &str, bit: u8) -> [String; 2] {
        let [a, b] = differing(right, wrong).unwrap();
        [shown(right, &a, bit), shown(wrong, &b, bit)]
    }

    #[test]
    fn an_operator_marks_its_line_and_itself() {
        let (right, wrong) = ("def f(a, b):\n    return a+b", "def f(a, b):\n    return a-b");
        let line = "............\n    return a+b";
        assert_eq!(of(right, wrong, LINE), [line, "............\n    return a-b"]);
        let [a, b] = of(right, wrong, TOKEN);
        assert_eq!(
            (a.as_str(), b.as_str()),
            ("............\n............+.", "............\n............-.")
        );
    }

    #[test]
    fn tokens_have_the_marks_of_what_they_cover() {
        let [marks, _] = differing("return a+b", "return a-b").unwrap();
        let covers = [0..6, 6..8, 8..9, 9..10];
        assert_eq!(of_tokens(&marks, &covers), [LINE, LINE, LINE | TOKEN, LINE]);
        // One token for the whole of it.
        assert_eq!(of_tokens(&marks, &[0..6, 6..10]), [LINE, LINE | TOKEN]);
        assert_eq!(of_tokens(&marks, &[0..0, 10..10]), [0, 0]);
    }

    #[test]
    fn a_line_too_many_marks_what_follows_the_gap() {
        let (right, wrong) = ("a = 1\nb = 2\nc = 3", "a = 1\nb = 2\nb = 3\nc = 3");
        assert_eq!(of(right, wrong, LINE), [".....\n.....\nc = 3", ".....\n.....\nb = 3\n....."]);
        assert_eq!(of(right, wrong, TOKEN)[0], ".....\n.....\n.....");
        // Nothing follows.
        let [marked, _] = of("a = 1\nb = 2", "a = 1\nb = 2\nc = 3", LINE);
        assert_eq!(marked, ".....\nb = 2");
        // A line too few: the other way about.
        assert_eq!(of(wrong, right, LINE), [".....\n.....\nb = 3\n.....", ".....\n.....\nc = 3"]);
    }

    #[test]
    fn comments_and_blank_lines_never_count() {
        let (right, wrong) = ("# adds\nx = a + b\n\n", "# subtracts\nx = a + b\n");
        assert_eq!(differing(right, wrong).unwrap().concat().iter().max(), Some(&0));
        let (right, wrong) = ("// adds\nx = a + b;", "// subtracts\nx = a - b;");
        let [a, _] = of(right, wrong, TOKEN);
        assert_eq!(a, ".......\n......+...");
        assert_eq!(of("#include <a>", "#include <b>", TOKEN)[0], "..........a.");
        assert_eq!(differing("same", "same").unwrap(), [vec![0; 4], vec![0; 4]]);
    }

    #[test]
    fn marks_are_of_bytes_whatever_the_letters() {
        let [a, b] = differing("é = ü + 1", "é = ö + 1").unwrap();
        let token =
            |marks: &[u8]| (0..marks.len()).filter(|i| marks[*i] & TOKEN != 0).collect::<Vec<_>>();
        assert_eq!((token(&a), token(&b)), (vec![5, 6], vec![5, 6]));
    }
}
