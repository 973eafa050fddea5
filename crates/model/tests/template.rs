//! Chat templates against what transformers rendered (tests/golden/make_templates.py), and errors.

use std::{collections::BTreeMap, path::PathBuf};

use luthier_core::Error;
use luthier_model::template::{ChatTemplate, Conversation, Text};
use serde_json::{Map, Value, json};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates").join(name)
}

fn render(template: &ChatTemplate, messages: &[Value]) -> Result<Text, Error> {
    let kwargs = Map::new();
    let conversation =
        Conversation { messages, tools: None, add_generation_prompt: false, kwargs: &kwargs };
    template.render(&conversation, &BTreeMap::new())
}

fn refusal(source: &str) -> String {
    let template = match ChatTemplate::at("t.jinja", source, 0) {
        Ok(template) => template,
        Err(e) => return e.to_string(),
    };
    let error = render(&template, &[json!({"role": "user", "content": "x"})]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn every_family_renders_as_in_python() {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let special: BTreeMap<String, String> =
        serde_json::from_value(expected["special"].clone()).unwrap();
    let mut templates: BTreeMap<&str, ChatTemplate> = BTreeMap::new();
    let (mut compared, mut spans) = (0, 0);
    for case in expected["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = templates.entry(name).or_insert_with(|| {
            let source = std::fs::read_to_string(golden(name)).unwrap();
            ChatTemplate::at(name, &source, expected["now"].as_i64().unwrap()).unwrap()
        });
        let conversation = case["conversation"].as_str().unwrap();
        let option = &expected["options"][case["option"].as_u64().unwrap() as usize];
        let kwargs = option["kwargs"].as_object().cloned().unwrap_or_default();
        let got = template.render(
            &Conversation {
                messages: expected["conversations"][conversation].as_array().unwrap(),
                tools: option.get("tools"),
                add_generation_prompt: option["add_generation_prompt"] == true,
                kwargs: &kwargs,
            },
            &special,
        );
        let at = format!("{name}, {conversation:?}, option {}", case["option"]);
        match (case.get("text"), got) {
            (Some(text), Ok(got)) => {
                for (line, (want, have)) in
                    text.as_str().unwrap().lines().zip(got.text.lines()).enumerate()
                {
                    assert_eq!(have, want, "{at}, line {}", line + 1);
                }
                assert_eq!(got.text, text.as_str().unwrap(), "{at}");
                let ranges: Vec<[usize; 2]> =
                    got.generation.iter().map(|r| [r.start, r.end]).collect();
                assert_eq!(json!(ranges), case["generation"], "{at}");
                spans += ranges.len();
                compared += 1;
            }
            (None, Err(_)) => compared += 1,
            (None, Ok(got)) => panic!("{at}: Python refuses this, we render {:?}", got.text),
            (Some(_), Err(e)) => panic!("{at}: {e}"),
        }
    }
    assert!(templates.len() >= 12 && compared > 500 && spans > 20, "{compared} {spans}");
}

#[test]
fn an_unknown_name_is_named_with_its_line_and_a_hint() {
    let function = refusal("a\n{{ frobnicate(1) }}");
    assert!(function.contains("t.jinja:2") && function.contains("frobnicate"), "{function}");
    assert!(function.contains("hint: ") && function.contains("raise_exception"), "{function}");
    let filter = refusal("{{ 1 | frobnicate }}");
    assert!(filter.contains("frobnicate") && filter.contains("hint: "), "{filter}");
    let method = refusal("{{ 'a'.frobnicate() }}");
    assert!(method.contains("frobnicate") && method.contains("hint: "), "{method}");
    let test = refusal("{{ 'a' is frobnicated }}");
    assert!(test.contains("frobnicated"), "{test}");
    let syntax = refusal("\n\n{% for %}");
    assert!(syntax.contains("t.jinja:3") && syntax.contains("syntax error"), "{syntax}");
}

#[test]
fn a_template_may_refuse_and_is_quoted() {
    let text = refusal(
        "{% macro m() %}\n{{ raise_exception('no ' ~ messages[0].content) }}{% endmacro %}{{ m() }}",
    );
    assert!(text.contains("refuses this conversation: no x"), "{text}");
}

#[test]
fn a_template_reads_no_files_and_changes_no_input() {
    assert!(refusal("{% include '/etc/hostname' %}").contains("template not found"));
    assert!(refusal("{% import 'Cargo.toml' as x %}").contains("template not found"));
    assert!(refusal("{{ messages.append(1) }}").contains("append"));
    assert!(refusal("{{ messages[0].update({'role': 'y'}) }}").contains("update"));
}

#[test]
fn generation_blocks_scope_nest_and_keep_whitespace_rules() {
    let source = "{% for m in messages %}\n  {% generation %}\n  {% set x = m.content %}\n{{ x }}é{{ loop.index }}\n  {%- endgeneration +%}\n{% endfor %}\nend {{ x }}\n";
    let template = ChatTemplate::at("t", source, 0).unwrap();
    let messages = [json!({"role": "a", "content": "α"}), json!({"role": "b", "content": ""})];
    let got = render(&template, &messages).unwrap();
    assert_eq!(got.text, "αé1\né2\nend ");
    let words: Vec<&str> = got.generation.iter().map(|r| &got.text[r.clone()]).collect();
    assert_eq!(words, ["αé1", "é2"]);
    assert!(template.marks_generation());
    assert_eq!(template.source(), source);
}

#[test]
fn reasoning_is_found_under_each_of_its_names() {
    let template =
        ChatTemplate::at("t", "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}", 0)
            .unwrap();
    for key in ["reasoning_content", "thinking", "reasoning"] {
        let got = render(&template, &[json!({"role": "assistant", "content": "", key: "why"})]);
        assert_eq!(got.unwrap().text, "why|why", "{key}");
    }
}
