//! YAML as a tree of plain values.

use luthier_core::{Error, Result};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Number, Value};

/// The one document of `text`; `file` names it in errors.
pub fn read_yaml(text: &str, file: &str) -> Result<Value> {
    let mut all = documents(text, file)?;
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        (_, before) => {
            let what = format!("expected one document, got {}", before + 1);
            Err(Error::input(file, what).hint("write each merge to a file of its own"))
        }
    }
}

/// All documents of `text`, at least one.
pub fn documents(text: &str, file: &str) -> Result<Vec<Value>> {
    let documents = Yaml::load_from_str(text)
        .map_err(|e| Error::input(file, format!("not readable as YAML: {e}")))?;
    match documents.is_empty() {
        true => Err(Error::input(file, "is empty")),
        false => documents.iter().map(|one| value(one, file)).collect(),
    }
}

fn value(yaml: &Yaml<'_>, file: &str) -> Result<Value> {
    Ok(match yaml {
        Yaml::Value(scalar) => plain(scalar),
        Yaml::Sequence(list) => {
            Value::Array(list.iter().map(|one| value(one, file)).collect::<Result<_>>()?)
        }
        Yaml::Mapping(pairs) => {
            let mut map = Map::new();
            for (key, one) in pairs {
                let name = match value(key, file)? {
                    Value::String(name) => name,
                    Value::Number(n) => n.to_string(),
                    Value::Bool(on) => on.to_string(),
                    other => {
                        return Err(Error::input(file, format!("expected a name, got {other}")));
                    }
                };
                map.insert(name, value(one, file)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(_, inner) => value(inner, file)?,
        Yaml::Representation(text, ..) => Value::String(text.to_string()),
        Yaml::Alias(_) | Yaml::BadValue => {
            return Err(Error::input(file, "holds a value that YAML gives no meaning"));
        }
    })
}

fn plain(scalar: &Scalar<'_>) -> Value {
    match scalar {
        Scalar::Null => Value::Null,
        Scalar::Boolean(on) => Value::Bool(*on),
        Scalar::Integer(n) => Value::from(*n),
        // JSON has no infinity; as text it is refused where a number is wanted.
        Scalar::FloatingPoint(x) => Number::from_f64(x.into_inner())
            .map_or_else(|| Value::String(x.into_inner().to_string()), Value::Number),
        Scalar::String(text) => Value::String(text.to_string()),
    }
}
