//! Files become tables: open, decompress, hash, parse, recognise the layout.

mod csv;
mod intake;
mod json;
mod jsonl;
mod parquet;
mod paths;
mod source;
mod text;

use std::{collections::BTreeMap, path::Path};

use luthier_core::{Error, Form, Result, Table};
use serde::{Deserialize, Serialize};

use crate::{Layout, mix::concat::concat};
use intake::Intake;
use source::Source;

/// How rows are to be understood, where their columns do not say it well enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// The layout; recognised by the columns when left out.
    pub layout: Option<Layout>,
    /// Which column plays which role, as in `prompt = "question"`.
    pub columns: BTreeMap<String, String>,
    /// Chat template or raw text; text is always raw, all else is chat when left out.
    pub form: Option<Form>,
    /// A system turn for conversations without one.
    pub system: Option<String>,
}

/// The formats, by the end of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jsonl,
    Json,
    Csv(u8),
    Parquet,
    Text,
}

/// Every ending that is read; all but `.parquet` may be followed by `.gz`.
const SUFFIXES: &[(&str, Format)] = &[
    (".jsonl", Format::Jsonl),
    (".ndjson", Format::Jsonl),
    (".json", Format::Json),
    (".csv", Format::Csv(b',')),
    (".tsv", Format::Csv(b'\t')),
    (".parquet", Format::Parquet),
    (".txt", Format::Text),
];

impl Format {
    fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let (name, gzip) = name.strip_suffix(".gz").map_or((name.as_str(), false), |n| (n, true));
        let (_, format) = SUFFIXES.iter().find(|(suffix, _)| name.ends_with(suffix))?;
        (*format != Format::Parquet || !gzip).then_some(*format)
    }
}

/// Reads one file. A directory or a glob is read as [`read_many`] does.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Table> {
    if !path.is_file() {
        return read_many(&[path], options);
    }
    let name = path.display().to_string();
    let Some(format) = Format::of(path) else {
        let known: Vec<&str> = SUFFIXES.iter().map(|(suffix, _)| *suffix).collect();
        return Err(Error::input(name, "the end of the name is that of no known format")
            .hint(format!("known: {} (all but .parquet also with .gz)", known.join(", "))));
    };
    let mut intake = Intake::new(&name, options);
    let sha256 = if format == Format::Parquet {
        parquet::read(path, &mut intake)?;
        luthier_core::io::sha256_file(path)?
    } else {
        let mut source = Source::open(path)?;
        match format {
            Format::Jsonl => jsonl::read(&mut source, &mut intake)?,
            Format::Json => json::read(&mut source, &mut intake)?,
            Format::Csv(delimiter) => csv::read(&mut source, delimiter, &mut intake)?,
            Format::Text => text::read(&mut source, &mut intake)?,
            Format::Parquet => {}
        }
        source.finish()?
    };
    intake.finish(sha256)
}

/// Reads several files, directories (their files of known formats, by name) and globs as one table.
pub fn read_many<P: AsRef<Path>>(paths: &[P], options: &ReadOptions) -> Result<Table> {
    let files = paths::expand(paths)?;
    let tables = files.iter().map(|f| read(f, options)).collect::<Result<Vec<Table>>>()?;
    let names: Vec<String> = paths.iter().map(|p| p.as_ref().display().to_string()).collect();
    Ok(concat(&names.join(", "), tables))
}
