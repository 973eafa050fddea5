//! A system turn for conversations that have none; their own stays where there is one.

use luthier_core::{Error, Example, Form, Result, Seed, Table, Turn};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `system = { text = "Answer briefly." }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// What the system turn says.
    pub text: String,
}

impl System {
    pub(crate) fn add(&self, example: &mut Example) -> Result<()> {
        if example.form == Form::Raw {
            return Err(Error::input(
                example.origin.to_string(),
                "a system text needs the chat template, but this row is raw text",
            )
            .hint("remove the system text, or read the rows with form = \"chat\""));
        }
        if example.prompt.first().is_none_or(|turn| turn.role != "system") {
            example.prompt.insert(0, Turn::new("system", self.text.as_str()));
        }
        Ok(())
    }
}

impl Step for System {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        table.examples.iter_mut().try_for_each(|example| self.add(example))?;
        Ok(table)
    }
}
