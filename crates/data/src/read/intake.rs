//! Takes rows in file order, recognises the layout at the first one and makes examples of all.

use std::{collections::BTreeSet, sync::Arc};

use luthier_core::{Error, Example, Origin, Result, Table};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::ReadOptions;
use crate::layout::{Recognised, Used};

/// Below this many lines a thread's share is not worth the hand-over.
const LINES_PER_JOB: usize = 32;

pub(super) struct Intake<'a> {
    name: Arc<str>,
    options: &'a ReadOptions,
    recognised: Option<Recognised<'a>>,
    used: Used,
    examples: Vec<Example>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(name: &str, options: &'a ReadOptions) -> Self {
        Intake { name: name.into(), options, recognised: None, used: 0, examples: Vec::new() }
    }

    /// The file, as the user named it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this row by itself has a known layout.
    pub(super) fn knows(&self, row: &Map<String, Value>) -> bool {
        Recognised::new(row, self.options, "").is_ok()
    }

    /// Takes one row.
    pub(super) fn row(&mut self, line: usize, row: Map<String, Value>) -> Result<()> {
        let origin = Origin { file: self.name.clone(), line };
        if self.recognised.is_none() {
            self.recognised = Some(Recognised::new(&row, self.options, &origin.to_string())?);
        }
        let recognised = self.recognised.as_ref().expect("it was set just above");
        let (example, used) = recognised.example(row, origin)?;
        self.used |= used;
        self.examples.push(example);
        Ok(())
    }

    /// Takes many lines, parsed on all cores. The rows keep their order, and the error is that of
    /// the first bad line, at any number of threads.
    pub(super) fn lines<T: Sync>(
        &mut self,
        lines: &[T],
        parse: impl Fn(&T) -> Result<(usize, Map<String, Value>)> + Sync,
    ) -> Result<()> {
        let Some((first, rest)) = lines.split_first() else { return Ok(()) };
        let (line, row) = parse(first)?;
        self.row(line, row)?;
        let recognised = self.recognised.as_ref().expect("a row was taken just above");
        let name = &self.name;
        let made: Vec<Result<(Example, Used)>> = rest
            .par_iter()
            .with_min_len(LINES_PER_JOB)
            .map(|item| {
                let (line, row) = parse(item)?;
                recognised.example(row, Origin { file: name.clone(), line })
            })
            .collect();
        self.examples.reserve(made.len());
        for result in made {
            let (example, used) = result?;
            self.used |= used;
            self.examples.push(example);
        }
        Ok(())
    }

    /// The table; a file without rows is refused.
    pub(super) fn finish(self, sha256: String) -> Result<Table> {
        let Some(recognised) = self.recognised else {
            return Err(Error::input(self.name.as_ref(), "the file holds no rows"));
        };
        let beside: BTreeSet<&str> =
            self.examples.iter().flat_map(|e| e.columns.keys()).map(String::as_str).collect();
        Ok(Table {
            name: self.name.to_string(),
            layout: recognised.sentence(self.used, &beside),
            sha256,
            examples: self.examples,
        })
    }
}
