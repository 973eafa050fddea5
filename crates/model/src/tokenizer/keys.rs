//! The tokenizer's keys in a GGUF file.

use luthier_core::{Error, Result};

use super::GgufVocab;
use crate::gguf::Gguf;

impl GgufVocab {
    /// Reads the `tokenizer.*` keys of an opened file.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| -> Result<Option<u32>> {
            let key = key(&format!("{name}_token_id"));
            let Some(id) = gguf.opt_uint(&key)? else { return Ok(None) };
            u32::try_from(id).map(Some).map_err(|_| {
                let at = gguf.path().display().to_string();
                Error::input(at, format!("key {key}: {id} is no token id"))
            })
        };
        Ok(GgufVocab {
            file: gguf.path().display().to_string(),
            model: gguf.text(&key("model"))?.to_string(),
            pre: gguf.opt_text(&key("pre"))?.map(str::to_string),
            tokens: gguf.texts(&key("tokens"))?.to_vec(),
            types: gguf
                .opt_ints(&key("token_type"))?
                .unwrap_or_default()
                .iter()
                .map(|t| *t as i32)
                .collect(),
            scores: gguf
                .opt_floats(&key("scores"))?
                .unwrap_or_default()
                .iter()
                .map(|s| *s as f32)
                .collect(),
            merges: gguf.opt_texts(&key("merges"))?.unwrap_or_default().to_vec(),
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unknown: id("unknown")?,
            padding: id("padding")?,
            add_bos: gguf.opt_flag(&key("add_bos_token"))?,
            add_space_prefix: gguf.opt_flag(&key("add_space_prefix"))?,
            chat_template: gguf.opt_text("tokenizer.chat_template")?.map(str::to_string),
        })
    }
}
