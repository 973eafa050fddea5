//! One value of a merge's file put in place of another, by the name that a search gives it.

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

/// The file with the setting `name` at `to`.
pub(super) fn set(file: &mut Value, name: &str, to: &Value, at: &str) -> Result<()> {
    let at = format!("{at}.{name}");
    let place = match name.split_once(" of ") {
        Some((key, model)) => {
            let models = file.get_mut("models").and_then(Value::as_array_mut);
            let named =
                |entry: &&mut Value| entry.get("model").and_then(Value::as_str) == Some(model);
            let found = models.and_then(|models| models.iter_mut().find(named));
            let entry = found.ok_or_else(|| {
                Error::input(&at, format!("no entry of `models` has the model {model}"))
            })?;
            (table(entry, "parameters", &at)?, key)
        }
        None => match name.strip_prefix("lines.") {
            Some(key) => (table(file, "lines", &at)?, key),
            None => (table(file, "parameters", &at)?, name),
        },
    };
    place.0.insert(place.1.to_string(), to.clone());
    Ok(())
}

/// The table under a key, made if need be.
fn table<'v>(of: &'v mut Value, key: &str, at: &str) -> Result<&'v mut Map<String, Value>> {
    let wrong = |what: &str| Error::input(at, format!("{what} is no table"));
    let map = of.as_object_mut().ok_or_else(|| wrong("what holds it"))?;
    let table = map.entry(key).or_insert(Value::Null);
    if table.is_null() {
        *table = Value::Object(Map::new());
    }
    table.as_object_mut().ok_or_else(|| wrong(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_found_by_name() {
        let mut file = json!({
            "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}],
            "lines": {"alpha": 0.1},
        });
        for (name, to) in
            [("weight of a", 0.5), ("weight of b", 0.25), ("t", 2.0), ("lines.beta", 0.75)]
        {
            set(&mut file, name, &json!(to), "m.yml: search.grid").unwrap();
        }
        let want = json!({
            "models": [
                {"model": "a", "parameters": {"weight": 0.5}},
                {"model": "b", "parameters": {"weight": 0.25}},
            ],
            "lines": {"alpha": 0.1, "beta": 0.75},
            "parameters": {"t": 2.0},
        });
        assert_eq!(file, want);
        let error = set(&mut file, "weight of c", &json!(1), "m.yml: search.grid").unwrap_err();
        assert!(
            error.to_string().starts_with("m.yml: search.grid.weight of c: no entry"),
            "{error}"
        );
    }
}
