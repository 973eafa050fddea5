//! The cells of one row by their roles, and the ways of reading one.

use luthier_core::{Error, Origin, Result, Turn};
use serde_json::{Map, Value};

use super::{describe, turns};

/// What a row's layout has a use for.
pub(super) struct Cells<'a> {
    origin: &'a Origin,
    cells: Vec<(&'a str, &'a str, Value)>,
}

impl<'a> Cells<'a> {
    pub(super) fn new(origin: &'a Origin) -> Self {
        Cells { origin, cells: Vec::with_capacity(4) }
    }

    pub(super) fn add(&mut self, role: &'a str, column: &'a str, value: Value) {
        self.cells.push((role, column, value));
    }

    /// An error that names the row.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error::input(self.origin.to_string(), what)
    }

    /// An error that names the row and the column.
    pub(super) fn wrong(&self, column: &str, what: impl std::fmt::Display) -> Error {
        self.error(format!("column {column}: {what}"))
    }

    /// Takes the cell with this role out: its column and its value.
    pub(super) fn take(&mut self, role: &str) -> Option<(&'a str, Value)> {
        let i = self.cells.iter().position(|(r, _, _)| *r == role)?;
        let (_, column, value) = self.cells.swap_remove(i);
        Some((column, value))
    }

    /// Takes a text; anything else under this role is refused.
    pub(super) fn text(&mut self, role: &str) -> Result<Option<String>> {
        match self.take(role) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((column, other)) => {
                Err(self.wrong(column, format!("expected text, found {}", describe(&other))))
            }
        }
    }

    /// Takes a text or a message list: a text is one turn of `speaker`, and says so.
    pub(super) fn said(&mut self, role: &str, speaker: &str) -> Result<Option<Said<'a>>> {
        let Some((column, value)) = self.take(role) else { return Ok(None) };
        let (turns, plain) = match value {
            Value::String(text) => (vec![Turn::new(speaker, text)], true),
            Value::Array(_) | Value::Object(_) => (turns::read(self, column, value)?, false),
            other => {
                let what =
                    format!("expected text or a list of messages, found {}", describe(&other));
                return Err(self.wrong(column, what));
            }
        };
        Ok(Some(Said { column, turns, plain }))
    }

    /// Takes the definitions of tools: a list, or a list as JSON text. An empty list is none.
    pub(super) fn tools(&mut self) -> Result<Option<Value>> {
        let Some((column, value)) = self.take("tools") else { return Ok(None) };
        match self.parsed(column, value)? {
            Value::Null => Ok(None),
            Value::Array(list) if list.is_empty() => Ok(None),
            list @ Value::Array(_) => Ok(Some(list)),
            other => {
                Err(self
                    .wrong(column, format!("expected a list of tools, found {}", describe(&other))))
            }
        }
    }

    /// Takes an object, perhaps as JSON text; a missing one is empty.
    pub(super) fn object(&mut self, role: &str) -> Result<Map<String, Value>> {
        let Some((column, value)) = self.take(role) else { return Ok(Map::new()) };
        match self.parsed(column, value)? {
            Value::Null => Ok(Map::new()),
            Value::Object(map) => Ok(map),
            other => {
                Err(self.wrong(column, format!("expected an object, found {}", describe(&other))))
            }
        }
    }

    /// Looks into JSON text, the only way in which CSV and some Parquet files can hold a list.
    pub(super) fn parsed(&self, column: &str, value: Value) -> Result<Value> {
        match value {
            Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|e| self.wrong(column, format!("expected JSON text: {e}"))),
            other => Ok(other),
        }
    }
}

/// What a prompt or an answer column says.
pub(super) struct Said<'a> {
    pub(super) column: &'a str,
    pub(super) turns: Vec<Turn>,
    /// Whether it was a text rather than a list of messages.
    pub(super) plain: bool,
}
