//! Documents end to end, cut into blocks of one length; what is left at the end is dropped.
//!
//! A block of `size` tokens is a row of `size − 1` predictions: its first token has none. Documents
//! keep the tokens that begin and end them, and a block sees all of its tokens, whichever document
//! they are of.

use luthier_core::{Error, Result, Row};

/// A document: its tokens, their weights as targets, and its example.
pub type Document<'a> = (&'a [u32], &'a [f32], usize);

/// The blocks, each known by the example of its first token, and how many tokens were left over.
pub fn blocks<'a>(
    documents: impl IntoIterator<Item = Document<'a>>,
    size: usize,
) -> Result<(Vec<Row>, usize)> {
    if size < 2 {
        let what = format!("expected at least 2 tokens (one to read, one to learn), got {size}");
        return Err(Error::input("data.block_size", what));
    }
    let (mut tokens, mut weights, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for (ids, counts, example) in documents {
        for (id, weight) in ids.iter().zip(counts) {
            if tokens.is_empty() {
                first = example;
            }
            tokens.push(*id);
            weights.push(*weight);
            if tokens.len() == size {
                rows.push(Row::from_tokens(&tokens, &weights, first));
                tokens.clear();
                weights.clear();
            }
        }
    }
    Ok((rows, tokens.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_block_but_for_the_rest() {
        let documents: Vec<Vec<u32>> =
            vec![(0..7).collect(), vec![], (7..8).collect(), (8..20).collect()];
        let weights = [1.0; 20];
        let given = documents.iter().enumerate().map(|(i, d)| (&d[..], &weights[..d.len()], i));
        let (rows, left) = blocks(given, 6).unwrap();
        assert_eq!((rows.len(), left), (3, 2));
        let joined: Vec<u32> = rows
            .iter()
            .flat_map(|row| std::iter::once(row.ids[0]).chain(row.targets.iter().copied()))
            .collect();
        assert_eq!(joined, (0..18).collect::<Vec<u32>>());
        assert_eq!(rows.iter().map(|row| row.example).collect::<Vec<_>>(), [0, 0, 3]);
        assert!(rows.iter().all(|row| row.trained() == 5 && row.ids[1..] == row.targets[..4]));
        assert!(blocks(std::iter::empty(), 1).is_err());
    }

    #[test]
    fn a_block_of_512_has_511_predictions() {
        let (ids, weights) = (vec![1; 512 * 2], vec![1.0; 512 * 2]);
        let (rows, left) = blocks([(&ids[..], &weights[..], 0)], 512).unwrap();
        assert_eq!((rows.len(), left, rows[0].trained()), (2, 0, 511));
        // The published step: 256 blocks.
        assert_eq!(256 * 512, 131_072);
    }
}
