//! Several merges in one file, documents of YAML as mergekit-multi has them: a document's `name` is a
//! model for the others.
//!
//! The result is the document without a name, or else the last one. What it needs is made before it, in
//! a hidden folder beside the output that is removed in the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use luthier_core::{Error, Result, nearest::suggest};
use luthier_weights::Config;
use serde_json::Value;

use super::{Job, Merged, Part, search};

/// One document.
struct Document {
    name: Option<String>,
    value: Value,
    search: Option<search::Search>,
    /// The documents that it takes as models.
    needs: Vec<usize>,
}

/// The documents in an order in which each comes behind what it needs; the last is the result.
fn ordered(values: &[Value], file: &str) -> Result<Vec<Document>> {
    let mut all = Vec::with_capacity(values.len());
    for value in values {
        let mut value = value.clone();
        let search = search::take(&mut value, file)?;
        let name = match value.get("name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(plain(name, file)?),
            Some(other) => {
                return Err(Error::input(file, format!("name: expected text, got {other}")));
            }
        };
        all.push(Document { name, value, search, needs: Vec::new() });
    }
    let names: Vec<Option<String>> = all.iter().map(|one| one.name.clone()).collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            let what = name.as_ref().map_or("two documents have no name".to_string(), |name| {
                format!("two documents are called {name}")
            });
            return Err(Error::input(file, what)
                .hint("the one without a name is the result; the others need names of their own"));
        }
    }
    for (i, one) in all.iter_mut().enumerate() {
        let config =
            Config::from_value(&one.value, file).map_err(|e| within(names[i].as_deref(), e))?;
        for model in config.models() {
            let place = names.iter().position(|name| name.as_deref() == Some(&*model.name));
            one.needs.extend(place.filter(|place| !one.needs.contains(place)));
        }
    }
    let last = names.iter().position(Option::is_none).unwrap_or(all.len() - 1);
    let mut order = Vec::new();
    visit(last, &all, &mut Vec::new(), &mut order, file)?;
    if let Some(unused) = (0..all.len()).find(|i| !order.contains(i)) {
        let name = names[unused].as_deref().unwrap_or_default();
        let used = names.iter().flatten().map(String::as_str).filter(|other| *other != name);
        return Err(Error::input(file, format!("no other merge takes {name}"))
            .hint(format!("{}, or give it a file of its own", suggest(name, used))));
    }
    let mut left: Vec<Option<Document>> = all.into_iter().map(Some).collect();
    Ok(order.iter().filter_map(|i| left[*i].take()).collect())
}

/// Puts what a document needs before it. `path` is the way to it.
fn visit(
    at: usize,
    all: &[Document],
    path: &mut Vec<usize>,
    order: &mut Vec<usize>,
    file: &str,
) -> Result<()> {
    if order.contains(&at) {
        return Ok(());
    }
    let name = |i: &usize| all[*i].name.clone().unwrap_or_else(|| "the result".to_string());
    if let Some(first) = path.iter().position(|one| *one == at) {
        let way: Vec<String> = path[first..].iter().chain([&at]).map(name).collect();
        let what = format!("merges that take one another: {}", way.join(" takes "));
        return Err(Error::input(file, what));
    }
    path.push(at);
    all[at].needs.iter().try_for_each(|need| visit(*need, all, path, order, file))?;
    path.pop();
    order.push(at);
    Ok(())
}

/// A name that can be that of a folder and of a model.
fn plain(name: &str, file: &str) -> Result<String> {
    let odd = |c: char| "/\\+".contains(c);
    if name.is_empty() || name.starts_with('.') || name.contains(odd) {
        let what = format!("name: {name:?} cannot be the name of a folder and of a model");
        return Err(Error::input(file, what).hint("use letters, digits, - and _"));
    }
    let beside = Path::new(file).parent().map(|dir| dir.join(name));
    if Path::new(name).exists() || beside.is_some_and(|path| path.exists()) {
        let what = format!("name: {name} is a merge of this file and a folder that is there");
        return Err(Error::input(file, what).hint("rename one of the two"));
    }
    Ok(name.to_string())
}

fn within(name: Option<&str>, error: Error) -> Error {
    match name {
        Some(name) => Error::within(name, error),
        None => error,
    }
}

/// Reads the documents without opening what they name.
pub(super) fn check(values: &[Value], file: &str) -> Result<()> {
    ordered(values, file).map(|_| ())
}

/// Makes all of them; the result's folder is `out`, with the whole file's text beside it.
pub(super) fn run(job: &Job<'_>, values: &[Value], text: &str, out: &Path) -> Result<Merged> {
    let documents = ordered(values, &job.file)?;
    let part = Part::named(out, "merges")?;
    let (mut made, mut notes) = (BTreeMap::<String, PathBuf>::new(), Vec::new());
    for Document { name, value, search, .. } in &documents[..documents.len() - 1] {
        let name = name.clone().unwrap_or_default();
        let folder = part.0.join(&name);
        let merged = one(job, (value, search.as_ref()), "", &folder, &made)
            .map_err(|e| within(Some(&name), e))?;
        notes.extend(merged.notes.iter().map(|note| format!("{name}: {note}")));
        made.insert(name, folder);
    }
    let Document { value, search, .. } = &documents[documents.len() - 1];
    let mut merged = one(job, (value, search.as_ref()), text, out, &made)?;
    notes.append(&mut merged.notes);
    Ok(Merged { notes, ..merged })
}

/// One of them, for which those in `made` are models. Without a text its own document is kept.
fn one(
    job: &Job<'_>,
    (value, search): (&Value, Option<&search::Search>),
    text: &str,
    out: &Path,
    made: &BTreeMap<String, PathBuf>,
) -> Result<Merged> {
    let find = |name: &str| match made.get(name) {
        Some(folder) => Ok(folder.clone()),
        None => (job.find)(name),
    };
    let job = Job { file: job.file.clone(), find: &find, ..*job };
    match (search, text) {
        (Some(search), _) => search.run(&job, value, out),
        (None, "") => job.merge(value, &format!("{value:#}\n"), out),
        (None, text) => job.merge(value, text, out),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(values: &[Value]) -> Result<Vec<String>> {
        let all = ordered(values, "m.yml")?;
        Ok(all.into_iter().map(|one| one.name.unwrap_or_default()).collect())
    }

    fn mean(name: Option<&str>, of: &[&str]) -> Value {
        let models: Vec<Value> = of.iter().map(|model| json!({"model": model})).collect();
        json!({"merge_method": "linear", "name": name, "models": models, "parameters": {"weight": 1}})
    }

    #[test]
    fn each_comes_behind_what_it_takes() {
        let top = mean(None, &["one", "two+lora"]);
        let two = mean(Some("two"), &["three", "x"]);
        let one = mean(Some("one"), &["x", "three"]);
        let three = mean(Some("three"), &["x", "y"]);
        let got = names(&[top, two.clone(), one.clone(), three.clone()]).unwrap();
        assert_eq!(got, ["three", "one", "two", ""]);
        // Without a nameless one the last is the result.
        let last = mean(Some("last"), &["one", "two"]);
        let got = names(&[two, three, one, last]).unwrap();
        assert_eq!(got, ["three", "one", "two", "last"]);
    }

    #[test]
    fn circles_and_names_that_do_not_fit_are_refused() {
        let wrong = |values: &[Value], words: &str| {
            let error = names(values).unwrap_err();
            assert!(error.to_string().contains(words) && error.exit_code() == 2, "{error}");
        };
        let (a, b) = (mean(Some("a"), &["b"]), mean(Some("b"), &["a"]));
        wrong(&[a.clone(), b], "b takes a takes b");
        wrong(&[a.clone(), a.clone()], "two documents are called a");
        wrong(&[mean(None, &["x"]), mean(None, &["y"])], "have no name");
        wrong(&[a, mean(None, &["x"])], "no other merge takes a");
        wrong(&[mean(Some("a/b"), &["x"]), mean(None, &["x"])], "\"a/b\"");
        wrong(&[mean(Some("src"), &["x"]), mean(None, &["src"])], "a folder that is there");
        wrong(&[json!({"name": "a", "merge_method": "tiez"}), mean(None, &["a"])], "tiez");
    }
}
