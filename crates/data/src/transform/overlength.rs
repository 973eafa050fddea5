//! What happens to rows longer than `max_length`, and a table of what it cost.
//!
//! Lengths are counted in tokens of the rendered text, as TRL counts `max_length`; a [`Row`] of `k`
//! positions comes from `k + 1` tokens. An *answer* is a run of neighbouring trained positions.

use std::fmt;

use luthier_core::{Error, Result, Row};
use serde::{Deserialize, Serialize};

/// What to do with a row that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlength {
    /// Refuse, naming the first such row.
    #[default]
    Error,
    /// Leave the row out.
    Drop,
    /// Keep the first `max_length` tokens.
    Truncate,
    /// Keep the last `max_length` tokens.
    TruncateLeft,
    /// Make several rows of it; positions start again in each. Every target stays, each piece
    /// begins with the token before its first target. Pieces that train nothing are left out.
    Split,
}

/// What the policy did to a set of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CutTable {
    /// The policy in force.
    pub policy: Overlength,
    /// Most tokens a row may have.
    pub max_length: usize,
    /// Tokens of the longest row seen.
    pub longest: usize,
    /// Rows seen.
    pub rows: usize,
    /// Rows longer than `max_length`.
    pub over_length: usize,
    /// Rows left out.
    pub dropped: usize,
    /// Rows that lost tokens or were split.
    pub cut: usize,
    /// Rows passed on.
    pub rows_out: usize,
    /// Tokens of all rows seen.
    pub tokens: usize,
    /// Tokens lost.
    pub tokens_cut: usize,
    /// Trained targets lost.
    pub trained_cut: usize,
    /// Answers of which no trained token is left.
    pub answers_lost: usize,
    /// Answers kept in part whose end-of-turn token is gone: they teach not to stop.
    pub eos_lost: usize,
    /// Rows (pieces, when split) left without a trained token.
    pub untrained: usize,
}

impl fmt::Display for CutTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("rows seen", self.rows),
            ("longest row, tokens", self.longest),
            ("rows over length", self.over_length),
            ("rows dropped", self.dropped),
            ("rows cut", self.cut),
            ("rows passed on", self.rows_out),
            ("tokens seen", self.tokens),
            ("tokens cut", self.tokens_cut),
            ("trained tokens cut", self.trained_cut),
            ("answers lost wholly", self.answers_lost),
            ("answers without their end token", self.eos_lost),
            ("rows without a trained token", self.untrained),
        ];
        let policy = match self.policy {
            Overlength::Error => "error",
            Overlength::Drop => "drop",
            Overlength::Truncate => "truncate",
            Overlength::TruncateLeft => "truncate_left",
            Overlength::Split => "split",
        };
        write!(f, "max_length {}, overlength {policy}", self.max_length)?;
        let names = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let digits = lines.iter().map(|(_, n)| n.to_string().len()).max().unwrap_or(0);
        lines.iter().try_for_each(|(name, n)| write!(f, "\n  {name:<names$}  {n:>digits$}"))
    }
}

/// Applies `policy` to rows, in order.
///
/// `eos` says which ids end a turn; `origin` names an example by its index (`train.jsonl:17`).
pub fn apply(
    policy: Overlength,
    max_length: usize,
    rows: Vec<Row>,
    eos: impl Fn(u32) -> bool,
    origin: impl Fn(usize) -> String,
) -> Result<(Vec<Row>, CutTable)> {
    if max_length < 2 {
        let what =
            format!("expected at least 2 tokens (one to read, one to learn), got {max_length}");
        return Err(Error::input("max_length", what));
    }
    let mut table = CutTable { policy, max_length, rows: rows.len(), ..CutTable::default() };
    let positions = max_length - 1;
    let mut out = Vec::with_capacity(rows.len());
    let mut first_over: Option<(usize, usize)> = None;
    let mut first_untrained: Option<(usize, usize)> = None;
    for row in rows {
        let tokens = if row.is_empty() { 0 } else { row.len() + 1 };
        table.tokens += tokens;
        table.longest = table.longest.max(tokens);
        if row.len() <= positions {
            out.push(row);
            continue;
        }
        table.over_length += 1;
        first_over.get_or_insert((row.example, tokens));
        let kept = match policy {
            Overlength::Error => continue,
            Overlength::Drop => 0..0,
            Overlength::Truncate => 0..positions,
            Overlength::TruncateLeft => row.len() - positions..row.len(),
            Overlength::Split => 0..row.len(),
        };
        table.note_answers(&row, &kept, &eos);
        match policy {
            Overlength::Error => {}
            Overlength::Drop => {
                table.dropped += 1;
                table.tokens_cut += tokens;
            }
            Overlength::Truncate | Overlength::TruncateLeft => {
                table.cut += 1;
                table.tokens_cut += tokens - max_length;
                let piece = part(&row, kept);
                if piece.trained() == 0 && row.trained() > 0 {
                    table.untrained += 1;
                    first_untrained.get_or_insert((row.example, tokens));
                }
                out.push(piece);
            }
            Overlength::Split => {
                table.cut += 1;
                let trains = row.trained() > 0;
                for start in (0..row.len()).step_by(positions) {
                    let piece = part(&row, start..row.len().min(start + positions));
                    if trains && piece.trained() == 0 {
                        table.untrained += 1;
                        table.tokens_cut += piece.len();
                    } else {
                        out.push(piece);
                    }
                }
            }
        }
    }
    if let (Overlength::Error, Some((example, tokens))) = (policy, first_over) {
        return Err(Error::input(
            origin(example),
            format!(
                "{tokens} tokens, but max_length is {max_length}; {} of {} rows are longer, the longest has {}",
                table.over_length, table.rows, table.longest
            ),
        )
        .hint("raise max_length, or choose overlength = \"drop\", \"truncate\", \"truncate_left\" or \"split\""));
    }
    if let Some((example, tokens)) = first_untrained {
        return Err(Error::input(
            origin(example),
            format!(
                "cut from {tokens} to {max_length} tokens it has no trained token left; so have {} of {} rows",
                table.untrained, table.rows
            ),
        )
        .hint("raise max_length, or choose overlength = \"truncate_left\", \"drop\" or \"split\""));
    }
    if out.is_empty() && table.rows > 0 {
        let what = format!("all {} rows are longer than {max_length} tokens", table.rows);
        return Err(
            Error::input("max_length", what).hint(format!("the longest has {}", table.longest))
        );
    }
    table.rows_out = out.len();
    Ok((out, table))
}

/// The positions `range` of a row as a row of their own.
fn part(row: &Row, range: std::ops::Range<usize>) -> Row {
    Row {
        ids: row.ids[range.clone()].to_vec(),
        targets: row.targets[range.clone()].to_vec(),
        weights: row.weights[range.clone()].to_vec(),
        tags: row.tags.get(range).unwrap_or_default().to_vec(),
        teacher: None,
        ..*row
    }
}

impl CutTable {
    /// Counts what becomes of the answers of `row` when only the positions `kept` stay.
    fn note_answers(
        &mut self,
        row: &Row,
        kept: &std::ops::Range<usize>,
        eos: &impl Fn(u32) -> bool,
    ) {
        let trained = |i: usize| row.weights[i] != 0.0;
        let mut start = 0;
        while start < row.len() {
            if !trained(start) {
                start += 1;
                continue;
            }
            let end = (start..row.len()).find(|i| !trained(*i)).unwrap_or(row.len());
            let left = (start..end).filter(|i| kept.contains(i)).count();
            self.trained_cut += end - start - left;
            if left == 0 {
                self.answers_lost += 1;
            } else if eos(row.targets[end - 1]) && !kept.contains(&(end - 1)) {
                self.eos_lost += 1;
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: u32 = 99;

    /// Two untrained tokens, an answer of two and its end, two untrained, an answer of three and
    /// its end: twelve tokens, eleven positions.
    fn conversation() -> Row {
        let tokens = [1, 2, 3, 4, EOS, 5, 6, 7, 8, 9, EOS, 10];
        let weights = [0., 0., 1., 1., 1., 0., 0., 1., 1., 1., 1., 0.];
        Row::from_tokens(&tokens, &weights, 4)
    }

    fn short() -> Row {
        Row::from_tokens(&[1, 2, 3], &[0., 1., 1.], 5)
    }

    fn run(policy: Overlength, max_length: usize) -> Result<(Vec<Row>, CutTable)> {
        apply(
            policy,
            max_length,
            vec![conversation(), short()],
            |t| t == EOS,
            |e| format!("t.jsonl:{e}"),
        )
    }

    #[test]
    fn nothing_is_touched_up_to_the_exact_length() {
        for policy in [Overlength::Error, Overlength::Drop, Overlength::Truncate, Overlength::Split]
        {
            let (rows, table) = run(policy, 12).unwrap();
            assert_eq!(rows, [conversation(), short()]);
            assert_eq!((table.over_length, table.tokens, table.longest), (0, 15, 12));
        }
    }

    #[test]
    fn error_names_the_row_and_the_ways_out() {
        let text = run(Overlength::Error, 11).unwrap_err().to_string();
        assert!(
            text.starts_with("t.jsonl:4: 12 tokens, but max_length is 11; 1 of 2 rows"),
            "{text}"
        );
        assert!(text.contains("\"truncate_left\""), "{text}");
    }

    #[test]
    fn drop_counts_what_is_gone() {
        let (rows, table) = run(Overlength::Drop, 11).unwrap();
        assert_eq!(rows, [short()]);
        let counts = (table.dropped, table.tokens_cut, table.trained_cut, table.answers_lost);
        assert_eq!(counts, (1, 12, 7, 2));
    }

    #[test]
    fn truncate_keeps_the_start_and_counts_lost_ends() {
        // Nine tokens: the first answer is whole, the second has lost a token and its end.
        let (rows, table) = run(Overlength::Truncate, 9).unwrap();
        assert_eq!(rows[0].ids, [1, 2, 3, 4, EOS, 5, 6, 7]);
        assert_eq!(rows[0].targets, [2, 3, 4, EOS, 5, 6, 7, 8]);
        let counts =
            (table.cut, table.tokens_cut, table.trained_cut, table.answers_lost, table.eos_lost);
        assert_eq!(counts, (1, 3, 2, 0, 1));
        // Seven tokens: the second answer is gone as a whole.
        let (_, table) = run(Overlength::Truncate, 7).unwrap();
        assert_eq!((table.answers_lost, table.eos_lost, table.trained_cut), (1, 0, 4));
    }

    #[test]
    fn truncate_refuses_a_row_that_would_teach_nothing() {
        let text = run(Overlength::Truncate, 2).unwrap_err().to_string();
        assert!(text.starts_with("t.jsonl:4: cut from 12 to 2 tokens"), "{text}");
    }

    #[test]
    fn truncate_left_keeps_the_end() {
        let (rows, table) = run(Overlength::TruncateLeft, 4).unwrap();
        assert_eq!(rows[0].targets, [9, EOS, 10]);
        assert_eq!((table.answers_lost, table.eos_lost, table.trained_cut), (1, 0, 5));
    }

    #[test]
    fn split_keeps_every_trained_target_exactly_once() {
        let whole = conversation();
        for max_length in 2..12 {
            let (rows, table) = run(Overlength::Split, max_length).unwrap();
            let trained = |rows: &[Row]| -> Vec<u32> {
                let pairs = rows.iter().flat_map(|r| r.targets.iter().zip(&r.weights));
                pairs.filter(|(_, w)| **w != 0.0).map(|(t, _)| *t).collect()
            };
            let pieces: Vec<Row> = rows.iter().filter(|r| r.example == 4).cloned().collect();
            assert_eq!(trained(&pieces), trained(std::slice::from_ref(&whole)), "{max_length}");
            assert!(rows.iter().all(|r| r.len() < max_length && r.trained() > 0));
            assert_eq!((table.trained_cut, table.answers_lost, table.eos_lost), (0, 0, 0));
            let positions: usize = rows.iter().map(Row::len).sum();
            assert_eq!(positions + table.tokens_cut, whole.len() + short().len());
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let text = run(Overlength::Truncate, 9).unwrap().1.to_string();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("max_length 9, overlength truncate"));
        let widths: Vec<usize> = lines.map(str::len).collect();
        assert!(widths.len() == 12 && widths.iter().all(|w| *w == widths[0]), "{text}");
    }

    #[test]
    fn dropping_everything_and_a_senseless_length_are_refused() {
        assert!(run(Overlength::Drop, 2).unwrap_err().to_string().contains("all 2 rows"));
        assert!(run(Overlength::Drop, 1).is_err());
    }
}
