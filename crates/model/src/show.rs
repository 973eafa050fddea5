//! What `luthier show` prints: tokens with their weights, and counts by role.

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use crate::{render::Rendered, tokenizer::Tokenizer};

/// How many tokens there are and how many of them are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Tokens.
    pub tokens: usize,
    /// Tokens with a non-zero weight that have a predictor.
    pub trained: usize,
}

/// Token counts by role; what the template adds around the turns counts as `template`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By role, in alphabetical order.
    pub roles: BTreeMap<String, Count>,
    /// All together.
    pub total: Count,
    /// Rows counted.
    pub rows: usize,
}

impl Counts {
    /// The counts of some rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Rendered>) -> Self {
        let mut counts = Counts::default();
        rows.into_iter().for_each(|row| counts.add(row));
        counts
    }

    /// Counts one more row.
    pub fn add(&mut self, row: &Rendered) {
        self.rows += 1;
        let mut next = 0;
        for (i, covers) in row.offsets.iter().enumerate() {
            while next < row.spans.len()
                && row.spans[next].range.end <= covers.start
                && covers.start < covers.end
            {
                next += 1;
            }
            let inside =
                row.spans.get(next).filter(|s| covers.end > s.range.start && !covers.is_empty());
            let role = inside.map_or("template", |s| s.role.as_str());
            // The first token is never a target.
            let trained = usize::from(i > 0 && row.weights[i] != 0.0);
            if !self.roles.contains_key(role) {
                self.roles.insert(role.to_string(), Count::default());
            }
            let of_role = self.roles.get_mut(role).expect("inserted above");
            of_role.tokens += 1;
            of_role.trained += trained;
            self.total.tokens += 1;
            self.total.trained += trained;
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.roles.iter().map(|(role, count)| (role.as_str(), count));
        writeln!(f, "{:<12}{:>12}{:>12}", "role", "tokens", "trained")?;
        for (role, count) in all.chain([("total", &self.total)]) {
            writeln!(f, "{role:<12}{:>12}{:>12}", count.tokens, count.trained)?;
        }
        Ok(())
    }
}

/// A stretch of tokens printed alike.
#[derive(Clone, Copy, PartialEq)]
struct Look {
    weight: f32,
    special: bool,
}

/// The row as text. In colour, trained tokens lie on green (stronger for larger weights), untrained
/// ones are dim, special ones bold. Without colour, ⟦…⟧ enclose what is trained.
///
/// A newline shows as `⏎` and breaks the line too.
pub fn coloured(rendered: &Rendered, tokenizer: &Tokenizer, colour: bool) -> String {
    let mut out = String::new();
    let mut ids: Vec<u32> = Vec::new();
    let mut look = Look { weight: 0.0, special: false };
    for (i, id) in rendered.tokens.iter().enumerate() {
        // The first token is never a target, whatever its weight.
        let weight = if i == 0 { 0.0 } else { rendered.weights[i] };
        let special = tokenizer.is_special(*id);
        let same = Look { weight, special: special && colour };
        if same != look {
            flush(&mut out, &mut ids, look, tokenizer, colour);
            look = same;
        }
        ids.push(*id);
    }
    flush(&mut out, &mut ids, look, tokenizer, colour);
    out
}

fn flush(out: &mut String, ids: &mut Vec<u32>, look: Look, tokenizer: &Tokenizer, colour: bool) {
    if ids.is_empty() {
        return;
    }
    // Tokens cut inside a character show as the replacement character, as they should.
    let text = tokenizer.decode_all(ids).unwrap_or_else(|_| format!("{ids:?}"));
    ids.clear();
    let trained = look.weight != 0.0;
    if !colour {
        let text = text.replace('\n', "⏎\n");
        match look.weight {
            0.0 => out.push_str(&text),
            1.0 => _ = write!(out, "⟦{text}⟧"),
            weight => _ = write!(out, "⟦{weight}|{text}⟧"),
        }
        return;
    }
    let mut style = String::from("\x1b[0");
    if look.special {
        style.push_str(";1");
    }
    if trained {
        let depth = if look.weight < 0.0 {
            52
        } else if look.weight < 0.5 {
            22
        } else if look.weight <= 1.0 {
            28
        } else {
            34
        };
        _ = write!(style, ";38;5;231;48;5;{depth}");
    } else if !look.special {
        style.push_str(";2");
    }
    style.push('m');
    // The background must not run to the end of the terminal's line.
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            _ = writeln!(out, "{style}⏎\x1b[0m");
        }
        if !line.is_empty() {
            _ = write!(out, "{style}{line}\x1b[0m");
        }
    }
}
