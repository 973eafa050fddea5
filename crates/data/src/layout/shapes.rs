//! The columns by which each layout is known, in the order in which they are tried.
//!
//! Sources: TRL's dataset types, Alpaca and ShareGPT files, and the column names that well-known
//! public sets use (gsm8k: question/answer, dolly: instruction/context/response, OpenOrca:
//! system_prompt/question/response, NuminaMath: problem/solution).

use super::Layout;

/// A role and the column that usually plays it.
pub(super) type RoleColumn = (&'static str, &'static str);

/// One layout's columns.
pub(super) struct Shape {
    pub(super) layout: Layout,
    /// Sets of columns that must be there, best first.
    pub(super) sets: &'static [&'static [RoleColumn]],
    /// How many of the sets are tried when the user named no layout; the rest are too weak a sign.
    pub(super) telling: usize,
    /// Columns that may be there: role and usual names.
    pub(super) optional: &'static [(&'static str, &'static [&'static str])],
}

const TOOLS: (&str, &[&str]) = ("tools", &["tools"]);
const KWARGS: (&str, &[&str]) = ("chat_template_kwargs", &["chat_template_kwargs"]);
const SYSTEM: (&str, &[&str]) = ("system", &["system", "system_prompt"]);

pub(super) const SHAPES: &[Shape] = &[
    // First, because public preference sets also carry `messages` or `prompt`.
    Shape {
        layout: Layout::Preference,
        sets: &[&[("chosen", "chosen"), ("rejected", "rejected")]],
        telling: 1,
        optional: &[
            ("prompt", &["prompt", "question", "instruction", "conversations"]),
            ("input", &["input"]),
            ("score_chosen", &["score_chosen", "chosen_score"]),
            ("score_rejected", &["score_rejected", "rejected_score"]),
            SYSTEM,
            TOOLS,
            KWARGS,
        ],
    },
    Shape {
        layout: Layout::Messages,
        sets: &[
            &[("messages", "messages")],
            &[("messages", "conversation")],
            &[("messages", "conversations")],
        ],
        telling: 3,
        optional: &[SYSTEM, TOOLS, KWARGS],
    },
    Shape {
        layout: Layout::ShareGpt,
        sets: &[
            &[("conversations", "conversations")],
            &[("conversations", "conversation")],
            &[("conversations", "messages")],
        ],
        telling: 3,
        optional: &[SYSTEM, TOOLS, KWARGS],
    },
    Shape {
        layout: Layout::Alpaca,
        sets: &[
            &[("instruction", "instruction"), ("output", "output")],
            &[("instruction", "instruction"), ("output", "response"), ("input", "context")],
            &[("instruction", "instruction"), ("output", "response"), ("input", "input")],
        ],
        telling: 3,
        optional: &[("input", &["input"]), ("history", &["history"]), SYSTEM, TOOLS, KWARGS],
    },
    Shape {
        layout: Layout::PromptCompletion,
        sets: &[
            &[("prompt", "prompt"), ("completion", "completion")],
            &[("prompt", "prompt"), ("completion", "response")],
            &[("prompt", "prompt"), ("completion", "answer")],
            &[("prompt", "prompt"), ("completion", "output")],
            &[("prompt", "question"), ("completion", "answer")],
            &[("prompt", "question"), ("completion", "response")],
            &[("prompt", "query"), ("completion", "response")],
            &[("prompt", "query"), ("completion", "answer")],
            &[("prompt", "instruction"), ("completion", "response")],
            &[("prompt", "instruction"), ("completion", "completion")],
            &[("prompt", "input"), ("completion", "output")],
            &[("prompt", "problem"), ("completion", "solution")],
            &[("prompt", "problem"), ("completion", "answer")],
        ],
        telling: 13,
        optional: &[("label", &["label"]), SYSTEM, TOOLS, KWARGS],
    },
    Shape { layout: Layout::Text, sets: &[&[("text", "text")]], telling: 1, optional: &[] },
    Shape {
        layout: Layout::PromptOnly,
        sets: &[
            &[("prompt", "prompt")],
            &[("prompt", "question")],
            &[("prompt", "query")],
            &[("prompt", "instruction")],
            &[("prompt", "problem")],
            &[("prompt", "messages")],
            &[("prompt", "conversations")],
            &[("prompt", "conversation")],
        ],
        telling: 1,
        optional: &[SYSTEM, TOOLS, KWARGS],
    },
];
