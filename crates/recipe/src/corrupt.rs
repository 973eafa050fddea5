//! The token that hides others (`[train.corrupt]`), sought in the tokenizer.

use luthier_core::{Error, Result, nearest::suggest};
use luthier_model::Tokenizer;
use luthier_train::{Corrupt, MaskInit, MaskToken, Train};

use crate::{open::Opened, prepare::Prepared};

const KEY: &str = "train.corrupt.mask_token";

/// The id of the mask, which takes the place of its name in `config`; `None` where nothing is hidden.
pub fn settle(config: &mut Train, opened: &Opened, train: &Prepared) -> Result<Option<u32>> {
    let Some(corrupt) = &mut config.corrupt else { return Ok(None) };
    let mask = mask(corrupt, &opened.tokenizer, opened.model.vocab())?;
    unread(corrupt, mask, train)?;
    corrupt.mask_token = Some(MaskToken::Id(mask));
    Ok(Some(mask))
}

/// The id of the mask: the token that is named, or the padding token. Of the `rows` that the embedding has,
/// one beyond the tokenizer's last may be named, too: nothing else ever reads it.
fn mask(corrupt: &Corrupt, tokenizer: &Tokenizer, rows: usize) -> Result<u32> {
    match &corrupt.mask_token {
        Some(MaskToken::Id(id)) if (*id as usize) < rows => Ok(*id),
        Some(MaskToken::Id(id)) => {
            let what = format!("expected an id below {rows}, got {id}");
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

/// Refuses rows that read the mask themselves where it is to be learned as a token that is new: there it would
/// be read as something else than afterwards.
fn unread(corrupt: &Corrupt, mask: u32, train: &Prepared) -> Result<()> {
    if corrupt.mask_token_init == MaskInit::Own {
        return Ok(());
    }
    match train.rows.iter().find(|row| row.ids.contains(&mask) || row.targets.contains(&mask)) {
        None => Ok(()),
        Some(row) => {
            let at = train.table.examples[row.example].origin.to_string();
            let what = format!("has the token {mask}, which train.corrupt puts in place of others");
            Err(Error::input(at, what).hint(
                "name a token in train.corrupt.mask_token that the data do not use, or \
                mask_token_init = \"own\"",
            ))
        }
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
    use luthier_core::{Example, Row, Table};
    use luthier_data::CutTable;

    use super::*;

    #[test]
    fn a_token_that_is_new_is_read_by_no_row() {
        let row = |ids: &[u32], example| Row { example, ..Row::from_tokens(ids, &[1.0; 3], 0) };
        let example = |line| Example::new("t.jsonl", line, Vec::new(), None);
        let (name, layout, sha256) = (String::new(), String::new(), String::new());
        let table = Table { name, layout, sha256, examples: vec![example(1), example(2)] };
        let rows = vec![row(&[1, 2, 3], 0), row(&[4, 5, 6], 1)];
        let train = Prepared { table, rows, cut: CutTable::default() };
        let new = Corrupt { mask_token_init: MaskInit::Mean, ..Corrupt::default() };
        unread(&new, 7, &train).unwrap();
        unread(&Corrupt::default(), 5, &train).unwrap();
        for mask in [4, 6] {
            let error = unread(&new, mask, &train).unwrap_err().to_string();
            assert!(error.starts_with(&format!("t.jsonl:2: has the token {mask}")), "{error}");
        }
    }

    #[test]
    fn a_mask_is_named_or_refused() {
        let tokenizer = Tokenizer::bytes();
        let of = |mask_token| mask(&Corrupt { mask_token, ..Corrupt::default() }, &tokenizer, 300);
        let text = |text: &str| Some(MaskToken::Text(text.into()));
        assert_eq!(of(text("<|im_start|>")).unwrap(), 256);
        assert_eq!(of(Some(MaskToken::Id(7))).unwrap(), 7);
        // The tokenizer has 259 tokens, the embedding more rows.
        assert_eq!(of(Some(MaskToken::Id(299))).unwrap(), 299);
        for (token, want) in [
            (text("<mask>"), "`<mask>` is no token"),
            (Some(MaskToken::Id(9999)), "expected an id below 300, got 9999"),
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
