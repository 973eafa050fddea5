//! Every type of data set in TRL's documentation, plain and conversational, becomes what it means there.

use luthier_core::{Example, Form};
use serde_json::{Value, json};

use crate::{refusal, try_table};

fn one(row: Value) -> (Example, String) {
    let mut table = try_table("a.jsonl", row.to_string(), "").unwrap();
    (table.examples.remove(0), table.layout)
}

fn said(example: &Example) -> (Vec<String>, Vec<Vec<String>>) {
    let text = |turn: &luthier_core::Turn| format!("{}: {}", turn.role, turn.content);
    let prompt = example.prompt.iter().map(text).collect();
    let answers = example.completions.iter().map(|c| c.turns.iter().map(text).collect()).collect();
    (prompt, answers)
}

/// The prompt's turns, each answer's turns, and the beginning of the layout's sentence.
fn becomes(row: Value, prompt: &[&str], answers: &[&[&str]], layout: &str) -> Example {
    let (example, sentence) = one(row.clone());
    let (found_prompt, found_answers) = said(&example);
    assert_eq!(found_prompt, prompt, "{row}");
    let found: Vec<Vec<&str>> =
        found_answers.iter().map(|a| a.iter().map(String::as_str).collect()).collect();
    assert_eq!(found, answers, "{row}");
    assert!(sentence.starts_with(layout), "{sentence}");
    example
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

const ASKED: &str = "What color is the sky?";

#[test]
fn language_modelling() {
    let text = json!({"text": "The sky is blue."});
    let plain = becomes(text, &[], &[&["assistant: The sky is blue."]], "text");
    assert_eq!(plain.form, Form::Raw);
    let messages = json!({"messages": [user(ASKED), assistant("It is blue.")]});
    let asked = format!("user: {ASKED}");
    becomes(messages, &[&asked], &[&["assistant: It is blue."]], "messages");
}

#[test]
fn prompts_alone() {
    let asked = format!("user: {ASKED}");
    becomes(json!({"prompt": ASKED}), &[&asked], &[], "prompt only");
    becomes(json!({"prompt": [user(ASKED)]}), &[&asked], &[], "prompt only");
}

#[test]
fn prompts_and_completions() {
    let asked = format!("user: {ASKED}");
    let answer: &[&[&str]] = &[&["assistant: It is blue."]];
    let plain = json!({"prompt": ASKED, "completion": "It is blue."});
    becomes(plain, &[&asked], answer, "prompt/completion");
    let chat = json!({"prompt": [user(ASKED)], "completion": [assistant("It is blue.")]});
    becomes(chat, &[&asked], answer, "prompt/completion");
}

#[test]
fn preferences_with_and_without_their_prompt() {
    let asked = format!("user: {ASKED}");
    let answers: &[&[&str]] = &[&["assistant: It is blue."], &["assistant: It is green."]];
    let (blue, green) = (assistant("It is blue."), assistant("It is green."));
    let rows = [
        json!({"prompt": ASKED, "chosen": "It is blue.", "rejected": "It is green."}),
        json!({"prompt": [user(ASKED)], "chosen": [blue], "rejected": [green]}),
        json!({"chosen": [user(ASKED), blue], "rejected": [user(ASKED), green]}),
        json!({"prompt": [user(ASKED)], "chosen": [user(ASKED), blue], "rejected": [user(ASKED), green]}),
    ];
    for row in rows {
        let example = becomes(row, &[&asked], answers, "preference");
        let marks = example.completions.iter().map(|c| c.marks["chosen"]);
        assert_eq!(marks.collect::<Vec<f64>>(), [1.0, 0.0]);
    }
    // Plain texts share their beginning, up to a space.
    let plain = json!({"chosen": "The sky is blue.", "rejected": "The sky is green."});
    let answers: &[&[&str]] = &[&["assistant:  blue."], &["assistant:  green."]];
    assert_eq!(becomes(plain, &["user: The sky is"], answers, "preference").form, Form::Raw);
}

#[test]
fn unpaired_preferences() {
    let asked = format!("user: {ASKED}");
    let answer: &[&[&str]] = &[&["assistant: It is green."]];
    for label in [true, false] {
        let plain = json!({"prompt": ASKED, "completion": "It is green.", "label": label});
        let chat = json!({"prompt": [user(ASKED)], "completion": [assistant("It is green.")], "label": label});
        for row in [plain, chat] {
            let example = becomes(row, &[&asked], answer, "prompt/completion");
            assert_eq!(example.completions[0].marks["label"], f64::from(u8::from(label)));
        }
    }
    let empty = json!({"prompt": ASKED, "completion": " ", "label": true}).to_string();
    assert!(refusal("a.jsonl", empty, "").starts_with("a.jsonl:1: column completion"));
}

#[test]
fn stepwise_supervision_is_refused_in_a_sentence() {
    let steps = json!({
        "prompt": "Which is larger, 9.8 or 9.11?",
        "completions": ["Compare the tenths.", "So 9.11 is larger."],
        "labels": [true, false]
    });
    let refused = refusal("a.jsonl", steps.to_string(), "");
    assert!(refused.starts_with("a.jsonl:1: stepwise supervision"), "{refused}");
    assert!(refused.contains("one by one") && refused.contains("join the steps"), "{refused}");
    // Other columns of these names are columns.
    one(json!({"prompt": "a", "labels": [1, 2]}));
}
