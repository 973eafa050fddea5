//! `manifest.json`: where a run's files came from, in hashes.

use std::{collections::BTreeMap, path::Path};

use luthier_core::{Error, Result, io};
use serde::{Deserialize, Serialize};

/// File name inside a run directory.
pub const MANIFEST: &str = "manifest.json";

/// A file that went in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// `model`, `train`, `eval`, `tokenizer`, ….
    pub role: String,
    /// What the user called it.
    pub name: String,
    /// Hash of its bytes.
    pub sha256: String,
}

/// A file that came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Its path inside the run directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Hash of its bytes.
    pub sha256: String,
}

/// Provenance of a run. It holds no times: the same inputs give the same manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of luthier.
    pub luthier: String,
    /// The command line.
    pub command: String,
    /// Hash of the resolved recipe.
    pub recipe_sha256: String,
    /// The seed of all randomness.
    pub seed: u64,
    /// The arithmetic of matrix products that was in use: `f32` or `bf16`.
    pub precision: String,
    /// How the base's weights were held: in that arithmetic, or quantised.
    pub weights: String,
    /// What went in.
    pub inputs: Vec<Input>,
    /// What came out.
    pub outputs: Vec<Output>,
    /// Headline numbers.
    pub metrics: BTreeMap<String, f64>,
}

/// Describes files of `dir` by size and hash.
pub fn outputs<'a>(dir: &Path, files: impl IntoIterator<Item = &'a Path>) -> Result<Vec<Output>> {
    let describe = |file: &Path| {
        let bytes = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
        let path = file.strip_prefix(dir).unwrap_or(file).display().to_string();
        Ok(Output { path, bytes, sha256: io::sha256_file(file)? })
    };
    files.into_iter().map(describe).collect()
}

impl Manifest {
    /// Writes `manifest.json` into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        io::write_json(&dir.join(MANIFEST), self)
    }
}
