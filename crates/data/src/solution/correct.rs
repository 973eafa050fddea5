//! LEMMA (Pan et al. 2025, arXiv 2503.17439): solutions that make a mistake, notice it, and end right.
//!
//! Rows have a prompt, a right solution as their answer, and in the column `wrong` a list of wrong ones:
//! texts, or objects `{"text", "first_wrong_step", "fix", "source"}`. A wrong solution is cut behind its
//! first wrong step, counted from 1, which stays as it is; then
//!
//! - `fix_continue`: a phrase that notices it, that step set right, and the rest: `fix`, or the right
//!   solution from that step on where both agree up to it;
//! - `fresh_restart`: a phrase, and another solution from the beginning: one of the column `right`, or
//!   else the row's own.
//!
//! Without `first_wrong_step` it is the first that differs from the right solution's. What does not end
//! with the final answer of the right solution is left out, and so are wrong solutions that do. Every
//! row stays as it is, too. **Departures**: (1) no teacher writes or smooths anything here: errors,
//! corrections and their wording come with the data; (2) kinds of errors are the data's as well.

use luthier_core::{Completion, Error, Example, Result, Rng, Seed, Table, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{answer, chars, steps};
use crate::{Step, layout::describe, parts::AnswerWeights};

/// How a mistake is mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One trajectory of each kind.
    #[default]
    Both,
    /// The step is set right, and the solution goes on.
    FixContinue,
    /// Another solution from the beginning.
    FreshRestart,
}

/// Whose mistakes are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorSource {
    /// All.
    #[default]
    Both,
    /// Those with `"source": "self"`: of the model that is tuned.
    #[serde(rename = "self")]
    Own,
    /// Those with `"source": "injected"`.
    Injected,
}

/// `correct = { strategy = "both" }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Correct {
    /// What ends a step.
    pub step_split: String,
    /// How a mistake is mended.
    pub strategy: Strategy,
    /// Whose mistakes are used.
    pub error_source: ErrorSource,
    /// Whether what follows the first wrong step is cut.
    pub stop_at_first_error: bool,
    /// Whether the wrong step is read and not learned.
    pub mask_error_step: bool,
    /// The share of rows with a mistake in them, among all that come out; all that there are, when
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correction_share: Option<f64>,
    /// Rows with a mistake, of one prompt; 0 is no limit.
    pub max_per_problem: usize,
    /// What precedes the final answer of a solution; the last step is the final answer when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_after: Option<String>,
    /// What is said before a step is set right; one is drawn.
    pub fix_phrases: Vec<String>,
    /// What is said before a new beginning; one is drawn.
    pub restart_phrases: Vec<String>,
}

impl Default for Correct {
    fn default() -> Self {
        let phrases = |all: [&str; 3]| all.map(str::to_owned).to_vec();
        Correct {
            step_split: "\n".to_owned(),
            strategy: Strategy::default(),
            error_source: ErrorSource::default(),
            stop_at_first_error: true,
            mask_error_step: false,
            correction_share: None,
            max_per_problem: 0,
            answer_after: None,
            fix_phrases: phrases([
                "Wait, that step is not right. ",
                "Hold on, there is a slip in the last step. ",
                "Let me check that again: it does not hold. ",
            ]),
            restart_phrases: phrases([
                "Wait, something is wrong here. I start again from the beginning.\n",
                "This does not look right. Let me go through it anew.\n",
                "Hold on, that leads nowhere. Once more, another way.\n",
            ]),
        }
    }
}

/// A wrong solution as the data has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wrong {
    text: String,
    first_wrong_step: Option<usize>,
    fix: Option<String>,
    source: Option<String>,
}

/// What became of the wrong solutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Corrected {
    /// Rows without a mistake.
    pub plain: usize,
    /// Rows with one, mended.
    pub corrective: usize,
    /// Wrong solutions looked at.
    pub wrong: usize,
    /// Of these, with the right final answer after all.
    pub ends_right: usize,
    /// Of these, without a first wrong step.
    pub no_step: usize,
    /// Trajectories for which there was no correction, or which did not end right.
    pub unmended: usize,
}

impl std::fmt::Display for Corrected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} corrections beside {} plain rows, from {} wrong solutions ({} ended right, {} without \
            a first wrong step, {} trajectories left out)",
            self.corrective, self.plain, self.wrong, self.ends_right, self.no_step, self.unmended
        )
    }
}

impl Correct {
    fn check(&self) -> Result<()> {
        let wrong = |key: &str, what: String| Err(Error::input(format!("correct.{key}"), what));
        let lists =
            [("fix_phrases", &self.fix_phrases), ("restart_phrases", &self.restart_phrases)];
        if let Some((key, _)) = lists.into_iter().find(|(_, list)| list.is_empty()) {
            return wrong(key, "expected at least one phrase".to_owned());
        }
        if self.step_split.is_empty() {
            return wrong("step_split", "expected what ends a step, got an empty text".to_owned());
        }
        match self.correction_share {
            Some(share) if !(0.0..1.0).contains(&share) => wrong(
                "correction_share",
                format!("expected a share from 0 to below 1, got {share}"),
            ),
            _ => Ok(()),
        }
    }

    /// The final answer of a solution.
    fn answered<'a>(&self, text: &'a str) -> Option<&'a str> {
        let said = match &self.answer_after {
            Some(mark) => text.rsplit_once(mark.as_str())?.1.lines().next()?,
            None => steps(text, &self.step_split).pop()?,
        };
        let said = said.trim();
        Some(said.strip_suffix('.').unwrap_or(said)).filter(|said| !said.is_empty())
    }

    /// The text with the mistake and its correction, and where the wrong step stands.
    fn mended(
        &self,
        wrong: &Wrong,
        n: usize,
        reference: &str,
        others: &[String],
        restart: bool,
        rng: &mut Rng,
    ) -> Option<(String, [usize; 2])> {
        let all = steps(&wrong.text, &self.step_split);
        let right = steps(reference, &self.step_split);
        let kept = if self.stop_at_first_error { &all[..n] } else { &all[..] };
        let drawn = |from: &[String], rng: &mut Rng| from[rng.below(from.len())].clone();
        let rest = match (restart, &wrong.fix) {
            (true, _) if others.is_empty() => reference.to_owned(),
            (true, _) => drawn(others, rng),
            (false, Some(fix)) => fix.clone(),
            (false, None) => {
                let same = |i: usize| right.get(i).map(|s| s.trim()) == Some(all[i].trim());
                if n > right.len() || !(0..n - 1).all(same) {
                    return None;
                }
                right[n - 1..].concat()
            }
        };
        let from = chars(&all[..n - 1].concat());
        let place = [from, from + chars(all[n - 1])];
        let mut text = kept.concat();
        if !text.ends_with(&self.step_split) {
            text += &self.step_split;
        }
        text += &drawn(if restart { &self.restart_phrases } else { &self.fix_phrases }, rng);
        Some((text + &rest, place))
    }

    /// The trajectories of one row.
    fn of(&self, example: &Example, seed: Seed, report: &mut Corrected) -> Result<Vec<Example>> {
        let reference = answer(example)?;
        let Some(final_answer) = self.answered(reference) else {
            let what = "its right solution has no final answer";
            return Err(Error::input(example.origin.to_string(), what)
                .hint("correct.answer_after names what precedes it"));
        };
        let others: Vec<String> = list(example, "right")?;
        let others: Vec<String> =
            others.into_iter().filter(|t| self.answered(t) == Some(final_answer)).collect();
        let mut made = Vec::new();
        for (i, wrong) in wrongs(example)?.into_iter().enumerate() {
            let source = wrong.source.as_deref();
            match self.error_source {
                ErrorSource::Own if source != Some("self") => continue,
                ErrorSource::Injected if source != Some("injected") => continue,
                _ => report.wrong += 1,
            }
            if self.answered(&wrong.text) == Some(final_answer) {
                report.ends_right += 1;
                continue;
            }
            let steps_of = |text| steps(text, &self.step_split);
            let (all, right) = (steps_of(&wrong.text), steps_of(reference));
            let differs =
                |(i, step): (usize, &&str)| right.get(i).map(|s| s.trim()) != Some(step.trim());
            let found = || all.iter().enumerate().position(differs).map(|i| i + 1);
            let n = wrong.first_wrong_step.or_else(found);
            let Some(n) = n.filter(|n| (1..=all.len()).contains(n)) else {
                report.no_step += 1;
                continue;
            };
            let mut rng = seed.at(i as u64).rng();
            for restart in [false, true] {
                let other = if restart { Strategy::FixContinue } else { Strategy::FreshRestart };
                if self.strategy == other {
                    continue;
                }
                let mended = self.mended(&wrong, n, reference, &others, restart, &mut rng);
                let ends_right = |text: &str| self.answered(text) == Some(final_answer);
                let Some((text, [from, to])) = mended.filter(|(text, _)| ends_right(text)) else {
                    report.unmended += 1;
                    continue;
                };
                let turns = vec![Turn::new("assistant", text)];
                let mut new = Example {
                    completions: vec![Completion { turns, ..Completion::default() }],
                    ..plain(example)
                };
                if self.mask_error_step {
                    let parts = vec![(from, to, 0.0)];
                    AnswerWeights::put(&[Some(AnswerWeights { parts, end: None })], &mut new);
                }
                made.push(new);
            }
        }
        if self.max_per_problem > 0 && made.len() > self.max_per_problem {
            seed.split("problem").rng().shuffle(&mut made);
            made.truncate(self.max_per_problem);
        }
        Ok(made)
    }

    /// Plain rows, each followed by its corrections, and what became of the wrong solutions.
    pub fn corrected(&self, table: &Table, seed: Seed) -> Result<(Vec<Example>, Corrected)> {
        self.check()?;
        let mut report = Corrected { plain: table.examples.len(), ..Corrected::default() };
        let mut made: Vec<Vec<Example>> = Vec::with_capacity(table.examples.len());
        for (i, example) in table.examples.iter().enumerate() {
            made.push(self.of(example, seed.at(i as u64), &mut report)?);
        }
        let all: usize = made.iter().map(Vec::len).sum();
        let wanted = self.correction_share.map_or(all, |share| {
            let n = (share / (1.0 - share) * report.plain as f64).round() as usize;
            n.min(all)
        });
        let mut order: Vec<usize> = (0..all).collect();
        seed.split("share").rng().shuffle(&mut order);
        let mut stays = vec![false; all];
        order[..wanted].iter().for_each(|i| stays[*i] = true);
        let mut stays = stays.into_iter();
        let mut rows = Vec::with_capacity(report.plain + wanted);
        for (example, mut made) in table.examples.iter().zip(made) {
            made.retain(|_| stays.next() == Some(true));
            rows.push(plain(example));
            rows.append(&mut made);
        }
        report.corrective = wanted;
        Ok((rows, report))
    }
}

/// The row without what it was made of.
fn plain(example: &Example) -> Example {
    let mut plain = example.clone();
    plain.columns.shift_remove("wrong");
    plain.columns.shift_remove("right");
    plain
}

/// A column that is a list of texts.
fn list(example: &Example, name: &str) -> Result<Vec<String>> {
    match example.columns.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|_| {
            let what = format!("expected a list of texts, found {}", describe(value));
            Error::input(format!("{}: column {name}", example.origin), what)
        }),
    }
}

fn wrongs(example: &Example) -> Result<Vec<Wrong>> {
    let at = || format!("{}: column wrong", example.origin);
    let all = match example.columns.get("wrong") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(all)) => all,
        Some(other) => {
            let what = format!("expected a list of wrong solutions, found {}", describe(other));
            return Err(Error::input(at(), what));
        }
    };
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Wrong { text: text.clone(), ..Wrong::default() }),
        other => serde_json::from_value::<Wrong>(other.clone()).map_err(|e| {
            Error::input(at(), e.to_string())
                .hint("write one as {\"text\": …, \"first_wrong_step\": 2}")
        }),
    };
    all.iter().map(one).collect()
}

impl Step for Correct {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        let (examples, report) = self.corrected(&table, seed)?;
        let layout = match report.wrong {
            0 => table.layout.clone(),
            _ => format!("{}; correct: {report}", table.layout),
        };
        Ok(Table { examples, layout, ..table })
    }
}
