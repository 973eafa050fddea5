//! The table `search` of a merge's file: several merges, each scored on data held out, the best of them
//! kept. What was tried stands in `search.json`.
//!
//! - `greedy: {}`: a soup (Wortsman et al. 2022, paper 60): the models in the order of their own scores,
//!   each added to those before if that does not make the score lower (`accept: ">"`: only if it makes
//!   it higher);
//! - `grid: {NAME: [values]}`: every combination of values;
//! - `learned: {}`: the weights of a mean by descent on the likelihood of the data (see [`learned`]);
//! - `coordinate: {NAME: [values]}`: one setting after the other, the others at their best so far, until
//!   a round finds nothing better, at most `rounds` times.
//!
//! A NAME is a setting of the merge (`t`), one of a model (`weight of ./tuned`), or `lines.alpha`. The
//! score is that of `luthier eval`: `data`, `metric`, `limit`, `raw`, `max_new_tokens`; likelihoods count
//! negative, so that larger is better.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Form, Result, Table, io};
use luthier_data::ReadOptions;
use luthier_probe::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Job, Merged, Part};
use crate::{
    evaluate::{self, Limits},
    open::open,
    precision::Precision,
};

mod change;
mod learned;
mod ways;

/// What a search found best.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Its settings, or the models of a soup.
    pub settings: Value,
    /// Its score, larger is better.
    pub score: f64,
    /// How many merges were scored.
    pub tried: usize,
}

/// The table `search`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Search {
    #[serde(default)]
    greedy: Option<Greedy>,
    #[serde(default)]
    grid: Option<Map<String, Value>>,
    #[serde(default)]
    coordinate: Option<Map<String, Value>>,
    #[serde(default)]
    learned: Option<learned::Learned>,
    /// Rounds of a coordinate search.
    #[serde(default = "three")]
    rounds: usize,
    /// Held-out examples.
    data: PathBuf,
    #[serde(default = "usual_metric")]
    metric: String,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    max_new_tokens: Option<usize>,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    keep: Keep,
    #[serde(skip)]
    at: String,
}

/// What of the merges is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Keep {
    /// The best.
    #[default]
    Best,
    /// Each in a folder of its own.
    All,
}

/// When a model becomes part of a soup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Greedy {
    accept: Accept,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum Accept {
    /// As the paper.
    #[default]
    #[serde(rename = ">=")]
    AsGood,
    /// As its code.
    #[serde(rename = ">")]
    Better,
}

fn three() -> usize {
    3
}

fn usual_metric() -> String {
    "nll".to_string()
}

/// Takes the table out of a file.
pub(super) fn take(value: &mut Value, file: &str) -> Result<Option<Search>> {
    let table = value.as_object_mut().and_then(|map| map.shift_remove("search"));
    let Some(table) = table.filter(|table| !table.is_null()) else { return Ok(None) };
    let at = format!("{file}: search");
    let mut search: Search =
        serde_json::from_value(table).map_err(|e| Error::input(&at, e.to_string()))?;
    search.at = at;
    let ways = [
        search.greedy.is_some(),
        search.grid.is_some(),
        search.coordinate.is_some(),
        search.learned.is_some(),
    ];
    match ways.iter().filter(|way| **way).count() {
        1 => Ok(Some(search)),
        n => Err(Error::input(&search.at, format!("has {n} ways to search, expected one"))
            .hint("greedy, grid, coordinate or learned")),
    }
}

/// The merges of a search as they are made and scored.
struct Trials<'a> {
    keep: Keep,
    job: &'a Job<'a>,
    /// The hidden folder in which merges are kept.
    dir: &'a Path,
    score: &'a dyn Fn(&Path) -> Result<f64>,
    /// Settings, score, and the folder if the merge is kept.
    tried: Vec<Trial>,
    best: Option<usize>,
    /// What else is to be said of the search.
    told: Option<Value>,
}

/// One of them.
struct Trial {
    settings: Value,
    score: f64,
    merged: Option<Merged>,
}

impl Trials<'_> {
    /// Merges, scores, and keeps the folder if it is the best so far; the score.
    fn one(&mut self, value: &Value, settings: Value) -> Result<f64> {
        let known = self.tried.iter().find(|trial| trial.settings == settings);
        if let Some(trial) = known {
            return Ok(trial.score);
        }
        let folder = self.dir.join(format!("{:03}", self.tried.len() + 1));
        // JSON is YAML too: the file that makes this very merge.
        let text = format!("{value:#}\n");
        let merged = self.job.merge(value, &text, &folder)?;
        let score = (self.score)(&folder)?;
        if score.is_nan() {
            return Err(Error::failed(settings.to_string(), "has no score: it is not a number"));
        }
        let better = self.best.is_none_or(|best| score > self.tried[best].score);
        let mut trial = Trial { settings, score, merged: Some(merged) };
        if better {
            let before = self.best.replace(self.tried.len());
            if let Some(before) = before.filter(|_| self.keep == Keep::Best) {
                drop_folder(&mut self.tried[before])?;
            }
        } else if self.keep == Keep::Best {
            drop_folder(&mut trial)?;
        }
        tracing::info!("{}: {score:.5}", trial.settings);
        self.tried.push(trial);
        Ok(score)
    }

    /// Says that the merge of these settings is the one that was looked for.
    fn choose(&mut self, value: &Value, settings: &Value) -> Result<()> {
        let at = self.tried.iter().position(|trial| trial.settings == *settings);
        let at = at.ok_or_else(|| Error::failed(settings.to_string(), "was not tried"))?;
        self.best = Some(at);
        if self.tried[at].merged.is_none() {
            let folder = self.dir.join("chosen");
            let merged = self.job.merge(value, &format!("{value:#}\n"), &folder)?;
            self.tried[at].merged = Some(merged);
        }
        Ok(())
    }
}

fn drop_folder(trial: &mut Trial) -> Result<()> {
    match trial.merged.take() {
        Some(merged) => {
            std::fs::remove_dir_all(&merged.model).map_err(|e| Error::io(&merged.model, e))
        }
        None => Ok(()),
    }
}

impl Search {
    /// Searches, and leaves in `out` what is to be kept.
    pub(super) fn run(&self, job: &Job<'_>, value: &Value, out: &Path) -> Result<Merged> {
        let score = self.judge(&job.file)?;
        let part = Part::beside(out)?;
        let mut trials = Trials {
            keep: self.keep,
            job,
            dir: &part.0,
            score: &score,
            tried: Vec::new(),
            best: None,
            told: None,
        };
        if let Some(greedy) = &self.greedy {
            ways::greedy(&mut trials, value, greedy.accept, &self.at)?;
        } else if let Some(grid) = &self.grid {
            ways::grid(&mut trials, value, grid, &self.at)?;
        } else if let Some(names) = &self.coordinate {
            ways::coordinate(&mut trials, value, names, self.rounds, &self.at)?;
        } else if let Some(how) = &self.learned {
            learned::learned(&mut trials, value, how, &self.table(&job.file)?, &self.at)?;
        }
        let Trials { tried, best, told, .. } = trials;
        let none = || Error::input(&self.at, "names nothing to try");
        let best = best.ok_or_else(none)?;
        let found = Found {
            settings: tried[best].settings.clone(),
            score: tried[best].score,
            tried: tried.len(),
        };
        let rows = tried.iter().map(|trial| {
            let folder = trial.merged.as_ref().filter(|_| self.keep == Keep::All);
            let folder = folder.and_then(|merged| merged.model.file_name());
            json!({
                "settings": trial.settings, "score": trial.score,
                "folder": folder.map(|name| name.to_string_lossy()),
            })
        });
        let report = json!({
            "metric": self.metric, "data": self.data, "chosen": best,
            "tried": rows.collect::<Vec<_>>(), "learned": told,
        });
        let merged = tried.into_iter().nth(best).and_then(|trial| trial.merged);
        let mut merged = merged.ok_or_else(|| Error::failed(&self.at, "lost its best merge"))?;
        merged.found = Some(found);
        let name = merged.model.file_name().map(PathBuf::from).unwrap_or_default();
        match self.keep {
            Keep::All => {
                io::write_json(&part.0.join("search.json"), &report)?;
                part.move_to(out)?;
                merged.model = out.join(name);
            }
            Keep::Best => {
                io::write_json(&merged.model.join("search.json"), &report)?;
                if out.exists() {
                    std::fs::remove_dir(out).map_err(|e| Error::io(out, e))?;
                }
                std::fs::rename(&merged.model, out).map_err(|e| Error::io(out, e))?;
                merged.model = out.to_path_buf();
                merged.files.push("search.json".to_string());
            }
        }
        Ok(merged)
    }

    /// Scores a model's folder, larger is better.
    fn judge(&self, file: &str) -> Result<impl Fn(&Path) -> Result<f64> + use<>> {
        let metric = evaluate::metric(&format!("{}.metric", self.at), &self.metric)?;
        let table = self.table(file)?;
        let new_tokens = self.max_new_tokens;
        Ok(move |folder: &Path| {
            let opened = open(&folder.display().to_string(), Precision::Auto)?;
            let (context, usual) = (opened.config.max_positions, Limits::default());
            let limits = Limits {
                max_new_tokens: new_tokens.unwrap_or(usual.max_new_tokens),
                max_context: context,
                max_length: usual.max_length.min(context),
                ..usual
            };
            let (policy, tokenizer) = (opened.policy(None)?, &opened.tokenizer);
            let told = &mut |_: usize, _: usize| {};
            let found = evaluate::evaluate(&policy, tokenizer, &table, &metric, &limits, told)?;
            Ok(match (&metric, &found.likelihood) {
                (Kind::Nll(_), Some(likelihood)) => -likelihood.report.nll,
                _ => found.score.value,
            })
        })
    }

    fn table(&self, file: &str) -> Result<Table> {
        let at = |key: &str| format!("{}.{key}", self.at);
        let beside = Path::new(file).parent().map(|dir| dir.join(&self.data));
        let path = beside.filter(|path| path.exists()).unwrap_or_else(|| self.data.clone());
        let form = self.raw.then_some(Form::Raw);
        let mut table = luthier_data::read(&path, &ReadOptions { form, ..ReadOptions::default() })?;
        if self.limit == Some(0) {
            return Err(Error::input(at("limit"), "expected at least 1, got 0"));
        }
        table.examples.truncate(self.limit.unwrap_or(usize::MAX));
        match table.examples.is_empty() {
            true => Err(Error::input(at("data"), "holds no example")),
            false => Ok(table),
        }
    }
}
