//! How right a tool call is, by the kind of its worst mistake (TL-Training, Ye et al. 2025, paper 66).
//!
//! A call is `name(argument=value, …)`. Rules in order, with the published rewards:
//!
//! | what is wrong | reward |
//! |---|---|
//! | it cannot be parsed | −2 |
//! | no tool has its name | −2 |
//! | another tool was meant | −1.5 |
//! | unknown (hal), superfluous (red) and missing (mis) parameters: all three | −1.8 |
//! | hal, and red or mis | −1.3 |
//! | red and mis | −1 |
//! | hal alone | −0.8 |
//! | red or mis alone | −0.5 |
//! | some value | −0.25 |
//! | nothing | +1 |
//!
//! A parameter is superfluous if the tool knows it and the right call does not give it.
//!
//! **Departures**: (1) values of every kind are read and compared as Python compares them, in any order of the
//! arguments; the published code finds quoted texts alone, by a pattern that ends at the first `)`.

use serde::{Deserialize, Serialize};

mod parse;

pub use parse::{Call, Value};

/// A tool and what it can be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The names of its parameters.
    pub parameters: Vec<String>,
}

/// The kind of the worst mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mistake {
    /// It is no call.
    Unparsable,
    /// It calls what there is not.
    Hallucinated,
    /// It calls another tool.
    WrongTool,
    /// Its parameters are not those of the right call.
    Parameters {
        /// Some that the tool does not know.
        unknown: bool,
        /// Some that are not called for.
        superfluous: bool,
        /// Some are missing.
        missing: bool,
    },
    /// A value is another.
    Content,
    /// None.
    Nothing,
}

/// What every mistake is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rewards {
    /// No call.
    pub unparsable: f64,
    /// No such tool.
    pub hallucinated: f64,
    /// Another tool.
    pub wrong_tool: f64,
    /// Unknown, superfluous and missing parameters.
    pub all_parameters: f64,
    /// Unknown ones, and superfluous or missing ones.
    pub unknown_and_other: f64,
    /// Superfluous and missing ones.
    pub superfluous_and_missing: f64,
    /// Unknown ones alone.
    pub unknown: f64,
    /// Superfluous or missing ones alone.
    pub superfluous_or_missing: f64,
    /// A value.
    pub content: f64,
    /// No mistake.
    pub right: f64,
}

impl Default for Rewards {
    fn default() -> Self {
        Rewards {
            unparsable: -2.0,
            hallucinated: -2.0,
            wrong_tool: -1.5,
            all_parameters: -1.8,
            unknown_and_other: -1.3,
            superfluous_and_missing: -1.0,
            unknown: -0.8,
            superfluous_or_missing: -0.5,
            content: -0.25,
            right: 1.0,
        }
    }
}

impl Rewards {
    /// What a mistake is worth.
    pub fn of(&self, mistake: Mistake) -> f64 {
        match mistake {
            Mistake::Unparsable => self.unparsable,
            Mistake::Hallucinated => self.hallucinated,
            Mistake::WrongTool => self.wrong_tool,
            Mistake::Parameters { unknown, superfluous, missing } => {
                match (unknown, superfluous, missing) {
                    (true, true, true) => self.all_parameters,
                    (true, false, false) => self.unknown,
                    (true, _, _) => self.unknown_and_other,
                    (false, true, true) => self.superfluous_and_missing,
                    (false, _, _) => self.superfluous_or_missing,
                }
            }
            Mistake::Content => self.content,
            Mistake::Nothing => self.right,
        }
    }
}

/// The worst mistake of an answer where `gold` is the right call and `tools` are those there are.
pub fn judge(answer: &str, gold: &Call, tools: &[Tool]) -> Mistake {
    let Some(call) = Call::parse(answer) else { return Mistake::Unparsable };
    let Some(tool) = tools.iter().find(|tool| tool.name == call.name) else {
        return Mistake::Hallucinated;
    };
    if call.name != gold.name {
        return Mistake::WrongTool;
    }
    let given = |of: &Call, name: &str| of.arguments.contains_key(name);
    let odd = || call.arguments.keys().filter(|name| !given(gold, name));
    // What the right call gives is known, whatever the definition forgot.
    let unknown = odd().any(|name| !tool.parameters.contains(name));
    let superfluous = odd().any(|name| tool.parameters.contains(name));
    let missing = gold.arguments.keys().any(|name| !given(&call, name));
    if unknown || superfluous || missing {
        return Mistake::Parameters { unknown, superfluous, missing };
    }
    match call.arguments == gold.arguments {
        true => Mistake::Nothing,
        false => Mistake::Content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Tool> {
        let tool = |name: &str, parameters: &[&str]| Tool {
            name: name.into(),
            parameters: parameters.iter().map(|p| p.to_string()).collect(),
        };
        vec![tool("search", &["q", "n", "sort"]), tool("finish", &["answer"])]
    }

    fn reward(answer: &str) -> f64 {
        let gold = Call::parse("search(q='a', n='1')").unwrap();
        Rewards::default().of(judge(answer, &gold, &tools()))
    }

    #[test]
    fn every_rule_has_its_reward() {
        for (answer, want) in [
            ("search(q='a', n='1')", 1.0),
            ("search( n = \"1\" , q = 'a' )", 1.0),
            ("search(q='b', n='1')", -0.25),
            ("search(q='a', n=1)", -0.25),
            ("search(q='a')", -0.5),
            ("search(q='a', n='1', sort='x')", -0.5),
            ("search(q='a', n='1', k=2)", -0.8),
            ("search(q='a', sort='x')", -1.0),
            ("search(k='a', n='1')", -1.3),
            ("search(q='a', n='1', k=1, sort='x')", -1.3),
            ("search(q='a', k=1, sort='x')", -1.8),
            ("finish(answer='a')", -1.5),
            ("find(q='a', n='1')", -2.0),
            ("search(q='a', n='1'", -2.0),
            ("I would search.", -2.0),
            ("", -2.0),
        ] {
            assert_eq!(reward(answer), want, "{answer}");
        }
    }

    #[test]
    fn the_rewards_of_mistakes_can_be_others() {
        let rewards = Rewards { content: -3.0, ..Rewards::default() };
        assert_eq!(rewards.of(Mistake::Content), -3.0);
        assert_eq!(rewards.of(Mistake::Nothing), 1.0);
    }
}
