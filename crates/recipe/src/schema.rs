//! A recipe: what a TOML file may say.
//!
//! One table per stage, the method as the key. Unknown keys are errors with the line, the column and
//! the nearest known name. Files are meant relative to the recipe.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result, nearest::suggest};
use luthier_data::{Kind as DataStep, Overlength, ReadOptions};
use luthier_model::render::LossOn;
use luthier_params::{Head, Labels};
use luthier_train::Train;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::{
    decode::Decode,
    overrides,
    precision::{Precision, Quantize},
    tasks::TaskBy,
};

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
    /// How answers are decoded, where there are answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<Decode>,
}

/// Models by role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// The model that is trained: a built-in name, a hub id, a folder or a GGUF file.
    pub policy: String,
    /// Whom it learns from, where it learns from a model: the same kinds of names, or an adapter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub teacher: String,
    /// The arithmetic of matrix products.
    pub precision: Precision,
    /// How its weights are held where they do not learn.
    pub quantize: Quantize,
    /// Whether the scales of `nf4` are quantised too.
    pub double_quant: bool,
}

impl Default for Models {
    fn default() -> Self {
        Models {
            policy: String::new(),
            teacher: String::new(),
            precision: Precision::default(),
            quantize: Quantize::default(),
            double_quant: true,
        }
    }
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
    /// Whether its files are rounds of their own: the whole schedule runs on one after another.
    pub sequential: bool,
    /// What the loss is evaluated on during training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Paths>,
    /// Share of the training examples set aside for evaluation when there is no `eval`.
    pub eval_fraction: f64,
    /// Longest row in tokens.
    pub max_length: usize,
    /// What happens to longer rows.
    pub overlength: Overlength,
    /// Tokens of a block: texts are laid end to end and cut, in place of a row each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// Which turns are trained.
    pub loss_on: LossOn,
    /// Which of several tasks every row belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskBy>,
    /// What labels are called in the column `label`, in the order of their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// How columns are understood.
    pub read: ReadOptions,
    /// Steps from the table as read to the table as trained.
    pub steps: Vec<DataStep>,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            train: None,
            sequential: false,
            eval: None,
            eval_fraction: 0.0,
            // TRL's default; a longer row is an error here, not a silent cut.
            max_length: 1024,
            overlength: Overlength::Error,
            block_size: None,
            loss_on: LossOn::default(),
            task: None,
            labels: Vec::new(),
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
    /// `exact_match`, `json_match`, `choice`, `calibration`, `nll`, …
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
        if let Some(train) = &mut self.train {
            let cache = train.loss.distil.as_mut().and_then(|distil| distil.cache.as_mut());
            cache.into_iter().for_each(|file| *file = base.join(&*file));
            train.continue_from.iter_mut().for_each(|from| *from = rebased(from, base));
            let copilot = train.copilot.as_mut().and_then(|copilot| copilot.from.as_mut());
            copilot.into_iter().for_each(|dir| *dir = base.join(&*dir));
            let fisher = train.update.ewc.as_mut().and_then(|ewc| ewc.fisher.as_mut());
            fisher.into_iter().for_each(|file| *file = base.join(&*file));
        }
        self.decode.iter_mut().for_each(|decode| decode.rebase(base));
        // A model may be a name or a hub id; it is a path only if something stands there.
        for model in [&mut self.models.policy, &mut self.models.teacher] {
            let local = base.join(&*model);
            if !model.is_empty() && local.exists() {
                *model = local.display().to_string();
            }
        }
    }

    /// The same with every default written out.
    pub fn resolved(mut self) -> Self {
        self.train = self.train.map(Train::with_defaults);
        let head = self.train.as_ref().and_then(|train| train.params.head.as_ref());
        if let Some(Head { labels: Labels::Names(names) }) = head
            && self.data.labels.is_empty()
        {
            self.data.labels = names.clone();
        }
        self
    }

    /// Applies `key=value` overrides. A key is a dotted path, or any end of one that is unique:
    /// `learning_rate=1e-4`.
    pub fn with(self, given: &[String]) -> Result<Self> {
        if given.is_empty() {
            return Ok(self);
        }
        let mut table = self.table()?;
        overrides::apply(&mut table, &self.clone().resolved().table()?, given)?;
        let text = toml::to_string(&table)
            .map_err(|e| Error::failed("recipe", format!("cannot be written: {e}")))?;
        Recipe::parse(&text, &format!("overrides {}", given.join(" ")))
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
    fn an_override_of_the_size_of_a_step_replaces_the_recipes() {
        let text = "[train]\nbatch_tokens = 512\n";
        let recipe = Recipe::parse(text, "r").unwrap();
        let train = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
            recipe.clone().with(&set).unwrap().resolved().train.unwrap()
        };
        assert_eq!(train(&["batch_tokens=64"]).batch_tokens, Some(64));
        let rows = train(&["batch_size=4"]);
        assert_eq!((rows.batch_size, rows.batch_tokens), (Some(4), None));
        rows.check().unwrap();
        assert!(train(&["batch_size=4", "batch_tokens=64"]).check().is_err());
        let both = Recipe::parse("[train]\nbatch_tokens = 512\nbatch_size = 8\n", "r").unwrap();
        assert!(both.resolved().train.unwrap().check().is_err());
    }

    #[test]
    fn precision_is_set_by_its_name_and_checked() {
        let recipe = Recipe::parse(SMALL, "r").unwrap();
        assert_eq!(recipe.models.precision, Precision::Auto);
        let set = |text: &str| recipe.clone().with(&[text.to_string()]);
        assert_eq!(set("precision=f32").unwrap().models.precision, Precision::F32);
        let error = set("precision=bf61").unwrap_err().to_string();
        assert!(error.contains("bf61") && error.contains("did you mean bf16"), "{error}");
    }

    #[test]
    fn a_resolved_recipe_survives_a_round_trip() {
        let recipe = Recipe::parse(SMALL, "r").unwrap().resolved();
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again").unwrap();
        assert_eq!(recipe, again);
    }
}
