//! Reading back what was written, before it becomes the output.

use std::path::Path;

use half::{bf16, f16};
use luthier_core::{Error, Result};
use luthier_model::{Source, Tokenizer, save::SaveDtype};

use super::{
    Firsts,
    plan::{Plan, drop_beyond},
    tokens::{self, Vocabulary},
};

/// Opens the folder as any user would and compares it with what was meant.
pub(super) fn read_back(
    dir: &Path,
    plan: &Plan,
    vocabulary: Option<&Vocabulary>,
    firsts: &Firsts,
) -> Result<()> {
    // Compares every name and shape with the configuration.
    let source = Source::open(dir)?;
    for planned in &plan.tensors {
        let Some(first) = firsts.get(&planned.name) else { continue };
        let mut read = vec![0f32; first.len()];
        source.read_f32(&planned.name, 0, &mut read)?;
        let written = first.iter().map(|x| match planned.dtype {
            SaveDtype::F32 => *x,
            SaveDtype::BF16 => bf16::from_f32(*x).to_f32(),
            SaveDtype::F16 => f16::from_f32(*x).to_f32(),
        });
        if !written.eq(read.iter().copied()) {
            return Err(Error::failed(&planned.name, "reads back other than it was written"));
        }
    }
    let rows = source.config().vocab;
    if let Some(beyond) = drop_beyond(&mut source.config().clone()).first() {
        return Err(Error::failed("config.json", beyond.clone()));
    }
    if !tokens::has_tokenizer(dir) {
        return Ok(());
    }
    let tokenizer = Tokenizer::open(dir)?;
    let size = tokenizer.vocab_size();
    if size > rows {
        let what = format!("the tokenizer has {size} tokens, the model {rows} rows for them");
        return Err(Error::failed("tokenizer.json", what)
            .hint("`tokenizer: {source: base}` gives the output a tokenizer that fits"));
    }
    for added in vocabulary.iter().flat_map(|vocabulary| &vocabulary.added) {
        let got = tokenizer.id(&added.token);
        if got != Some(added.id) {
            let what = format!("{:?} should have the id {}, got {got:?}", added.token, added.id);
            return Err(Error::failed("tokenizer.json", what)
                .hint("the ids of the base's tokenizer have gaps, which added tokens fill"));
        }
    }
    Ok(())
}
