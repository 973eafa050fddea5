//! A training or test example as a person would write it: turns, answers, and marks on either.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Named numbers on an example or a completion (a score, a confidence, a reward).
pub type Marks = BTreeMap<String, f64>;

/// Where an example came from; printed as `train.jsonl:17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, as the user named it.
    pub file: Arc<str>,
    /// 1-based line (JSONL, CSV) or row (JSON arrays, Parquet).
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user`, `assistant`, `tool`, or whatever the template knows.
    pub role: String,
    /// The text; empty when the message consists of tool calls only.
    pub content: String,
    /// The user's own switch for the loss on this turn; `None` follows the default
    /// (assistant turns are trained).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
    /// Further keys of the message (`name`, `tool_calls`, `reasoning_content`, …), for the template.
    #[serde(default, flatten)]
    pub extra: Map<String, Value>,
}

impl Turn {
    /// A turn without a weight switch or further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Turn { role: role.into(), content: content.into(), ..Turn::default() }
    }
}

/// How turns become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Through the model's chat template.
    #[default]
    Chat,
    /// Contents are joined as they are; an end-of-text token closes the row.
    Raw,
}

/// One answer to a prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Usually one assistant turn; more when tools answer in between.
    pub turns: Vec<Turn>,
    /// Numbers about this answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub marks: Marks,
}

impl Completion {
    /// The text of the last turn.
    pub fn text(&self) -> &str {
        self.turns.last().map_or("", |t| t.content.as_str())
    }
}

/// A prompt, its known answers, and marks.
///
/// A conversation is a prompt of all turns before the last assistant turn and one completion with
/// that turn; earlier assistant turns stay in the prompt and are trained unless switched off.
/// Plain text is an empty prompt and one raw completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Turns before the completion.
    pub prompt: Vec<Turn>,
    /// Known answers; empty for prompt-only data.
    pub completions: Vec<Completion>,
    /// Chat template or raw text.
    pub form: Form,
    /// Tool definitions for the template.
    pub tools: Option<Value>,
    /// Further variables for the template (`enable_thinking`, …).
    pub template_kwargs: Map<String, Value>,
    /// Numbers about the example.
    pub marks: Marks,
    /// Other columns of the row (`category`, `choices`, `id`, …), untouched.
    pub columns: Map<String, Value>,
    /// Where it was read.
    pub origin: Origin,
}

impl Example {
    /// An example that was made, not read: `name:line` is its origin.
    pub fn new(name: &str, line: usize, prompt: Vec<Turn>, answer: Option<Turn>) -> Self {
        Example {
            prompt,
            completions: answer
                .map(|t| Completion { turns: vec![t], marks: Marks::new() })
                .into_iter()
                .collect(),
            form: Form::Chat,
            tools: None,
            template_kwargs: Map::new(),
            marks: Marks::new(),
            columns: Map::new(),
            origin: Origin { file: name.into(), line },
        }
    }
}
