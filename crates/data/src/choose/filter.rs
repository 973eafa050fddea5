//! Rows whose mark lies in a range (both ends included).
//!
//! The number is looked for on the example, then on its completions, then in the numeric column of
//! that name. When completions carry the mark, those outside the range go, and the example goes
//! with the last of them.

use luthier_core::{Error, Example, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `filter = { mark = "score", min = 0.5 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Name of the mark or numeric column.
    pub mark: String,
    /// Smallest value that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// What happens to a row (or completion) without the mark.
    #[serde(default)]
    pub missing: Missing,
}

/// What a filter does with a row that lacks its mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// Refuse, naming the row.
    #[default]
    Error,
    /// The row goes.
    Drop,
    /// The row stays.
    Keep,
}

impl Filter {
    fn holds(&self, value: f64) -> bool {
        // A NaN is in no range, also not in an open one.
        !value.is_nan()
            && self.min.is_none_or(|m| value >= m)
            && self.max.is_none_or(|m| value <= m)
    }

    fn keeps(&self, value: Option<f64>, example: &Example) -> Result<bool> {
        match (value, self.missing) {
            (Some(value), _) => Ok(self.holds(value)),
            (None, Missing::Drop) => Ok(false),
            (None, Missing::Keep) => Ok(true),
            (None, Missing::Error) => {
                let marks = example
                    .marks
                    .keys()
                    .chain(example.completions.iter().flat_map(|c| c.marks.keys()));
                let numbers = example.columns.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k);
                let mut found: Vec<&str> = marks.chain(numbers).map(String::as_str).collect();
                found.sort_unstable();
                found.dedup();
                let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
                Err(Error::input(
                    example.origin.to_string(),
                    format!("filter expected the mark `{}`; numbers found: {found}", self.mark),
                )
                .hint("`missing = \"drop\"` or `missing = \"keep\"` says what to do without it"))
            }
        }
    }
}

impl Step for Filter {
    fn apply(&self, table: Table, _seed: Seed) -> Result<Table> {
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            return Err(Error::input("filter", format!("min {min} is above max {max}")));
        }
        let mut kept = Vec::with_capacity(table.examples.len());
        for mut example in table.examples {
            let own = example.marks.get(&self.mark).copied();
            let on_completions = own.is_none()
                && example.completions.iter().any(|c| c.marks.contains_key(&self.mark));
            if on_completions {
                let verdicts = example
                    .completions
                    .iter()
                    .map(|c| self.keeps(c.marks.get(&self.mark).copied(), &example))
                    .collect::<Result<Vec<bool>>>()?;
                let mut verdicts = verdicts.into_iter();
                example.completions.retain(|_| verdicts.next() == Some(true));
                if !example.completions.is_empty() {
                    kept.push(example);
                }
            } else {
                let column = || example.columns.get(&self.mark).and_then(|v| v.as_f64());
                if self.keeps(own.or_else(column), &example)? {
                    kept.push(example);
                }
            }
        }
        Ok(Table { examples: kept, ..table })
    }
}
