//! The recorded outcome of every check: a committed file, from which METHODS.md is made.

use std::path::Path;

use luthier_core::{Error, Result, io};
use serde_json::{Value, json};

use crate::{Paper, Report};

/// The file, from the root of the repository.
pub const FILE: &str = "crates/reproduce/results.json";

/// Puts a report into the file at `path`, in place of an earlier one of the same paper. The file
/// must be there, so that a record is not written beside the repository by mistake.
pub fn record(path: &Path, paper: &Paper, report: &Report) -> Result<()> {
    let missing = |e: Error| match path.is_file() {
        true => e,
        false => Error::input(path.display().to_string(), "there is no such file of results")
            .hint("run this in the root of the repository, or name the file with --record=FILE"),
    };
    let mut all: Vec<Value> = io::read_json(path).map_err(missing)?;
    let mut entry =
        serde_json::to_value(report).map_err(|e| Error::failed("report", e.to_string()))?;
    entry["title"] = json!(paper.title);
    entry["recipes"] = json!(paper.recipes);
    entry["luthier"] = json!(env!("CARGO_PKG_VERSION"));
    let number = |entry: &Value| entry["paper"].as_u64();
    all.retain(|known| number(known) != Some(u64::from(report.paper)));
    all.push(entry);
    all.sort_by_key(number);
    io::write_json(path, &all)
}
