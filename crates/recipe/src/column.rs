//! Columns that an objective needs beside what is asked and answered.

use luthier_core::{Error, Example, Result};
use serde_json::Value;

/// The text in a column; `hint` says who needs it.
pub fn text<'a>(example: &'a Example, column: &str, hint: &str) -> Result<&'a str> {
    let what = match example.columns.get(column) {
        Some(Value::String(text)) if !text.trim().is_empty() => return Ok(text),
        Some(_) => format!("column {column}: expected a text that is not empty"),
        None => format!("there is no column {column}"),
    };
    Err(Error::input(example.origin.to_string(), what).hint(hint))
}
