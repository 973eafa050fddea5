//! One example for every call that a conversation makes, except calls that failed (TL-Training's mitigation of
//! adverse effects, Ye et al. 2025, paper 66).
//!
//! An example is the conversation up to and with one assistant turn, of which that turn alone is learned. A turn
//! is learned if it is the last one, or if the answer of a tool follows that holds no signature of an error;
//! text and signatures are compared in lower case and without any character but letters, digits, `^` and
//! Chinese ones. With `block_mode`:
//!
//! - `loss_only`: a call that failed is never learned, and stays in the context of the turns behind it, so that
//!   getting over an error is learned;
//! - `drop`: it and the answer to it leave the context, too;
//! - `none`: every assistant turn is learned.
//!
//! **Departures**: (1) letters and digits are those of every script. As published, any answer with the word
//! `error` in it blocks its call, and so does a turn that somebody else than a tool answers.

use luthier_core::{Completion, Error, Example, Form, Result, Seed, Table, Turn};
use serde::{Deserialize, Serialize};

use crate::Step;

/// What the published code takes for the sign of an error.
const SIGNATURES: [&str; 14] = [
    "is not defined",
    "positional argument",
    "unexpected keyword",
    "'related_searches'",
    "ConnectionError",
    "\"error\":",
    "'error'",
    "not supported",
    "Invalid API call",
    "Response error",
    "Object of type SerpResults is not JSON serializable",
    "400 Client Error",
    "slice indices must be integers or None or have an __index__ method",
    "connection error",
];

/// What becomes of calls that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockMode {
    /// They are context and are not learned.
    #[default]
    LossOnly,
    /// They are not even context.
    Drop,
    /// They are learned.
    None,
}

/// `call_turns = {}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallTurns {
    /// Texts that tell a tool's answer is an error.
    pub error_signatures: Vec<String>,
    /// What becomes of calls that failed.
    pub block_mode: BlockMode,
    /// Roles of those who answer calls.
    pub roles: Vec<String>,
}

impl Default for CallTurns {
    fn default() -> Self {
        CallTurns {
            error_signatures: SIGNATURES.map(String::from).to_vec(),
            block_mode: BlockMode::LossOnly,
            roles: vec!["tool".into(), "function".into()],
        }
    }
}

/// What a call led to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing follows, or the answer of a tool.
    Fine,
    /// An error follows.
    Failed,
    /// Somebody else speaks.
    Unanswered,
}

impl CallTurns {
    fn outcome(&self, next: Option<&Turn>, signatures: &[String]) -> Outcome {
        let Some(next) = next else { return Outcome::Fine };
        if !self.roles.contains(&next.role) {
            return Outcome::Unanswered;
        }
        let text = plain(&next.content);
        match signatures.iter().any(|signature| text.contains(signature)) {
            true => Outcome::Failed,
            false => Outcome::Fine,
        }
    }

    /// The examples that one conversation gives.
    fn examples(&self, example: &Example, signatures: &[String]) -> Result<Vec<Example>> {
        let at = || example.origin.to_string();
        if example.form == Form::Raw {
            return Err(Error::input(at(), "raw text has no turns")
                .hint("read the rows with form = \"chat\""));
        }
        let [answer] = example.completions.as_slice() else {
            let what = format!("expected one answer, found {}", example.completions.len());
            return Err(Error::input(at(), what));
        };
        let turns: Vec<&Turn> = example.prompt.iter().chain(&answer.turns).collect();
        let mut made = Vec::new();
        let mut context: Vec<Turn> = Vec::new();
        let mut rest = turns.iter().enumerate();
        while let Some((i, turn)) = rest.next() {
            if turn.role != "assistant" {
                context.push((*turn).clone());
                continue;
            }
            let outcome = self.outcome(turns.get(i + 1).copied(), signatures);
            if self.block_mode == BlockMode::None || outcome == Outcome::Fine {
                let completion =
                    Completion { turns: vec![(*turn).clone()], marks: answer.marks.clone() };
                let completions = vec![completion];
                made.push(Example { prompt: context.clone(), completions, ..example.clone() });
            }
            match (self.block_mode, outcome) {
                (BlockMode::Drop, Outcome::Failed) => _ = rest.next(),
                _ => context.push(Turn { weight: Some(0.0), ..(*turn).clone() }),
            }
        }
        Ok(made)
    }
}

impl Step for CallTurns {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        let signatures: Vec<String> = self.error_signatures.iter().map(|s| plain(s)).collect();
        if let Some(i) = signatures.iter().position(String::is_empty) {
            let what = format!("`{}` has no letter or digit", self.error_signatures[i]);
            return Err(Error::input("call_turns.error_signatures", what)
                .hint("it would be found in every answer"));
        }
        let mut made = Vec::with_capacity(table.examples.len());
        for example in &table.examples {
            made.extend(self.examples(example, &signatures)?);
        }
        table.examples = made;
        Ok(table)
    }
}

/// A text as signatures are looked for in it.
fn plain(text: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || *c == '^';
    text.chars().flat_map(char::to_lowercase).filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Example {
        let turn = Turn::new;
        let turns = vec![
            turn("system", "Tools."),
            turn("user", "Weather in Rome?"),
            turn("assistant", "weather(city=1)"),
            turn("tool", "{\"ERROR\": \"City must be a text\"}"),
            turn("assistant", "weather(city='Rome')"),
            turn("tool", "sunny"),
            turn("assistant", "ask_to_user(question='Celsius?')"),
            turn("user", "yes"),
        ];
        Example::new("t.jsonl", 9, turns, Some(turn("assistant", "finish(answer='sunny')")))
    }

    /// The turns of a prompt with their weights, and the answer.
    type Shown = (Vec<(String, Option<f32>)>, String);

    fn run(step: CallTurns) -> Vec<Shown> {
        let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
        let table = Table { name, layout, sha256: String::new(), examples: vec![conversation()] };
        let told = |e: Example| {
            let prompt = e.prompt.iter().map(|t| (t.content.clone(), t.weight)).collect();
            (prompt, e.completions[0].text().to_string())
        };
        step.apply(table, Seed(1)).unwrap().examples.into_iter().map(told).collect()
    }

    #[test]
    fn failed_calls_are_context_and_never_learned() {
        let made = run(CallTurns::default());
        let learned: Vec<&str> = made.iter().map(|(_, text)| text.as_str()).collect();
        // A question that the user answers is blocked, as published.
        assert_eq!(learned, ["weather(city='Rome')", "finish(answer='sunny')"]);
        let (context, _) = &made[0];
        assert_eq!(context.len(), 4);
        assert_eq!(context[2], ("weather(city=1)".to_string(), Some(0.0)));
        assert!(context[3].0.contains("ERROR"));
        assert!(
            made[1].0.iter().filter(|(text, _)| text.contains('(')).all(|(_, w)| *w == Some(0.0))
        );
    }

    #[test]
    fn other_modes_learn_everything_or_forget_what_failed() {
        let all = run(CallTurns { block_mode: BlockMode::None, ..CallTurns::default() });
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].1, "weather(city=1)");
        let dropped = run(CallTurns { block_mode: BlockMode::Drop, ..CallTurns::default() });
        assert_eq!(dropped.len(), 2);
        let (context, _) = &dropped[0];
        let texts: Vec<&str> = context.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["Tools.", "Weather in Rome?"]);
    }

    #[test]
    fn signatures_are_compared_without_case_and_signs() {
        let fails = |signature: &str, answer: &str| {
            let step = CallTurns::default();
            step.outcome(Some(&Turn::new("tool", answer)), &[plain(signature)]) == Outcome::Failed
        };
        assert!(fails("'error'", "An Error occurred"));
        assert!(fails("is not defined", "name 'x' is-not\ndefined"));
        assert!(!fails("is not defined", "it is defined"));
        assert_eq!(plain("a_B ^2, 查询!"), "ab^2查询");
        let nothing = CallTurns { error_signatures: vec!["':".into()], ..CallTurns::default() };
        let table = Table {
            name: String::new(),
            layout: String::new(),
            sha256: String::new(),
            examples: vec![],
        };
        let error = nothing.apply(table, Seed(0)).unwrap_err().to_string();
        assert!(error.starts_with("call_turns.error_signatures: `':`"), "{error}");
    }
}
