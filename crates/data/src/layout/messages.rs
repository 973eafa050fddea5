//! Conversations: the last assistant turn is the completion, all before it the prompt.

use luthier_core::{Form, Result};

use super::{Parts, cells::Cells, recognise::completion, turns};

pub(super) fn read(cells: &mut Cells, role: &str, form: Option<Form>) -> Result<Parts> {
    let Some((column, value)) = cells.take(role) else {
        return Err(cells.error(format!("no {role}")));
    };
    if form == Some(Form::Raw) {
        return Err(cells
            .error("form = \"raw\" cannot say who speaks in a conversation")
            .hint("raw text needs prompt/completion or text columns"));
    }
    let value = cells.parsed(column, value)?;
    let mut prompt = turns::read(cells, column, value)?;
    match prompt.pop() {
        Some(last) if last.role == "assistant" => {
            Ok(Parts { prompt, completions: vec![completion(vec![last])], form: Form::Chat })
        }
        last => {
            let role = last.map(|turn| turn.role).unwrap_or_default();
            let what =
                format!("the conversation ends with a turn of `{role}`, expected the assistant's");
            Err(cells.wrong(column, what).hint(
                "remove what follows the last answer, or read it with layout = \"prompt_only\"",
            ))
        }
    }
}
