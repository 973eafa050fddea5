//! Instruction, optional input, output; earlier exchanges in `history`.
//!
//! As chat, instruction and input are one user turn, joined by a line end, and the exchanges of
//! `history` come before it (trained, as parts of a conversation are). As raw text the row becomes
//! the prompt that Stanford's Alpaca models were trained with.

use luthier_core::{Form, Result, Turn};
use serde_json::Value;

use super::{Parts, cells::Cells, describe, recognise::completion};

pub(super) fn read(cells: &mut Cells, form: Option<Form>) -> Result<Parts> {
    let instruction = cells.text("instruction")?.unwrap_or_default();
    let input = cells.text("input")?.filter(|s| !s.trim().is_empty());
    let output = cells.text("output")?.unwrap_or_default();
    if instruction.trim().is_empty() && input.is_none() {
        return Err(cells.error("instruction and input are both empty"));
    }
    if output.trim().is_empty() {
        return Err(cells
            .error("the output is empty")
            .hint("there is nothing to learn; remove the row"));
    }
    let mut prompt = history(cells)?;
    let raw = form == Some(Form::Raw);
    if raw && !prompt.is_empty() {
        return Err(cells.error("form = \"raw\" has no place for the exchanges in history"));
    }
    let asked = match (raw, input) {
        (true, input) => stanford(&instruction, input.as_deref()),
        (false, None) => instruction,
        (false, Some(input)) if instruction.trim().is_empty() => input,
        (false, Some(input)) => format!("{instruction}\n{input}"),
    };
    prompt.push(Turn::new("user", asked));
    let completions = vec![completion(vec![Turn::new("assistant", output)])];
    Ok(Parts { prompt, completions, form: form.unwrap_or_default() })
}

/// The wording is part of the format: models were trained with exactly these sentences.
fn stanford(instruction: &str, input: Option<&str>) -> String {
    match input {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    }
}

fn history(cells: &mut Cells) -> Result<Vec<Turn>> {
    let Some((column, value)) = cells.take("history") else { return Ok(Vec::new()) };
    let pairs = match cells.parsed(column, value)? {
        Value::Null => return Ok(Vec::new()),
        Value::Array(pairs) => pairs,
        other => {
            let what = format!("expected a list of [question, answer], found {}", describe(&other));
            return Err(cells.wrong(column, what));
        }
    };
    let mut turns = Vec::with_capacity(2 * pairs.len());
    for (i, pair) in pairs.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(said)]) if !said.trim().is_empty() => {
                turns.push(Turn::new("user", asked.as_str()));
                turns.push(Turn::new("assistant", said.as_str()));
            }
            _ => {
                let found = describe(pair);
                let what =
                    format!("exchange {}: expected [question, answer], found {found}", i + 1);
                return Err(cells.wrong(column, what));
            }
        }
    }
    Ok(turns)
}
