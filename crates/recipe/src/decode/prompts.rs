//! The prompt that a source reads in the place of the policy's.

use luthier_core::{Example, Form, Result, Turn};
use luthier_model::{Tokenizer, render::generation_prompt};

use super::{Source, Template};

/// A source's own tokens for `example`, whose tokens for the policy are `ids`; `None` where they are the
/// same.
pub(super) fn own(
    source: &Source,
    example: &Example,
    ids: &[u32],
    policy: &Tokenizer,
    tokenizer: &Tokenizer,
) -> Result<Option<Vec<u32>>> {
    if source.template == Template::LastToken {
        return Ok(Some(ids[ids.len().saturating_sub(1)..].to_vec()));
    }
    let same =
        source.template == Template::Same && source.system.is_none() && source.user.is_none();
    if same {
        return Ok(None);
    }
    let mut example = example.clone();
    if let Some(text) = &source.system {
        example.prompt.retain(|turn| turn.role != "system");
        if !text.is_empty() {
            example.prompt.insert(0, Turn::new("system", text.as_str()));
        }
    }
    if let Some(text) = &source.user {
        let last = example.prompt.iter_mut().rev().find(|turn| turn.role == "user");
        last.into_iter().for_each(|turn| turn.content.clone_from(text));
    }
    let reads = match source.template {
        Template::Same | Template::LastToken => policy,
        Template::Own => tokenizer,
        Template::Raw => {
            example.form = Form::Raw;
            tokenizer
        }
    };
    generation_prompt(&example, reads).map(Some)
}
