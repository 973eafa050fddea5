//! A prompt and its answer, each a text or a message list.
//!
//! Only the answer is trained, as in TRL: assistant turns within the prompt have weight 0 unless
//! they carry a switch of their own. A `label` of yes or no becomes the mark `label` (1 or 0).

use luthier_core::{Form, Result, Turn};
use serde_json::Value;

use super::{
    Parts,
    cells::{Cells, Said},
    describe,
    recognise::completion,
};

pub(super) fn read(cells: &mut Cells, form: Option<Form>) -> Result<Parts> {
    let prompt = prompt(cells, "prompt", form)?;
    let Some(answer) = cells.said("completion", "assistant")? else {
        return Err(cells.error("no completion"));
    };
    check(cells, &answer, form)?;
    let mut answer = completion(answer.turns);
    match cells.take("label") {
        None => {}
        Some((_, Value::Bool(label))) => {
            answer.marks.insert("label".to_owned(), f64::from(u8::from(label)));
        }
        Some((column, other)) => {
            let what = format!("expected true or false, found {}", describe(&other));
            return Err(cells.wrong(column, what));
        }
    }
    Ok(Parts { prompt, completions: vec![answer], form: form.unwrap_or_default() })
}

/// The prompt's turns, fit for the form.
pub(super) fn prompt(cells: &mut Cells, role: &str, form: Option<Form>) -> Result<Vec<Turn>> {
    let Some(mut prompt) = cells.said(role, "user")? else {
        return Err(cells.error(format!("no {role}")));
    };
    let raw = form == Some(Form::Raw);
    if raw && !prompt.plain {
        return Err(
            cells.wrong(prompt.column, "form = \"raw\" expects text, found a list of messages")
        );
    }
    if prompt.plain && prompt.turns[0].content.trim().is_empty() {
        if !raw {
            return Err(cells
                .wrong(prompt.column, "the prompt is empty")
                .hint("form = \"raw\" trains an answer without a prompt"));
        }
        // A prompt of spaces is kept; an empty one is no turn.
        prompt.turns.retain(|turn| !turn.content.is_empty());
    }
    untrained(&mut prompt.turns);
    Ok(prompt.turns)
}

/// Assistant turns that only lead up to the answer.
pub(super) fn untrained(prompt: &mut [Turn]) {
    for turn in prompt.iter_mut().filter(|turn| turn.role == "assistant") {
        turn.weight = turn.weight.or(Some(0.0));
    }
}

/// Refuses an answer with nothing in it, or one that somebody else speaks last.
pub(super) fn check(cells: &Cells, answer: &Said, form: Option<Form>) -> Result<()> {
    if answer.plain {
        if answer.turns[0].content.trim().is_empty() {
            return Err(cells
                .wrong(answer.column, "the answer is empty")
                .hint("there is nothing to learn from it; remove the row"));
        }
        return Ok(());
    }
    if form == Some(Form::Raw) {
        return Err(
            cells.wrong(answer.column, "form = \"raw\" expects text, found a list of messages")
        );
    }
    match answer.turns.last() {
        Some(last) if last.role != "assistant" => Err(cells.wrong(
            answer.column,
            format!("the answer ends with a turn of `{}`, expected the assistant's", last.role),
        )),
        _ => Ok(()),
    }
}
