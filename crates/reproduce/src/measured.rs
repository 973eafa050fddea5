//! What a check measures: every arm's figures, one value per seed.

use luthier_core::{Error, Result};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    claim::{self, Inequality},
    stats::Estimate,
};

/// Figures by arm and inequalities about them.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    arms: Vec<Arm>,
    inequalities: Vec<Inequality>,
    notes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Arm {
    name: String,
    /// Name and values, in the order in which they were first measured.
    figures: Vec<(String, Vec<f64>)>,
}

impl Measured {
    /// Adds the value of one seed to a figure of an arm.
    pub fn add(&mut self, arm: &str, figure: &str, value: f64) {
        let at = self.arms.iter().position(|a| a.name == arm).unwrap_or_else(|| {
            self.arms.push(Arm { name: arm.to_string(), figures: Vec::new() });
            self.arms.len() - 1
        });
        let figures = &mut self.arms[at].figures;
        match figures.iter_mut().find(|(name, _)| name == figure) {
            Some((_, values)) => values.push(value),
            None => figures.push((figure.to_string(), vec![value])),
        }
    }

    /// The values of a figure, in the order of the seeds.
    pub fn values(&self, arm: &str, figure: &str) -> Result<&[f64]> {
        let of_arm = self.arms.iter().find(|a| a.name == arm);
        let figure_of = |a: &'_ Arm| a.figures.iter().position(|(name, _)| name == figure);
        match of_arm.and_then(|a| Some(&a.figures[figure_of(a)?].1)) {
            Some(values) => Ok(values),
            None => Err(Error::failed(format!("{arm}: {figure}"), "was not measured")),
        }
    }

    /// Adds an inequality of the claim.
    pub fn claim(&mut self, inequality: Inequality) {
        self.inequalities.push(inequality);
    }

    /// Adds a sentence that a reader of the figures should know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The inequalities.
    pub fn inequalities(&self) -> &[Inequality] {
        &self.inequalities
    }

    /// The notes.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether all essential inequalities hold.
    pub fn holds(&self) -> bool {
        claim::all_hold(&self.inequalities)
    }

    /// The figures as rows of cells with a head: an arm a row, a figure a column.
    pub fn table(&self) -> Vec<Vec<String>> {
        let mut columns: Vec<&str> = Vec::new();
        for (name, _) in self.arms.iter().flat_map(|arm| &arm.figures) {
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
        let head = std::iter::once("").chain(columns.iter().copied()).map(str::to_string).collect();
        let row = |arm: &Arm| {
            let cell = |column: &&str| {
                let found = arm.figures.iter().find(|(name, _)| name == column);
                found.map_or(String::new(), |(_, values)| Estimate::of(values).to_string())
            };
            std::iter::once(arm.name.clone()).chain(columns.iter().map(cell)).collect()
        };
        std::iter::once(head).chain(self.arms.iter().map(row)).collect()
    }
}

/// A map in the order of its pairs.
struct Pairs<'a, T>(Vec<(&'a str, T)>);

impl<T: Serialize> Serialize for Pairs<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let arms = self.arms.iter().map(|arm| {
            let figures =
                arm.figures.iter().map(|(name, values)| (name.as_str(), Estimate::of(values)));
            (arm.name.as_str(), Pairs(figures.collect()))
        });
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("arms", &Pairs(arms.collect()))?;
        map.serialize_entry("inequalities", &self.inequalities)?;
        if !self.notes.is_empty() {
            map.serialize_entry("notes", &self.notes)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Limit;

    #[test]
    fn figures_come_in_the_order_in_which_they_were_measured() {
        let mut measured = Measured::default();
        for value in [0.5, 0.7] {
            measured.add("tuned", "recall", value);
            measured.add("base", "recall", value / 2.0);
            measured.add("base", "loss", 3.0);
        }
        assert_eq!(measured.values("tuned", "recall").unwrap(), [0.5, 0.7]);
        let error = measured.values("tuned", "loss").unwrap_err().to_string();
        assert!(error.starts_with("tuned: loss: was not measured"), "{error}");
        let table = measured.table();
        assert_eq!(table[0], ["", "recall", "loss"]);
        assert_eq!(table[1], ["tuned", "0.600 ± 0.100", ""]);
        assert_eq!(table[2], ["base", "0.300 ± 0.050", "3.00 ± 0.00"]);

        let (of, minus) = ([0.5, 0.7], [0.25, 0.35]);
        measured.claim(Inequality::paired("recall", &of, &minus, Limit::AtLeast(0.25)));
        assert!(measured.holds());
        let text = serde_json::to_string(&measured).unwrap();
        let wanted = r#"{"arms":{"tuned":{"recall":{"mean":0.6,"standard_error":0.1}},"base":{"recall":{"mean":0.3,"standard_error":0.05},"loss":{"mean":3.0,"standard_error":0.0}}},"inequalities":[{"what":"recall","found":{"mean":0.3,"standard_error":0.05},"claimed":"at least 0.25","essential":true,"holds":true}]}"#;
        assert_eq!(text, wanted);
    }
}
