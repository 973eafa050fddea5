//! The token that hides others (`[train.corrupt]`), sought in the tokenizer.

use luthier_core::{Error, Result, nearest::suggest};
use luthier_model::Tokenizer;
use luthier_train::{Corrupt, MaskToken};

const KEY: &str = "train.corrupt.mask_token";

/// The id of the mask: the token that is named, or the padding token.
pub fn mask(corrupt: &Corrupt, tokenizer: &Tokenizer) -> Result<u32> {
    match &corrupt.mask_token {
        Some(MaskToken::Id(id)) if (*id as usize) < tokenizer.vocab_size() => Ok(*id),
        Some(MaskToken::Id(id)) => {
            let what = format!("expected an id below {}, got {id}", tokenizer.vocab_size());
            Err(Error::input(KEY, what))
        }
        Some(MaskToken::Text(text)) => tokenizer.id(text).ok_or_else(|| {
            let special = special(tokenizer);
            Error::input(KEY, format!("`{text}` is no token of this vocabulary"))
                .hint(suggest(text, special.iter().map(String::as_str)))
        }),
        None => padding(tokenizer, tokenizer.pad()),
    }
}

/// The padding token, unless it means something in what is read.
fn padding(tokenizer: &Tokenizer, pad: Option<u32>) -> Result<u32> {
    match pad {
        Some(pad) if !tokenizer.eos_ids().contains(&pad) => Ok(pad),
        found => {
            let what = match found.and_then(|pad| tokenizer.token(pad)) {
                Some(pad) => format!("the padding token {pad} also ends answers"),
                None => "there is no padding token".to_string(),
            };
            let special = special(tokenizer).join(", ");
            Err(Error::input(KEY, format!("missing, and {what}"))
                .hint(format!("name a token that the data does not use, of {special}")))
        }
    }
}

/// The special tokens that end nothing.
fn special(tokenizer: &Tokenizer) -> Vec<String> {
    let ids = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id));
    let ids = ids.filter(|id| !tokenizer.eos_ids().contains(id));
    ids.filter_map(|id| tokenizer.token(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_named_or_refused() {
        let tokenizer = Tokenizer::bytes();
        let of = |mask_token| mask(&Corrupt { mask_token, ..Corrupt::default() }, &tokenizer);
        let text = |text: &str| Some(MaskToken::Text(text.into()));
        assert_eq!(of(text("<|im_start|>")).unwrap(), 256);
        assert_eq!(of(Some(MaskToken::Id(7))).unwrap(), 7);
        for (token, want) in [
            (text("<mask>"), "`<mask>` is no token"),
            (Some(MaskToken::Id(9999)), "expected an id below 259, got 9999"),
        ] {
            let error = of(token).unwrap_err().to_string();
            assert!(
                error.starts_with("train.corrupt.mask_token: ") && error.contains(want),
                "{error}"
            );
        }
        assert_eq!(of(None).unwrap(), 258);
        for (pad, want) in
            [(Some(257), "padding token <|im_end|> also ends"), (None, "no padding token")]
        {
            let error = padding(&tokenizer, pad).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("<|im_start|>"), "{error}");
        }
    }
}
