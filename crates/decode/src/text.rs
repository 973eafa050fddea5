//! Tokens to text, one token at a time.

/// What decoding needs to know of a tokenizer.
pub trait TokenText {
    /// The text of `ids`, special tokens left out.
    fn decode(&self, ids: &[u32]) -> String;
}

/// Turns a growing list of tokens into pieces of text whose concatenation is the whole text.
///
/// A token may hold half a character, and some tokenizers drop the space before the first word of
/// whatever they decode. So each piece is the difference of two decodings that begin at the same,
/// earlier token, and a piece that ends inside a character waits for the next token.
#[derive(Clone, Debug, Default)]
pub struct Incremental {
    context: usize,
    read: usize,
}

impl Incremental {
    /// The text that `ids` (all tokens up to now) adds to what was returned before; `last` releases
    /// an unfinished character.
    pub fn push(&mut self, ids: &[u32], last: bool, tokens: &dyn TokenText) -> String {
        let known = tokens.decode(&ids[self.context..self.read]);
        let now = tokens.decode(&ids[self.context..]);
        if !last && now.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        (self.context, self.read) = (self.read, ids.len());
        if let Some(rest) = now.strip_prefix(known.as_str()) {
            return rest.to_string();
        }
        // The tokenizer rewrote text that is already out (a space before a full stop); what is out
        // stays, and the new piece begins where the two differ.
        let same = known.char_indices().zip(now.chars()).find(|((_, a), b)| a != b);
        now[same.map_or(known.len().min(now.len()), |((at, _), _)| at)..].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are bytes; like SentencePiece, the decoder drops one leading space.
    struct Bytes;

    impl TokenText for Bytes {
        fn decode(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.strip_prefix(' ').map_or(text.clone(), str::to_string)
        }
    }

    fn pieces(text: &[u8]) -> Vec<String> {
        let ids: Vec<u32> = text.iter().map(|b| u32::from(*b)).collect();
        let mut stream = Incremental::default();
        (1..=ids.len()).map(|n| stream.push(&ids[..n], n == ids.len(), &Bytes)).collect()
    }

    #[test]
    fn pieces_join_to_the_whole_and_never_cut_a_character() {
        let text = " a é 木 b";
        let pieces = pieces(text.as_bytes());
        assert_eq!(pieces.concat(), "a é 木 b");
        assert!(pieces.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)));
        assert!(pieces.contains(&"木".to_string()));
    }

    #[test]
    fn an_unfinished_character_is_released_at_the_end() {
        assert_eq!(pieces(&"x木".as_bytes()[..2]).concat(), "x\u{fffd}");
    }
}
