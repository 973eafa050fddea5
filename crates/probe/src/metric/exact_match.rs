//! Exact match of texts, after the clean-up that the options name.

use serde::{Deserialize, Serialize};

use super::{Metric, Verdict};

/// Which part of a text counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// All of it.
    #[default]
    Whole,
    /// What follows the last `####`, as in GSM8K: up to the end of its line, without `$`,
    /// thousands separators and a closing full stop. An answer without the mark is wrong; an
    /// expected text without it counts as a whole.
    AfterHashes,
}

/// Right when the two texts are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExactMatch {
    /// Whether white space around the texts is dropped.
    pub strip: bool,
    /// Whether case is ignored.
    pub ignore_case: bool,
    /// Whether ASCII punctuation is ignored.
    pub ignore_punctuation: bool,
    /// Which part counts.
    pub extract: Extract,
}

impl Default for ExactMatch {
    fn default() -> Self {
        ExactMatch {
            strip: true,
            ignore_case: false,
            ignore_punctuation: false,
            extract: Extract::Whole,
        }
    }
}

/// The number-like text after the last `####`.
fn after_hashes(text: &str) -> Option<String> {
    let (_, rest) = text.rsplit_once("####")?;
    let line = rest.trim_start_matches([' ', '\t']).lines().next().unwrap_or("").trim();
    Some(tidy_number(line))
}

fn tidy_number(text: &str) -> String {
    let text = text.trim();
    text.strip_suffix('.').unwrap_or(text).replace(['$', ','], "")
}

impl ExactMatch {
    fn clean(&self, text: &str) -> String {
        let mut text = text.to_string();
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.strip { text.trim().to_string() } else { text }
    }
}

impl Metric for ExactMatch {
    fn judge(&self, answer: &str, expected: &str) -> Verdict {
        let equal = match self.extract {
            Extract::Whole => self.clean(answer) == self.clean(expected),
            Extract::AfterHashes => {
                let expected = after_hashes(expected).unwrap_or_else(|| tidy_number(expected));
                after_hashes(answer).is_some_and(|a| self.clean(&a) == self.clean(&expected))
            }
        };
        Verdict { value: f64::from(u8::from(equal)), fields: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(metric: ExactMatch, answer: &str, expected: &str) -> bool {
        metric.judge(answer, expected).value == 1.0
    }

    #[test]
    fn each_option_forgives_one_thing() {
        let strict = ExactMatch { strip: false, ..ExactMatch::default() };
        assert!(right(strict, "Paris", "Paris") && !right(strict, "Paris\n", "Paris"));
        let plain = ExactMatch::default();
        assert!(right(plain, " Paris\n", "Paris") && !right(plain, "paris", "Paris"));
        assert!(!right(plain, "", "Paris"));
        let case = ExactMatch { ignore_case: true, ..plain };
        assert!(right(case, "ÉCOLE", "école") && !right(case, "école!", "école"));
        let dots = ExactMatch { ignore_punctuation: true, ..plain };
        assert!(right(dots, "It's Paris. ", "Its Paris") && !right(dots, "Its paris", "Its Paris"));
    }

    #[test]
    fn gsm8k_answers_are_found_after_the_last_mark() {
        let metric = ExactMatch { extract: Extract::AfterHashes, ..ExactMatch::default() };
        let expected = "He sells 48/2 = <<48/2=24>>24 clips.\n#### 1,024";
        for answer in [
            "#### 1024",
            "so\n####1,024.",
            "#### 7\nno:\n#### $1,024\nThat is all.",
            "####  1024  ",
        ] {
            assert!(right(metric, answer, expected), "{answer}");
            assert!(right(metric, answer, "1024"), "{answer}");
        }
        for answer in ["1024", "#### 10240", "", "####", "####\n1024"] {
            assert!(!right(metric, answer, expected), "{answer}");
        }
    }
}
