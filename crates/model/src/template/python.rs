//! What Jinja templates take for granted from Python: methods, number formatting, exceptions.

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat::unknown_method_callback;

/// What a template said through `raise_exception`.
#[derive(Debug)]
pub struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception(message)`.
pub fn raise(message: Value) -> Result<Value, Error> {
    let text = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
}

/// Writes a value into the output; floats look as Python's `repr` writes them.
pub fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let text = float(f64::try_from(value.clone())?);
        return out.write_str(&text).map_err(Error::from);
    }
    minijinja::escape_formatter(out, state, value)
}

/// Python's `repr` of a float: the shortest digits that read back, an exponent outside 1e-4…1e16.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_string();
    }
    if x.is_infinite() {
        return (if x > 0.0 { "inf" } else { "-inf" }).to_string();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `is iterable`: Python cannot iterate over `None` or a number.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `is sequence`: in Python texts and dicts count, too.
pub fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | Iterable | String | Map | Bytes | Undefined)
}

/// `is number`: in Python `True` is one.
pub fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// Python's methods: those that differ from or are missing in minijinja's own set, then that set.
pub fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq | ValueKind::Iterable => sequence(value, name, args)?,
        ValueKind::Map if name == "copy" => Some(value.clone()),
        _ => None,
    };
    match known {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, name, args),
    }
}

fn string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let argument = || from_args::<(&str,)>(args).map(|(s,)| s);
    Ok(Some(match name {
        "title" => Value::from(title(text)),
        "swapcase" => text
            .chars()
            .map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().to_string()
                } else {
                    c.to_uppercase().to_string()
                }
            })
            .collect::<String>()
            .into(),
        "casefold" => Value::from(text.to_lowercase()),
        "removeprefix" => Value::from(text.strip_prefix(argument()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(argument()?).unwrap_or(text)),
        "partition" => {
            let separator = argument()?;
            parts(text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]))
        }
        "rpartition" => {
            let separator = argument()?;
            parts(text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]))
        }
        "split" | "rsplit" => split(text, name == "rsplit", args)?,
        "index" | "rindex" => {
            let what = argument()?;
            let at = if name == "index" { text.find(what) } else { text.rfind(what) };
            let at =
                at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(rest) => (&text[..1], rest),
                None => ("", text),
            };
            let zeros = width.saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let missing = width.saturating_sub(text.chars().count());
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // Python puts the odd blank on the left when the width is odd.
                _ => missing / 2 + (missing & width & 1),
            };
            let fill = fill.unwrap_or(" ");
            Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
        }
        "isdecimal" => Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())),
        _ => return Ok(None),
    }))
}

fn parts(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

/// `split` and `rsplit` with `sep` and `maxsplit` by position or by name.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        None => kwargs.get::<Option<&str>>("sep")?,
        given => given,
    };
    let most = most.map_or_else(|| kwargs.get::<Option<i64>>("maxsplit"), |m| Ok(Some(m)))?;
    kwargs.assert_all_used()?;
    let most = most.and_then(|m| usize::try_from(m).ok()).unwrap_or(usize::MAX);
    if separator == Some("") {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let mut out: Vec<&str> = Vec::new();
    let mut rest = if separator.is_none() { text.trim() } else { text };
    if separator.is_none() && rest.is_empty() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    while out.len() < most {
        let cut = match (separator, from_right) {
            (Some(s), false) => rest.split_once(s),
            (Some(s), true) => rest.rsplit_once(s),
            (None, false) => rest.split_once(char::is_whitespace).map(|(a, b)| (a, b.trim_start())),
            (None, true) => rest.rsplit_once(char::is_whitespace).map(|(a, b)| (a.trim_end(), b)),
        };
        let Some((a, b)) = cut else { break };
        let (piece, remaining) = if from_right { (b, a) } else { (a, b) };
        out.push(piece);
        rest = remaining;
    }
    out.push(rest);
    if from_right {
        out.reverse();
    }
    Ok(out.into_iter().map(Value::from).collect())
}

/// Every letter after a non-letter becomes a capital, the others small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn sequence(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "copy" => value.clone(),
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            let missing =
                || Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in list"));
            Value::from(at.ok_or_else(missing)?)
        }
        "count" => {
            let (wanted,): (&Value,) = from_args(args)?;
            Value::from(value.try_iter()?.filter(|item| item == wanted).count())
        }
        _ => return Ok(None),
    }))
}
