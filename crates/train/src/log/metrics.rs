//! `metrics.jsonl`: one JSON object per line, appended and never rewritten while a run lives.
//!
//! A line is handed to the operating system in one write, so a killed run loses at most the tail
//! of its last line. Readers and [`truncate_after`] take an unfinished last line for what it is
//! and treat damage anywhere else as an error that names the line.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use luthier_core::{Error, Result, io::write_atomic};
use serde_json::Value;

/// Keys whose values depend on the clock; everything else repeats exactly for a recipe and seed.
pub const TIMINGS: &[&str] = &[
    "seconds",
    "tokens_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "peak_rss_bytes",
    "step_time",
];

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Starts the metrics of a new run; an existing file is another run's and is left alone.
    pub fn create(path: &Path) -> Result<Metrics> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        let file = OpenOptions::new().append(true).create_new(true).open(path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                Error::input(path.display().to_string(), "already holds the metrics of a run")
                    .hint("resume that run, or choose another output folder")
            } else {
                Error::io(path, e)
            }
        })?;
        Ok(Metrics { path: path.to_path_buf(), file })
    }

    /// Goes on with the metrics of a run that resumes after `step`. A missing file is started: a
    /// run killed before its first line has nothing to lose.
    pub fn resume(path: &Path, step: u64) -> Result<Metrics> {
        if !path.exists() {
            return Metrics::create(path);
        }
        truncate_after(path, step)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, e))?;
        Ok(Metrics { path: path.to_path_buf(), file })
    }

    /// Appends one record.
    pub fn write(&mut self, record: &Value) -> Result<()> {
        let mut line = record.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    /// Makes everything written so far survive a loss of power.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }
}

/// Drops every line of a step beyond `step`, and an unfinished last line; returns how many went.
///
/// The new file appears whole or not at all, so a second kill during a resume harms nothing.
pub fn truncate_after(path: &Path, step: u64) -> Result<usize> {
    let (mut keep, mut dropped) = (Vec::new(), 0);
    let partial = for_each_line(path, |text, value| {
        if value.get("step").and_then(Value::as_u64).is_some_and(|s| s > step) {
            dropped += 1;
        } else {
            keep.extend_from_slice(text);
            keep.push(b'\n');
        }
    })?;
    dropped += usize::from(partial);
    if dropped > 0 {
        write_atomic(path, |out| out.write_all(&keep))?;
    }
    Ok(dropped)
}

/// All records of a metrics file, in order. An unfinished last line is left out.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for_each_line(path, |_, value| records.push(value))?;
    Ok(records)
}

/// A record without the values that depend on the clock, for comparing two runs.
pub fn without_timings(mut record: Value) -> Value {
    if let Value::Object(map) = &mut record {
        map.retain(|key, _| !TIMINGS.contains(&key.as_str()));
    }
    record
}

/// Calls `each` with the bytes and the value of every whole line; says whether the last line was
/// unfinished (no newline at its end: a complete line always has one).
fn for_each_line(path: &Path, mut each: impl FnMut(&[u8], Value)) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut line, mut number) = (Vec::new(), 0usize);
    loop {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            return Ok(false);
        }
        if line.pop_if(|b| *b == b'\n').is_none() {
            return Ok(true);
        }
        let at = || format!("{}:{number}", path.display());
        match serde_json::from_slice::<Value>(&line) {
            Ok(value) if value.is_object() => each(&line, value),
            Ok(_) => return Err(Error::input(at(), "expected a JSON object")),
            Err(e) => {
                let what = format!("not JSON at column {}: {e}", e.column());
                return Err(Error::input(at(), what).hint(
                    "only the last line of a killed run may be unfinished; remove this one",
                ));
            }
        }
    }
}
