//! `luthier merge`: a file that says how, models that go in, one model folder that comes out.
//!
//! Tensor after tensor, each in pieces on all cores: memory does not grow with the models. The output
//! is made in a hidden folder beside its place and moved there when it has been read back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use luthier_core::{Error, Result, Seed, io};
use luthier_model::save::Stream;
use luthier_weights::{Config, Work, config::documents};
use serde::Serialize;
use serde_json::Value;

mod beside;
mod check;
mod folder;
mod models;
mod plan;
mod read;
mod search;
mod several;
mod tokens;
mod tuned;
mod whole;

use beside::Files;
use models::Models;
use plan::{Plan, Planned, settle};
use read::Tensors;
use tokens::Vocabulary;

pub use whole::weights;

/// What is not said in the file.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The seed of random masks.
    pub seed: u64,
    /// Bytes after which another weight file begins.
    pub shard_bytes: u64,
    /// Whether the manifest holds the hashes of all weights, which takes about as long as a plain
    /// merge.
    pub hash: bool,
    /// The command line, for the manifest.
    pub command: &'a str,
}

/// What a merge did.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// The folder.
    pub model: PathBuf,
    /// The method.
    pub method: &'static str,
    /// Its number of layers.
    pub layers: usize,
    /// Its number of tensors.
    pub tensors: usize,
    /// Its number of weights.
    pub parameters: u64,
    /// How they are stored.
    pub dtype: &'static str,
    /// Files that were written.
    pub files: Vec<String>,
    /// What deserves to be known.
    pub notes: Vec<String>,
    /// What a search found best, and how good it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<search::Found>,
}

/// What all merges of one file share.
struct Job<'a> {
    /// The file's name, for errors and for paths beside it.
    file: String,
    options: &'a Options<'a>,
    find: &'a dyn Fn(&str) -> Result<PathBuf>,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// How the first numbers of each tensor were written.
type Firsts = BTreeMap<String, Vec<f32>>;

/// How many of them are kept for the check.
const FIRST: usize = 64;

/// Merges as `config` says into the folder `out`. `find` brings models by name; `progress` is told how
/// many of how many numbers are done.
pub fn merge(
    config: &Path,
    out: &Path,
    options: &Options<'_>,
    find: &dyn Fn(&str) -> Result<PathBuf>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Merged> {
    refuse_used(out)?;
    let text = io::read_text(config)?;
    let job = Job { file: config.display().to_string(), options, find, progress };
    let mut values = parse(&text, config)?;
    let [value] = values.as_mut_slice() else {
        return several::run(&job, &values, &text, out);
    };
    match search::take(value, &job.file)? {
        Some(search) => search.run(&job, value, out),
        None => job.merge(value, &text, out),
    }
}

impl Job<'_> {
    /// One merge; `text` is kept beside the result.
    fn merge(&self, value: &Value, text: &str, out: &Path) -> Result<Merged> {
        let (options, config) = (self.options, Config::from_value(value, &self.file)?);
        let models = Models::open(&config, self.find)?;
        let files = Files::open(&config)?;
        let vocabulary = Vocabulary::of(&config, &models)?;
        let mut plan = Plan::of(&config, &models, &files, vocabulary.as_ref())?;
        let seed = Seed(options.seed).split("merge");
        settle(&mut plan, &config, (&models, &files), vocabulary.as_ref(), seed)?;
        let part = Part::beside(out)?;
        let inputs = (&models, &files);
        let firsts = write(&plan, inputs, vocabulary.as_ref(), options, &part.0, self.progress)?;
        let mut merged =
            folder::finish(&part.0, text, (&config, &models, &plan), vocabulary.as_ref(), options)?;
        check::read_back(&part.0, &plan, vocabulary.as_ref(), &firsts)?;
        part.move_to(out)?;
        merged.model = out.to_path_buf();
        Ok(merged)
    }
}

/// Reads a file's text without opening what it names; `file` names it in errors.
pub fn check(text: &str, file: &str) -> Result<()> {
    let mut values = parse(text, Path::new(file))?;
    let [value] = values.as_mut_slice() else { return several::check(&values, file) };
    search::take(value, file)?;
    Config::from_value(value, file).map(|_| ())
}

/// Reads a file by its ending: TOML, or else YAML, of which there may be several documents.
fn parse(text: &str, path: &Path) -> Result<Vec<Value>> {
    let file = path.display().to_string();
    if path.extension().is_none_or(|end| end != "toml") {
        return documents(text, &file);
    }
    toml::from_str(text).map(|one| vec![one]).map_err(|e| Error::input(&file, e.to_string()))
}

fn refuse_used(out: &Path) -> Result<()> {
    let at = out.display().to_string();
    if out.is_file() {
        return Err(Error::input(at, "is a file; expected a folder to make"));
    }
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(at, "the output folder is not empty").hint("name a new folder"));
    }
    Ok(())
}

/// Computes and writes every tensor.
fn write(
    plan: &Plan,
    (models, files): (&Models, &Files),
    vocabulary: Option<&Vocabulary>,
    options: &Options<'_>,
    dir: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Firsts> {
    let stream = Stream::create(dir, &plan.coming(), options.shard_bytes)?;
    let firsts = Mutex::new(Firsts::new());
    let (seed, total) = (Seed(options.seed).split("merge"), plan.parameters());
    let mut done = 0;
    for planned in &plan.tensors {
        let Planned { name, .. } = planned;
        let tensors = Tensors::of(planned, models, files, vocabulary)?;
        let put = |from: usize, values: &[f32]| {
            refuse_odd(planned, from, values)?;
            if from == 0 {
                let first = values[..values.len().min(FIRST)].to_vec();
                // Nobody panics while holding the lock.
                let mut firsts = firsts.lock().unwrap_or_else(|e| e.into_inner());
                firsts.insert(name.clone(), first);
            }
            stream.put(name, from, values)
        };
        luthier_weights::merge(
            planned.combine.as_ref(),
            &Work::new(&tensors, seed.split(name)),
            &put,
        )?;
        done += planned.len() as u64;
        progress(done, total);
    }
    stream.finish()?;
    Ok(firsts.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// No number of a model may be NaN or infinite.
fn refuse_odd(planned: &Planned, from: usize, values: &[f32]) -> Result<()> {
    // Without a branch per number, so that the usual pass is one over memory.
    if values.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    let i = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let row = (from + i) / planned.dims.last().copied().unwrap_or(1).max(1);
    let what = format!("row {row} has the value {}", values[i]);
    Err(Error::failed(&planned.name, what)
        .hint("an input holds such a value, or the settings divide by 0"))
}

/// A hidden folder beside the output, removed again unless it becomes the output.
struct Part(PathBuf);

impl Part {
    fn beside(out: &Path) -> Result<Part> {
        Part::named(out, "part")
    }

    /// Another one beside the same output.
    fn named(out: &Path, what: &str) -> Result<Part> {
        let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::input(out.display().to_string(), "expected the name of a folder"));
        }
        let part = out.with_file_name(format!(".{name}.luthier-{what}"));
        if part.exists() {
            // An earlier merge to the same place was ended from outside.
            std::fs::remove_dir_all(&part).map_err(|e| Error::io(&part, e))?;
        }
        std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
        Ok(Part(part))
    }

    fn move_to(self, out: &Path) -> Result<()> {
        if out.exists() {
            std::fs::remove_dir(out).map_err(|e| Error::io(out, e))?;
        }
        std::fs::rename(&self.0, out).map_err(|e| Error::io(out, e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(e) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!("{}: could not be removed: {e}", self.0.display());
        }
    }
}
