//! Per-step DPO's pairs (Setlur et al. 2024, arXiv 2406.14532): a wrong solution against a right one at
//! the step where it goes wrong.
//!
//! Rows are solutions that a model wrote, right and wrong, several to a prompt (see
//! [`super::rollout`]). For a wrong one with the steps `y_1 … y_L` and the first pit `c`
//! ([`PitRule`]):
//!
//! - `shared_prefix`: after `y_1 … y_{c−1}`, which is read and not trained, a right continuation is
//!   chosen and the single step `y_c` is rejected; at `c = 1` any right solution will do;
//! - `full_vs_prefix`: a right solution is chosen, `y_1 … y_c` is rejected;
//! - `full`: a right solution against the whole wrong one, the baseline.
//!
//! A rejected answer that was cut is not charged for the end that it never had. Right answers are
//! drawn among those there are. **Departures**: (1) a right continuation that begins with the pit's own
//! step is not chosen against it (the control of a random step takes any); (2) a chosen answer must
//! have another text than the rejected one.

use std::collections::HashMap;

use luthier_core::{Completion, Error, Example, Result, Seed, Table, Turn};
use serde::{Deserialize, Serialize};

use super::{Estimator, PitRule, answer, chars, rollout::Rollout};
use crate::{
    Step,
    choose::dedup::{By, Dedup, Fingerprint},
    parts::AnswerWeights,
};

/// What stands against what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairForm {
    /// A right continuation against the wrong step, behind what both share.
    #[default]
    SharedPrefix,
    /// A right solution against the wrong one up to its wrong step.
    FullVsPrefix,
    /// A right solution against a wrong one.
    Full,
}

/// `step_pairs = { pit_rule = "first_min_q" }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepPairs {
    /// What ends a step.
    pub step_split: String,
    /// A prefix is worth the chance that the best of so many continuations is right.
    pub k: usize,
    /// How that is estimated.
    pub estimator: Estimator,
    /// Which step is the mistake.
    pub pit_rule: PitRule,
    /// What stands against what.
    pub pair_form: PairForm,
    /// Wrong solutions of a prompt that are looked at.
    pub neg_per_problem: usize,
    /// Pairs made of a prompt.
    pub max_pairs_per_problem: usize,
}

impl Default for StepPairs {
    fn default() -> Self {
        StepPairs {
            step_split: "\n".to_owned(),
            k: 5,
            estimator: Estimator::default(),
            pit_rule: PitRule::default(),
            pair_form: PairForm::default(),
            neg_per_problem: 8,
            max_pairs_per_problem: 4,
        }
    }
}

/// What became of the prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Paired {
    /// Prompts.
    pub problems: usize,
    /// Pairs.
    pub pairs: usize,
    /// Prompts without a pair, for the first reason that applies: no wrong solution, …
    pub all_right: usize,
    /// … no right one anywhere, …
    pub all_wrong: usize,
    /// … or none that could be chosen at the pit.
    pub no_chosen: usize,
}

impl std::fmt::Display for Paired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let without = self.all_right + self.all_wrong + self.no_chosen;
        let share = 100.0 * without as f64 / self.problems.max(1) as f64;
        write!(
            f,
            "{} pairs of {} prompts; {without} ({share:.0} %) give none: {} always right, {} never, \
            {} without a right answer to choose",
            self.pairs, self.problems, self.all_right, self.all_wrong, self.no_chosen
        )
    }
}

/// The prompts with their rows, in the order in which they first come.
pub(super) fn problems(table: &Table) -> Vec<Vec<usize>> {
    let by = Dedup { by: By::Prompt, ignore_case: false };
    let mut known: HashMap<Fingerprint, usize> = HashMap::new();
    let mut problems: Vec<Vec<usize>> = Vec::new();
    for (i, example) in table.examples.iter().enumerate() {
        let problem = *known.entry(by.fingerprint(example)).or_insert(problems.len());
        if problem == problems.len() {
            problems.push(Vec::new());
        }
        problems[problem].push(i);
    }
    problems
}

impl StepPairs {
    /// The pairs of a table, and what became of its prompts.
    pub fn pairs(&self, table: &Table, seed: Seed) -> Result<(Vec<Example>, Paired)> {
        let positive = [
            ("k", self.k),
            ("neg_per_problem", self.neg_per_problem),
            ("max_pairs_per_problem", self.max_pairs_per_problem),
            ("step_split", self.step_split.len()),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::input(format!("step_pairs.{key}"), "expected more than nothing"));
        }
        let read = |e| Rollout::of(e, &self.step_split, self.k, self.estimator);
        let rollouts = table.examples.iter().map(read).collect::<Result<Vec<Rollout>>>()?;
        let (mut pairs, mut report) = (Vec::new(), Paired::default());
        for rows in problems(table) {
            report.problems += 1;
            let (right, wrong): (Vec<usize>, Vec<usize>) =
                rows.iter().partition(|i| rollouts[**i].right);
            let begun = |i: &usize| !rollouts[*i].right_after(0, "").is_empty();
            let reached = !right.is_empty() || wrong.iter().any(begun);
            let before = pairs.len();
            for i in wrong.iter().take(self.neg_per_problem) {
                if pairs.len() - before == self.max_pairs_per_problem {
                    break;
                }
                let wholes: Vec<&str> =
                    right.iter().map(|r| answer(&table.examples[*r])).collect::<Result<_>>()?;
                let seed = seed.at(*i as u64);
                pairs.extend(self.pair(&table.examples[*i], &rollouts[*i], &wholes, seed)?);
            }
            match () {
                () if pairs.len() > before => {}
                () if wrong.is_empty() => report.all_right += 1,
                () if !reached => report.all_wrong += 1,
                () => report.no_chosen += 1,
            }
        }
        report.pairs = pairs.len();
        Ok((pairs, report))
    }

    /// The pair of one wrong solution, if there is a right answer to choose. `wholes`: the prompt's
    /// right solutions.
    fn pair(
        &self,
        example: &Example,
        wrong: &Rollout,
        wholes: &[&str],
        seed: Seed,
    ) -> Result<Option<Example>> {
        let mut rng = seed.rng();
        let steps = &wrong.steps;
        let mut wholes = wholes.to_vec();
        let pit = match (self.pair_form, self.pit_rule) {
            (PairForm::Full, _) => steps.len() - 1,
            // Knows no values, so that it is a control also where there are none.
            (_, PitRule::Random) => rng.below(steps.len()),
            (_, rule) if !wrong.values.is_empty() => rule.pit(&wrong.values, &mut rng),
            _ => {
                let what = "a wrong solution without the columns values or rollouts";
                return Err(Error::input(example.origin.to_string(), what)
                    .hint("pit_rule = \"random\" or pair_form = \"full\" need none"));
            }
        };
        let (prefix, step) = (steps[..pit].concat(), steps[pit]);
        let (chosen, rejected, shared) = match self.pair_form {
            PairForm::SharedPrefix => {
                let not = if self.pit_rule == PitRule::Random { "" } else { step.trim() };
                let mut right = wrong.right_after(pit, not);
                if pit == 0 {
                    wholes.retain(|t| not.is_empty() || !t.trim_start().starts_with(not));
                    right.append(&mut wholes);
                }
                right.retain(|text| text.trim() != step.trim());
                let Some(right) = drawn(&right, &mut rng) else { return Ok(None) };
                (format!("{prefix}{right}"), format!("{prefix}{step}"), chars(&prefix))
            }
            PairForm::FullVsPrefix | PairForm::Full => {
                wholes.extend(wrong.right_after(0, ""));
                let rejected = format!("{prefix}{step}");
                wholes.retain(|text| text.trim() != rejected.trim());
                let Some(right) = drawn(&wholes, &mut rng) else { return Ok(None) };
                (right.to_owned(), rejected, 0)
            }
        };
        let whole = pit + 1 == steps.len();
        Ok(Some(preference(example, [chosen, rejected], shared, whole)))
    }
}

fn drawn<'a>(texts: &[&'a str], rng: &mut luthier_core::Rng) -> Option<&'a str> {
    (!texts.is_empty()).then(|| texts[rng.below(texts.len())])
}

/// Both answers as completions; what they share has no weight, nor has the end of a cut one.
fn preference(example: &Example, texts: [String; 2], shared: usize, whole: bool) -> Example {
    let [chosen, rejected] = &texts;
    let weights = |text: &str, end: bool| {
        let mut parts = Vec::new();
        if shared > 0 {
            parts.push((0, shared, 0.0));
        }
        let end = (!end).then_some(0.0);
        let some = !parts.is_empty() || end.is_some();
        debug_assert!(shared < chars(text), "both go on behind what they share");
        some.then_some(AnswerWeights { parts, end })
    };
    let all = [weights(chosen, true), weights(rejected, whole)];
    let role = example.completions[0].turns[0].role.clone();
    let completion = |text: &String, mark: f64| Completion {
        turns: vec![Turn::new(role.as_str(), text.as_str())],
        marks: [("chosen".to_owned(), mark)].into(),
    };
    let completions = vec![completion(chosen, 1.0), completion(rejected, 0.0)];
    let mut pair = Example { completions, ..example.clone() };
    for used in ["reward", "values", "rollouts"] {
        pair.columns.shift_remove(used);
        pair.marks.remove(used);
    }
    AnswerWeights::put(&all, &mut pair);
    pair
}

impl Step for StepPairs {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        let (examples, report) = self.pairs(&table, seed)?;
        if examples.is_empty() {
            let what = format!("no pair can be made: {report}");
            return Err(Error::input(&table.name, what)
                .hint("problems that are sometimes right and sometimes wrong give pairs"));
        }
        let layout = format!("{}; step_pairs: {report}", table.layout);
        Ok(Table { examples, layout, ..table })
    }
}
