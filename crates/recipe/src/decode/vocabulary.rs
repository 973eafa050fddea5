//! Vocabularies: whether two are the same, and the bytes that tokens stand for.

use luthier_core::{Error, Result};
use luthier_model::Tokenizer;

/// Refuses a source whose tokens are not the policy's, one by one; `name` is the source's.
///
/// Logits of several models are added id by id, so that a single token of another meaning would go
/// unnoticed and be wrong.
pub fn compare(name: &str, own: &Tokenizer, policy: &Tokenizer) -> Result<()> {
    if own.sha256() == policy.sha256() {
        return Ok(());
    }
    let n = own.vocab_size().max(policy.vocab_size()) as u32;
    let Some(id) = (0..n).find(|id| own.token(*id) != policy.token(*id)) else { return Ok(()) };
    let shown = |token: Option<String>| token.map_or("nothing".to_string(), |t| format!("`{t}`"));
    let what = format!(
        "token {id} is {} there and {} in the policy's vocabulary",
        shown(own.token(id)),
        shown(policy.token(id))
    );
    Err(Error::input(format!("decode.sources.{name}"), what)
        .hint("combine models of one family: their tokens must be the same, id by id"))
}

/// The bytes of every token; none for special tokens and holes.
pub fn words(tokenizer: &Tokenizer) -> Vec<Option<Vec<u8>>> {
    // A byte-level vocabulary spells a blank as Ġ, SentencePiece as ▁.
    let byte_level = tokenizer.id("Ġ").is_some();
    let word = |id: u32| {
        let text = tokenizer.token(id).filter(|_| !tokenizer.is_special(id))?;
        match byte_level {
            true => text.chars().map(byte).collect::<Option<Vec<u8>>>().or(Some(text.into_bytes())),
            false => Some(piece(&text)),
        }
    };
    (0..tokenizer.vocab_size() as u32).map(word).collect()
}

/// The byte that a character of a byte-level vocabulary spells: printable Latin-1 spells itself, the
/// others follow from U+0100 in their order.
fn byte(spelt: char) -> Option<u8> {
    let plain = |code: u32| matches!(code, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match spelt as u32 {
        code if plain(code) => u8::try_from(code).ok(),
        code @ 0x100.. => {
            let mut others = (0..256u32).filter(|b| !plain(*b));
            others.nth((code - 0x100) as usize).and_then(|b| u8::try_from(b).ok())
        }
        _ => None,
    }
}

/// The bytes of a SentencePiece token: `<0x0A>` is a byte.
fn piece(text: &str) -> Vec<u8> {
    let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => text.replace('▁', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_byte_level_vocabulary_are_the_bytes() {
        let words = words(&Tokenizer::bytes());
        assert_eq!(words.len(), 259);
        for (id, word) in words.iter().take(256).enumerate() {
            assert_eq!(word.as_deref(), Some(&[id as u8][..]), "{id}");
        }
        assert!(words[256..].iter().all(Option::is_none));
    }

    #[test]
    fn pieces_are_spelt_with_blanks_and_hexadecimal_bytes() {
        assert_eq!(piece("▁the"), b" the");
        assert_eq!(piece("<0x0A>"), b"\n");
        assert_eq!(piece("<0x0A"), b"<0x0A");
    }
}
