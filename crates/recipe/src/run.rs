//! All stages of a recipe: measure, train, measure again, report. Stages that are done are not done
//! twice.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Policy, Result, Table, io};
use luthier_kernels::num::Precision;
use luthier_params::{Bound, Kept};
use luthier_probe::{
    metric::{Kind as Metric, NllReport},
    stats::Comparison,
};
use luthier_train::{Outcome, checkpoint};
use serde::{Deserialize, Serialize};

use crate::{
    assemble,
    decode::{Decode, Decoding},
    evaluate::{self, Evaluated, Likelihood, Limits},
    manifest::MANIFEST,
    open::Opened,
    precision, prepare, report,
    schema::{Eval, Recipe},
    training::{Circumstances, RECIPE, Stage, check_out},
};

/// What was measured at one point of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// What it depends on; another key means measuring again.
    pub key: String,
    /// The task.
    pub task: Option<Evaluated>,
    /// General text, with each row's own numbers for the paired test.
    pub general: Option<Likelihood>,
    /// How long it took.
    pub seconds: f64,
}

/// A finished run.
#[derive(Serialize)]
pub struct Summary {
    /// Measured before training.
    pub before: Option<Measured>,
    /// Measured after.
    pub after: Option<Measured>,
    /// The task, paired.
    pub task: Option<Comparison>,
    /// Training; absent when it had been done before.
    pub train: Option<Outcome>,
    /// The report.
    pub report: PathBuf,
    /// The folder with the trained adapter or model.
    pub adapter: PathBuf,
}

/// The measuring stage with its data read.
pub struct Measure {
    eval: Eval,
    decode: Option<Decode>,
    metric: Metric,
    task: Option<Table>,
    general: Option<Table>,
    max_length: usize,
}

impl Measure {
    /// Reads what `[eval]` names.
    pub fn new(recipe: &Recipe) -> Result<Option<Self>> {
        let Some(eval) = recipe.eval.clone() else { return Ok(None) };
        let metric = evaluate::metric("eval.metric", &eval.metric)?;
        let read = |paths: &Option<crate::schema::Paths>| {
            paths.as_ref().map(|p| prepare::table(p, &recipe.data)).transpose()
        };
        // Worded as the rows to train on; general text is as it is.
        let seed = luthier_core::Seed(recipe.train.as_ref().map_or(0, |train| train.seed));
        let worded = |p| prepare::held_out(p, &recipe.data, seed.split("data"));
        let task = eval.data.as_ref().map(worded).transpose()?;
        let general = read(&eval.general)?;
        let (decode, max_length) = (recipe.decode.clone(), recipe.data.max_length);
        Ok(Some(Measure { eval, decode, metric, task, general, max_length }))
    }

    fn key(&self, model: &str, held: &str, precision: Precision) -> String {
        let hash = |t: &Option<Table>| t.as_ref().map_or(String::new(), |t| t.sha256.clone());
        let text = format!(
            "{model} {held} {} {:?} {:?} {} {} {} {}",
            precision::name(precision),
            self.metric,
            self.decode,
            self.eval.max_new_tokens,
            hash(&self.task),
            hash(&self.general),
            env!("CARGO_PKG_VERSION")
        );
        io::sha256(text.as_bytes())
    }

    /// Measures a policy, or reads the result from `file` when it is there already.
    fn once(
        &self,
        policy: &Policy,
        opened: &Opened,
        id: &str,
        file: &Path,
        say: Say,
    ) -> Result<Measured> {
        let key = self.key(id, opened.held(), opened.precision);
        if file.is_file() {
            let known: Measured = io::read_json(file)?;
            if known.key == key {
                return Ok(known);
            }
        }
        let begun = std::time::Instant::now();
        let limits = Limits {
            max_new_tokens: self.eval.max_new_tokens,
            max_context: opened.config.max_positions,
            max_length: self.max_length,
            ..Limits::default()
        };
        let (model, text) = (policy, &opened.tokenizer);
        let open = |table: &Decode| Decoding::open(table, opened, policy, usize::MAX);
        let decoding = self.decode.as_ref().map(open).transpose()?;
        let ask = |table: &Table| {
            let on_done = &mut |done, total| say(done, total);
            let how = decoding.as_ref();
            evaluate::evaluate_by(how, model, text, table, &self.metric, &limits, on_done)
        };
        let task = self.task.as_ref().map(ask).transpose()?;
        let read = |table: &Table| evaluate::general(model, text, table, self.max_length);
        let general = self.general.as_ref().map(read).transpose()?;
        let measured = Measured { key, task, general, seconds: begun.elapsed().as_secs_f64() };
        io::write_json(file, &measured)?;
        Ok(measured)
    }

    /// The task's table.
    pub fn task(&self) -> Option<&Table> {
        self.task.as_ref()
    }

    /// The general text's table.
    pub fn general(&self) -> Option<&Table> {
        self.general.as_ref()
    }
}

/// Told how many answers are there, of how many.
pub type Say<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Where a run directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Begun,
    Trained,
}

fn state(out: &Path, recipe: &str) -> Result<State> {
    let known = out.join(RECIPE);
    if !known.exists() {
        check_out(out, false)?;
        return Ok(State::Fresh);
    }
    if io::read_text(&known)? != recipe {
        let what = "this folder holds a run of another recipe";
        return Err(Error::input(out.display().to_string(), what).hint("name another --out"));
    }
    Ok(if out.join(MANIFEST).exists() { State::Trained } else { State::Begun })
}

/// Runs every stage into `out`.
pub fn run(recipe: Recipe, out: &Path, how: &Circumstances, say: Say) -> Result<Summary> {
    let measure = Measure::new(&recipe)?;
    let mut stage = Stage::new(recipe)?;
    let state = state(out, &stage.recipe.to_toml()?)?;
    let (opened, fingerprint) = (&stage.opened, stage.fingerprint()?);

    let plain = Policy::plain(opened.model.clone());
    let before = match &measure {
        Some(m) => {
            tracing::info!("measuring the model as it is");
            Some(m.once(&plain, opened, &opened.sha256, &out.join("before.json"), say)?)
        }
        None => None,
    };

    let outcome = match state {
        State::Trained => {
            tracing::info!("training is done already: {}", out.display());
            stage.bound = finished(&stage.bound, opened, out)?;
            None
        }
        _ => {
            tracing::info!("training");
            let how = Circumstances {
                resume: state == State::Begun,
                command: how.command.clone(),
                ..*how
            };
            Some(stage.run(out, &how)?.outcome)
        }
    };

    let after = match &measure {
        Some(m) => {
            tracing::info!("measuring the trained model");
            let file = out.join("after.json");
            Some(m.once(&stage.bound.policy, opened, &fingerprint, &file, say)?)
        }
        None => None,
    };
    let task = compare(before.as_ref(), after.as_ref())?;
    let facts = assemble::Facts {
        stage: &stage,
        measure: measure.as_ref(),
        before: before.as_ref(),
        after: after.as_ref(),
        task: task.as_ref(),
        outcome: outcome.as_ref(),
        out,
        command: &how.command,
    };
    let report = report::write(out, &assemble::report(&facts)?)?;
    Ok(Summary { before, after, task, train: outcome, report, adapter: out.to_path_buf() })
}

/// What a finished run learned. An adapter may be kept in another form than it was trained in.
fn finished(bound: &Bound, opened: &Opened, out: &Path) -> Result<Bound> {
    if bound.form.kept() != Kept::Model {
        return opened.with_adapter(out);
    }
    let weights = out.join("model.safetensors");
    checkpoint::restore(&bound.params, &luthier_core::StateDict::load(&weights)?, &weights)?;
    Ok(bound.clone())
}

fn compare(before: Option<&Measured>, after: Option<&Measured>) -> Result<Option<Comparison>> {
    match (before.and_then(|m| m.task.as_ref()), after.and_then(|m| m.task.as_ref())) {
        (Some(before), Some(after)) => evaluate::compare(before, after).map(Some),
        _ => Ok(None),
    }
}

/// Perplexities, for printing.
pub fn perplexity(measured: Option<&Measured>) -> Option<&NllReport> {
    measured.and_then(|m| m.general.as_ref()).map(|g| &g.report)
}
