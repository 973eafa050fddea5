//! DeconfoundLM (Loghmani 2025, arXiv 2506.00152; paper 26): outcomes of logs without what known
//! confounders added to them.
//!
//! Assumed is `y = f(text) + g(c) + noise` with confounders c that also influenced which texts were
//! written. `g(c) = β·c` is estimated (see [`estimate`]) and taken off, `r = y − g(c) + mean g(c)`; what
//! is learned from r (weights, pairs, a reward model) does not see c.
//!
//! - `iv`: β from two-stage least squares; an instrument moves c and has no other way to y. A first stage
//!   with F below 10 is refused.
//! - `partial`: β from the residuals of y and c on the words of the text, across `folds`, by ridge.
//! - `marginal`: β from y on c alone; takes a part of what the text does along where c and text go together.
//!
//! The outcome's column is rewritten, the observed number is kept as `{outcome}_observed`. Columns of texts
//! are categories, one 0/1 column for each but the first; a column with one value says nothing and is passed
//! over. **Departures**: (1) g is linear; no splines or trees. (2) The text is a bag of words: which of the
//! `words` most frequent ones it holds. (3) ridge is the number of rows times `ridge`.

use std::collections::{BTreeMap, BTreeSet};

use luthier_core::{Error, Example, Result, Seed, Table};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Step;

pub mod associate;
pub mod estimate;
pub mod linear;

use estimate::{Audit, Estimator, LEAST_F, Log};
use linear::Matrix;

/// `deconfound = { outcome = "clicks", confounders = ["hour"], instruments = ["slot"] }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deconfound {
    /// The column of what came of a text.
    pub outcome: String,
    /// Columns of what moved it besides.
    pub confounders: Vec<String>,
    /// Columns of what moved those alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instruments: Vec<String>,
    /// How the confounders' part is found; `iv` where there are instruments, else `partial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimator: Option<Estimator>,
    /// Parts into which rows are cut, so that no row's text is judged by itself.
    #[serde(default = "folds")]
    pub folds: usize,
    /// Ridge of regressions on words, by row.
    #[serde(default = "ridge")]
    pub ridge: f64,
    /// The most frequent words that are looked at.
    #[serde(default = "words")]
    pub words: usize,
}

fn folds() -> usize {
    5
}

fn ridge() -> f64 {
    1e-3
}

fn words() -> usize {
    512
}

impl Default for Deconfound {
    /// With no column named.
    fn default() -> Self {
        let (folds, ridge, words) = (folds(), ridge(), words());
        let (outcome, confounders, instruments) = (String::new(), Vec::new(), Vec::new());
        Deconfound { outcome, confounders, instruments, estimator: None, folds, ridge, words }
    }
}

impl Deconfound {
    /// The estimator that is named, or the best that the data allows.
    pub fn estimator(&self) -> Estimator {
        self.estimator.unwrap_or(match self.instruments.is_empty() {
            true => Estimator::Partial,
            false => Estimator::Iv,
        })
    }

    fn check(&self) -> Result<()> {
        let refuse = |key: &str, what: &str| Err(Error::input(format!("deconfound.{key}"), what));
        if self.confounders.is_empty() {
            return refuse("confounders", "names no column");
        }
        if self.estimator() == Estimator::Iv && self.instruments.is_empty() {
            return refuse("instruments", "missing: \"iv\" needs a column that moves confounders");
        }
        if self.confounders.iter().chain(&self.instruments).any(|name| *name == self.outcome) {
            return refuse("outcome", "is also named as a confounder or an instrument");
        }
        if self.folds < 2 {
            return refuse("folds", "expected 2 or more");
        }
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return refuse("ridge", "expected a number from 0");
        }
        Ok(())
    }

    /// The table's numbers.
    pub fn log(&self, table: &Table) -> Result<Log> {
        self.check()?;
        let outcome =
            table.examples.iter().map(|e| number(e, &self.outcome)).collect::<Result<_>>()?;
        let columns = |names: &[String]| -> Result<Matrix> {
            let all = names.iter().map(|name| column(table, name)).collect::<Result<Vec<_>>>()?;
            let numbers = all.concat().into_iter().map(|(_, numbers)| numbers);
            Ok(Matrix::of_columns(&numbers.collect::<Vec<_>>()))
        };
        Ok(Log {
            outcome,
            confounders: columns(&self.confounders)?,
            instruments: columns(&self.instruments)?,
            text: bag_of_words(table, self.words),
        })
    }

    /// How much there is to correct, and how well it can be.
    pub fn audit(&self, table: &Table) -> Result<Audit> {
        let log = self.log(table)?;
        log.audit(self.folds, self.ridge * table.examples.len() as f64)
    }

    /// The outcomes without what the confounders added.
    pub fn corrected(&self, table: &Table) -> Result<Vec<f64>> {
        let log = self.log(table)?;
        if log.confounders.columns == 0 {
            return Ok(log.outcome);
        }
        let by = self.estimator();
        if by == Estimator::Iv {
            for j in 0..log.confounders.columns {
                let f = log.first_stage_f(j)?;
                if f.is_nan() || f < LEAST_F {
                    let what = format!("too weak: F of the first stage is {f:.1}, below {LEAST_F}");
                    return Err(Error::input("deconfound.instruments", what)
                        .hint("estimator = \"partial\" needs none"));
                }
            }
        }
        let ridge = self.ridge * table.examples.len() as f64;
        Ok(log.corrected(&log.effects(by, self.folds, ridge)?))
    }
}

impl Step for Deconfound {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        let observed = format!("{}_observed", self.outcome);
        let corrected = self.corrected(&table)?;
        for (example, corrected) in table.examples.iter_mut().zip(corrected) {
            if example.columns.contains_key(&observed) {
                let what = format!("column {observed}: is there already");
                return Err(Error::input(example.origin.to_string(), what)
                    .hint("outcomes are corrected once"));
            }
            let old = example.columns.insert(self.outcome.clone(), Value::from(corrected));
            example.columns.insert(observed.clone(), old.unwrap_or_default());
        }
        Ok(table)
    }
}

fn number(example: &Example, column: &str) -> Result<f64> {
    let value = example.columns.get(column);
    let number = match value {
        Some(Value::Bool(yes)) => Some(f64::from(u8::from(*yes))),
        Some(value) => value.as_f64(),
        None => None,
    };
    number.filter(|number| number.is_finite()).ok_or_else(|| {
        let found = value.map_or("nothing".to_string(), crate::layout::describe);
        let what = format!("column {column}: expected a number, found {found}");
        Error::input(example.origin.to_string(), what)
    })
}

/// A column as numbers, or as 0/1 columns of its categories but the first, each with a name; nothing of one
/// with a single value.
fn column(table: &Table, name: &str) -> Result<Vec<(String, Vec<f64>)>> {
    let text = |example: &Example| match example.columns.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    if !table.examples.iter().any(|example| text(example).is_some()) {
        let all = table.examples.iter().map(|e| number(e, name)).collect::<Result<Vec<f64>>>()?;
        let varies = all.windows(2).any(|pair| pair[0] != pair[1]);
        return Ok(if varies { vec![(name.to_string(), all)] } else { Vec::new() });
    }
    let all = table.examples.iter().map(|example| {
        text(example).ok_or_else(|| {
            let what = format!("column {name}: expected a text as in other rows");
            Error::input(example.origin.to_string(), what)
        })
    });
    let all = all.collect::<Result<Vec<String>>>()?;
    let categories: BTreeSet<&String> = all.iter().collect();
    let is = |category: &String| {
        let is = all.iter().map(|of| f64::from(u8::from(of == category))).collect();
        (format!("{name}={category}"), is)
    };
    Ok(categories.into_iter().skip(1).map(is).collect())
}

/// Which of the most frequent words each text holds; words that all or a single one hold say nothing.
pub fn bag_of_words(table: &Table, most: usize) -> Matrix {
    let words = |example: &Example| -> BTreeSet<String> {
        let answer = example.completions.iter().flat_map(|answer| &answer.turns);
        let last = example.prompt.last().filter(|_| example.completions.is_empty());
        let turns = answer.chain(last);
        let split = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| !c.is_alphanumeric());
            parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
        };
        turns.flat_map(|turn| split(&turn.content)).collect()
    };
    let texts: Vec<BTreeSet<String>> = table.examples.iter().map(words).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    texts.iter().flatten().for_each(|word| *counts.entry(word).or_default() += 1);
    let mut known: Vec<(&str, usize)> =
        counts.into_iter().filter(|(_, count)| *count > 1 && *count < texts.len()).collect();
    // Of equally frequent ones the first by name.
    known.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    known.truncate(most);
    let holds = |text: &BTreeSet<String>, word: &str| f64::from(u8::from(text.contains(word)));
    let numbers =
        texts.iter().flat_map(|text| known.iter().map(move |(word, _)| holds(text, word)));
    Matrix { columns: known.len(), numbers: numbers.collect() }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Rng, Turn};

    use super::*;

    /// The generator of the paper's small check: a text holds `happy` by its own merit and less so where
    /// `u` is high (entangled), `weekend` where `u` is high; the outcome is what `happy` adds and `2c`.
    fn table(n: usize, entangled: f64, seed: u64) -> Table {
        let mut rng = Seed(seed).rng();
        let row = |i: usize, rng: &mut Rng| {
            let z = f64::from(u8::from(rng.uniform() < 0.5));
            let u = rng.normal();
            let c = z + 0.7 * u + 0.3 * rng.normal();
            let happy = rng.normal() - 0.8 * entangled * u > 0.0;
            let weekend = rng.normal() + 1.2 * u > 0.0;
            let outcome = f64::from(u8::from(happy)) + 2.0 * c + 0.5 * rng.normal();
            let mut words: Vec<String> =
                (0..8).map(|_| format!("filler{}", rng.below(20))).collect();
            words.extend(happy.then(|| "Happy".to_string()));
            words.extend(weekend.then(|| "weekend".to_string()));
            let answer = Some(Turn::new("assistant", words.join(" ")));
            let mut example =
                Example::new("log.jsonl", i + 1, vec![Turn::new("user", "x")], answer);
            let columns = [("z", z), ("c", c), ("outcome", outcome)];
            example.columns.extend(columns.map(|(k, v)| (k.to_string(), Value::from(v))));
            example
        };
        let examples = (0..n).map(|i| row(i, &mut rng)).collect();
        Table { name: "log".into(), layout: String::new(), sha256: String::new(), examples }
    }

    fn step(more: &str) -> Deconfound {
        toml::from_str(&format!("outcome = \"outcome\"\nconfounders = [\"c\"]\n{more}")).unwrap()
    }

    /// What the two words are worth by a regression on all words.
    fn worth(table: &Table) -> [f64; 2] {
        let outcome: Vec<f64> =
            table.examples.iter().map(|e| number(e, "outcome").unwrap()).collect();
        let bag = bag_of_words(table, 64);
        let all: Vec<usize> = (0..outcome.len()).collect();
        let line = linear::fit(&bag, &outcome, 1e-6, &all).unwrap();
        let at = |word: &str| {
            let says = |e: &Example| e.completions[0].text().to_lowercase().contains(word);
            let wanted: Vec<f64> =
                table.examples.iter().map(|e| f64::from(u8::from(says(e)))).collect();
            let j = (0..bag.columns).find(|j| bag.column(*j) == wanted).unwrap();
            line.slopes[j]
        };
        ["happy", "weekend"].map(at)
    }

    #[test]
    fn the_causal_word_is_found_where_raw_outcomes_find_the_other() {
        let table = table(4000, 1.0, 3);
        let of = |more: &str| worth(&step(more).apply(table.clone(), Seed(1)).unwrap());
        let raw = worth(&table);
        assert!(raw[0] < 0.3 && raw[1] > 1.2, "{raw:?}");
        for more in ["instruments = [\"z\"]", "estimator = \"partial\""] {
            let found = of(more);
            assert!((found[0] - 1.0).abs() < 0.12 && found[1].abs() < 0.12, "{more}: {found:?}");
        }
        let marginal = of("estimator = \"marginal\"");
        assert!(marginal[1] > 0.05 && marginal[1] < 0.3, "{marginal:?}");
    }

    #[test]
    fn an_audit_tells_how_far_the_text_gives_the_confounder_away() {
        let of =
            |entangled| step("instruments = [\"z\"]").audit(&table(2000, entangled, 5)).unwrap();
        let audit = of(1.0);
        assert!(audit.outcome_by_confounders > 0.8 && audit.confounders_by_text[0] > 0.15);
        assert!(audit.first_stage_f[0] > 500.0, "{audit:?}");
        let shift = audit.shifts.iter().copied().fold(0.0, |most: f64, s| most.max(s.abs()));
        assert!(shift > 0.5, "{shift}");
    }

    #[test]
    fn what_is_constant_changes_nothing_and_what_was_observed_is_kept() {
        let mut table = table(50, 1.0, 1);
        for example in &mut table.examples {
            example.columns.insert("c".into(), 4.into());
        }
        let before: Vec<Value> =
            table.examples.iter().map(|e| e.columns["outcome"].clone()).collect();
        let after = step("instruments = [\"z\"]").apply(table, Seed(1)).unwrap();
        for (example, before) in after.examples.iter().zip(before) {
            assert_eq!(
                (&example.columns["outcome"], &example.columns["outcome_observed"]),
                (&before, &before)
            );
        }
        assert!(step("").apply(after, Seed(1)).is_err());
    }

    #[test]
    fn categories_are_columns_and_weak_instruments_are_refused() {
        let mut table = table(300, 1.0, 2);
        for (i, example) in table.examples.iter_mut().enumerate() {
            let day = ["mon", "sat", "sun"][i % 3];
            let added = [0.0, 3.0, -5.0][i % 3];
            let outcome = number(example, "outcome").unwrap() + added;
            example.columns.insert("outcome".into(), outcome.into());
            example.columns.insert("day".into(), day.into());
            example.columns.insert("noise".into(), ((i * 31) % 17).into());
        }
        let both: Deconfound = toml::from_str(
            "outcome = \"outcome\"\nconfounders = [\"c\", \"day\"]\nestimator = \"partial\"",
        )
        .unwrap();
        let log = both.log(&table).unwrap();
        let effects = log.effects(Estimator::Partial, 5, 0.3).unwrap();
        assert_eq!(effects.len(), 3);
        assert!((effects[1] - 3.0).abs() < 0.4 && (effects[2] + 5.0).abs() < 0.4, "{effects:?}");
        let error =
            step("instruments = [\"noise\"]").apply(table, Seed(1)).unwrap_err().to_string();
        assert!(error.contains("deconfound.instruments: too weak: F"), "{error}");
        for (more, key) in [("folds = 1", "folds"), ("estimator = \"iv\"", "instruments")] {
            let error = step(more).apply(super::tests::table(9, 0.0, 1), Seed(1)).unwrap_err();
            assert!(error.to_string().starts_with(&format!("deconfound.{key}")), "{error}");
        }
    }
}
