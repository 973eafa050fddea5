//! ROUGE-L (Lin 2004) with rouge_score's meaning and numbers (version 0.1.2, without stemming).
//!
//! Words are runs of `a-z` and `0-9` of the text in lower case. With `L` the longest common subsequence
//! of words, `P = L / words of the answer`, `R = L / expected words`; the value is `2 · P · R / (P + R)`,
//! its mean over answers the score. **Departures**: none. (So texts in other scripts have no words; use
//! `chrf` for them.)

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Metric, Verdict};

/// `rouge_l = {}`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RougeL {}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let apart = |c: char| !matches!(c, 'a'..='z' | '0'..='9');
    lower.split(apart).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The length of the longest common subsequence, in memory of one row.
fn common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut before = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    row[b.len()]
}

impl RougeL {
    /// Precision, recall and their harmonic mean.
    pub fn scores(&self, answer: &str, expected: &str) -> [f64; 3] {
        let (answer, expected) = (words(answer), words(expected));
        let both = common(&answer, &expected) as f64;
        if both == 0.0 {
            return [0.0; 3];
        }
        let (p, r) = (both / answer.len() as f64, both / expected.len() as f64);
        [p, r, 2.0 * p * r / (p + r)]
    }
}

impl Metric for RougeL {
    fn judge(&self, answer: &str, expected: &str) -> Verdict {
        Verdict { value: self.scores(answer, expected)[2], fields: None }
    }

    fn check(&self, at: &str, expected: &str) -> Result<()> {
        match words(expected).is_empty() {
            true => Err(Error::input(at, "the expected text has no word of the letters a to z")
                .hint("use chrf for other scripts")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_subsequence_counts() {
        // "police … the gunman": 3 of 4 words on either side.
        let [p, r, f] = RougeL {}.scores("police kill the gunman", "Police killed the gunman.");
        assert_eq!([p, r, f], [0.75, 0.75, 0.75]);
        assert_eq!(RougeL {}.scores("the gunman police killed", "police kill the gunman")[0], 0.5);
        assert_eq!(RougeL {}.scores("", "a"), [0.0; 3]);
        assert!(RougeL {}.check("t:1", "木").is_err());
    }
}
