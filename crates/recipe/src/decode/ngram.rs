//! `[decode.sources.NAME.ngram]`: texts as a source.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result};
use luthier_data::ReadOptions;
use luthier_decode::sources::Ngram;
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, render_table},
};
use serde::{Deserialize, Serialize};

/// Texts whose continuations are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// A file, folder or glob of any known layout; conversations through the chat template.
    pub data: PathBuf,
    /// So many tokens less one are looked up.
    #[serde(default = "order")]
    pub n: usize,
}

/// The order of the usual models of counts (Chen & Goodman 1998 go up to 5).
fn order() -> usize {
    5
}

impl Texts {
    pub(super) fn check(&self, at: &str) -> Result<()> {
        match self.n {
            0 => Err(Error::input(format!("{at}.n"), "expected at least 1, got 0")),
            _ => Ok(()),
        }
    }

    /// The texts as tokens of `tokenizer`, ready to be looked up.
    pub(super) fn open(&self, at: &str, tokenizer: &Tokenizer) -> Result<Ngram> {
        let table = luthier_data::read(Path::new(&self.data), &ReadOptions::default())?;
        let rows = render_table(&table, tokenizer, &RenderOptions::default())?;
        let texts = rows.into_iter().map(|rendered| {
            let mut ids = rendered.row.ids;
            ids.extend(rendered.row.targets.last());
            ids
        });
        Ngram::new(texts, self.n).map_err(|e| Error::within(at, e))
    }
}
