//! CSV and TSV with a header line. Every cell is text; lists (`messages`, `tools`) are JSON text.
//!
//! The csv crate reports a record's position before the blank lines and line ends that it passes
//! over, so the physical line is counted here, from the record's first byte.

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

use super::{
    intake::Intake,
    source::{Source, newlines},
};

pub(super) fn read(source: &mut Source, delimiter: u8, intake: &mut Intake) -> Result<()> {
    let text = source.text()?;
    let bytes = text.as_bytes();
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let (mut counted, mut line) = (0, 1);
    let mut names: Option<Vec<String>> = None;
    let mut record = ::csv::StringRecord::new();
    loop {
        let start = usize::try_from(reader.position().byte()).unwrap_or(bytes.len());
        let more = reader
            .read_record(&mut record)
            .map_err(|e| Error::input(source.at(line), e.to_string()))?;
        if !more {
            break;
        }
        let blank = bytes[start..].iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        let start = start + blank;
        line += newlines(&bytes[counted..start]);
        counted = start;
        let end = usize::try_from(reader.position().byte()).unwrap_or(bytes.len()).min(bytes.len());
        if end == bytes.len() && open_quote(&text[start..end], &record) {
            return Err(Error::input(
                source.at(line),
                "a quoted cell that begins here is never closed",
            ));
        }
        let Some(names) = &names else {
            names = Some(header(&record, source, line)?);
            continue;
        };
        if record.len() != names.len() {
            let (expected, found) = (names.len(), record.len());
            return Err(Error::input(
                source.at(line),
                format!("expected {expected} cells ({}), found {found}", names.join(", ")),
            )
            .hint("a cell that holds the delimiter or a line end must stand in double quotes"));
        }
        let cells = names.iter().zip(&record);
        let row: Map<String, Value> =
            cells.map(|(name, cell)| (name.clone(), cell.into())).collect();
        intake.row(line, row)?;
    }
    Ok(())
}

/// Whether the last cell of the last record begins with a quote that nothing closes; the csv crate
/// takes the rest of the file for its text and says nothing.
fn open_quote(raw: &str, record: &::csv::StringRecord) -> bool {
    let last = record.iter().next_back().unwrap_or("");
    raw.matches('"').count() % 2 == 1 && raw.ends_with(&format!("\"{}", last.replace('"', "\"\"")))
}

fn header(record: &::csv::StringRecord, source: &Source, line: usize) -> Result<Vec<String>> {
    let names: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            let what = format!("the header names column `{name}` twice");
            return Err(Error::input(source.at(line), what));
        }
    }
    Ok(names)
}
