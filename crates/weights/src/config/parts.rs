//! The parts of a merge's file: models and slices.

use luthier_core::Result;
use serde_json::{Map, Value};

use super::{Layout, Reader, Settings};
use crate::method::Spec;

/// A model as a file names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// Path, hub id or built-in name.
    pub name: String,
    /// An adapter that belongs on top.
    pub adapter: Option<String>,
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.adapter {
            Some(adapter) => write!(f, "{}+{adapter}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A model that goes in.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Which.
    pub model: Model,
    /// Its layers, from the first to one past the last; `None` for all.
    pub layers: Option<(usize, usize)>,
    /// Its own settings.
    pub settings: Settings,
    /// Files that belong beside it, for methods that read some.
    pub beside: Vec<String>,
}

/// Layers that become layers of the output together.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// What goes in, with layers.
    pub sources: Vec<Input>,
    /// The base of this slice, if it has one of its own.
    pub base: Option<Model>,
    /// Its own settings.
    pub settings: Settings,
}

impl Reader<'_> {
    pub(super) fn maybe_model(
        &self,
        map: &Map<String, Value>,
        key: &str,
        at: &str,
    ) -> Result<Option<Model>> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.model(value, at).map(Some),
        }
    }

    pub(super) fn model(&self, value: &Value, at: &str) -> Result<Model> {
        let plain = |name: String| -> Result<Model> {
            if name.is_empty() {
                return Err(self.error(at, "expected a model, got an empty name"));
            }
            Ok(match name.split_once('+') {
                Some((model, adapter)) => {
                    Model { name: model.to_string(), adapter: Some(adapter.to_string()) }
                }
                None => Model { name, adapter: None },
            })
        };
        match value {
            Value::String(name) => plain(name.clone()),
            Value::Number(n) => plain(n.to_string()),
            Value::Object(map) if map.contains_key("path") => {
                self.known(map, at, &["path", "revision"])?;
                let name = self.text(map, "path", at)?.unwrap_or_default();
                let revision = self.text(map, "revision", at)?;
                if let Some(revision) = revision {
                    let what = format!("revision {revision} of {name} cannot be asked for yet");
                    return Err(self.error(at, what).hint("name a local folder"));
                }
                plain(name)
            }
            Value::Object(map) => {
                self.known(map, at, &["model", "lora"])?;
                let inner = map.get("model").unwrap_or(&Value::Null);
                let model = self.model(inner, &format!("{at}.model"))?;
                let adapter = match map.get("lora") {
                    None | Some(Value::Null) => model.adapter,
                    Some(value) => Some(self.model(value, &format!("{at}.lora"))?.name),
                };
                Ok(Model { name: model.name, adapter })
            }
            other => Err(self.error(at, format!("expected a model, got {other}"))),
        }
    }

    /// `models`, `slices` or the one entry of `modules`, with the settings of that.
    pub(super) fn layout(&mut self, map: &Map<String, Value>) -> Result<(Layout, Settings)> {
        let given = |key: &&str| map.get(*key).is_some_and(|v| !v.is_null());
        let named: Vec<&str> = ["models", "slices", "modules"].into_iter().filter(given).collect();
        let spec = self.method(map)?;
        match named.as_slice() {
            ["models"] => Ok((self.models(map, "models", spec)?, Settings::new())),
            ["slices"] => Ok((self.slices(map, "slices", spec)?, Settings::new())),
            ["modules"] => self.module(map, spec),
            [] => Err(self.error("", "says nothing of what goes in").hint("add `models:`")),
            many => Err(self
                .error("", format!("has {}; expected one of them", many.join(" and ")))
                .hint("keep the one that describes the merge")),
        }
    }

    fn module(&mut self, map: &Map<String, Value>, spec: &Spec) -> Result<(Layout, Settings)> {
        let Some(Value::Object(modules)) = map.get("modules") else {
            return Err(self.error("modules", "expected names with models or slices"));
        };
        let mut all = modules.iter();
        let (Some((name, module)), None) = (all.next(), all.next()) else {
            let what = format!("expected one module, got {}", modules.len());
            return Err(self
                .error("modules", what)
                .hint("luthier merges language models, which have one"));
        };
        let at = format!("modules.{name}");
        let Value::Object(module) = module else {
            return Err(self.error(&at, format!("expected models or slices, got {module}")));
        };
        self.known(module, &at, &["models", "slices", "parameters"])?;
        let settings = self.settings(module, &at, spec, true)?;
        let has = |key: &str| module.get(key).is_some_and(|v| !v.is_null());
        let layout = match (has("models"), has("slices")) {
            (true, false) => self.models(module, &format!("{at}.models"), spec)?,
            (false, true) => self.slices(module, &format!("{at}.slices"), spec)?,
            _ => return Err(self.error(&at, "expected either models or slices")),
        };
        Ok((layout, settings))
    }

    fn list<'v>(&self, map: &'v Map<String, Value>, at: &str) -> Result<&'v Vec<Value>> {
        let key = at.rsplit('.').next().unwrap_or(at);
        match map.get(key) {
            Some(Value::Array(list)) if !list.is_empty() => Ok(list),
            Some(other) => Err(self.error(at, format!("expected a list, got {other}"))),
            None => Err(self.error(at, "is missing")),
        }
    }

    fn models(&mut self, map: &Map<String, Value>, at: &str, spec: &Spec) -> Result<Layout> {
        let mut inputs = Vec::new();
        for (i, entry) in self.list(map, at)?.iter().enumerate() {
            inputs.push(self.input(entry, &format!("{at}[{i}]"), spec, false)?);
        }
        Ok(Layout::Models(inputs))
    }

    fn slices(&mut self, map: &Map<String, Value>, at: &str, spec: &Spec) -> Result<Layout> {
        let mut slices = Vec::new();
        for (i, entry) in self.list(map, at)?.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let Value::Object(slice) = entry else {
                return Err(self.error(&at, format!("expected sources, got {entry}")));
            };
            self.known(slice, &at, &["sources", "base_model", "parameters", "residual_weight"])?;
            if slice.get("residual_weight").is_some_and(|v| !v.is_null()) {
                let text = format!("{}: has no effect", self.at(&format!("{at}.residual_weight")));
                self.note("residual_weight", text);
            }
            let base = self.maybe_model(slice, "base_model", &format!("{at}.base_model"))?;
            let settings = self.settings(slice, &at, spec, true)?;
            let mut sources = Vec::new();
            for (j, source) in self.list(slice, &format!("{at}.sources"))?.iter().enumerate() {
                sources.push(self.input(source, &format!("{at}.sources[{j}]"), spec, true)?);
            }
            self.same_length(&sources, &at)?;
            slices.push(Slice { sources, base, settings });
        }
        Ok(Layout::Slices(slices))
    }

    fn same_length(&self, sources: &[Input], at: &str) -> Result<()> {
        let length = |input: &Input| input.layers.map_or(0, |(from, to)| to - from);
        let first = length(&sources[0]);
        match sources.iter().find(|source| length(source) != first) {
            Some(other) => {
                let what = format!(
                    "sources must have as many layers each: {} has {first}, {} has {}",
                    sources[0].model,
                    other.model,
                    length(other)
                );
                Err(self.error(at, what))
            }
            None => Ok(()),
        }
    }

    fn input(&mut self, entry: &Value, at: &str, spec: &Spec, slice: bool) -> Result<Input> {
        let Value::Object(map) = entry else {
            return Err(self.error(at, format!("expected `model: …`, got {entry}")));
        };
        let range = slice.then_some("layer_range");
        let keys: Vec<&str> =
            ["model", "parameters"].into_iter().chain(range).chain(spec.beside).collect();
        self.known(map, at, &keys)?;
        let model = self
            .maybe_model(map, "model", &format!("{at}.model"))?
            .ok_or_else(|| self.error(at, "model is missing"))?;
        let layers = if slice { Some(self.range(map, at)?) } else { None };
        let beside = match spec.beside {
            Some(key) => self.files(map, key, &format!("{at}.{key}"))?,
            None => Vec::new(),
        };
        Ok(Input { model, layers, settings: self.settings(map, at, spec, false)?, beside })
    }

    /// One file or several.
    fn files(&self, map: &Map<String, Value>, key: &str, at: &str) -> Result<Vec<String>> {
        let one = |value: &Value| match value {
            Value::String(name) if !name.is_empty() => Ok(name.clone()),
            other => Err(self.error(at, format!("expected a file, got {other}"))),
        };
        match map.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    fn range(&self, map: &Map<String, Value>, at: &str) -> Result<(usize, usize)> {
        let value = map.get("layer_range").unwrap_or(&Value::Null);
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let pair = value.as_array().and_then(|list| match list.as_slice() {
            [from, to] => number(from).zip(number(to)),
            _ => None,
        });
        pair.filter(|(from, to)| from < to).ok_or_else(|| {
            let what = format!("expected [first, one past the last], got {value}");
            self.error(&format!("{at}.layer_range"), what)
        })
    }
}
