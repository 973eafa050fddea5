//! Finds the layout of a first row, and makes examples of all rows by it.

use std::collections::BTreeSet;

use luthier_core::{
    Completion, Error, Example, Form, Origin, Result, Turn, example::Marks, nearest,
};
use serde_json::{Map, Value};

use super::{
    Layout, Parts, alpaca,
    cells::Cells,
    describe, messages, preference, prompt_completion, prompt_only,
    shapes::{RoleColumn, SHAPES, Shape},
    text,
};
use crate::{ReadOptions, transform::system::System};

/// Which of a shape's optional columns were met, one bit for each of their usual names.
pub(crate) type Used = u32;

/// Other columns named in a table's layout sentence before it says "and n more".
const NAMED: usize = 8;

/// A layout and the columns that play its roles.
pub(crate) struct Recognised<'a> {
    shape: &'static Shape,
    options: &'a ReadOptions,
    /// The columns every row must have, by role.
    required: Vec<(&'static str, String)>,
}

impl<'a> Recognised<'a> {
    /// The layout of `row`; `at` names the row in errors.
    pub(crate) fn new(
        row: &Map<String, Value>,
        options: &'a ReadOptions,
        at: &str,
    ) -> Result<Self> {
        let shapes: Vec<&'static Shape> =
            SHAPES.iter().filter(|s| options.layout.is_none_or(|l| l == s.layout)).collect();
        for role in options.columns.keys() {
            let roles = shapes.iter().flat_map(|shape| roles(shape));
            let roles: BTreeSet<&str> = roles.collect();
            if !roles.contains(role.as_str()) {
                return Err(Error::input(format!("columns.{role}"), "no such role in this layout")
                    .hint(nearest::suggest(role, roles)));
            }
        }
        stepwise(row, at)?;
        for shape in &shapes {
            let telling = if options.layout.is_some() { shape.sets.len() } else { shape.telling };
            for set in &shape.sets[..telling] {
                if let Some(required) = matched(shape, set, row, options) {
                    return Ok(Recognised { shape, options, required });
                }
            }
        }
        Err(unknown(row, options, at, &shapes))
    }

    /// The example in a row.
    pub(crate) fn example(
        &self,
        mut row: Map<String, Value>,
        origin: Origin,
    ) -> Result<(Example, Used)> {
        if self.required.iter().any(|(_, column)| !row.contains_key(column)) {
            return Err(self.lacking(&row, &origin));
        }
        let mut cells = Cells::new(&origin);
        for (role, column) in &self.required {
            cells.add(role, column, row.shift_remove(column).unwrap_or_default());
        }
        let mut used: Used = 0;
        let mut bits = 0;
        for (role, names) in self.shape.optional {
            let first_bit = bits;
            bits += names.len();
            if self.required.iter().any(|(r, _)| r == role) {
                continue;
            }
            let named = self.options.columns.get(*role).map(String::as_str);
            let (bit, column) = match named {
                Some(column) => (first_bit, column),
                None => match names.iter().position(|n| row.contains_key(*n)) {
                    Some(i) => (first_bit + i, names[i]),
                    None => continue,
                },
            };
            // A class label or a textual score under the usual name is a column like any other.
            let fits = |value: &Value| match *role {
                "label" => value.is_boolean(),
                "score_chosen" | "score_rejected" => value.is_number(),
                _ => true,
            };
            if named.is_none() && row.get(column).is_some_and(|v| !v.is_null() && !fits(v)) {
                continue;
            }
            match row.shift_remove(column) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    used |= 1 << bit;
                    cells.add(role, column, value);
                }
            }
        }
        Ok((self.build(cells, row, origin.clone())?, used))
    }

    fn build(
        &self,
        mut cells: Cells,
        columns: Map<String, Value>,
        origin: Origin,
    ) -> Result<Example> {
        let tools = cells.tools()?;
        let template_kwargs = cells.object("chat_template_kwargs")?;
        let system = cells.text("system")?.filter(|s| !s.trim().is_empty());
        let form = self.options.form;
        let Parts { mut prompt, completions, form } = match self.shape.layout {
            Layout::Messages => messages::read(&mut cells, "messages", form)?,
            Layout::ShareGpt => messages::read(&mut cells, "conversations", form)?,
            Layout::Alpaca => alpaca::read(&mut cells, form)?,
            Layout::PromptCompletion => prompt_completion::read(&mut cells, form)?,
            Layout::Preference => preference::read(&mut cells, form)?,
            Layout::Text => text::read(&mut cells, form)?,
            Layout::PromptOnly => prompt_only::read(&mut cells, form)?,
        };
        if let Some(system) = system {
            match prompt.first() {
                Some(turn) if turn.role == "system" && turn.content.trim() == system.trim() => {}
                Some(turn) if turn.role == "system" => {
                    return Err(cells.error("the row has a system column and another system turn"));
                }
                _ if form == Form::Raw => {
                    return Err(
                        cells.error("the row has a system text, which form = \"raw\" cannot place")
                    );
                }
                _ => prompt.insert(0, Turn::new("system", system)),
            }
        }
        let mut example = Example {
            prompt,
            completions,
            form,
            tools,
            template_kwargs,
            marks: Marks::new(),
            columns,
            origin,
        };
        if let Some(text) = &self.options.system {
            System { text: text.clone() }.add(&mut example)?;
        }
        Ok(example)
    }

    fn lacking(&self, row: &Map<String, Value>, origin: &Origin) -> Error {
        let expected: Vec<&str> = self.required.iter().map(|(_, c)| c.as_str()).collect();
        let found: Vec<&str> = row.keys().map(String::as_str).collect();
        let missing = expected.iter().find(|c| !row.contains_key(**c)).copied().unwrap_or_default();
        let others: Vec<&str> = found.iter().copied().filter(|f| !expected.contains(f)).collect();
        let error = Error::input(
            origin.to_string(),
            format!(
                "expected the columns {} as in the rows before, found {}",
                expected.join(", "),
                if found.is_empty() { "none".to_owned() } else { found.join(", ") }
            ),
        );
        match nearest::nearest(missing, others, 1).first() {
            Some(near) => error.hint(format!("is {near} meant to be {missing}?")),
            None => error.hint("all rows of a file must have the same layout"),
        }
    }

    /// `prompt/completion (columns question, answer; beside them id)`.
    pub(crate) fn sentence(&self, used: Used, beside: &BTreeSet<&str>) -> String {
        let mut columns: Vec<&str> = self.required.iter().map(|(_, c)| c.as_str()).collect();
        let optional = self
            .shape
            .optional
            .iter()
            .flat_map(|(role, names)| names.iter().map(move |n| (role, n)));
        for (bit, (role, name)) in optional.enumerate() {
            if used & (1 << bit) != 0 {
                columns.push(self.options.columns.get(*role).map_or(name, String::as_str));
            }
        }
        let word = if columns.len() == 1 { "column" } else { "columns" };
        let mut sentence = format!("{} ({word} {}", self.shape.layout.name(), columns.join(", "));
        if !beside.is_empty() {
            let named: Vec<&str> = beside.iter().copied().take(NAMED).collect();
            sentence += &format!("; beside them {}", named.join(", "));
            if beside.len() > NAMED {
                sentence += &format!(" and {} more", beside.len() - NAMED);
            }
        }
        sentence + ")"
    }
}

/// Refuses stepwise supervision: an answer in pieces, each with a verdict of its own.
fn stepwise(row: &Map<String, Value>, at: &str) -> Result<()> {
    let list = |column: &str| matches!(row.get(column), Some(Value::Array(_)));
    if !(row.contains_key("prompt") && list("completions") && list("labels")) {
        return Ok(());
    }
    let what = "stepwise supervision (prompt, completions, labels): no loss here judges the steps of \
        an answer one by one";
    Err(Error::input(at, what)
        .hint("join the steps into one completion, with label true where all of them are right"))
}

fn roles(shape: &'static Shape) -> impl Iterator<Item = &'static str> {
    let required = shape.sets.iter().flat_map(|set| set.iter().map(|(role, _)| *role));
    required.chain(shape.optional.iter().map(|(role, _)| *role))
}

/// The set's columns in this row, if they are all there.
fn matched(
    shape: &'static Shape,
    set: &'static [RoleColumn],
    row: &Map<String, Value>,
    options: &ReadOptions,
) -> Option<Vec<(&'static str, String)>> {
    let known = |role: &str| {
        set.iter().any(|(r, _)| *r == role) || shape.optional.iter().any(|(r, _)| *r == role)
    };
    if !options.columns.keys().all(|role| known(role)) {
        return None;
    }
    let mut required = Vec::with_capacity(set.len());
    for (role, usual) in set {
        let column = options.columns.get(*role).map_or(*usual, String::as_str);
        let value = row.get(column)?;
        if options.layout.is_none() && !convincing(shape.layout, value) {
            return None;
        }
        required.push((*role, column.to_owned()));
    }
    Some(required)
}

/// Message lists of both styles come under the same names; the first message tells them apart.
fn convincing(layout: Layout, value: &Value) -> bool {
    let key = match layout {
        Layout::Messages => "role",
        Layout::ShareGpt => "from",
        _ => return true,
    };
    match value {
        Value::Array(items) => match items.first() {
            Some(Value::Object(message)) => message.contains_key(key),
            // An empty or odd list is nobody's; the reader of messages has the words to refuse it.
            _ => layout == Layout::Messages,
        },
        Value::String(text) => {
            let list = serde_json::from_str::<Value>(text).ok();
            list.is_some_and(|list| list.is_array() && convincing(layout, &list))
        }
        _ => false,
    }
}

fn unknown(row: &Map<String, Value>, options: &ReadOptions, at: &str, shapes: &[&Shape]) -> Error {
    let found: Vec<&str> = row.keys().map(String::as_str).collect();
    if let Some((role, column)) = options.columns.iter().find(|(_, c)| !row.contains_key(*c)) {
        let what =
            format!("columns.{role} names `{column}`; the columns found are {}", found.join(", "));
        return Error::input(at, what).hint(nearest::suggest(column, found));
    }
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let lists = ["messages", "conversations", "conversation"];
    if let Some((name, value)) = row.iter().find(|(k, _)| lists.contains(&k.as_str()))
        && options.layout.is_none_or(|l| matches!(l, Layout::Messages | Layout::ShareGpt))
    {
        let what = format!("column {name}: expected a list of messages, found {}", describe(value));
        return Error::input(at, what);
    }
    let known: Vec<String> = shapes
        .iter()
        .map(|shape| {
            let columns: Vec<&str> = shape.sets[0].iter().map(|(_, column)| *column).collect();
            format!("{} ({})", shape.layout.name(), columns.join(", "))
        })
        .collect();
    let what = match options.layout {
        Some(layout) => format!("expected the layout {}, found the columns {found}", layout.name()),
        None => format!("the columns found, {found}, are those of no known layout"),
    };
    Error::input(at, what).hint(format!(
        "known: {}; or name the columns, as in columns.prompt = \"…\", columns.completion = \"…\"",
        known.join(", ")
    ))
}

/// One completion of these turns, without marks.
pub(super) fn completion(turns: Vec<Turn>) -> Completion {
    Completion { turns, marks: Marks::new() }
}
