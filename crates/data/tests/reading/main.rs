//! Reading: formats, layouts, and every refusal with its exact place.

mod errors;
mod formats;
mod fuzz;
mod layouts;
mod trl;

use std::{io::Write, path::PathBuf};

use luthier_core::{Result, Table};
use luthier_data::{ReadOptions, read};
use tempfile::TempDir;

/// A folder with one data file.
struct Kept {
    dir: TempDir,
    path: PathBuf,
}

fn kept(name: &str, bytes: impl AsRef<[u8]>) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Kept { dir, path }
}

fn options(text: &str) -> ReadOptions {
    toml::from_str(text).unwrap()
}

fn try_table(name: &str, bytes: impl AsRef<[u8]>, settings: &str) -> Result<Table> {
    read(&kept(name, bytes).path, &options(settings))
}

fn table(name: &str, bytes: impl AsRef<[u8]>) -> Table {
    try_table(name, bytes, "").unwrap()
}

/// The refusal, with the folder's own path taken off.
fn refusal(name: &str, bytes: impl AsRef<[u8]>, settings: &str) -> String {
    let kept = kept(name, bytes);
    let error = read(&kept.path, &options(settings)).map(|t| t.layout).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string().replace(&format!("{}/", kept.dir.path().display()), "")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}
