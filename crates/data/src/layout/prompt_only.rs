//! A prompt without an answer, for rollouts and generation.

use luthier_core::{Form, Result};
use serde_json::Value;

use super::{Parts, cells::Cells, prompt_completion};

pub(super) fn read(cells: &mut Cells, form: Option<Form>) -> Result<Parts> {
    // A message list that came as JSON text, from CSV.
    if let Some((column, value)) = cells.take("prompt") {
        let list = match &value {
            Value::String(text) if text.trim_start().starts_with("[{") => {
                serde_json::from_str(text).ok().filter(Value::is_array)
            }
            _ => None,
        };
        cells.add("prompt", column, list.unwrap_or(value));
    }
    let prompt = prompt_completion::prompt(cells, "prompt", form)?;
    Ok(Parts { prompt, completions: Vec::new(), form: form.unwrap_or_default() })
}
