//! Which words of a call decide which tool is called (TL-Training's key tokens, Ye et al. 2025, paper 66).
//!
//! Finds the name of the called tool and those of all others, and keeps them in the column `key_tokens` as
//! `{"name": …, "others": […], "max_weight": …}`. Which of its *tokens* decide, and what they weigh, follows
//! where the row is rendered: the first one of the name, and every one at which another tool's name goes
//! another way.
//!
//! The call is `tool_calls` of the answer's last turn, or its text up to the first `(`. Tools are those of
//! the example's definitions, or lines `def name(` in its system turns.
//!
//! **Departures**: none here; see the rendering for what the published code counts otherwise.

use std::collections::BTreeSet;

use luthier_core::{Error, Example, Result, Seed, Table, Turn, nearest::suggest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Step;

/// The column with what was found.
pub const COLUMN: &str = "key_tokens";

/// `key_tokens = { max_weight = 9 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyTokens {
    /// The most that a deciding token weighs.
    pub max_weight: f64,
    /// What happens to an answer that calls none of the tools.
    pub no_call: NoCall,
}

/// What is done with an answer that is no call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoCall {
    /// Refuse, naming the row.
    #[default]
    Error,
    /// All of its tokens weigh the same.
    Keep,
}

impl Default for KeyTokens {
    fn default() -> Self {
        KeyTokens { max_weight: 9.0, no_call: NoCall::Error }
    }
}

impl KeyTokens {
    fn mark(&self, example: &mut Example) -> Result<()> {
        let at = example.origin.to_string();
        if example.columns.contains_key(COLUMN) {
            return Err(Error::input(at, format!("there is a column {COLUMN} already")));
        }
        let tools = tools(example);
        if tools.is_empty() && self.no_call == NoCall::Error {
            return Err(Error::input(at, "no tool is defined, so no name can be told from others")
                .hint("a column tools, or lines `def name(…)` in the system turn"));
        }
        let last = example.completions.first().and_then(|answer| answer.turns.last());
        let called = last.and_then(called);
        match called {
            Some(name) if tools.contains(&name) => {
                let others: Vec<&String> = tools.iter().filter(|tool| **tool != name).collect();
                let found = json!({"name": name, "others": others, "max_weight": self.max_weight});
                example.columns.insert(COLUMN.to_string(), found);
                Ok(())
            }
            _ if self.no_call == NoCall::Keep => Ok(()),
            Some(name) => {
                let what = format!("it calls `{name}`, which is none of its tools");
                let near = suggest(&name, tools.iter().map(String::as_str));
                Err(Error::input(at, what).hint(near))
            }
            None => Err(Error::input(at, "its answer is no call of a tool")
                .hint("key_tokens.no_call = \"keep\" leaves such answers as they are")),
        }
    }
}

impl Step for KeyTokens {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        if !(self.max_weight.is_finite() && self.max_weight >= 1.0) {
            let what = format!("expected a number of at least 1, got {}", self.max_weight);
            return Err(Error::input("key_tokens.max_weight", what));
        }
        table.examples.iter_mut().try_for_each(|example| self.mark(example))?;
        Ok(table)
    }
}

/// The tool that a turn calls.
fn called(turn: &Turn) -> Option<String> {
    let calls = turn.extra.get("tool_calls").and_then(Value::as_array);
    if let Some(call) = calls.and_then(|calls| calls.first()) {
        let function = call.get("function").unwrap_or(call);
        return function.get("name")?.as_str().map(str::to_string);
    }
    let (name, _) = turn.content.split_once('(')?;
    let name = name.trim();
    // A name may have spaces between its words; it is one line of text.
    (!name.is_empty() && !name.contains('\n')).then(|| name.to_string())
}

/// The names of an example's tools.
fn tools(example: &Example) -> BTreeSet<String> {
    let definitions = example.tools.as_ref().and_then(Value::as_array).into_iter().flatten();
    let name = |tool: &Value| {
        let function = tool.get("function").unwrap_or(tool);
        function.get("name")?.as_str().map(str::to_string)
    };
    let defined: BTreeSet<String> = definitions.filter_map(name).collect();
    if !defined.is_empty() {
        return defined;
    }
    let systems = example.prompt.iter().filter(|turn| turn.role == "system");
    let lines = systems.flat_map(|turn| turn.content.lines());
    let stub = |line: &str| {
        let (name, _) = line.trim_start().strip_prefix("def ")?.split_once('(')?;
        Some(name.trim().to_string()).filter(|name| !name.is_empty())
    };
    lines.filter_map(stub).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUBS: &str = "Tools:\ndef get_paper(title: str):\n  find one\n  def get_author(name: str = None):\n\
        def finish(answer: str):";

    fn example(system: &str, answer: &str) -> Example {
        let prompt = vec![Turn::new("system", system), Turn::new("user", "?")];
        Example::new("t.jsonl", 4, prompt, Some(Turn::new("assistant", answer)))
    }

    fn run(step: &KeyTokens, example: Example) -> Result<Example> {
        let (name, layout, sha256) = (String::new(), String::new(), String::new());
        let table = Table { name, layout, sha256, examples: vec![example] };
        Ok(step.apply(table, Seed(0))?.examples.remove(0))
    }

    #[test]
    fn names_come_from_stubs_or_from_definitions() {
        let want =
            json!({"name": "get_paper", "others": ["finish", "get_author"], "max_weight": 9.0});
        let made = run(&KeyTokens::default(), example(STUBS, "get_paper(title='a')")).unwrap();
        assert_eq!(made.columns[COLUMN], want);
        let mut defined = example("", "");
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        defined.tools = Some(json!([tool("get_paper"), tool("get_author"), {"name": "finish"}]));
        let call =
            json!([{"type": "function", "function": {"name": "get_paper", "arguments": {}}}]);
        defined.completions[0].turns[0].extra.insert("tool_calls".into(), call);
        assert_eq!(run(&KeyTokens::default(), defined).unwrap().columns[COLUMN], want);
    }

    #[test]
    fn what_is_no_call_is_refused_by_its_row_or_kept() {
        let keep = KeyTokens { no_call: NoCall::Keep, ..KeyTokens::default() };
        for (system, answer, what) in [
            (STUBS, "get_papr(title='a')", "did you mean get_paper"),
            (STUBS, "I do not know.", "no call of a tool"),
            ("", "get_paper(title='a')", "no tool is defined"),
        ] {
            let error =
                run(&KeyTokens::default(), example(system, answer)).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:4: ") && error.contains(what), "{error}");
            let kept = run(&keep, example(system, answer));
            assert!(kept.unwrap().columns.is_empty());
        }
        let wrong = KeyTokens { max_weight: 0.5, ..KeyTokens::default() };
        let error = run(&wrong, example(STUBS, "finish(answer='')")).unwrap_err().to_string();
        assert!(error.starts_with("key_tokens.max_weight"), "{error}");
    }
}
