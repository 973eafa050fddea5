//! JSON: an array of objects, or an object that holds one such array (`{"data": […]}`).
//!
//! Rows are numbered by their place in the array. A single object with a known layout is a table of
//! one row, and a file of one object per line is read as JSON Lines in spite of its name.

use luthier_core::{Error, Result};
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::{Deserializer, Map, Value};

use super::{
    intake::Intake,
    jsonl::{bad_json, not_an_object},
    source::Source,
};

pub(super) fn read(source: &mut Source, intake: &mut Intake) -> Result<()> {
    let text = source.text()?;
    if text.trim_ascii_start().starts_with('[') {
        return array(&text, intake);
    }
    let mut values = Deserializer::from_str(&text).into_iter::<Value>();
    let first = match values.next() {
        None => return Ok(()),
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(bad(&text, intake, &error)),
    };
    let end = values.byte_offset();
    let Value::Object(row) = first else {
        return Err(not_an_object(intake.name().to_owned(), &first));
    };
    let rest = &text[end..];
    if rest.trim_ascii().is_empty() {
        return object(row, intake);
    }
    if text[..end].trim_ascii().contains('\n')
        || !rest.trim_start_matches([' ', '\t', '\r']).starts_with('\n')
    {
        let error = serde_json::from_str::<Value>(&text)
            .err()
            .unwrap_or_else(|| serde_json::Error::custom("trailing characters"));
        return Err(bad(&text, intake, &error));
    }
    lines(&text, intake)
}

/// The elements one after the other, never the whole array as values.
fn array(text: &str, intake: &mut Intake) -> Result<()> {
    let mut refused = None;
    let mut json = Deserializer::from_str(text);
    let outcome = json
        .deserialize_seq(Elements { intake: &mut *intake, refused: &mut refused })
        .and_then(|()| json.end());
    match (refused, outcome) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(bad(text, intake, &error)),
        (None, Ok(())) => Ok(()),
    }
}

struct Elements<'a, 'b> {
    intake: &'a mut Intake<'b>,
    /// Why a row was not taken; serde's own error type has no room for it.
    refused: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<(), A::Error> {
        let mut number = 0;
        while let Some(value) = elements.next_element::<Value>()? {
            number += 1;
            let taken = match value {
                Value::Object(row) => self.intake.row(number, row),
                other => Err(not_an_object(format!("{}:{number}", self.intake.name()), &other)),
            };
            if let Err(error) = taken {
                *self.refused = Some(error);
                return Err(A::Error::custom("a row was refused"));
            }
        }
        Ok(())
    }
}

/// One object is a row, or it wraps the array of rows.
fn object(row: Map<String, Value>, intake: &mut Intake) -> Result<()> {
    let of_objects = |value: &Value| match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        _ => false,
    };
    if intake.knows(&row) {
        return intake.row(1, row);
    }
    let arrays: Vec<&str> =
        row.iter().filter(|(_, v)| of_objects(v)).map(|(k, _)| k.as_str()).collect();
    let wrapper = match arrays.as_slice() {
        [one] => (*one).to_owned(),
        // Not a wrapper: let the layout say what it expected of a row.
        [] => return intake.row(1, row),
        several => {
            let what = format!("expected one array of rows, found several: {}", several.join(", "));
            return Err(Error::input(intake.name(), what));
        }
    };
    let rows = row.into_iter().find(|(key, _)| *key == wrapper).map(|(_, value)| value);
    let Some(Value::Array(rows)) = rows else { return Ok(()) };
    for (i, value) in rows.into_iter().enumerate() {
        if let Value::Object(row) = value {
            intake.row(i + 1, row)?;
        }
    }
    Ok(())
}

/// A file of one object per line that is called `.json`.
fn lines(text: &str, intake: &mut Intake) -> Result<()> {
    let name = intake.name().to_owned();
    let numbered: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, l)| !l.trim_ascii().is_empty()).collect();
    intake.lines(&numbered, |(i, line)| match serde_json::from_str(line) {
        Ok(Value::Object(row)) => Ok((i + 1, row)),
        Ok(other) => Err(not_an_object(format!("{name}:{}", i + 1), &other)),
        Err(error) => Err(bad_json(&name, i + 1, line, &error)),
    })
}

/// A syntax error somewhere in the whole text.
fn bad(text: &str, intake: &Intake, error: &serde_json::Error) -> Error {
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or("");
    bad_json(intake.name(), error.line().max(1), line, error)
}
