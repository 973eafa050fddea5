//! Which properties of rows go along with a reward, alone and once the rest is accounted for.
//!
//! Before it is learned from, a reward is asked whom it follows: the length of the answers, the hour they
//! were shown, who wrote them. Of every property c, with y the reward:
//!
//! - `correlation` of c and y, and `alone`, the slope of y on c by itself: unadjusted;
//! - `adjusted`, what [`Deconfound`]'s estimator says that c adds, beside all other properties: with `partial`
//!   (the default without instruments) from what is left of both when the words of the text, across folds, have
//!   been accounted for; and `adjusted_correlation`, of c and y when the words (with `partial`) and all other
//!   properties have been;
//! - `by_text`, the cross-validated R² of c on the words: how far the text gives it away.
//!
//! A property with a large `alone` and an `adjusted` near 0 only stands where the right words stand. The
//! length of an answer, in characters, is a property that every row has: [`LENGTH`].

use luthier_core::{Example, Result, Table};
use serde::Serialize;
use serde_json::Value;

use super::{
    Deconfound, column,
    estimate::{Estimator, Log},
    linear::{Matrix, across_folds, correlation, fit},
};

/// The name of the answers' length among the properties.
pub const LENGTH: &str = "length";

/// How a property goes along with the reward.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Association {
    /// The column, or `column=category`.
    pub property: String,
    /// With the reward, from −1 to 1.
    pub correlation: f64,
    /// What a unit of it goes along with.
    pub alone: f64,
    /// What a unit of it adds, the words and the other properties being the same.
    pub adjusted: f64,
    /// With the reward, when those are accounted for.
    pub adjusted_correlation: f64,
    /// The share of it that the words tell.
    pub by_text: f64,
    /// The first stage's F, where there are instruments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_stage_f: Option<f64>,
}

/// All properties, and how far they tell the reward together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Associations {
    /// Rows.
    pub rows: usize,
    /// Share of the reward's variance that the properties tell together.
    pub told: f64,
    /// How `adjusted` was found.
    pub estimator: Estimator,
    /// One by one, in the order they were named.
    pub properties: Vec<Association>,
}

/// The table with the length of the answers among its columns, unless it has such a column already.
fn measured(table: &Table) -> Table {
    let length = |example: &Example| -> usize {
        let turns = example.completions.iter().flat_map(|answer| &answer.turns);
        turns.map(|turn| turn.content.chars().count()).sum()
    };
    let mut table = table.clone();
    for example in &mut table.examples {
        let length = Value::from(length(example));
        example.columns.entry(LENGTH.to_string()).or_insert(length);
    }
    table
}

/// What is left of a column once others are known.
fn left(of: &[f64], others: &Matrix, ridge: f64) -> Result<Vec<f64>> {
    let all: Vec<usize> = (0..of.len()).collect();
    let line = fit(others, of, ridge, &all)?;
    let told = |i: usize| if others.columns == 0 { line.constant } else { line.at(others.row(i)) };
    Ok(all.iter().map(|i| of[*i] - told(*i)).collect())
}

/// The correlation of each property with the reward when all others, and with `partial` the words, are
/// accounted for.
fn partial_correlations(log: &Log, how: &Deconfound, ridge: f64) -> Result<Vec<f64>> {
    let plain = |of: Vec<f64>| -> Result<Vec<f64>> {
        if how.estimator() != Estimator::Partial {
            return Ok(of);
        }
        let told = across_folds(&log.text, &of, ridge, how.folds)?;
        Ok(of.iter().zip(told).map(|(of, told)| of - told).collect())
    };
    let outcome = plain(log.outcome.clone())?;
    let columns = (0..log.confounders.columns)
        .map(|j| plain(log.confounders.column(j)))
        .collect::<Result<Vec<_>>>()?;
    let of = |j: usize| {
        let others: Vec<Vec<f64>> =
            columns.iter().enumerate().filter(|(i, _)| *i != j).map(|(_, c)| c.clone()).collect();
        let others = Matrix::of_columns(&others);
        Ok(correlation(&left(&columns[j], &others, 0.0)?, &left(&outcome, &others, 0.0)?))
    };
    (0..columns.len()).map(of).collect()
}

impl Deconfound {
    /// How each property goes along with the outcome. `length` may be named without being a column.
    pub fn associations(&self, table: &Table) -> Result<Associations> {
        let table = measured(table);
        let log = self.log(&table)?;
        let n = table.examples.len();
        let ridge = self.ridge * n as f64;
        let audit = log.audit(self.folds, ridge)?;
        let names: Vec<String> = self
            .confounders
            .iter()
            .map(|name| column(&table, name))
            .collect::<Result<Vec<_>>>()?
            .concat()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let adjusted = match names.is_empty() {
            true => Vec::new(),
            false => log.effects(self.estimator(), self.folds, ridge)?,
        };
        let correlations = partial_correlations(&log, self, ridge)?;
        let all: Vec<usize> = (0..n).collect();
        let mut properties = Vec::with_capacity(names.len());
        for (j, property) in names.into_iter().enumerate() {
            let of = log.confounders.column(j);
            let line =
                fit(&Matrix::of_columns(std::slice::from_ref(&of)), &log.outcome, 0.0, &all)?;
            properties.push(Association {
                property,
                correlation: correlation(&of, &log.outcome),
                alone: line.slopes[0],
                adjusted: adjusted[j],
                adjusted_correlation: correlations[j],
                by_text: audit.confounders_by_text[j],
                first_stage_f: audit.first_stage_f.get(j).copied(),
            });
        }
        let told = audit.outcome_by_confounders;
        Ok(Associations { rows: n, told, estimator: self.estimator(), properties })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Seed, Turn};

    use super::*;

    /// A reward of 2 for the word `right` and 3 an hour; the hour is late where the word stands. The length
    /// of the answers is that of filler, which nothing depends on, but more of it stands late.
    fn table(n: usize) -> Table {
        let mut rng = Seed(7).rng();
        let mut row = |i: usize| {
            let right = rng.uniform() < 0.5;
            let hour = f64::from(u8::from(right)) + rng.normal();
            let filler = (20.0 + 6.0 * hour + 4.0 * rng.normal()).max(1.0) as usize;
            let text = format!("{} {}", if right { "right" } else { "wrong" }, "z".repeat(filler));
            let reward = 2.0 * f64::from(u8::from(right)) + 3.0 * hour + 0.1 * rng.normal();
            let answer = Some(Turn::new("assistant", text));
            let mut example = Example::new("t.jsonl", i + 1, vec![Turn::new("user", "x")], answer);
            let columns = [("hour", Value::from(hour)), ("reward", Value::from(reward))];
            example.columns.extend(columns.map(|(k, v)| (k.to_string(), v)));
            example
        };
        let examples = (0..n).map(&mut row).collect();
        Table { name: "t".into(), layout: String::new(), sha256: String::new(), examples }
    }

    fn step(more: &str) -> Deconfound {
        toml::from_str(&format!("outcome = \"reward\"\nwords = 2\n{more}")).unwrap()
    }

    #[test]
    fn what_only_goes_along_has_nothing_left_when_the_rest_is_known() {
        let found =
            step("confounders = [\"hour\", \"length\"]").associations(&table(1500)).unwrap();
        assert_eq!((found.rows, found.estimator), (1500, Estimator::Partial));
        let [hour, length] = found.properties.as_slice() else { panic!("{found:?}") };
        assert_eq!((hour.property.as_str(), length.property.as_str()), ("hour", "length"));
        // By itself an hour stands for a part of the word, too: 3 + 2·cov/var = 3 + 2·0.25/1.25.
        assert!((hour.alone - 3.4).abs() < 0.1 && (hour.adjusted - 3.0).abs() < 0.02, "{hour:?}");
        assert!(hour.adjusted_correlation > 0.99 && hour.correlation > 0.9, "{hour:?}");
        assert!((hour.by_text - 0.2).abs() < 0.05, "{hour:?}");
        // Length goes along with the reward and adds nothing.
        assert!(length.correlation > 0.6 && length.adjusted_correlation.abs() < 0.1, "{length:?}");
        assert!(length.adjusted.abs() < 0.01 && length.alone > 0.2, "{length:?}");
        assert!(found.told > 0.9 && found.told < 1.0);
    }

    #[test]
    fn a_column_called_length_is_the_users_own() {
        let mut table = table(200);
        for example in &mut table.examples {
            let reward = example.columns["reward"].as_f64().unwrap();
            example.columns.insert(LENGTH.into(), Value::from(-2.0 * reward));
        }
        let found = step("confounders = [\"length\"]\nestimator = \"marginal\"");
        let found = found.associations(&table).unwrap();
        assert!((found.properties[0].alone + 0.5).abs() < 1e-9);
        assert!((found.properties[0].adjusted + 0.5).abs() < 1e-9);
        assert!((found.properties[0].correlation + 1.0).abs() < 1e-9);
        assert!((found.properties[0].adjusted_correlation + 1.0).abs() < 1e-9);
    }
}
