//! Which task every row belongs to: what a column says, or its file.

use luthier_core::{Error, Example, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::prepare::Prepared;

/// `data.task`: `"file"`, or `{ column = "task" }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskBy {
    /// Every file is a task, named like it without folder and ending.
    File,
    /// A column says it, as a text or a number.
    Column(String),
}

impl TaskBy {
    fn name(&self, example: &Example) -> Result<String> {
        let column = match self {
            TaskBy::File => {
                let file = std::path::Path::new(example.origin.file.as_ref());
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
                let name = name.unwrap_or_else(|| example.origin.file.to_string());
                return Ok(name.split('.').next().unwrap_or(&name).to_string());
            }
            TaskBy::Column(column) => column,
        };
        let at = example.origin.to_string();
        match example.columns.get(column) {
            Some(Value::String(name)) if !name.trim().is_empty() => Ok(name.trim().to_string()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(_) => {
                let what = format!("column {column}: expected the name of a task");
                Err(Error::input(at, what).hint("data.task names this column"))
            }
            None => {
                let what = format!("there is no column {column}, which data.task names");
                let found = example.columns.keys().map(String::as_str);
                Err(Error::input(at, what).hint(luthier_core::nearest::suggest(column, found)))
            }
        }
    }
}

/// Numbers the tasks of all rows in the order in which they first come, training rows first, and
/// gives their names. Without `by` there is none.
pub fn assign(
    by: Option<&TaskBy>,
    train: &mut Prepared,
    eval: Option<&mut Prepared>,
) -> Result<Vec<String>> {
    let Some(by) = by else { return Ok(Vec::new()) };
    let mut names: Vec<String> = Vec::new();
    for prepared in [Some(train), eval].into_iter().flatten() {
        for row in &mut prepared.rows {
            let name = by.name(&prepared.table.examples[row.example])?;
            row.task = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use luthier_core::{Row, Table, Turn};
    use luthier_data::CutTable;

    use super::*;

    fn prepared(examples: &[(&str, Option<Value>)]) -> Prepared {
        let example = |(i, (file, task)): (usize, &(&str, Option<Value>))| {
            let turns = vec![Turn::new("user", "?")];
            let mut example = Example::new(file, i + 1, turns, Some(Turn::new("assistant", "!")));
            example.columns.extend(task.clone().map(|task| ("task".to_string(), task)));
            example
        };
        let text = String::new;
        let examples: Vec<Example> = examples.iter().enumerate().map(example).collect();
        let rows = (0..examples.len()).map(|example| Row { example, ..Row::default() }).collect();
        let table = Table { name: text(), layout: text(), sha256: text(), examples };
        Prepared { table, rows, cut: CutTable::default() }
    }

    fn numbers(prepared: &Prepared) -> Vec<usize> {
        prepared.rows.iter().map(|row| row.task).collect()
    }

    #[test]
    fn tasks_are_numbered_as_they_come() {
        let of = |task: &str| Some(task.into());
        let mut train = prepared(&[
            ("a", of("sum")),
            ("a", of("copy")),
            ("a", of("sum")),
            ("a", Some(3.into())),
        ]);
        let mut eval = prepared(&[("b", of("sort")), ("b", of("copy"))]);
        let column = TaskBy::Column("task".into());
        let names = assign(Some(&column), &mut train, Some(&mut eval)).unwrap();
        assert_eq!(names, ["sum", "copy", "3", "sort"]);
        assert_eq!((numbers(&train), numbers(&eval)), (vec![0, 1, 0, 2], vec![3, 1]));
        assert_eq!(assign(None, &mut train, None).unwrap(), [""; 0]);
        let mut files = prepared(&[("data/sum.jsonl", None), ("copy.jsonl.gz", None)]);
        assert_eq!(assign(Some(&TaskBy::File), &mut files, None).unwrap(), ["sum", "copy"]);
    }

    #[test]
    fn a_row_without_a_task_is_named() {
        let column = TaskBy::Column("tusk".into());
        for (value, what) in [(None, "no column tusk"), (Some("x".into()), "did you mean task")] {
            let mut train = prepared(&[("t.jsonl", value)]);
            let error = assign(Some(&column), &mut train, None).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:1: ") && error.contains(what), "{error}");
        }
        let mut train = prepared(&[("t.jsonl", Some(true.into()))]);
        let error = assign(Some(&TaskBy::Column("task".into())), &mut train, None).unwrap_err();
        assert!(error.to_string().contains("expected the name of a task"), "{error}");
        let by: TaskBy = toml::from_str::<toml::Table>("t = {column = \"task\"}").unwrap()["t"]
            .clone()
            .try_into()
            .unwrap();
        assert_eq!(by, TaskBy::Column("task".into()));
    }
}
