//! Text to words, as sacrebleu 2.6 cuts it.
//!
//! `13a` is the tokenizer of NIST's mteval-v13a: symbols stand alone, full stops and commas do unless
//! a digit precedes or follows, dashes do behind a digit. `zh` also sets every Chinese character
//! apart. The ranges of `zh` are those that sacrebleu's code compares with, which above U+FFFF are not
//! those its comments name.

use serde::{Deserialize, Serialize};

/// How text becomes words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tokenize {
    /// mteval-v13a's, for languages with spaces.
    #[default]
    #[serde(rename = "13a")]
    V13a,
    /// Chinese characters alone, the rest as in 13a.
    #[serde(rename = "zh")]
    Zh,
    /// Every character a word.
    #[serde(rename = "char")]
    Char,
    /// Text that is words and spaces already.
    #[serde(rename = "none")]
    None,
}

impl Tokenize {
    /// Its name in a signature.
    pub fn name(self) -> &'static str {
        match self {
            Tokenize::V13a => "13a",
            Tokenize::Zh => "zh",
            Tokenize::Char => "char",
            Tokenize::None => "none",
        }
    }

    /// The words of a line.
    pub fn words(self, line: &str) -> Vec<String> {
        let line = line.trim_end_matches(space);
        match self {
            Tokenize::None => words(line),
            Tokenize::Char => line.chars().filter(|c| !space(*c)).map(String::from).collect(),
            Tokenize::Zh => {
                let apart = |c: char| match chinese(c) {
                    true => format!(" {c} "),
                    false => c.to_string(),
                };
                words(&western(&line.trim_matches(space).chars().map(apart).collect::<String>()))
            }
            Tokenize::V13a => {
                let line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
                let line = line
                    .replace("&quot;", "\"")
                    .replace("&amp;", "&")
                    .replace("&lt;", "<")
                    .replace("&gt;", ">");
                words(&western(&format!(" {line} ")))
            }
        }
    }
}

/// What Python takes for white space: Unicode's, and four separators of ASCII.
pub(in crate::metric) fn space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(in crate::metric) fn words(line: &str) -> Vec<String> {
    line.split(space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The four rules of mteval-v13a for western languages, each over the whole line, from the left,
/// without overlap.
fn western(line: &str) -> String {
    let symbol =
        |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut text = String::with_capacity(2 * line.len());
    for c in line.chars() {
        match symbol(c) {
            true => text.extend([' ', c, ' ']),
            false => text.push(c),
        }
    }
    let stop = |c: char| matches!(c, '.' | ',');
    let digit = |c: char| c.is_ascii_digit();
    let text = pairs(&text, |a, b| !digit(a) && stop(b), |a, b| [a, ' ', b, ' ']);
    let text = pairs(&text, |a, b| stop(a) && !digit(b), |a, b| [' ', a, ' ', b]);
    pairs(&text, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' '])
}

fn pairs(
    text: &str,
    found: impl Fn(char, char) -> bool,
    become_: impl Fn(char, char) -> [char; 4],
) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|b| found(a, *b)) {
            Some(b) => out.extend(become_(a, b)),
            None => out.push(a),
        }
    }
    out
}

fn chinese(c: char) -> bool {
    matches!(c,
        '\u{2001}'..='\u{2a6d}' | '\u{2f81}'..='\u{2fa1}' | '\u{2e80}'..='\u{2eff}'
        | '\u{2f00}'..='\u{2fdf}' | '\u{2ff0}'..='\u{2fff}' | '\u{3000}'..='\u{303f}'
        | '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}' | '\u{31c0}'..='\u{31ef}'
        | '\u{3200}'..='\u{33ff}' | '\u{3400}'..='\u{4db5}' | '\u{4e00}'..='\u{9fbb}'
        | '\u{f900}'..='\u{fa2d}' | '\u{fa30}'..='\u{fa6a}' | '\u{fa70}'..='\u{fad9}'
        | '\u{fe10}'..='\u{fe1f}' | '\u{fe30}'..='\u{fe4f}' | '\u{ff00}'..='\u{ffef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_part_where_the_standard_parts_them() {
        let cut = |text: &str| Tokenize::V13a.words(text).join(" ");
        assert_eq!(cut("It's $3,000.50, (or so)."), "It's $ 3,000.50 , ( or so ) .");
        assert_eq!(cut("a well-known 1990-2000 era-\nless &quot;x&quot;"), {
            "a well-known 1990 - 2000 eraless \" x \""
        });
        assert_eq!(cut("v1. and .5 and 5."), "v1 . and . 5 and 5 .");
        assert_eq!(Tokenize::Char.words("ab c"), ["a", "b", "c"]);
        assert_eq!(Tokenize::None.words(" a.b  c "), ["a.b", "c"]);
        assert_eq!(Tokenize::Zh.words("他买了3,000本书。").join(" "), "他 买 了 3,000 本 书 。");
    }
}
