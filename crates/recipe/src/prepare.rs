//! The data stage: files to rows, with everything said that was decided on the way.

use std::path::PathBuf;

use luthier_core::{Error, Result, Row, Seed, Table};
use luthier_data::{Chain, CutTable, Step, choose::split::split, read_many, transform::overlength};
use luthier_loss::{Loss, Unit};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};
use serde::Serialize;

use crate::{
    blocks, heads, pairs, parts, phrasings, rationale,
    schema::{Data, Paths},
    teacher, tools, unpaired, variants,
};

/// Rows of one role, with the table they came from.
pub struct Prepared {
    /// The examples.
    pub table: Table,
    /// Their rows, after the over-length policy.
    pub rows: Vec<Row>,
    /// What that policy did.
    pub cut: CutTable,
}

/// Sizes of a prepared set.
#[derive(Clone, Debug, Serialize)]
pub struct Counts {
    /// Where it came from.
    pub source: String,
    /// The recognised layout.
    pub layout: String,
    /// SHA-256 of the files.
    pub sha256: String,
    /// Examples.
    pub examples: usize,
    /// Rows.
    pub rows: usize,
    /// Positions.
    pub tokens: usize,
    /// Positions with a non-zero weight.
    pub trained: usize,
    /// Longest row.
    pub longest: usize,
}

impl Prepared {
    /// Sizes.
    pub fn counts(&self) -> Counts {
        Counts {
            source: self.table.name.clone(),
            layout: self.table.layout.clone(),
            sha256: self.table.sha256.clone(),
            examples: self.table.examples.len(),
            rows: self.rows.len(),
            tokens: self.rows.iter().map(Row::len).sum(),
            trained: self.rows.iter().map(Row::trained).sum(),
            longest: self.rows.iter().map(Row::len).max().unwrap_or(0),
        }
    }

    /// Gives every row what the objective reads of it beside its targets: marks on the ends of longer
    /// answers, and what a teacher said of it beforehand. Refuses labels that the objective or a head of
    /// so many `labels` does not know.
    pub fn fit(&mut self, loss: &Loss, labels: Option<usize>) -> Result<()> {
        heads::known(loss, labels, &self.rows, &|example| self.origin(example))?;
        if let Some(alpha) = loss.dpo.as_ref().and_then(|dpo| dpo.ld_alpha) {
            luthier_loss::pair::tails(&mut self.rows, alpha);
        }
        if let Some(file) = loss.distil.as_ref().and_then(|distil| distil.cache.as_ref()) {
            let mut rows = std::mem::take(&mut self.rows);
            teacher::attach(file, &mut rows, &|example| self.origin(example))?;
            self.rows = rows;
        }
        Ok(())
    }

    /// `file:line` of an example.
    pub fn origin(&self, example: usize) -> String {
        match self.table.examples.get(example) {
            Some(example) => example.origin.to_string(),
            None => format!("example {example}"),
        }
    }
}

/// Reads the files of one role.
pub fn table(paths: &Paths, data: &Data) -> Result<Table> {
    let paths: Vec<PathBuf> = paths.list().into_iter().map(PathBuf::from).collect();
    read_many(&paths, &data.read)
}

/// Held-out files of one role: read, and worded as those to train on.
pub fn held_out(paths: &Paths, data: &Data, seed: Seed) -> Result<Table> {
    let read = table(paths, data)?;
    let steps = Chain(data.steps.clone()).rewording();
    if steps.0.is_empty() {
        return Ok(read);
    }
    let worded = serde_json::to_string(&steps)
        .map_err(|e| Error::failed("data.steps", format!("cannot be written: {e}")))?;
    // Other words are other rows: what was measured on them does not hold here.
    let sha256 = luthier_core::io::sha256((read.sha256.clone() + &worded).as_bytes());
    Ok(Table { sha256, ..steps.apply(read, seed)? })
}

/// All rows of a table, those that the objective looks at together side by side.
pub fn render(
    table: &Table,
    data: &Data,
    tokenizer: &Tokenizer,
    unit: Unit,
) -> Result<Vec<Rendered>> {
    let options = RenderOptions { loss_on: data.loss_on };
    let mut rendered = match unit {
        Unit::Row => render_table(table, tokenizer, &options),
        Unit::Phrasings => phrasings::render(table, tokenizer, &options),
        Unit::Pair { .. } | Unit::Pairs { .. } => pairs::render(table, tokenizer, &options),
        Unit::Variants { min_similarity } => {
            variants::render(table, tokenizer, &options, min_similarity)
        }
        Unit::Unpaired { .. } => unpaired::render(table, tokenizer, &options),
        Unit::Judged { pair } => heads::table(table, tokenizer, &options, pair, &data.labels),
        Unit::Rationale { place, answer, rationale } => {
            rationale::render(table, tokenizer, &options, place, [answer, rationale])
        }
    }?;
    tools::weigh(table, tokenizer, &mut rendered)?;
    parts::weigh(table, unit, &mut rendered)?;
    Ok(rendered)
}

/// Renders and applies the over-length policy.
pub fn prepare(table: Table, data: &Data, tokenizer: &Tokenizer, unit: Unit) -> Result<Prepared> {
    let paired = Unit::Judged { pair: true };
    let told = matches!(unit, Unit::Pair { .. } | Unit::Pairs { .. } | Unit::Variants { .. });
    if !(told || unit == paired) {
        one_answer(&table)?;
    }
    let rendered = render(&table, data, tokenizer, unit)?;
    if let Some(size) = data.block_size {
        let (rows, cut) = blocks::rows(&table, &rendered, size, unit)?;
        return Ok(Prepared { table, rows, cut });
    }
    let rows: Vec<Row> = rendered.into_iter().map(|r: Rendered| r.row).collect();
    let origin = |example: usize| match table.examples.get(example) {
        Some(example) => example.origin.to_string(),
        None => format!("example {example}"),
    };
    let eos = |id: u32| tokenizer.eos_ids().contains(&id);
    let (mut rows, mut cut) =
        overlength::apply(data.overlength, data.max_length, rows, eos, origin)?;
    match unit {
        Unit::Row => {}
        Unit::Phrasings => rows = whole(rows, &mut cut, |pair| phrasings::judge(pair, &origin))?,
        Unit::Variants { .. } => {
            rows = whole(rows, &mut cut, |pair| variants::judge(pair, &origin))?
        }
        Unit::Pair { .. } => rows = whole(rows, &mut cut, |pair| pairs::judge(pair, &origin))?,
        Unit::Pairs { group } => {
            rows = whole(rows, &mut cut, |pair| pairs::judge(pair, &origin))?;
            rows = pairs::groups(rows, group);
        }
        Unit::Unpaired { group, mismatched } => {
            rows = unpaired::groups(rows, group, mismatched, data.max_length, &origin)?;
        }
        Unit::Judged { pair } => {
            if pair {
                rows = whole(rows, &mut cut, |pair| pairs::judge(pair, &origin))?;
            }
            rows = heads::read(rows, &origin)?;
        }
        Unit::Rationale { answer: true, rationale: true, .. } => {
            rows = whole(rows, &mut cut, |both| rationale::judge(both, &origin))?;
        }
        Unit::Rationale { .. } => {}
    }
    if rows.is_empty() {
        return Err(Error::input(&table.name, "no row is left to work on")
            .hint("raise data.max_length or choose another data.overlength"));
    }
    Ok(Prepared { table, rows, cut })
}

/// Pairs of which the over-length policy left both rows and `judge` approves; what it left of the
/// others is left out, too.
fn whole(
    rows: Vec<Row>,
    cut: &mut CutTable,
    judge: impl Fn(&[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let mut kept = Vec::with_capacity(rows.len());
    for of_one in rows.chunk_by(|a, b| a.example == b.example) {
        if let [row] = of_one {
            cut.dropped += 1;
            cut.rows_out -= 1;
            cut.tokens_cut += row.len() + 1;
            continue;
        }
        judge(of_one)?;
        kept.extend_from_slice(of_one);
    }
    Ok(kept)
}

/// Answers that were rejected must not be learned as if they were right.
fn one_answer(table: &Table) -> Result<()> {
    let rejected = |c: &luthier_core::Completion| c.marks.get("chosen") == Some(&0.0);
    match table.examples.iter().find(|e| e.completions.iter().any(rejected)) {
        None => Ok(()),
        Some(example) => Err(Error::input(
            example.origin.to_string(),
            "this is preference data, and this loss would learn the rejected answers too",
        )
        .hint("learn from pairs (train.loss.dpo), or keep the chosen answers only")),
    }
}

/// Training and evaluation rows of a recipe.
pub fn both(
    data: &Data,
    tokenizer: &Tokenizer,
    seed: Seed,
    unit: Unit,
) -> Result<(Prepared, Option<Prepared>)> {
    let Some(train) = &data.train else {
        return Err(Error::input("data.train", "missing: nothing to train on")
            .hint("name a file: data.train = \"train.jsonl\", or --data train.jsonl"));
    };
    let (whole, notes) =
        Chain(data.steps.clone()).apply_noting(table(train, data)?, seed.split("data"))?;
    for note in notes {
        tracing::info!("data step {}: {} rows to {}", note.step, note.rows_in, note.rows_out);
    }
    let (train, eval) = match &data.eval {
        Some(eval) => (whole, Some(held_out(eval, data, seed.split("data"))?)),
        None if data.eval_fraction > 0.0 => {
            let (train, eval) = split(whole, data.eval_fraction, seed.split("split"))?;
            (train, Some(eval))
        }
        None => (whole, None),
    };
    let eval = eval.map(|table| prepare(table, data, tokenizer, unit)).transpose()?;
    Ok((prepare(train, data, tokenizer, unit)?, eval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_is_left_out() {
        let row =
            |tokens: &[u32], example| Row::from_tokens(tokens, &vec![1.0; tokens.len()], example);
        let pair = |example| [row(&[1, 2, 9], example), row(&[3, 9], example)];
        let mut cut = CutTable { rows_out: 5, ..CutTable::default() };
        let rows = [&pair(0)[..], &pair(1)[..1], &pair(2)[..]].concat();
        let kept = whole(rows.clone(), &mut cut, |_| Ok(())).unwrap();
        assert_eq!(kept, [pair(0), pair(2)].concat());
        assert_eq!((cut.dropped, cut.rows_out, cut.tokens_cut), (1, 4, 3));
        let no = |_: &[Row]| Err(Error::input("a.jsonl:1", "no"));
        assert!(whole(rows, &mut cut, no).is_err());
    }
}
