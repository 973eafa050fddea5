//! Lists of messages, in the OpenAI style (`role`, `content`) and the ShareGPT style (`from`,
//! `value`).

use luthier_core::{Error, Result, Turn};
use serde_json::{Map, Value, json};

use super::{cells::Cells, describe};

/// Other names of the four roles that chat templates know; compared without case.
const SYNONYMS: &[(&str, &str)] = &[
    ("system", "system"),
    ("user", "user"),
    ("human", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("model", "assistant"),
    ("bard", "assistant"),
    ("bing", "assistant"),
    ("chatgpt", "assistant"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_call", FUNCTION_CALL),
];

/// ShareGPT's way of saying that the assistant calls a tool.
const FUNCTION_CALL: &str = "function_call";

/// The turns of a message list (or of one message), none of them unfit to be rendered.
pub(super) fn read(cells: &Cells, column: &str, value: Value) -> Result<Vec<Turn>> {
    let items = match value {
        Value::Array(items) => items,
        message @ Value::Object(_) => vec![message],
        other => {
            let what = format!("expected a list of messages, found {}", describe(&other));
            return Err(cells.wrong(column, what));
        }
    };
    if items.is_empty() {
        return Err(cells.wrong(column, "the list of messages is empty"));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| {
            turn(item).map_err(|(what, hint)| {
                let error = cells.wrong(column, format!("message {}: {what}", i + 1));
                hint.into_iter().fold(error, Error::hint)
            })
        })
        .collect()
}

type Refusal = (String, Option<String>);

fn refuse<T>(what: impl Into<String>) -> std::result::Result<T, Refusal> {
    Err((what.into(), None))
}

fn turn(item: Value) -> std::result::Result<Turn, Refusal> {
    let mut message = match item {
        Value::Object(message) => message,
        other => return refuse(format!("expected an object, found {}", describe(&other))),
    };
    // Parquet gives every message all keys that any message has; null there means absent.
    let weight = weight(&mut message)?;
    let (style, content) = match (message.contains_key("role"), message.contains_key("from")) {
        (true, _) => ("role", "content"),
        (false, true) => ("from", "value"),
        (false, false) => {
            let found = describe(&Value::Object(message));
            return refuse(format!("expected the keys role and content, found {found}"));
        }
    };
    let said = match message.shift_remove(style) {
        Some(Value::String(role)) => role,
        Some(other) => {
            return refuse(format!("{style}: expected text, found {}", describe(&other)));
        }
        None => return refuse(format!("{style} is missing")),
    };
    if said.trim().is_empty() {
        return refuse(format!("{style} is empty"));
    }
    let known = SYNONYMS.iter().find(|(name, _)| said.trim().eq_ignore_ascii_case(name));
    let role = match known {
        Some((_, role)) => (*role).to_owned(),
        // Chat templates may know more roles; ShareGPT has no others.
        None if style == "role" => said,
        None => {
            let names: Vec<&str> = SYNONYMS.iter().map(|(name, _)| *name).collect();
            return Err((
                format!("unknown role `{said}`"),
                Some(format!("known: {}", names.join(", "))),
            ));
        }
    };
    let value = message.shift_remove(content).unwrap_or(Value::Null);
    message.retain(|_, value| !value.is_null());
    let mut turn = Turn { role, content: String::new(), weight, extra: message };
    if turn.role == FUNCTION_CALL {
        turn.role = "assistant".to_owned();
        turn.extra.insert("tool_calls".to_owned(), calls(&value)?);
        return Ok(turn);
    }
    let calls = has_calls(&turn);
    turn.content = match value {
        Value::String(text) => text,
        Value::Array(parts) => join(parts)?,
        Value::Null if calls => String::new(),
        other => return refuse(format!("{content}: expected text, found {}", describe(&other))),
    };
    if turn.role == "assistant" && turn.content.trim().is_empty() && !calls {
        return Err((
            "the assistant's message is empty and calls no tool".to_owned(),
            Some("there is nothing to learn from it; remove the row or the message".to_owned()),
        ));
    }
    Ok(turn)
}

fn has_calls(turn: &Turn) -> bool {
    let calls = turn.extra.get("tool_calls").and_then(Value::as_array);
    calls.is_some_and(|list| !list.is_empty()) || turn.extra.contains_key("function_call")
}

/// The loss switches: `weight` is a number, `train` and `training` are yes or no.
fn weight(message: &mut Map<String, Value>) -> std::result::Result<Option<f32>, Refusal> {
    let mut weight = match message.shift_remove("weight") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_f64() {
            Some(w) if w >= 0.0 && (w as f32).is_finite() => Some(w as f32),
            _ => {
                let found = describe(&value);
                return refuse(format!("weight: expected a number from 0, found {found}"));
            }
        },
    };
    for key in ["train", "training"] {
        match message.shift_remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::Bool(false)) => weight = Some(0.0),
            Some(Value::Bool(true)) => weight = weight.or(Some(1.0)),
            Some(other) => {
                let found = describe(&other);
                return refuse(format!("{key}: expected true or false, found {found}"));
            }
        }
    }
    Ok(weight)
}

/// Content in parts, of which luthier reads text.
fn join(parts: Vec<Value>) -> std::result::Result<String, Refusal> {
    let mut text = String::new();
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text"), &part) {
            (Some("text"), Some(Value::String(more)), _) | (_, _, Value::String(more)) => {
                text.push_str(more);
            }
            (Some(kind), _, _) if kind != "text" => {
                return refuse(format!("content: a part of type {kind}; luthier reads text only"));
            }
            _ => {
                let found = describe(&part);
                return refuse(format!("content: expected parts of type text, found {found}"));
            }
        }
    }
    Ok(text)
}

/// ShareGPT's `{"name": …, "arguments": …}` (one or a list, as text) as `tool_calls`.
fn calls(value: &Value) -> std::result::Result<Value, Refusal> {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        other => other.clone(),
    };
    let list = match parsed {
        Value::Array(list) => list,
        one => vec![one],
    };
    if list.is_empty() || !list.iter().all(|call| call.get("name").is_some_and(Value::is_string)) {
        let found = describe(value);
        return refuse(format!("expected a call as JSON with name and arguments, found {found}"));
    }
    let call = |function: Value| json!({"type": "function", "function": function});
    Ok(Value::Array(list.into_iter().map(call).collect()))
}
