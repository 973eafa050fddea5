//! A merge as a file describes it: mergekit's YAML, or the same keys in any other notation.
//!
//! Everything is read and checked here except what takes the models to know: how many layers they
//! have, and whether their tensors fit together.

use std::collections::{BTreeMap, BTreeSet};

use luthier_core::{Error, Result, nearest::suggest};
use serde_json::{Map, Value};

use crate::{
    combine::lines::Schedule,
    method::{Of, SPECS, Spec},
    setting::Setting,
};

mod lines;
mod parts;
mod tokens;
mod yaml;

pub use parts::{Input, Model, Slice};
pub use tokens::{RowOf, TokenRow, TokenSource, Tokens};
pub use yaml::{documents, read_yaml};

/// Settings by name.
pub type Settings = BTreeMap<String, Setting>;

/// Number formats that `dtype` and `out_dtype` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit float.
    Float32,
    /// 16-bit IEEE float.
    Float16,
    /// The upper half of a 32-bit float.
    Bfloat16,
}

/// What goes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// Whole models.
    Models(Vec<Input>),
    /// Layers of models, stacked in order.
    Slices(Vec<Slice>),
}

/// A merge's file.
#[derive(Clone)]
pub struct Config {
    /// The file's name, for errors.
    pub file: String,
    /// The merge.
    pub spec: &'static Spec,
    /// What goes in.
    pub layout: Layout,
    /// What the others are compared with.
    pub base: Option<Model>,
    /// What inputs are rounded to.
    pub dtype: Option<Format>,
    /// How the result is stored.
    pub out_dtype: Option<Format>,
    /// Whose tokens the result has; `None` leaves every vocabulary as it is.
    pub tokens: Option<Tokens>,
    /// How what the merge changes is scaled by depth.
    pub lines: Option<Schedule>,
    /// A template, or the name of one.
    pub chat_template: Option<String>,
    /// Settings of the one module, if the file names modules.
    pub module: Settings,
    /// Settings for everything.
    pub settings: Settings,
    /// What the file says without any effect.
    pub notes: Vec<String>,
}

const KEYS: [&str; 14] = [
    "models",
    "slices",
    "modules",
    "merge_method",
    "base_model",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "parameters",
    "lines",
    // Names for other programs.
    "name",
    "about",
];

/// Keys of mergekit's other programs, whose files look alike.
const OTHERS: [(&str, &str); 3] = [
    ("experts", "mergekit-moe"),
    ("gate_mode", "mergekit-moe"),
    ("genome", "mergekit-evolve (`search` is what luthier has)"),
];

impl Config {
    /// Reads YAML; `file` names it in errors.
    pub fn from_yaml(text: &str, file: &str) -> Result<Config> {
        Config::from_value(&read_yaml(text, file)?, file)
    }

    /// Reads what some notation holds.
    pub fn from_value(value: &Value, file: &str) -> Result<Config> {
        let Value::Object(map) = value else {
            return Err(Error::input(file, "expected the keys of a merge")
                .hint("merge_method: linear, models: …"));
        };
        for (key, program) in OTHERS {
            if map.contains_key(key) {
                return Err(Error::input(file, format!("is a file of {program}: it has `{key}`"))
                    .hint("luthier merges models of one shape, by merge_method"));
            }
        }
        let mut reader = Reader { file, notes: Vec::new(), noted: BTreeSet::new() };
        reader.known(map, "", &KEYS)?;
        let spec = reader.method(map)?;
        let (layout, module) = reader.layout(map)?;
        let settings = reader.settings(map, "", spec, true)?;
        let base = reader.maybe_model(map, "base_model", "base_model")?;
        Ok(Config {
            spec,
            layout,
            module,
            settings,
            base,
            dtype: reader.format(map, "dtype")?,
            out_dtype: reader.format(map, "out_dtype")?,
            tokens: reader.tokens(map)?,
            lines: reader.lines(map, spec)?,
            chat_template: reader.text(map, "chat_template", "chat_template")?,
            file: file.to_string(),
            notes: reader.notes,
        })
    }

    /// Every model that is named, each once, in the order of the file, the base last unless it is
    /// among the inputs.
    pub fn models(&self) -> Vec<&Model> {
        let mut all: Vec<&Model> = Vec::new();
        let inputs: Box<dyn Iterator<Item = &Model>> = match &self.layout {
            Layout::Models(inputs) => Box::new(inputs.iter().map(|i| &i.model)),
            Layout::Slices(slices) => Box::new(slices.iter().flat_map(|slice| {
                slice.sources.iter().map(|i| &i.model).chain(slice.base.as_ref())
            })),
        };
        let tokens = self.tokens.iter().flat_map(|tokens| {
            let source = match &tokens.source {
                TokenSource::Of(model) => Some(model),
                _ => None,
            };
            let rows = tokens.rows.iter().filter_map(|(_, row)| row.from.as_ref()?.model());
            source.into_iter().chain(rows)
        });
        for model in inputs.chain(self.base.as_ref()).chain(tokens) {
            if !all.contains(&model) {
                all.push(model);
            }
        }
        all
    }
}

/// Reads the parts of a file, whose name every error begins with.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a str,
    pub(crate) notes: Vec<String>,
    /// Names of which a note tells already.
    noted: BTreeSet<String>,
}

impl Reader<'_> {
    pub(crate) fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::input(self.at(key), what)
    }

    pub(crate) fn at(&self, key: &str) -> String {
        if key.is_empty() { self.file.to_string() } else { format!("{}: {key}", self.file) }
    }

    pub(crate) fn known(&self, map: &Map<String, Value>, at: &str, keys: &[&str]) -> Result<()> {
        match map.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(self
                .error(at, format!("unknown key `{key}`"))
                .hint(suggest(key, keys.iter().copied()))),
            None => Ok(()),
        }
    }

    pub(crate) fn text(
        &self,
        map: &Map<String, Value>,
        key: &str,
        at: &str,
    ) -> Result<Option<String>> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // A folder may be called 1, and a token 7.
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(other) => Err(self.error(at, format!("expected text, got {other}"))),
        }
    }

    pub(crate) fn method(&self, map: &Map<String, Value>) -> Result<&'static Spec> {
        let name = self.text(map, "merge_method", "merge_method")?.ok_or_else(|| {
            self.error("merge_method", "is missing").hint(suggest("", SPECS.iter().map(|s| s.name)))
        })?;
        Spec::find(&name).ok_or_else(|| {
            let names = SPECS.iter().map(|s| s.name);
            self.error("merge_method", format!("unknown method {name:?}"))
                .hint(suggest(&name, names))
        })
    }

    fn format(&self, map: &Map<String, Value>, key: &str) -> Result<Option<Format>> {
        let Some(name) = self.text(map, key, key)? else { return Ok(None) };
        match name.strip_prefix("torch.").unwrap_or(&name) {
            "float32" => Ok(Some(Format::Float32)),
            "float16" => Ok(Some(Format::Float16)),
            "bfloat16" => Ok(Some(Format::Bfloat16)),
            _ => Err(self
                .error(key, format!("expected a number format, got {name:?}"))
                .hint("float32, float16 or bfloat16")),
        }
    }

    /// The table `parameters` of `map`; `shared` says whether settings of the merge count here.
    pub(crate) fn settings(
        &mut self,
        map: &Map<String, Value>,
        at: &str,
        spec: &Spec,
        shared: bool,
    ) -> Result<Settings> {
        let key = if at.is_empty() { "parameters".to_string() } else { format!("{at}.parameters") };
        let table = match map.get("parameters") {
            None | Some(Value::Null) => return Ok(Settings::new()),
            Some(Value::Object(table)) => table,
            Some(other) => return Err(self.error(&key, format!("expected keys, got {other}"))),
        };
        let mut settings = Settings::new();
        for (name, value) in table {
            let place = format!("{key}.{name}");
            let known = spec.keys.iter().find(|k| k.name == name);
            match known {
                Some(known) if shared || known.of != Of::Merge => {
                    if let Some(setting) = Setting::read(value, &self.at(&place))? {
                        settings.insert(name.clone(), setting);
                    }
                }
                Some(_) => self.note(
                    name,
                    format!(
                        "{}: is a setting of the whole merge, and says nothing about one model",
                        self.at(&place)
                    ),
                ),
                // Files in use carry settings from one method to the next, and mergekit passes
                // them over; what no method knows is a slip of the pen.
                None if SPECS.iter().any(|s| s.keys.iter().any(|k| k.name == name)) => {
                    self.note(
                        name,
                        format!("{}: {} has no such setting", self.at(&place), spec.name),
                    );
                }
                None => {
                    let names: Vec<&str> = spec.keys.iter().map(|k| k.name).collect();
                    let error = self.error(&key, format!("unknown key `{name}`"));
                    return Err(match names.is_empty() {
                        true => error.hint(format!("{} has no settings", spec.name)),
                        false => error.hint(suggest(name, names)),
                    });
                }
            }
        }
        Ok(settings)
    }

    pub(crate) fn note(&mut self, name: &str, text: String) {
        if self.noted.insert(name.to_string()) {
            self.notes.push(text);
        }
    }
}
