//! The tokenizer as the decoding engine sees it.

use luthier_decode::TokenText;
use luthier_model::Tokenizer;

/// Decodes without special tokens.
pub struct Text<'a>(pub &'a Tokenizer);

impl TokenText for Text<'_> {
    fn decode(&self, ids: &[u32]) -> String {
        // Ids come from the model's own vocabulary; a hole in the tokenizer's shows as nothing.
        self.0.decode(ids).unwrap_or_default()
    }
}
