//! The one way from an example to tokens and weights: through the model's own chat template.
//!
//! Everything that is trained, shown or counted comes from [`render`]. A token's weight says how
//! much its prediction counts; 0 is not trained. In a conversation the weight lies on what the
//! assistant says **and on the token that ends its turn**, nothing behind that token is trained.

mod check;
mod spans;

use std::ops::Range;

use luthier_core::{Error, Example, Form, Result, Row, Table, Turn};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{template::Conversation, tokenizer::Tokenizer};

pub use check::parity;

/// Which turns are trained when a turn does not say so itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Every assistant turn; in raw text, the completion.
    #[default]
    Assistant,
    /// Every token.
    All,
    /// The last assistant turn only.
    Last,
}

/// How examples become rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenderOptions {
    /// Which turns are trained.
    pub loss_on: LossOn,
}

/// A stretch of the rendered text and whose words it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Index of the turn, prompt turns first.
    pub turn: usize,
    /// The turn's role.
    pub role: String,
    /// Bytes of [`Rendered::text`].
    pub range: Range<usize>,
    /// Weight of its tokens.
    pub weight: f32,
}

/// An example as the model will see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// Inputs, targets and weights, shifted.
    pub row: Row,
    /// The tokens of the text.
    pub tokens: Vec<u32>,
    /// The weight of each token as a target.
    pub weights: Vec<f32>,
    /// The bytes of `text` that each token covers; tokens added around the text cover none.
    pub offsets: Vec<Range<usize>>,
    /// The text.
    pub text: String,
    /// Where the turns are in the text, in order. What lies between them is the template's.
    pub spans: Vec<Span>,
}

/// Renders one completion of an example and refuses what cannot be learned from.
pub fn render(
    example: &Example,
    completion: usize,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Rendered> {
    let at = example.origin.to_string();
    let answer = example.completions.get(completion).ok_or_else(|| {
        let what = if example.completions.is_empty() {
            "there is no answer to train on".to_string()
        } else {
            format!("there is no completion number {completion}")
        };
        Error::input(at.as_str(), what).hint("prompt-only data serves generation and evaluation")
    })?;
    let turns: Vec<&Turn> = example.prompt.iter().chain(&answer.turns).collect();
    let rendered = match example.form {
        Form::Chat => chat(example, &turns, tokenizer, options),
        Form::Raw => raw(example, &answer.turns, tokenizer, options),
    };
    let rendered = rendered.map_err(|e| locate(e, &at))?;
    check::refuse(&rendered, example.form, tokenizer, options).map_err(|e| locate(e, &at))?;
    Ok(rendered)
}

/// Renders every completion of every example, on all cores. The first error in row order is
/// returned, whichever core found it.
pub fn render_table(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Vec<Rendered>> {
    let rows = |index: usize| -> Vec<Result<Rendered>> {
        let example = &table.examples[index];
        // An example without completions still deserves its error.
        let all = 0..example.completions.len().max(1);
        all.map(|completion| {
            let mut rendered = render(example, completion, tokenizer, options)?;
            rendered.row.example = index;
            Ok(rendered)
        })
        .collect()
    };
    let all: Vec<Vec<_>> = (0..table.examples.len()).into_par_iter().map(rows).collect();
    all.into_iter().flatten().collect()
}

/// The ids after which the model is to answer: the prompt and the opening of an assistant's turn.
pub fn generation_prompt(example: &Example, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = prompt_text(example, tokenizer)?;
    let mut ids = match (example.form, tokenizer.add_bos(), tokenizer.bos()) {
        (Form::Raw, true, Some(bos)) => vec![bos],
        _ => Vec::new(),
    };
    ids.extend(tokenizer.encode(&text)?);
    Ok(ids)
}

/// The text after which the model is to answer.
pub fn prompt_text(example: &Example, tokenizer: &Tokenizer) -> Result<String> {
    match example.form {
        Form::Raw => Ok(example.prompt.iter().map(|t| t.content.as_str()).collect()),
        Form::Chat => {
            let messages: Vec<Value> = example.prompt.iter().map(message).collect();
            let text = tokenizer.chat(&conversation(example, &messages, true));
            text.map(|t| t.text).map_err(|e| locate(e, &example.origin.to_string()))
        }
    }
}

/// A turn as templates expect it.
fn message(turn: &Turn) -> Value {
    let mut object = Map::with_capacity(2 + turn.extra.len());
    object.insert("role".to_string(), Value::from(turn.role.as_str()));
    object.insert("content".to_string(), Value::from(turn.content.as_str()));
    object.extend(turn.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
    Value::Object(object)
}

fn conversation<'a>(
    example: &'a Example,
    messages: &'a [Value],
    add_generation_prompt: bool,
) -> Conversation<'a> {
    Conversation {
        messages,
        tools: example.tools.as_ref(),
        add_generation_prompt,
        kwargs: &example.template_kwargs,
    }
}

/// Puts the row's own name in front of an error about what the row led to.
fn locate(error: Error, origin: &str) -> Error {
    let join = |at: String, what: String| match at == origin {
        true => what,
        false => format!("{at}: {what}"),
    };
    match error {
        Error::Input { at, what, hint } => {
            Error::Input { at: origin.to_string(), what: join(at, what), hint }
        }
        Error::Failed { at, what, hint } => {
            Error::Failed { at: origin.to_string(), what: join(at, what), hint }
        }
        other => other,
    }
}

fn chat(
    example: &Example,
    turns: &[&Turn],
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Rendered> {
    let messages: Vec<Value> = turns.iter().map(|t| message(t)).collect();
    let speech = spans::Speech { example, turns, messages: &messages, tokenizer };
    let everything = options.loss_on == LossOn::All;
    let (text, spans) = speech.locate(&weights_of(turns, options.loss_on), everything)?;
    let everywhere = f32::from(u8::from(everything));
    let encoded = tokenizer.encode_with_offsets(&text)?;
    let mut rendered = Rendered { text, spans, ..Rendered::default() };
    let mut next = 0;
    for (id, covers) in encoded {
        // A token that reaches into a span belongs to it.
        while next < rendered.spans.len() && rendered.spans[next].range.end <= covers.start {
            next += 1;
        }
        let inside = rendered.spans.get(next).filter(|s| covers.end > s.range.start);
        rendered.push(id, inside.map_or(everywhere, |s| s.weight), covers);
    }
    Ok(rendered.shifted())
}

/// The weight of each turn: its own switch, or what the option says about its role.
fn weights_of(turns: &[&Turn], loss_on: LossOn) -> Vec<f32> {
    let last = turns.iter().rposition(|t| t.role == "assistant");
    let default = |i: usize, turn: &Turn| match loss_on {
        LossOn::All => true,
        LossOn::Assistant => turn.role == "assistant",
        LossOn::Last => Some(i) == last,
    };
    let weight = |(i, t): (usize, &&Turn)| t.weight.unwrap_or(f32::from(u8::from(default(i, t))));
    turns.iter().enumerate().map(weight).collect()
}

fn raw(
    example: &Example,
    answer: &[Turn],
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Rendered> {
    let turns: Vec<&Turn> = example.prompt.iter().chain(answer).collect();
    let mut rendered = Rendered::default();
    let boundary: usize = example.prompt.iter().map(|t| t.content.len()).sum();
    for (i, turn) in turns.iter().enumerate() {
        let begin = rendered.text.len();
        rendered.text.push_str(&turn.content);
        let answers = i >= example.prompt.len() || options.loss_on == LossOn::All;
        let weight = turn.weight.unwrap_or(f32::from(u8::from(answers)));
        let range = begin..rendered.text.len();
        rendered.spans.push(Span { turn: i, role: turn.role.clone(), range, weight });
    }
    let everywhere = f32::from(u8::from(options.loss_on == LossOn::All || boundary == 0));
    if let (true, Some(bos)) = (tokenizer.add_bos(), tokenizer.bos()) {
        rendered.push(bos, everywhere, 0..0);
    }
    for (id, covers) in tokenizer.encode_with_offsets(&rendered.text)? {
        // A token across a boundary belongs to the later side: the answer.
        let inside =
            rendered.spans.iter().rev().find(|s| s.range.start < covers.end && !s.range.is_empty());
        let weight = inside.map_or(0.0, |s| s.weight);
        rendered.push(id, weight, covers);
    }
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::input(tokenizer.name(), "no end-of-text token is known, so answers could never end")
            .hint("name eos_token in tokenizer_config.json")
    })?;
    // Text that already closes itself is not closed twice.
    if rendered.tokens.last().is_none_or(|id| !tokenizer.eos_ids().contains(id)) {
        let closing = rendered.spans.last().map_or(1.0, |s| s.weight);
        let end = rendered.text.len();
        rendered.push(eos, closing, end..end);
    }
    Ok(rendered.shifted())
}

impl Rendered {
    fn push(&mut self, id: u32, weight: f32, covers: Range<usize>) {
        self.tokens.push(id);
        self.weights.push(weight);
        self.offsets.push(covers);
    }

    fn shifted(mut self) -> Self {
        self.row = Row::from_tokens(&self.tokens, &self.weights, 0);
        self
    }
}
