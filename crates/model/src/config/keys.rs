//! Typed reading of a JSON object: every error names file and key, what was expected and found.

use luthier_core::{Error, Result, nearest::suggest};
use serde_json::{Map, Value};

/// An object of the file; `null` counts as absent.
pub(super) struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub at: String,
}

impl Keys<'_> {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn bad(&self, key: &str, expected: &str, got: &Value) -> Error {
        Error::input(&self.at, format!("key {key}: expected {expected}, got {got}"))
    }

    pub fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        pick: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let pick = |v| pick(v).ok_or_else(|| self.bad(key, expected, v));
        self.get(key).map(pick).transpose()
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let pick = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.typed(key, "a whole number", pick)
    }

    pub fn need(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| {
            let known = self.map.keys().map(String::as_str);
            let hint = match suggest(key, known) {
                s if s.starts_with("known:") => "is this a language model's config.json?".into(),
                s => s,
            };
            Error::input(&self.at, format!("key {key} is missing")).hint(hint)
        })
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a text", |v| v.as_str().map(String::from))
    }

    /// One id or a list of ids. Negative ids were an old way to say "none".
    pub fn ids(&self, key: &str, default: &[u32]) -> Result<Vec<u32>> {
        // An explicit null means none; only an absent key means the default.
        match self.map.get(key) {
            None => return Ok(default.to_vec()),
            Some(Value::Null) => return Ok(Vec::new()),
            Some(_) => {}
        }
        let one = |v: &Value| match v.as_i64() {
            Some(n) if n < 0 => Some(None),
            Some(n) => u32::try_from(n).ok().map(Some),
            None => None,
        };
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
            v => one(v).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default().into_iter().flatten().collect())
    }
}
