//! What came of the papers' checks, as a column and a section of METHODS.md.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The recorded outcome of one paper's check.
#[derive(Deserialize)]
pub struct Outcome {
    paper: u64,
    title: String,
    claim: String,
    recipes: Vec<String>,
    measured: Measured,
    holds: bool,
    seeds: u64,
    seconds: f64,
}

#[derive(Deserialize)]
struct Measured {
    arms: Map<String, Value>,
    inequalities: Vec<Inequality>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Inequality {
    what: String,
    found: Estimate,
    claimed: String,
    essential: bool,
    holds: bool,
}

#[derive(Deserialize)]
struct Estimate {
    /// `None` for what is not a number.
    mean: Option<f64>,
    standard_error: Option<f64>,
}

/// The file of results.
pub fn read(json: &str) -> Result<Vec<Outcome>, String> {
    let outcomes: Vec<Outcome> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    // Shapes inside of the arms are looked at here, so that writing cannot fail.
    for outcome in &outcomes {
        for (arm, figures) in &outcome.measured.arms {
            for (figure, value) in figures.as_object().into_iter().flatten() {
                Estimate::deserialize(value)
                    .map_err(|e| format!("paper {}: {arm}: {figure}: {e}", outcome.paper))?;
            }
        }
    }
    Ok(outcomes)
}

/// Whether the check of a paper holds, with a link to its figures; empty where there is no record.
pub fn cell(paper: u64, results: &[Outcome]) -> String {
    let found = results.iter().find(|outcome| outcome.paper == paper);
    found.map_or_else(String::new, |o| format!("[{}](#paper-{paper:02})", word(o.holds)))
}

/// All figures, paper by paper; nothing where nothing was recorded.
pub fn section(results: &[Outcome]) -> String {
    if results.is_empty() {
        return String::new();
    }
    let mut page = String::from(
        "\n## Reproduced\n\n\
        Small-scale checks of what the papers claim: `luthier reproduce NN` runs one on two cores. \
        Figures are means ± standard errors over seeds. A claim holds when every inequality does \
        that is not an aside. [docs/reproduce.md](docs/reproduce.md) says what a check is.\n",
    );
    results.iter().for_each(|outcome| outcome.write(&mut page));
    page
}

fn word(holds: bool) -> &'static str {
    if holds { "holds" } else { "does not hold" }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

impl Outcome {
    fn write(&self, page: &mut String) {
        let Outcome { paper, title, claim, seeds, .. } = self;
        let recipes: Vec<String> = self.recipes.iter().map(|r| format!("[{r}]({r})")).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "\n### Paper {paper:02}\n\n{title}. Claimed: {claim}. Measured over {seeds} seeds in \
            {:.0} s with {}: **{}**.\n\n",
            self.seconds,
            recipes.join(", "),
            word(self.holds)
        );
        self.measured.table(page);
        let _ = write!(page, "\n| inequality | found | claimed | holds |\n|---|---|---|---|\n");
        for i in &self.measured.inequalities {
            let aside = if i.essential { "" } else { " (aside)" };
            let holds = if i.holds { "yes" } else { "no" };
            let (what, found) = (escaped(&i.what), i.found.text());
            let _ = writeln!(page, "| {what}{aside} | {found} | {} | {holds} |", i.claimed);
        }
        if !self.measured.notes.is_empty() {
            page.push('\n');
        }
        for note in &self.measured.notes {
            let _ = writeln!(page, "- {note}");
        }
    }
}

impl Measured {
    fn table(&self, page: &mut String) {
        let figures = |arm: &Value| -> Vec<String> {
            arm.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
        };
        let mut columns: Vec<String> = Vec::new();
        for name in self.arms.values().flat_map(figures) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let head: Vec<String> = columns.iter().map(|c| escaped(c)).collect();
        let _ =
            writeln!(page, "| arm | {} |\n|---|{}", head.join(" | "), "---|".repeat(head.len()));
        for (name, arm) in &self.arms {
            let cell = |column: &String| {
                let value = arm.get(column).and_then(|v| Estimate::deserialize(v).ok());
                value.map_or_else(String::new, |estimate| estimate.text())
            };
            let cells: Vec<String> = columns.iter().map(cell).collect();
            let _ = writeln!(page, "| {} | {} |", escaped(name), cells.join(" | "));
        }
    }
}

impl Estimate {
    /// With two digits of the error: more of either says nothing.
    fn text(&self) -> String {
        match (self.mean, self.standard_error) {
            (None, _) => "–".to_string(),
            // Below that it is the rounding of equal values.
            (Some(mean), Some(error)) if error > mean.abs() * 1e-9 => {
                let digits = (1.0 - error.log10().floor()).max(0.0) as usize;
                format!("{mean:.digits$} ± {error:.digits$}")
            }
            (Some(mean), _) => (mean + 0.0).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"[{"paper": 7, "claim": "b | a", "title": "lottery", "recipes": ["r.toml"],
        "holds": false, "seeds": 3, "seconds": 61.2, "luthier": "0.1.0", "measured": {
        "arms": {"b": {"x": {"mean": 1.5, "standard_error": 0.25}},
                 "a|": {"x": {"mean": 1, "standard_error": null}, "y": {"mean": null, "standard_error": null}}},
        "inequalities": [{"what": "x, b − a", "found": {"mean": 0.5, "standard_error": 0.1},
            "claimed": "at least 1", "essential": true, "holds": false}],
        "notes": ["one data set"]}}]"#;

    #[test]
    fn arms_are_rows_and_figures_columns_in_the_order_of_the_file() {
        let results = read(ONE).unwrap();
        let page = section(&results);
        for part in [
            "### Paper 07\n\nlottery. Claimed: b | a. Measured over 3 seeds in 61 s with [r.toml](r.toml): **does not hold**.",
            "| arm | x | y |\n|---|---|---|\n| b | 1.50 ± 0.25 |  |\n| a\\| | 1 | – |\n",
            "| x, b − a | 0.50 ± 0.10 | at least 1 | no |\n\n- one data set\n",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert_eq!(cell(7, &results), "[does not hold](#paper-07)");
        assert_eq!((cell(8, &results), section(&[])), (String::new(), String::new()));
    }

    #[test]
    fn a_file_that_is_something_else_is_refused() {
        assert!(read("{}").is_err());
        let bent = ONE.replace(r#""mean": 1.5"#, r#""mean": "much""#);
        let error = read(&bent).err().unwrap();
        assert!(error.starts_with("paper 7: b: x: "), "{error}");
    }
}
