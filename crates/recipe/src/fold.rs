//! An adapter merged into its base, and the proof that it is the same model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use luthier_core::{Error, Policy, Result, Rows, Seed};
use luthier_model::{Decoder, Precision, Source, save::SaveDtype};
use serde::Serialize;

use crate::{export, open::Opened};

/// What folding did.
#[derive(Clone, Debug, Serialize)]
pub struct Folded {
    /// The merged model's folder.
    pub model: PathBuf,
    /// Files written.
    pub files: Vec<PathBuf>,
    /// Number format of the written weights.
    pub dtype: SaveDtype,
    /// Largest difference of a logit between base + adapter and the model read back.
    pub max_logit_difference: f32,
    /// Largest logit, for scale.
    pub max_logit: f32,
    /// Tokens compared.
    pub tokens: usize,
}

/// Rows of the comparison: one longer than an attention block, one short, one of a single token.
const PROBE: [usize; 3] = [96, 17, 1];

/// Folds the adapter in `adapter` into `opened` and writes the result to `out`.
pub fn fold(opened: &Opened, adapter: &Path, dtype: SaveDtype, out: &Path) -> Result<Folded> {
    if opened.precision != Precision::F32 {
        // Its weights are rounded, and would be written so.
        let what = "is open for products in bf16, folding needs f32";
        return Err(Error::failed(&opened.name, what));
    }
    if out.exists() && out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(out.display().to_string(), "the output folder is not empty")
            .hint("name a new folder"));
    }
    let bound = opened.with_adapter(adapter)?;
    let files = export::merged(&bound.policy, opened, dtype, out)?;
    let again = Decoder::load(&Source::open(out)?, Precision::F32, |_, _| ())?;
    let (max_logit_difference, max_logit, tokens) =
        compare(&bound.policy, &Policy::plain(Arc::new(again)))?;
    Ok(Folded { model: out.to_path_buf(), files, dtype, max_logit_difference, max_logit, tokens })
}

/// Largest difference, largest logit, and how many tokens were compared.
fn compare(one: &Policy, other: &Policy) -> Result<(f32, f32, usize)> {
    let rows = Arc::new(Rows::new(&PROBE, |_| 0));
    let mut rng = Seed(0).split("fold").rng();
    let ids_n: Vec<u32> = (0..rows.n()).map(|_| rng.below(one.model.vocab()) as u32).collect();
    let (a, b) = (one.logits(&ids_n, rows.clone())?, other.logits(&ids_n, rows.clone())?);
    let difference = (&a - &b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let largest = a.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok((difference, largest, rows.n()))
}
