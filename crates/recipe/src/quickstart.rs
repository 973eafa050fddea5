//! The first thing a newcomer runs: the whole life of a small fine-tuned model on bundled data.

use std::path::{Path, PathBuf};

use luthier_core::{Result, io};

use crate::schema::Recipe;

/// The bundled files: name inside the run directory, and content.
const FILES: &[(&str, &str)] = &[
    ("data/train.jsonl", include_str!("../../../recipes/quickstart/train.jsonl")),
    ("data/test.jsonl", include_str!("../../../recipes/quickstart/test.jsonl")),
    ("data/general.txt", include_str!("../../../recipes/quickstart/general.txt")),
    ("quickstart.toml", include_str!("../../../recipes/quickstart/quickstart.toml")),
];

/// Where quickstart works when no folder is named.
pub const DIR: &str = "luthier-quickstart";

/// Writes the bundled recipe and data into `dir` and returns the recipe's path. Files that are
/// there already are left alone, so that a second call runs what the user has edited.
pub fn unpack(dir: &Path) -> Result<PathBuf> {
    for (name, content) in FILES {
        let path = dir.join(name);
        if !path.exists() {
            io::write_bytes(&path, content.as_bytes())?;
        }
    }
    Ok(dir.join("quickstart.toml"))
}

/// The bundled recipe, reading the files that [`unpack`] wrote.
pub fn recipe(dir: &Path, overrides: &[String]) -> Result<Recipe> {
    Recipe::load(&unpack(dir)?, overrides)
}
