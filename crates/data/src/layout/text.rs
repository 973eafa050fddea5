//! Text without roles: an empty prompt and one raw completion.

use luthier_core::{Form, Result, Turn};

use super::{Parts, cells::Cells, recognise::completion};

pub(super) fn read(cells: &mut Cells, form: Option<Form>) -> Result<Parts> {
    if form == Some(Form::Chat) {
        return Err(cells
            .error("form = \"chat\" needs to know who speaks; plain text does not say")
            .hint("remove form, or name prompt and completion columns"));
    }
    let text = cells.text("text")?.unwrap_or_default();
    if text.trim().is_empty() {
        return Err(cells.error("the text is empty").hint("remove the row"));
    }
    let completions = vec![completion(vec![Turn::new("assistant", text)])];
    Ok(Parts { prompt: Vec::new(), completions, form: Form::Raw })
}
