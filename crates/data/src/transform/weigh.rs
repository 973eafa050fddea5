//! Rows weighed by a number in a column: reward-weighted regression (Peters and Schaal 2007; an arm of
//! paper 24) and its like.
//!
//! With the column's number `r`, or `(r − mean)/deviation` over the table with `standardise`:
//!
//! | `by` | weight of the row's answers |
//! |---|---|
//! | `exp` | `e^(r/τ)` |
//! | `sigmoid` | `1 / (1 + e^(−r/τ))` |
//! | `linear` | `r/τ`; a number below 0 is refused |
//! | `signed` | `r/τ`, below 0 where the number is: such a row is pushed away |
//! | `top` | 1 for the best `share` of the rows, which alone stay |
//!
//! and never more than `most` (nor, signed, less than `−most`): an advantage A weighs `e^(A/β)` up to 20 with `tau = β`, `most = 20`. What
//! a turn counts by itself is multiplied. **Departures**: none; the loss divides by all weights of a step
//! unless it is told otherwise (`normaliser`).

use luthier_core::{Error, Example, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `weigh = { column = "reward", by = "exp", tau = 1.0 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weigh {
    /// The column, or the mark of an example or of its answer.
    pub column: String,
    /// From number to weight.
    #[serde(default)]
    pub by: By,
    /// What the number is divided by.
    #[serde(default = "one")]
    pub tau: f64,
    /// The largest weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    /// Share of the rows that stay, with `top`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Whether the numbers are brought to mean 0 and deviation 1 first.
    #[serde(default)]
    pub standardise: bool,
}

/// From number to weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module says what each is")]
pub enum By {
    #[default]
    Exp,
    Sigmoid,
    Linear,
    Signed,
    Top,
}

fn one() -> f64 {
    1.0
}

impl Weigh {
    fn check(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::input(format!("weigh.{key}"), what));
        if !(self.tau > 0.0 && self.tau.is_finite()) {
            return refuse("tau", format!("expected a number above 0, got {}", self.tau));
        }
        if let Some(most) = self.most
            && !(most > 0.0 && most.is_finite())
        {
            return refuse("most", format!("expected a number above 0, got {most}"));
        }
        match (self.by, self.share) {
            (By::Top, Some(share)) if share > 0.0 && share <= 1.0 => Ok(()),
            (By::Top, Some(share)) => {
                refuse("share", format!("expected above 0 and at most 1, got {share}"))
            }
            (By::Top, None) => refuse("share", "missing: which share of the rows is best?".into()),
            (_, Some(_)) => refuse("share", "belongs to by = \"top\"".into()),
            (_, None) => Ok(()),
        }
    }

    fn number(&self, example: &Example) -> Result<f64> {
        let column = self.column.as_str();
        let of_answer = || match example.completions.as_slice() {
            [answer] => answer.marks.get(column).copied(),
            _ => None,
        };
        let value = example.columns.get(column);
        let number = example.marks.get(column).copied().or_else(of_answer);
        let number = number.or_else(|| value.and_then(|value| value.as_f64()));
        number.filter(|number| number.is_finite()).ok_or_else(|| {
            let found = match value {
                Some(value) => crate::layout::describe(value),
                None => "nothing".to_string(),
            };
            let what = format!("column {column}: expected a number, found {found}");
            Error::input(example.origin.to_string(), what)
        })
    }

    fn weight(&self, number: f64, example: &Example) -> Result<f32> {
        let scaled = number / self.tau;
        let weight = match self.by {
            By::Exp => scaled.exp(),
            By::Sigmoid => 1.0 / (1.0 + (-scaled).exp()),
            By::Linear | By::Signed => scaled,
            By::Top => 1.0,
        };
        let weight = self.most.map_or(weight, |most| weight.clamp(-most, most)) as f32;
        if (weight >= 0.0 || self.by == By::Signed) && weight.is_finite() {
            return Ok(weight);
        }
        let what = format!("column {}: {number} becomes a weight of {weight}", self.column);
        Err(Error::input(example.origin.to_string(), what)
            .hint("raise tau, set most, or standardise = true; linear takes numbers from 0, and by = \"signed\" any"))
    }
}

impl Step for Weigh {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        self.check()?;
        let mut numbers: Vec<f64> =
            table.examples.iter().map(|e| self.number(e)).collect::<Result<_>>()?;
        if self.standardise {
            let n = numbers.len() as f64;
            let mean = numbers.iter().sum::<f64>() / n;
            let variance = numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            // All alike: none is better than another.
            let by = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
            numbers.iter_mut().for_each(|x| *x = (*x - mean) * by);
        }
        if let (By::Top, Some(share)) = (self.by, self.share) {
            let stay = ((numbers.len() as f64 * share).round() as usize).max(1);
            let mut order: Vec<usize> = (0..numbers.len()).collect();
            // Of equals the first stay.
            order.sort_by(|a, b| numbers[*b].total_cmp(&numbers[*a]));
            let mut best = vec![false; numbers.len()];
            order.into_iter().take(stay).for_each(|i| best[i] = true);
            let mut kept = best.into_iter();
            table.examples.retain(|_| kept.next() == Some(true));
            return Ok(table);
        }
        for (example, number) in table.examples.iter_mut().zip(numbers) {
            let weight = self.weight(number, example)?;
            let answers = example.completions.iter_mut().flat_map(|answer| &mut answer.turns);
            let turns = example.prompt.iter_mut().chain(answers);
            for turn in turns.filter(|turn| turn.role == "assistant") {
                turn.weight = Some(turn.weight.unwrap_or(1.0) * weight);
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    fn table(rewards: &[f64]) -> Table {
        let row = |(i, reward): (usize, &f64)| {
            let turns = vec![Turn::new("user", "a")];
            let answer = Some(Turn::new("assistant", "b"));
            let mut example = Example::new("t.jsonl", i + 1, turns, answer);
            example.columns.insert("reward".into(), (*reward).into());
            example
        };
        let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
        let examples = rewards.iter().enumerate().map(row).collect();
        Table { name, layout, sha256: String::new(), examples }
    }

    fn run(settings: &str, rewards: &[f64]) -> Result<Vec<f32>> {
        let weigh: Weigh = toml::from_str(settings).unwrap();
        let table = weigh.apply(table(rewards), Seed(1))?;
        Ok(table.examples.iter().map(|e| e.completions[0].turns[0].weight.unwrap_or(9.0)).collect())
    }

    #[test]
    fn numbers_become_weights_as_it_says() {
        let of = |more: &str| run(&format!("column = \"reward\"\n{more}"), &[1.0, 0.0, 6.0]);
        let close = |got: Vec<f32>, want: [f64; 3]| {
            got.iter().zip(want).for_each(|(got, want)| {
                assert!((*got as f64 - want).abs() < 1e-5 * want.abs().max(1.0))
            });
        };
        close(of("").unwrap(), [std::f64::consts::E, 1.0, 403.428_793]);
        close(of("tau = 2.0\nmost = 20.0").unwrap(), [1.648_721_27, 1.0, 20.0]);
        close(of("tau = 1e12").unwrap(), [1.0, 1.0, 1.0]);
        close(of("by = \"sigmoid\"").unwrap(), [0.731_058_58, 0.5, 0.997_527_38]);
        close(of("by = \"linear\"\ntau = 3.0").unwrap(), [1.0 / 3.0, 0.0, 2.0]);
        let signed = "column = \"reward\"\nby = \"signed\"\ntau = 2.0\nmost = 1.5";
        close(run(signed, &[-1.0, 0.5, -9.0]).unwrap(), [-0.5, 0.25, -1.5]);
        // Mean 7/3, deviation 2.6247.
        close(of("standardise = true").unwrap(), [0.601_697, 0.411_066, 4.043_058]);
    }

    #[test]
    fn the_best_stay_in_their_order_and_what_cannot_be_weighed_is_refused() {
        let weigh: Weigh =
            toml::from_str("column = \"reward\"\nby = \"top\"\nshare = 0.5").unwrap();
        let best = weigh.apply(table(&[3.0, 5.0, 3.0, 1.0]), Seed(1)).unwrap();
        let lines: Vec<usize> = best.examples.iter().map(|e| e.origin.line).collect();
        assert_eq!(lines, [1, 2]);
        assert_eq!(best.examples[0].completions[0].turns[0].weight, None);
        let refused = |settings: &str, rewards: &[f64], what: &str| {
            let error = run(settings, rewards).unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        };
        refused(
            "column = \"reward\"\nby = \"linear\"",
            &[1.0, -1.0],
            "t.jsonl:2: column reward: -1",
        );
        refused(
            "column = \"rewrd\"",
            &[1.0],
            "t.jsonl:1: column rewrd: expected a number, found nothing",
        );
        refused("column = \"reward\"\ntau = 0.0", &[1.0], "weigh.tau");
        refused("column = \"reward\"\nby = \"top\"", &[1.0], "weigh.share");
        refused("column = \"reward\"\ntau = 0.001", &[9.0], "t.jsonl:1: column reward: 9 becomes");
    }
}
