//! Rewarded answers to one prompt as pairs of a better and a worse one.
//!
//! Rows with the same prompt stand together; of N answers all N(N − 1)/2 pairs are made whose rewards
//! differ by more than `margin` deviations of the column, the higher one chosen; ties never are. With
//! `most`, the pairs of a prompt that differ most. The pair's example stands where its chosen answer stood.
//! **Departures**: none.

use std::collections::HashMap;

use luthier_core::{Completion, Error, Example, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `rank = { column = "reward", margin = 0.1 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rank {
    /// The column of an answer's reward.
    pub column: String,
    /// By how many deviations of the column two rewards must differ.
    #[serde(default)]
    pub margin: f64,
    /// Pairs of one prompt at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
}

impl Rank {
    fn reward(&self, example: &Example) -> Result<f64> {
        let at = || example.origin.to_string();
        let [_] = example.completions.as_slice() else {
            let what = format!("expected one answer, found {}", example.completions.len());
            return Err(Error::input(at(), what));
        };
        let number = example.columns.get(&self.column).and_then(|value| value.as_f64());
        number
            .filter(|number| number.is_finite())
            .ok_or_else(|| Error::input(at(), format!("column {}: expected a number", self.column)))
    }
}

impl Step for Rank {
    fn apply(&self, table: Table, _seed: Seed) -> Result<Table> {
        if !(self.margin >= 0.0 && self.margin.is_finite()) {
            let what = format!("expected a number from 0, got {}", self.margin);
            return Err(Error::input("rank.margin", what));
        }
        let rewards: Vec<f64> =
            table.examples.iter().map(|e| self.reward(e)).collect::<Result<_>>()?;
        let n = rewards.len().max(1) as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let deviation = (rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
        // By prompt, in the order in which prompts appear.
        let (mut place, mut groups): (HashMap<String, usize>, Vec<Vec<usize>>) = Default::default();
        for (i, example) in table.examples.iter().enumerate() {
            let words = example.prompt.iter().map(|turn| (&turn.role, &turn.content));
            let key = format!("{:?}", words.collect::<Vec<_>>());
            let at = *place.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[at].push(i);
        }
        let mut made = Vec::new();
        for group in &groups {
            let mut pairs: Vec<(usize, usize)> = Vec::new();
            for (at, i) in group.iter().enumerate() {
                for j in &group[at + 1..] {
                    let (better, worse) =
                        if rewards[*i] > rewards[*j] { (*i, *j) } else { (*j, *i) };
                    let differ = rewards[better] - rewards[worse];
                    let same = table.examples[better].completions[0].turns
                        == table.examples[worse].completions[0].turns;
                    if differ > 0.0 && differ > self.margin * deviation && !same {
                        pairs.push((better, worse));
                    }
                }
            }
            if let Some(most) = self.most {
                let differ = |(b, w): &(usize, usize)| rewards[*b] - rewards[*w];
                pairs.sort_by(|a, b| differ(b).total_cmp(&differ(a)));
                pairs.truncate(most);
            }
            made.extend(pairs);
        }
        let answer = |i: usize, chosen: f64| -> Completion {
            let mut answer = table.examples[i].completions[0].clone();
            answer.marks.insert("chosen".into(), chosen);
            answer.marks.insert("score".into(), rewards[i]);
            answer
        };
        let pair = |(better, worse): (usize, usize)| Example {
            completions: vec![answer(better, 1.0), answer(worse, 0.0)],
            ..table.examples[better].clone()
        };
        let examples = made.into_iter().map(pair).collect();
        Ok(Table { examples, ..table })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    fn table(rows: &[(&str, f64)]) -> Table {
        let row = |(i, (prompt, reward)): (usize, &(&str, f64))| {
            let answer = Some(Turn::new("assistant", format!("answer {i}")));
            let turns = vec![Turn::new("user", *prompt)];
            let mut example = Example::new("t.jsonl", i + 1, turns, answer);
            example.columns.insert("r".into(), (*reward).into());
            example
        };
        let examples = rows.iter().enumerate().map(row).collect();
        Table { name: "t".into(), layout: String::new(), sha256: String::new(), examples }
    }

    fn pairs(more: &str, rows: &[(&str, f64)]) -> Vec<[String; 2]> {
        let rank: Rank = toml::from_str(&format!("column = \"r\"\n{more}")).unwrap();
        let made = rank.apply(table(rows), Seed(0)).unwrap();
        let texts =
            |e: &Example| [0, 1].map(|i: usize| e.completions[i].text().replace("answer ", ""));
        assert!(made.examples.iter().all(|e| e.completions[0].marks["chosen"] == 1.0));
        made.examples.iter().map(texts).collect()
    }

    #[test]
    fn ten_answers_are_forty_five_pairs() {
        let rows: Vec<(&str, f64)> = (0..10).map(|i| ("a", i as f64)).collect();
        assert_eq!(pairs("", &rows).len(), 45);
        assert_eq!(pairs("most = 1", &rows), [["9", "0"]]);
    }

    #[test]
    fn pairs_stay_within_a_prompt_and_are_no_ties() {
        let rows = [("a", 1.0), ("b", 5.0), ("a", 3.0), ("b", 5.0), ("a", 3.1)];
        assert_eq!(pairs("", &rows), [["2", "0"], ["4", "0"], ["4", "2"]]);
        // The deviation is 1.49: a difference of 0.1 is less than a tenth of it.
        assert_eq!(pairs("margin = 0.1", &rows), [["2", "0"], ["4", "0"]]);
    }
}
