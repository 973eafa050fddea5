//! A recipe: what a TOML file may say.
//!
//! One table per stage, the method as the key. Unknown keys are errors with the line, the column and
//! the nearest known name. Files are meant relative to the recipe.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result, nearest::suggest};
use luthier_data::{Kind as DataStep, Overlength, ReadOptions};
use luthier_model::render::LossOn;
use luthier_train::Train;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// A whole recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// One line on what it is for.
    pub about: String,
    /// Models by role.
    pub models: Models,
    /// Examples and how they become rows.
    pub data: Data,
    /// The main job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
    /// What is measured before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Eval>,
}

/// Models by role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// The model that is trained: a built-in name, a hub id, a folder or a GGUF file.
    pub policy: String,
}

/// One path or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Paths {
    /// One file, directory or glob.
    One(String),
    /// Several, read as one table.
    Many(Vec<String>),
}

impl Paths {
    /// All of them.
    pub fn list(&self) -> Vec<&str> {
        match self {
            Paths::One(path) => vec![path],
            Paths::Many(paths) => paths.iter().map(String::as_str).collect(),
        }
    }

    fn rebase(&mut self, base: &Path) {
        match self {
            Paths::One(path) => *path = rebased(path, base),
            Paths::Many(paths) => paths.iter_mut().for_each(|p| *p = rebased(p, base)),
        }
    }
}

/// Examples and how they become rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// What is trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Paths>,
    /// What the loss is evaluated on during training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Paths>,
    /// Share of the training examples set aside for evaluation when there is no `eval`.
    pub eval_fraction: f64,
    /// Longest row in tokens.
    pub max_length: usize,
    /// What happens to longer rows.
    pub overlength: Overlength,
    /// Which turns are trained.
    pub loss_on: LossOn,
    /// How columns are understood.
    pub read: ReadOptions,
    /// Steps from the table as read to the table as trained.
    pub steps: Vec<DataStep>,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            train: None,
            eval: None,
            eval_fraction: 0.0,
            // TRL's default; a longer row is an error here, not a silent cut.
            max_length: 1024,
            overlength: Overlength::Error,
            loss_on: LossOn::default(),
            read: ReadOptions::default(),
            steps: Vec::new(),
        }
    }
}

/// What is measured before and after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Questions with expected answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Paths>,
    /// `exact_match`, `json_match`, `choice` or `nll`.
    pub metric: String,
    /// Longest answer.
    pub max_new_tokens: usize,
    /// A general text whose perplexity shows what was forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub general: Option<Paths>,
}

impl Default for Eval {
    fn default() -> Self {
        Eval { data: None, metric: "exact_match".into(), max_new_tokens: 256, general: None }
    }
}

fn rebased(path: &str, base: &Path) -> String {
    match Path::new(path).is_absolute() {
        true => path.to_string(),
        false => base.join(path).display().to_string(),
    }
}

impl Recipe {
    /// Reads a recipe file and applies `key=value` overrides.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = luthier_core::io::read_text(path)?;
        let mut recipe = Recipe::parse(&text, &path.display().to_string())?;
        recipe.rebase(path.parent().unwrap_or(Path::new(".")));
        recipe.with(overrides)
    }

    /// Parses the text of a recipe; `at` names it in errors.
    pub fn parse(text: &str, at: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| unusable(&e, at))
    }

    fn rebase(&mut self, base: &Path) {
        let eval = self.eval.as_mut().into_iter().flat_map(|e| [&mut e.data, &mut e.general]);
        for paths in [&mut self.data.train, &mut self.data.eval].into_iter().chain(eval).flatten() {
            paths.rebase(base);
        }
        // A model may be a name or a hub id; it is a path only if something stands there.
        let local = base.join(&self.models.policy);
        if !self.models.policy.is_empty() && local.exists() {
            self.models.policy = local.display().to_string();
        }
    }

    /// The same with every default written out.
    pub fn resolved(mut self) -> Self {
        self.train = self.train.map(|mut train| {
            train.params = train.params.with_defaults();
            train.loss = train.loss.with_defaults();
            train.update = train.update.with_defaults();
            train
        });
        self
    }

    /// Applies `key=value` overrides. A key is a dotted path, or any end of one that is unique:
    /// `learning_rate=1e-4`.
    pub fn with(self, overrides: &[String]) -> Result<Self> {
        if overrides.is_empty() {
            return Ok(self);
        }
        let known = leaves(&self.clone().resolved().table()?);
        let mut table = self.table()?;
        for given in overrides {
            let Some((key, value)) = given.split_once('=') else {
                return Err(Error::input(given, "expected key=value"));
            };
            let path = full_path(key.trim(), &known)?;
            set(&mut table, &path, value_of(value.trim()), given)?;
        }
        let text = toml::to_string(&table)
            .map_err(|e| Error::failed("recipe", format!("cannot be written: {e}")))?;
        Recipe::parse(&text, &format!("overrides {}", overrides.join(" ")))
    }

    fn table(&self) -> Result<Table> {
        Table::try_from(self)
            .map_err(|e| Error::failed("recipe", format!("cannot be written: {e}")))
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::failed("recipe", format!("cannot be written: {e}")))
    }
}

/// The parser's message, with the nearest known name for a misspelt key.
fn unusable(e: &toml::de::Error, at: &str) -> Error {
    let shown = e.to_string();
    let error = Error::input(at, shown.trim_end());
    let mut quoted = e.message().split('`').skip(1).step_by(2);
    match quoted.next() {
        Some(got) if e.message().starts_with("unknown") => error.hint(suggest(got, quoted)),
        _ => error,
    }
}

/// Keys that are absent from a resolved recipe because they have no default.
const OPTIONAL: &[&str] = &[
    "data.train",
    "data.eval",
    "eval.data",
    "eval.general",
    "train.max_steps",
    "train.micro_tokens",
    "train.save_total_limit",
    "train.early_stopping_patience",
    "train.continue_from",
    "data.read.layout",
    "data.read.form",
    "data.read.system",
];

/// Dotted paths of all settings in a table.
fn leaves(table: &Table) -> Vec<String> {
    let mut all: Vec<String> = OPTIONAL.iter().map(|k| k.to_string()).collect();
    fn walk(prefix: &str, table: &Table, all: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => walk(&path, inner, all),
                _ => all.push(path),
            }
        }
    }
    walk("", table, &mut all);
    all.sort();
    all.dedup();
    all
}

/// `schedule.constant` → `train.update.schedule.constant`, when one known table ends in the key's
/// first part.
fn below_table(key: &str, known: &[String]) -> Option<String> {
    let (first, rest) = key.split_once('.')?;
    let inside = |path: &String| {
        let at = path.find(&format!(".{first}."))?;
        Some(path[..at + 1 + first.len()].to_string())
    };
    let mut tables: Vec<String> = known.iter().filter_map(inside).collect();
    tables.sort();
    tables.dedup();
    match tables.as_slice() {
        [one] => Some(format!("{one}.{rest}")),
        _ => None,
    }
}

/// The one known path that is `key` or ends in it. A dotted key that is no end of a known one may
/// name a method that the recipe does not use yet: it is looked for below a known table, and else
/// taken as a full path.
fn full_path(key: &str, known: &[String]) -> Result<String> {
    if known.iter().any(|k| k == key) {
        return Ok(key.to_string());
    }
    let ends: Vec<&String> = known.iter().filter(|k| k.ends_with(&format!(".{key}"))).collect();
    match ends.as_slice() {
        [one] => Ok(one.to_string()),
        [] if key.contains('.') => Ok(below_table(key, known).unwrap_or_else(|| key.to_string())),
        [] => {
            let last = known.iter().map(|k| k.rsplit('.').next().unwrap_or(k));
            Err(Error::input(key, "no setting of this recipe has this name")
                .hint(suggest(key, last)))
        }
        several => {
            let list: Vec<&str> = several.iter().map(|k| k.as_str()).collect();
            Err(Error::input(key, format!("could be {}", list.join(" or ")))
                .hint("write more of the path"))
        }
    }
}

/// A TOML value, or the text itself where it is none.
fn value_of(text: &str) -> Value {
    match toml::from_str::<Table>(&format!("v = {text}")) {
        Ok(mut table) => table.remove("v").unwrap_or_else(|| Value::String(text.into())),
        Err(_) => Value::String(text.to_string()),
    }
}

fn set(table: &mut Table, path: &str, value: Value, given: &str) -> Result<()> {
    let mut parts: Vec<&str> = path.split('.').collect();
    let last = parts.pop().unwrap_or(path);
    let mut here = table;
    for part in parts {
        let next = here.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = next else {
            return Err(Error::input(given, format!("`{part}` is a value, not a table")));
        };
        here = inner;
    }
    // A whole number is fine where a fraction is expected.
    let value = match (here.get(last), value) {
        (Some(Value::Float(_)), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    here.insert(last.to_string(), value);
    Ok(())
}

/// Paths given on the command line, against the folder the user stands in.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[models]\npolicy = \"m\"\n[train]\nepochs = 2\n[train.update.adamw]\n";

    #[test]
    fn a_misspelt_key_is_refused_with_line_and_suggestion() {
        let text = "[train]\nepochs = 1\n[train.update.adamw]\nlerning_rate = 1e-3\n";
        let error = Recipe::parse(text, "r.toml").unwrap_err().to_string();
        assert!(error.contains("r.toml") && error.contains("line 4"), "{error}");
        assert!(error.contains("hint: did you mean learning_rate"), "{error}");
    }

    #[test]
    fn overrides_find_their_key_by_its_end() {
        let recipe = Recipe::parse(SMALL, "r").unwrap();
        let set = ["learning_rate=1e-2".to_string(), "max_steps=7".into(), "epochs=3".into()];
        let train = recipe.clone().with(&set).unwrap().train.unwrap();
        assert_eq!((train.epochs, train.max_steps), (3.0, Some(7)));
        assert_eq!(train.update.adamw.unwrap().learning_rate, 1e-2);
        let error = recipe.clone().with(&["larning_rate=1".into()]).unwrap_err().to_string();
        assert!(error.contains("did you mean learning_rate"), "{error}");
        let error = recipe.with(&["train.epochs=\"x\"".into()]).unwrap_err().to_string();
        assert!(error.contains("invalid type"), "{error}");
    }

    #[test]
    fn a_resolved_recipe_survives_a_round_trip() {
        let recipe = Recipe::parse(SMALL, "r").unwrap().resolved();
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again").unwrap();
        assert_eq!(recipe, again);
    }
}
