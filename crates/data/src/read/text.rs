//! Plain text: paragraphs. Every block of lines between blank lines is one example, known by the
//! number of its first line; the line ends within a block stay, as `\n`.

use luthier_core::Result;
use serde_json::{Map, Value};

use super::{
    intake::Intake,
    source::{Source, not_utf8},
};

pub(super) fn read(source: &mut Source, intake: &mut Intake) -> Result<()> {
    let mut block = String::new();
    let mut first = 0;
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let line = source.next_line(&mut bytes)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| not_utf8(source.at(line.unwrap_or(1)), &bytes, e.valid_up_to()))?;
        if !text.trim().is_empty() {
            if block.is_empty() {
                first = line.unwrap_or(1);
            } else {
                block.push('\n');
            }
            block.push_str(text);
        } else if !block.is_empty() {
            let cell = Value::String(std::mem::take(&mut block));
            intake.row(first, Map::from_iter([("text".to_owned(), cell)]))?;
        }
        if line.is_none() {
            return Ok(());
        }
    }
}
