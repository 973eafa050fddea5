//! What the columns of a row mean.
//!
//! The layout is recognised at the first row and holds for the whole file: a later row that lacks
//! its columns is an error. Optional columns are looked for in every row.

mod alpaca;
mod cells;
mod messages;
mod preference;
mod prompt_completion;
mod prompt_only;
mod recognise;
mod shapes;
mod text;
mod turns;

use luthier_core::{Completion, Form, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use recognise::{Recognised, Used};

/// The known layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A list of messages with `role` and `content`; the last assistant turn is the completion.
    Messages,
    /// A list of messages with `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `instruction`, `input`, `output`, and perhaps `system` and `history`.
    Alpaca,
    /// A prompt and its answer, as texts or as message lists, under many names.
    PromptCompletion,
    /// A better and a worse answer; they become two completions marked `chosen` 1 and 0.
    Preference,
    /// Text without roles, always raw.
    Text,
    /// A prompt without an answer.
    PromptOnly,
}

impl Layout {
    /// The name that a table's `layout` begins with.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Messages => "messages",
            Layout::ShareGpt => "sharegpt",
            Layout::Alpaca => "alpaca",
            Layout::PromptCompletion => "prompt/completion",
            Layout::Preference => "preference",
            Layout::Text => "text",
            Layout::PromptOnly => "prompt only",
        }
    }
}

/// What a layout makes of a row's own columns.
struct Parts {
    prompt: Vec<Turn>,
    completions: Vec<Completion>,
    form: Form,
}

/// What a JSON value is, with a short look at it: `a number (42)`.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("a switch ({b})"),
        Value::Number(n) => format!("a number ({n})"),
        Value::String(s) if s.is_empty() => "an empty text".to_owned(),
        Value::String(s) => {
            let shown: String = s.chars().take(24).collect();
            let dots = if shown.len() < s.len() { "…" } else { "" };
            format!("the text `{shown}{dots}`")
        }
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(keys) if keys.is_empty() => "an empty object".to_owned(),
        Value::Object(keys) => {
            let names: Vec<&str> = keys.keys().take(6).map(String::as_str).collect();
            let dots = if names.len() < keys.len() { ", …" } else { "" };
            format!("an object with the keys {}{dots}", names.join(", "))
        }
    }
}
