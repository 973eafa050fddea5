//! Blocks of one length in the place of rows (`data.block_size`).

use luthier_core::{Error, Result, Row, Table};
use luthier_data::{CutTable, Overlength, mix::blocks::blocks};
use luthier_loss::Unit;
use luthier_model::render::Rendered;

/// The rendered texts end to end in blocks of `size` tokens, and what was left over.
pub fn rows(
    table: &Table,
    rendered: &[Rendered],
    size: usize,
    unit: Unit,
) -> Result<(Vec<Row>, CutTable)> {
    if unit != Unit::Row {
        let what = "cuts texts into blocks, and this loss looks at several whole rows together";
        return Err(Error::input("data.block_size", what).hint("leave it out"));
    }
    let documents = rendered.iter().map(|r| (&r.tokens[..], &r.weights[..], r.row.example));
    let (rows, left) = blocks(documents, size)?;
    let lengths = || rendered.iter().map(|r| r.tokens.len());
    let tokens: usize = lengths().sum();
    if rows.is_empty() {
        let what = format!("{} has {tokens} tokens, less than one block of {size}", table.name);
        return Err(Error::input("data.block_size", what).hint("lower it"));
    }
    let cut = CutTable {
        policy: Overlength::Split,
        max_length: size,
        rows: rendered.len(),
        rows_out: rows.len(),
        tokens,
        longest: lengths().max().unwrap_or(0),
        tokens_cut: left,
        ..CutTable::default()
    };
    Ok((rows, cut))
}
