//! Reading back what was written, before it becomes the output.

use std::path::Path;

use half::{bf16, f16};
use luthier_core::{Error, Result};
use luthier_model::{Source, Tokenizer, save::SaveDtype};

use super::{Firsts, plan::Plan, tokens};

/// Opens the folder as any user would and compares it with what was meant.
pub(super) fn read_back(dir: &Path, plan: &Plan, firsts: &Firsts) -> Result<()> {
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
    if tokens::has_tokenizer(dir) {
        let size = Tokenizer::open(dir)?.vocab_size();
        let rows = plan.config.vocab;
        if size > rows {
            let what = format!("the tokenizer has {size} tokens, the model {rows} rows for them");
            return Err(Error::failed("tokenizer.json", what)
                .hint("`tokenizer: {source: base}` gives the output a tokenizer that fits"));
        }
    }
    Ok(())
}
