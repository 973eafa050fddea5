//! Chat templates: the model's own Jinja, rendered as Python would render it.
//!
//! The contract is that of the `transformers` library: block tags swallow the newline behind and the blanks before
//! them, `tojson` neither escapes HTML nor non-ASCII text, Python's string methods work, and
//! `{% generation %}` blocks mark what the assistant said. Templates are foreign code: they see the
//! conversation and nothing else; there is no loader, so `include` and `import` find nothing.
//!
//! Known differences from Python: numbers above 1e16 glued with `~` print without an exponent, the
//! date is UTC, and `dict.items` without a call reads a key of that name.

mod clock;
mod generation;
mod json;
mod python;

use std::{collections::BTreeMap, ops::Range};

use luthier_core::{Error, Result};
use minijinja::{
    Environment, ErrorKind,
    syntax::SyntaxConfig,
    value::{Serde, Value as Jinja},
};
use serde_json::{Map, Value};

/// The present moment in UTC, formatted as templates' `strftime_now` does.
pub fn date(format: &str) -> String {
    // The formats are ours; one that is not understood shows as itself.
    clock::strftime(clock::now(), format).unwrap_or_else(|_| format.to_string())
}

/// What a template is asked to put into words.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// The messages, each an object with at least `role`.
    pub messages: &'a [Value],
    /// Tool definitions, if any.
    pub tools: Option<&'a Value>,
    /// Whether to end with the opening of an assistant turn.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, `date_string`, …).
    pub kwargs: &'a Map<String, Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Byte ranges that `{% generation %}` blocks produced, in order.
    pub generation: Vec<Range<usize>>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    name: String,
    source: String,
    marked: bool,
    environment: Environment<'static>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`; `name` says where it came from in error messages.
    ///
    /// `strftime_now` answers with the time of this call, or with `SOURCE_DATE_EPOCH` when that is
    /// set, so one run renders one date.
    pub fn new(name: impl Into<String>, source: &str) -> Result<Self> {
        let now = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text.trim().parse().map_err(|_| {
                Error::input("SOURCE_DATE_EPOCH", format!("`{text}` is not a number of seconds"))
            })?,
            Err(_) => clock::now(),
        };
        ChatTemplate::at(name, source, now)
    }

    /// Compiles `source` with the clock of `strftime_now` stopped at `now`, in seconds since 1970.
    pub fn at(name: impl Into<String>, source: &str, now: i64) -> Result<Self> {
        let name = name.into();
        // Python's engine reads every kind of line end as a newline.
        let (prepared, marked) =
            generation::prepare(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let environment = environment(prepared, now).map_err(|e| explain(&name, &e))?;
        Ok(ChatTemplate { name, source: source.to_string(), marked, environment })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the template came from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the template marks the assistant's words with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.marked
    }

    /// Renders a conversation; `special` holds `bos_token`, `eos_token`, ….
    pub fn render(
        &self,
        conversation: &Conversation<'_>,
        special: &BTreeMap<String, String>,
    ) -> Result<Text> {
        let mut context: BTreeMap<&str, Jinja> = BTreeMap::new();
        for (key, token) in special {
            context.insert(key, Jinja::from(token.as_str()));
        }
        context.insert("documents", Jinja::from(()));
        for (key, value) in conversation.kwargs {
            context.insert(key, Jinja::from(Serde(value)));
        }
        let messages: Vec<Jinja> = conversation.messages.iter().map(message).collect();
        context.insert("messages", Jinja::from(messages));
        context.insert("tools", Jinja::from(Serde(conversation.tools)));
        context.insert("add_generation_prompt", Jinja::from(conversation.add_generation_prompt));
        let rendered = self
            .environment
            .get_template(CHAT)
            .and_then(|t| t.render(Jinja::from_pairs(context)))
            .map_err(|e| explain(&self.name, &e))?;
        Ok(if self.marked {
            generation::collect(&rendered)
        } else {
            Text { text: rendered, ..Text::default() }
        })
    }
}

/// The only template name there is. Without a file extension nothing is escaped.
const CHAT: &str = "chat";

/// The names under which reasoning travels; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message as templates expect it: reasoning is found under both of its usual names.
fn message(message: &Value) -> Jinja {
    let given = REASONING.iter().find_map(|key| message.get(key).filter(|v| !v.is_null()));
    let (Some(given), Some(object)) = (given, message.as_object()) else {
        return Jinja::from(Serde(message));
    };
    let mut object = object.clone();
    object.entry("thinking").or_insert_with(|| given.clone());
    object.insert("reasoning_content".to_string(), given.clone());
    Jinja::from(Serde(object))
}

fn environment(source: String, now: i64) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false);
    environment.set_syntax(syntax.build()?);
    environment.set_formatter(python::write);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", json::tojson);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_test("number", python::is_number);
    environment.add_function("raise_exception", python::raise);
    environment.add_function("strftime_now", move |format: String| clock::strftime(now, &format));
    environment.add_template_owned(CHAT, source)?;
    Ok(environment)
}

/// Turns the engine's error into a sentence with the template's line and a hint.
fn explain(name: &str, error: &minijinja::Error) -> Error {
    let mut root = error;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<python::Raised>() {
            let at = place(name, root);
            return Error::input(
                at,
                format!("the chat template refuses this conversation: {}", raised.0),
            )
            .hint("the message is the model author's; reorder or rename the turns as it asks");
        }
        if let Some(deeper) = inner.downcast_ref::<minijinja::Error>() {
            root = deeper;
        }
        cause = inner.source();
    }
    let detail = root.detail().map(|d| format!(": {d}")).unwrap_or_default();
    let what = format!("chat template: {}{detail}", root.kind());
    Error::input(place(name, root), what).hint(match root.kind() {
        ErrorKind::UnknownFunction => {
            "templates may call raise_exception, strftime_now, range, dict and namespace; put a corrected chat_template.jinja beside the model"
        }
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownMethod => {
            "Jinja's built-in filters and tests and Python's string, list and dict methods are known; put a corrected chat_template.jinja beside the model"
        }
        ErrorKind::SyntaxError => "a chat_template.jinja beside the model replaces the one that came with it",
        ErrorKind::TemplateNotFound | ErrorKind::BadInclude => "a chat template cannot read other files",
        _ => "the template expects other keys in the messages; `luthier show` prints what it was given",
    })
}

fn place(name: &str, error: &minijinja::Error) -> String {
    error.line().map_or_else(|| name.to_string(), |line| format!("{name}:{line}"))
}
