//! JSON Lines: one object per line. Blank lines are passed over; they count as lines.

use std::ops::Range;

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

use super::{
    intake::Intake,
    source::{Source, not_utf8},
};
use crate::layout::describe;

/// Lines are handed to the parsers in portions of about this many bytes.
const PORTION: usize = 4 << 20;
/// Characters of the offending place that an error shows.
const SHOWN: usize = 24;

pub(super) fn read(source: &mut Source, intake: &mut Intake) -> Result<()> {
    let name = intake.name().to_owned();
    let mut bytes: Vec<u8> = Vec::with_capacity(PORTION);
    let mut lines: Vec<(usize, Range<usize>)> = Vec::new();
    loop {
        let start = bytes.len();
        let next = source.next_line(&mut bytes);
        if let Ok(Some(line)) = next
            && !bytes[start..].trim_ascii().is_empty()
        {
            lines.push((line, start..bytes.len()));
        }
        // What was read before a broken stream is looked at first: its errors come earlier.
        let more = matches!(next, Ok(Some(_)));
        if !more || bytes.len() >= PORTION {
            intake.lines(&lines, |(line, range)| {
                Ok((*line, object(&name, *line, &bytes[range.clone()])?))
            })?;
            lines.clear();
            bytes.clear();
        }
        if !more {
            return next.map(|_| ());
        }
    }
}

/// One line as an object.
fn object(name: &str, line: usize, bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| not_utf8(format!("{name}:{line}"), bytes, e.valid_up_to()))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(not_an_object(format!("{name}:{line}"), &other)),
        Err(error) => {
            let error = bad_json(name, line, text, &error);
            let whole_array = line == 1 && text.trim_start().starts_with('[');
            let hint = "the file seems to hold one JSON array; call it .json";
            Err(if whole_array { error.hint(hint) } else { error })
        }
    }
}

pub(super) fn not_an_object(at: String, found: &Value) -> Error {
    Error::input(
        at,
        format!("expected an object with one key per column, found {}", describe(found)),
    )
}

/// The error at `line` (the physical line on which `text` stands): column, expectation, what is there.
pub(super) fn bad_json(name: &str, line: usize, text: &str, error: &serde_json::Error) -> Error {
    let mut said = error.to_string();
    if let Some(cut) = said.rfind(" at line ") {
        said.truncate(cut);
    }
    // serde_json counts bytes from 1; people count characters.
    let end = text.trim_ascii_end().len();
    let mut byte = if error.is_eof() { end } else { error.column().saturating_sub(1).min(end) };
    while !text.is_char_boundary(byte) {
        byte -= 1;
    }
    let column = text[..byte].chars().count() + 1;
    let rest = &text[byte..];
    let found = if error.is_eof() || rest.is_empty() {
        "the end of the text".to_owned()
    } else {
        let shown: String = rest.chars().take(SHOWN).collect();
        let dots = if shown.len() < rest.len() { "…" } else { "" };
        format!("`{shown}{dots}`")
    };
    Error::input(format!("{name}:{line}:{column}"), format!("{said}, found {found}"))
}
