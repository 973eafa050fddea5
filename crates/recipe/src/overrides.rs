//! `key=value` on the command line: which setting of a recipe is meant, and how it is put in.

use luthier_core::{Error, Result, nearest::suggest};
use toml::{Table, Value};

/// Puts `key=value` settings into a recipe's table; `resolved` is the same with every default.
pub(crate) fn apply(table: &mut Table, resolved: &Table, overrides: &[String]) -> Result<()> {
    let known = leaves(resolved);
    let mut settings = Vec::with_capacity(overrides.len());
    for given in overrides {
        let Some((key, value)) = given.split_once('=') else {
            return Err(Error::input(given, "expected key=value"));
        };
        let path = full_path(key.trim(), &known)?;
        // What the recipe says instead is replaced; two overrides still contradict each other.
        if let Some((_, other)) = INSTEAD.iter().find(|(key, _)| *key == path) {
            remove(table, other);
        }
        settings.push((path, value_of(value.trim()), given));
    }
    settings.into_iter().try_for_each(|(path, value, given)| set(table, &path, value, given))
}

/// Settings of which a recipe may hold one.
const INSTEAD: &[(&str, &str)] =
    &[("train.batch_size", "train.batch_tokens"), ("train.batch_tokens", "train.batch_size")];

/// Keys that are absent from a resolved recipe because they have no default.
const OPTIONAL: &[&str] = &[
    "data.train",
    "data.eval",
    "eval.data",
    "eval.general",
    "train.max_steps",
    "train.batch_size",
    "train.batch_tokens",
    "train.micro_tokens",
    "train.save_total_limit",
    "train.early_stopping_patience",
    "train.continue_from",
    "data.task",
    "data.read.layout",
    "data.read.form",
    "data.read.system",
];

/// Dotted paths of all settings in a table.
fn leaves(table: &Table) -> Vec<String> {
    let mut all: Vec<String> = OPTIONAL.iter().map(|k| k.to_string()).collect();
    fn walk(prefix: &str, table: &Table, all: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => walk(&path, inner, all),
                _ => all.push(path),
            }
        }
    }
    walk("", table, &mut all);
    all.sort();
    all.dedup();
    all
}

/// `schedule.constant` → `train.update.schedule.constant`, when one known table ends in the key's
/// first part.
fn below_table(key: &str, known: &[String]) -> Option<String> {
    let (first, rest) = key.split_once('.')?;
    let inside = |path: &String| {
        let at = path.find(&format!(".{first}."))?;
        Some(path[..at + 1 + first.len()].to_string())
    };
    let mut tables: Vec<String> = known.iter().filter_map(inside).collect();
    tables.sort();
    tables.dedup();
    match tables.as_slice() {
        [one] => Some(format!("{one}.{rest}")),
        _ => None,
    }
}

/// The one known path that is `key` or ends in it. A dotted key that is no end of a known one may
/// name a method that the recipe does not use yet: it is looked for below a known table, and else
/// taken as a full path.
fn full_path(key: &str, known: &[String]) -> Result<String> {
    if known.iter().any(|k| k == key) {
        return Ok(key.to_string());
    }
    let ends: Vec<&String> = known.iter().filter(|k| k.ends_with(&format!(".{key}"))).collect();
    match ends.as_slice() {
        [one] => Ok(one.to_string()),
        [] if key.contains('.') => Ok(below_table(key, known).unwrap_or_else(|| key.to_string())),
        [] => {
            let last = known.iter().map(|k| k.rsplit('.').next().unwrap_or(k));
            Err(Error::input(key, "no setting of this recipe has this name")
                .hint(suggest(key, last)))
        }
        several => {
            let list: Vec<&str> = several.iter().map(|k| k.as_str()).collect();
            Err(Error::input(key, format!("could be {}", list.join(" or ")))
                .hint("write more of the path"))
        }
    }
}

/// A TOML value, or the text itself where it is none.
fn value_of(text: &str) -> Value {
    match toml::from_str::<Table>(&format!("v = {text}")) {
        Ok(mut table) => table.remove("v").unwrap_or_else(|| Value::String(text.into())),
        Err(_) => Value::String(text.to_string()),
    }
}

/// Takes a setting out, if it is there.
fn remove(table: &mut Table, path: &str) {
    match path.split_once('.') {
        None => _ = table.remove(path),
        Some((part, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(part) {
                remove(inner, rest);
            }
        }
    }
}

fn set(table: &mut Table, path: &str, value: Value, given: &str) -> Result<()> {
    let mut parts: Vec<&str> = path.split('.').collect();
    let last = parts.pop().unwrap_or(path);
    let mut here = table;
    for part in parts {
        let next = here.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = next else {
            return Err(Error::input(given, format!("`{part}` is a value, not a table")));
        };
        here = inner;
    }
    // A whole number is fine where a fraction is expected.
    let value = match (here.get(last), value) {
        (Some(Value::Float(_)), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    here.insert(last.to_string(), value);
    Ok(())
}
