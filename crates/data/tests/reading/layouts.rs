use luthier_core::{Example, Form, Turn};
use serde_json::{Value, json};

use crate::{table, try_table};

/// One row through a `.jsonl` file: the example and the layout's sentence.
fn one(row: Value) -> (Example, String) {
    with(row, "")
}

fn with(row: Value, settings: &str) -> (Example, String) {
    let mut t = try_table("a.jsonl", row.to_string(), settings).unwrap();
    (t.examples.remove(0), t.layout)
}

fn said(turns: &[Turn]) -> Vec<(&str, &str)> {
    turns.iter().map(|t| (t.role.as_str(), t.content.as_str())).collect()
}

#[test]
fn a_conversation_ends_in_its_last_assistant_turn() {
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let (e, layout) = one(json!({
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": calls, "name": null},
            {"role": "tool", "content": "9", "tool_call_id": "c1"},
            {"role": "assistant", "content": "nine", "reasoning_content": "hm", "train": false},
            {"role": "user", "content": "ok"},
            {"role": "assistant", "content": "fine", "weight": 0.5}
        ],
        "tools": "[{\"type\":\"function\"}]",
        "chat_template_kwargs": {"enable_thinking": false},
        "source": "web"
    }));
    assert_eq!(
        layout,
        "messages (columns messages, tools, chat_template_kwargs; beside them source)"
    );
    let want = [
        ("system", "s"),
        ("user", "ab"),
        ("assistant", ""),
        ("tool", "9"),
        ("assistant", "nine"),
        ("user", "ok"),
    ];
    assert_eq!(said(&e.prompt), want);
    assert_eq!(said(&e.completions[0].turns), [("assistant", "fine")]);
    assert_eq!(e.prompt[2].extra, json!({"tool_calls": calls}).as_object().unwrap().clone());
    assert_eq!(e.prompt[3].extra["tool_call_id"], "c1");
    assert_eq!(
        (e.prompt[4].weight, &e.prompt[4].extra["reasoning_content"]),
        (Some(0.0), &json!("hm"))
    );
    assert_eq!((e.prompt[2].weight, e.completions[0].turns[0].weight), (None, Some(0.5)));
    assert_eq!(e.tools, Some(json!([{"type": "function"}])));
    assert_eq!(e.template_kwargs["enable_thinking"], json!(false));
    assert_eq!(Value::Object(e.columns), json!({"source": "web"}));
    assert_eq!(e.form, Form::Chat);
}

#[test]
fn switches_combine_and_null_is_no_switch() {
    let weight = |keys: Value| {
        let mut message = json!({"role": "assistant", "content": "x"});
        message.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        one(json!({"messages": [message]})).0.completions[0].turns[0].weight
    };
    assert_eq!(weight(json!({"training": true})), Some(1.0));
    assert_eq!(weight(json!({"training": false, "weight": 2})), Some(0.0));
    assert_eq!(weight(json!({"train": true, "weight": 2})), Some(2.0));
    assert_eq!(weight(json!({"train": null, "weight": null})), None);
}

#[test]
fn sharegpt_roles_have_many_names() {
    let (e, layout) = one(json!({
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": "{\"name\":\"f\",\"arguments\":{}}"},
            {"from": "observation", "value": "9"},
            {"from": "GPT", "value": "b"}
        ],
        "system": "s", "tools": ""
    }));
    assert_eq!(layout, "sharegpt (columns conversations, system, tools)");
    assert_eq!(said(&e.prompt), [("system", "s"), ("user", "a"), ("assistant", ""), ("tool", "9")]);
    assert_eq!(e.prompt[2].extra["tool_calls"][0]["function"]["name"], "f");
    assert_eq!((said(&e.completions[0].turns), e.tools), (vec![("assistant", "b")], None));
    // The same column names, in the other style.
    let (_, layout) = one(
        json!({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    );
    assert_eq!(layout, "messages (column conversations)");
    let (_, layout) =
        one(json!({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}));
    assert_eq!(layout, "sharegpt (column messages)");
}

#[test]
fn prompt_and_completion_go_by_many_names() {
    let pairs = [
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("input", "output"),
        ("instruction", "response"),
        ("query", "response"),
        ("problem", "solution"),
    ];
    for (a, b) in pairs {
        let (e, layout) = one(json!({a: "ask", b: "tell", "id": 3}));
        assert_eq!(layout, format!("prompt/completion (columns {a}, {b}; beside them id)"));
        assert_eq!(
            (said(&e.prompt), said(&e.completions[0].turns)),
            (vec![("user", "ask")], vec![("assistant", "tell")])
        );
    }
    let (e, layout) = one(json!({"system_prompt": "s", "question": "a", "response": "b"}));
    assert_eq!(layout, "prompt/completion (columns question, response, system_prompt)");
    assert_eq!(said(&e.prompt), [("system", "s"), ("user", "a")]);
}

#[test]
fn message_lists_as_prompt_train_only_the_answer() {
    let (e, _) = one(json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                   {"role": "assistant", "content": "c", "weight": 1}, {"role": "user", "content": "d"}],
        "completion": [{"role": "assistant", "content": "e"}],
        "label": true
    }));
    let weights: Vec<_> = e.prompt.iter().map(|t| t.weight).collect();
    assert_eq!(weights, [None, Some(0.0), Some(1.0), None]);
    assert_eq!((e.completions[0].turns[0].weight, e.completions[0].marks["label"]), (None, 1.0));
    // A class label is a column like any other.
    assert_eq!(one(json!({"prompt": "a", "completion": "b", "label": 3})).0.columns["label"], 3);
}

#[test]
fn raw_prompt_and_completion_keep_their_texts() {
    let (e, _) = with(json!({"prompt": "2+2=", "completion": " 4"}), "form = \"raw\"");
    assert_eq!(
        (e.form, e.prompt[0].content.as_str(), e.completions[0].text()),
        (Form::Raw, "2+2=", " 4")
    );
    let (e, _) = with(json!({"prompt": "", "completion": " 4"}), "form = \"raw\"");
    assert!(e.prompt.is_empty());
}

#[test]
fn alpaca_as_chat_and_as_its_own_prompt() {
    let row = json!({"instruction": "Add.", "input": "1 2", "output": "3", "text": "all of it",
                     "history": [["q", "r"]], "system": "s"});
    let (e, layout) = one(row);
    assert_eq!(
        layout,
        "alpaca (columns instruction, output, input, history, system; beside them text)"
    );
    assert_eq!(
        said(&e.prompt),
        [("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "Add.\n1 2")]
    );
    assert_eq!(e.prompt[2].weight, None, "history is trained as parts of a conversation are");
    assert_eq!(
        said(&one(json!({"instruction": "Add.", "input": "", "output": "3"})).0.prompt),
        [("user", "Add.")]
    );
    let (e, layout) =
        one(json!({"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "qa"}));
    assert_eq!(layout, "alpaca (columns instruction, response, context; beside them category)");
    assert_eq!(said(&e.prompt), [("user", "Who?\nAnn.")]);
    let (e, _) =
        with(json!({"instruction": "Add.", "input": "1 2", "output": "3"}), "form = \"raw\"");
    assert!(
        e.prompt[0]
            .content
            .starts_with("Below is an instruction that describes a task, paired with an input")
    );
    assert!(
        e.prompt[0]
            .content
            .ends_with("\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    );
    let (e, _) = with(json!({"instruction": "Add.", "output": "3"}), "form = \"raw\"");
    assert!(e.prompt[0].content.ends_with("request.\n\n### Instruction:\nAdd.\n\n### Response:\n"));
}

#[test]
fn text_is_raw_and_prompts_may_stand_alone() {
    let (e, layout) = one(json!({"text": "once upon"}));
    assert_eq!((e.form, e.prompt.len(), e.completions[0].text()), (Form::Raw, 0, "once upon"));
    assert_eq!(layout, "text (column text)");
    let (e, layout) = one(json!({"prompt": "say"}));
    assert_eq!((said(&e.prompt), e.completions.len()), (vec![("user", "say")], 0));
    assert_eq!(layout, "prompt only (column prompt)");
    let (e, _) =
        with(json!({"messages": [{"role": "user", "content": "a"}]}), "layout = \"prompt_only\"");
    assert_eq!(said(&e.prompt), [("user", "a")]);
}

#[test]
fn preferences_become_two_marked_completions() {
    let check = |row: Value, prompt: &[(&str, &str)], answers: [&str; 2]| {
        let (e, layout) = one(row);
        assert!(layout.starts_with("preference (columns chosen, rejected"), "{layout}");
        assert_eq!(said(&e.prompt), prompt);
        assert_eq!([e.completions[0].text(), e.completions[1].text()], answers);
        let marks = [&e.completions[0].marks, &e.completions[1].marks].map(|m| m["chosen"]);
        assert_eq!(marks, [1.0, 0.0]);
        e
    };
    check(json!({"prompt": "p", "chosen": "a", "rejected": "b"}), &[("user", "p")], ["a", "b"]);
    check(
        json!({"system": "s", "question": "p", "chosen": "a", "rejected": "b"}),
        &[("system", "s"), ("user", "p")],
        ["a", "b"],
    );
    let turns = |answer: &str| {
        json!([{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
    };
    let shared = [("user", "p"), ("assistant", "x"), ("user", "q")];
    let row = json!({"prompt": "q", "messages": turns("a"), "chosen": turns("a"), "rejected": turns("b"),
                     "score_chosen": 9.5, "score_rejected": 2});
    let e = check(row, &shared, ["a", "b"]);
    assert_eq!((e.completions[0].marks["score"], e.completions[1].marks["score"]), (9.5, 2.0));
    assert_eq!(e.prompt[1].weight, Some(0.0));
    check(
        json!({"chosen": "\n\nHuman: p\n\nAssistant: x\n\nHuman: q\n\nAssistant: a",
               "rejected": "\n\nHuman: p\n\nAssistant: x\n\nHuman: q\n\nAssistant: b"}),
        &shared,
        ["a", "b"],
    );
    check(
        json!({"conversations": [{"from": "human", "value": "p"}], "chosen": {"from": "gpt", "value": "a"},
               "rejected": {"from": "gpt", "value": "b"}}),
        &[("user", "p")],
        ["a", "b"],
    );
    let e = check(
        json!({"chosen": "The sky is blue.", "rejected": "The sky is black."}),
        &[("user", "The sky is")],
        [" blue.", " black."],
    );
    assert_eq!(e.form, Form::Raw);
}

#[test]
fn optional_columns_may_come_late() {
    let t = table(
        "a.jsonl",
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\",\"completion\":\"b\",\"system\":\"s\",\"x\":1}\n",
    );
    assert_eq!(t.layout, "prompt/completion (columns prompt, completion, system; beside them x)");
    assert_eq!((t.examples[0].prompt.len(), t.examples[1].prompt.len()), (1, 2));
}
