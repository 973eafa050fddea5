//! Settings as mergekit's files have them: a number, a gradient over depth, or cases by tensor name.

use luthier_core::{Error, Result};
use serde_json::Value;

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// A whole number, 0 or more.
    Count,
    /// On or off.
    Switch,
    /// One of these words, whose number is its place among them.
    Choice(&'static [&'static str]),
}

/// A setting before anybody knows for which tensor and depth.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// The same everywhere.
    One(Scalar),
    /// Values along the depth of the output.
    Gradient(Vec<Scalar>),
    /// The first case whose filter fits the tensor's name.
    Cases(Vec<Case>),
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// `true` or `false`.
    Switch(bool),
    /// A number.
    Number(f64),
    /// Anything else, which may still be a number (`1e-3`).
    Text(String),
}

/// A value for the tensors that a filter fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Part of a tensor's name; `None` and `*` fit all.
    pub filter: Option<String>,
    /// The value there: no further cases.
    pub value: Box<Setting>,
}

impl Scalar {
    fn read(value: &Value, at: &str) -> Result<Scalar> {
        match value {
            Value::Bool(on) => Ok(Scalar::Switch(*on)),
            Value::Number(n) => Ok(Scalar::Number(n.as_f64().unwrap_or(f64::NAN))),
            Value::String(text) => Ok(Scalar::Text(text.clone())),
            other => Err(Error::input(at, format!("expected a value, got {other}"))),
        }
    }

    /// Its meaning for a setting of this kind; switches are 1 and 0.
    fn as_kind(&self, kind: Kind, at: &str) -> Result<f64> {
        let number = match self {
            Scalar::Switch(on) => (kind == Kind::Switch).then(|| f64::from(u8::from(*on))),
            Scalar::Number(n) => (!matches!(kind, Kind::Choice(_))).then_some(*n),
            Scalar::Text(text) => match (kind, text.to_lowercase().as_str()) {
                (Kind::Switch, "true" | "yes" | "on" | "y" | "t") => Some(1.0),
                (Kind::Switch, "false" | "no" | "off" | "n" | "f") => Some(0.0),
                (Kind::Choice(words), text) => {
                    words.iter().position(|word| *word == text).map(|i| i as f64)
                }
                (_, text) => text.trim().parse().ok(),
            },
        };
        let fits = |n: &f64| match kind {
            Kind::Number => n.is_finite(),
            Kind::Count => *n >= 0.0 && n.fract() == 0.0 && *n < 1e9,
            Kind::Switch => *n == 0.0 || *n == 1.0,
            Kind::Choice(_) => true,
        };
        number.filter(fits).ok_or_else(|| {
            let wanted = match kind {
                Kind::Number => "a number".to_string(),
                Kind::Count => "a whole number".to_string(),
                Kind::Switch => "true or false".to_string(),
                Kind::Choice(words) => words.join(" or "),
            };
            let got = match self {
                Scalar::Switch(on) => on.to_string(),
                Scalar::Number(n) => n.to_string(),
                Scalar::Text(text) => format!("{text:?}"),
            };
            Error::input(at, format!("expected {wanted}, got {got}"))
        })
    }
}

impl Setting {
    /// Reads a setting; `None` for null. `at` names it in errors.
    pub fn read(value: &Value, at: &str) -> Result<Option<Setting>> {
        let list = match value {
            Value::Null => return Ok(None),
            Value::Array(list) if list.iter().any(Value::is_object) => list.as_slice(),
            Value::Array(list) if list.is_empty() => return Ok(None),
            Value::Array(list) => {
                let values = list.iter().map(|v| Scalar::read(v, at)).collect::<Result<_>>()?;
                return Ok(Some(Setting::Gradient(values)));
            }
            Value::Object(_) => std::slice::from_ref(value),
            one => return Ok(Some(Setting::One(Scalar::read(one, at)?))),
        };
        let case = |(i, case): (usize, &Value)| -> Result<Case> {
            let at = format!("{at}[{i}]");
            let Value::Object(map) = case else {
                return Err(Error::input(at, format!("expected {{filter, value}}, got {case}")));
            };
            if let Some(key) = map.keys().find(|key| !matches!(key.as_str(), "filter" | "value")) {
                return Err(Error::input(at, format!("unknown key `{key}`"))
                    .hint("a case has the keys filter and value"));
            }
            let filter = match map.get("filter") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text.clone()),
                Some(other) => {
                    let what = format!("filter: expected part of a tensor's name, got {other}");
                    return Err(Error::input(at, what));
                }
            };
            let value = map.get("value").unwrap_or(&Value::Null);
            match Setting::read(value, &at)? {
                Some(value @ (Setting::One(_) | Setting::Gradient(_))) => {
                    Ok(Case { filter, value: Box::new(value) })
                }
                Some(Setting::Cases(_)) => Err(Error::input(at, "a case cannot hold cases")),
                None => Err(Error::input(at, "value is missing")),
            }
        };
        Ok(Some(Setting::Cases(list.iter().enumerate().map(case).collect::<Result<_>>()?)))
    }

    /// Its value for a tensor at depth `t` of the output, from 0 to 1; `None` where no case fits.
    pub fn value(&self, kind: Kind, tensor: &str, t: f64, at: &str) -> Result<Option<f64>> {
        match self {
            Setting::One(value) => value.as_kind(kind, at).map(Some),
            Setting::Gradient(values) => {
                let values: Vec<f64> =
                    values.iter().map(|v| v.as_kind(kind, at)).collect::<Result<_>>()?;
                let along = t * (values.len() - 1) as f64;
                let first = along as usize;
                if matches!(kind, Kind::Switch | Kind::Choice(_)) {
                    return Ok(Some(values[first]));
                }
                let second = (first + 1).min(values.len() - 1);
                let share = along - first as f64;
                Ok(Some((1.0 - share) * values[first] + share * values[second]))
            }
            Setting::Cases(cases) => {
                let fits = |case: &&Case| {
                    let filter = case.filter.as_deref();
                    filter.is_none_or(|f| f == "*" || tensor.contains(f))
                };
                match cases.iter().find(fits) {
                    Some(case) => case.value.value(kind, tensor, t, at),
                    None => Ok(None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(value: Value, kind: Kind, tensor: &str, t: f64) -> Option<f64> {
        let setting = Setting::read(&value, "f: t").unwrap()?;
        setting.value(kind, tensor, t, "f: t").unwrap()
    }

    #[test]
    fn gradients_are_straight_between_their_values() {
        let values = json!([0, 0.5, "3e-1"]);
        for (t, want) in [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.4), (1.0, 0.3)] {
            let got = at(values.clone(), Kind::Number, "", t).unwrap();
            assert!((got - want).abs() < 1e-12, "{t}: {got}");
        }
        assert_eq!(at(json!([true, false]), Kind::Switch, "", 0.9), Some(1.0));
        assert_eq!(at(json!([true, false]), Kind::Switch, "", 1.0), Some(0.0));
    }

    #[test]
    fn the_first_case_that_fits_wins_and_none_may_fit() {
        let cases = json!([
            {"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.7}
        ]);
        assert_eq!(at(cases.clone(), Kind::Number, "model.layers.0.self_attn.q", 0.5), Some(0.5));
        assert_eq!(at(cases.clone(), Kind::Number, "model.layers.0.mlp.up", 0.5), Some(0.7));
        assert_eq!(at(cases, Kind::Number, "model.norm", 0.5), None);
        let star = json!([{"filter": "*", "value": 2}, {"value": 3}]);
        assert_eq!(at(star, Kind::Number, "x", 0.0), Some(2.0));
        assert_eq!(at(json!({"value": 3}), Kind::Count, "x", 0.0), Some(3.0));
        assert_eq!(at(json!([]), Kind::Number, "x", 0.0), None);
    }

    #[test]
    fn wrong_values_are_named() {
        let read =
            |value: Value| Setting::read(&value, "m.yml: density").map_err(|e| e.to_string());
        assert!(read(json!([{"filtre": "x", "value": 1}])).unwrap_err().contains("`filtre`"));
        assert!(read(json!([{"filter": "x"}])).unwrap_err().contains("value is missing"));
        assert!(read(json!([[1, 2]])).unwrap_err().contains("expected a value"));
        let one = read(json!("many")).unwrap().unwrap();
        let error = one.value(Kind::Number, "", 0.0, "m.yml: density").unwrap_err().to_string();
        assert_eq!(error, "m.yml: density: expected a number, got \"many\"");
        let one = read(json!(2.5)).unwrap().unwrap();
        assert!(one.value(Kind::Count, "", 0.0, "").is_err());
        assert!(one.value(Kind::Switch, "", 0.0, "").is_err());
    }

    #[test]
    fn words_have_their_place_as_number() {
        const PER: Kind = Kind::Choice(&["tensor", "row"]);
        assert_eq!(at(json!("row"), PER, "x", 0.5), Some(1.0));
        assert_eq!(at(json!(["tensor", "row"]), PER, "x", 0.9), Some(0.0));
        let wrong = Setting::read(&json!("column"), "m.yml: per").unwrap().unwrap();
        let error = wrong.value(PER, "", 0.0, "m.yml: per").unwrap_err().to_string();
        assert_eq!(error, "m.yml: per: expected tensor or row, got \"column\"");
        let number = Setting::read(&json!(1), "").unwrap().unwrap();
        assert!(number.value(PER, "", 0.0, "").is_err());
    }
}
