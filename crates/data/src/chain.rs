//! Steps after one another; a chain is a step itself, so chains nest.

use luthier_core::{Error, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::{Kind, Step};

/// A list of steps, as `[[data.steps]]` in a recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain(pub Vec<Kind>);

/// What one step did to the number of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The step's name.
    pub step: &'static str,
    /// Rows it was given.
    pub rows_in: usize,
    /// Rows it passed on.
    pub rows_out: usize,
}

impl Chain {
    /// Applies every step and says what each did; a step that leaves no row is an error.
    ///
    /// A step's seed depends on its name and its place, so that two `sample` steps differ and a
    /// changed step leaves the randomness of the others as it was.
    pub fn apply_noting(&self, mut table: Table, seed: Seed) -> Result<(Table, Vec<Note>)> {
        let mut notes = Vec::with_capacity(self.0.len());
        for (i, step) in self.0.iter().enumerate() {
            let rows_in = table.examples.len();
            table = step.apply(table, seed.split(step.name()).at(i as u64))?;
            let rows_out = table.examples.len();
            if rows_out == 0 {
                return Err(Error::input(
                    format!("data.steps, step {} ({})", i + 1, step.name()),
                    format!("leaves none of the {rows_in} rows it was given"),
                )
                .hint("loosen the step or look at the rows with `luthier show`"));
            }
            notes.push(Note { step: step.name(), rows_in, rows_out });
        }
        Ok((table, notes))
    }
}

impl Chain {
    /// The steps that change how a question is worded, which held-out rows must go through as well.
    pub fn rewording(&self) -> Chain {
        Chain(self.0.iter().filter(|step| step.rewords()).cloned().collect())
    }
}

impl Step for Chain {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        Ok(self.apply_noting(table, seed)?.0)
    }
}
