//! From examples to tokens and weights: masks, spans, refusals, parity.

use luthier_core::{Completion, Example, Form, Table, Turn};
use luthier_model::{
    Tokenizer,
    render::{LossOn, RenderOptions, Rendered, generation_prompt, parity, render, render_table},
    show::{Count, Counts, coloured},
    template::ChatTemplate,
    tokenizer::GgufVocab,
};
use serde_json::{Value, json};

const PLAIN: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn with(template: &str) -> Tokenizer {
    let mut t = Tokenizer::bytes();
    t.set_template(ChatTemplate::at("t.jinja", template, 0).unwrap());
    t
}

fn example(turns: &[(&str, &str)]) -> Example {
    let mut turns: Vec<Turn> = turns.iter().map(|(r, c)| Turn::new(*r, *c)).collect();
    let last = turns.pop();
    Example::new("train.jsonl", 17, turns, last)
}

fn raw(prompt: &str, answer: &str) -> Example {
    let prompt = (!prompt.is_empty()).then(|| Turn::new("user", prompt));
    let answer = Turn::new("assistant", answer);
    Example {
        form: Form::Raw,
        ..Example::new("train.jsonl", 17, prompt.into_iter().collect(), Some(answer))
    }
}

/// The trained text, runs divided by `|`.
fn trained(t: &Tokenizer, r: &Rendered) -> String {
    let mut out = String::new();
    let mut before = false;
    for (id, w) in r.tokens.iter().zip(&r.weights) {
        if *w != 0.0 {
            if !before && !out.is_empty() {
                out.push('|');
            }
            out.push_str(&t.decode_all(&[*id]).unwrap());
        }
        before = *w != 0.0;
    }
    out
}

fn run(t: &Tokenizer, e: &Example, loss_on: LossOn) -> Rendered {
    render(e, 0, t, &RenderOptions { loss_on }).unwrap()
}

fn refused(t: &Tokenizer, e: &Example) -> String {
    let error = render(e, 0, t, &RenderOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().starts_with("train.jsonl:17: "), "{error}");
    error.to_string()
}

#[test]
fn answers_and_their_end_are_trained_by_blocks_and_by_prefixes_alike() {
    let e = example(&[
        ("system", "s"),
        ("user", "q"),
        ("assistant", "one"),
        ("user", "one"),
        ("assistant", "two"),
    ]);
    for t in [Tokenizer::bytes(), with(PLAIN)] {
        let r = run(&t, &e, LossOn::Assistant);
        assert_eq!(
            r.text,
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        );
        assert_eq!(trained(&t, &r), "one<|im_end|>|two<|im_end|>");
        assert_eq!(trained(&t, &run(&t, &e, LossOn::Last)), "two<|im_end|>");
        assert_eq!(trained(&t, &run(&t, &e, LossOn::All)), r.text);
        // The row is shifted: what is trained at position i is the next token.
        assert_eq!(r.row.len(), r.tokens.len() - 1);
        assert_eq!(
            (&r.row.ids[..], &r.row.targets[..]),
            (&r.tokens[..r.tokens.len() - 1], &r.tokens[1..])
        );
        assert_eq!(r.row.weights[..], r.weights[1..]);
        let words: Vec<&str> = r.spans.iter().map(|s| &r.text[s.range.clone()]).collect();
        assert_eq!(words, ["s", "q", "one<|im_end|>", "one", "two<|im_end|>"]);
        parity(&e, &t).unwrap();
    }
}

#[test]
fn switches_of_single_turns_are_honoured() {
    let mut e =
        example(&[("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]);
    e.prompt[1].weight = Some(0.0);
    e.prompt[2].weight = Some(0.5);
    for t in [Tokenizer::bytes(), with(PLAIN)] {
        let r = run(&t, &e, LossOn::Assistant);
        assert_eq!(trained(&t, &r), "r<|im_end|>|two<|im_end|>");
        assert_eq!(r.weights.iter().sum::<f32>(), 0.5 * 2.0 + 4.0);
    }
    e.prompt[1].weight = Some(1.0);
    let t = with(PLAIN);
    assert_eq!(trained(&t, &run(&t, &e, LossOn::Last)), "one<|im_end|>|r<|im_end|>|two<|im_end|>");
}

#[test]
fn templates_that_rewrite_earlier_turns_are_followed() {
    // Reasoning is dropped from every turn but the last, and the last always shows a block.
    let t = with(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content }}\n</think>\n\n{% endif %}{{ c }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let thought = "<think>\nhm\n</think>\n\nfirst";
    let e = example(&[
        ("user", "q"),
        ("assistant", thought),
        ("user", "r"),
        ("assistant", "<think>\nso\n</think>\n\nlast"),
    ]);
    let r = run(&t, &e, LossOn::Assistant);
    assert_eq!(trained(&t, &r), "first<|im_end|>|<think>\nso\n</think>\n\nlast<|im_end|>");
    parity(&e, &t).unwrap();
    // What the template writes before a bare answer is the model's to say as well.
    let e = example(&[("user", "q"), ("assistant", "plain")]);
    assert_eq!(
        trained(&t, &run(&t, &e, LossOn::Assistant)),
        "<think>\n\n</think>\n\nplain<|im_end|>"
    );
}

#[test]
fn tool_calls_without_words_are_trained() {
    let t = with(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let mut e =
        example(&[("user", "q"), ("assistant", ""), ("tool", "21"), ("assistant", "It is 21.")]);
    e.prompt[1].extra.insert("tool_calls".into(), json!([{"name": "f"}]));
    let r = run(&t, &e, LossOn::Assistant);
    assert_eq!(trained(&t, &r), "<call>{\"name\": \"f\"}</call><|im_end|>|It is 21.<|im_end|>");
}

#[test]
fn an_end_of_turn_outside_the_block_still_counts() {
    let t = with(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
    );
    let e = example(&[("user", "q"), ("assistant", "a")]);
    assert_eq!(trained(&t, &run(&t, &e, LossOn::Assistant)), "a<|im_end|>");
}

#[test]
fn several_completions_share_a_prompt() {
    let mut e = example(&[("user", "q"), ("assistant", "a")]);
    e.completions
        .push(Completion { turns: vec![Turn::new("assistant", "b")], ..Completion::default() });
    let table = Table {
        name: "t".into(),
        layout: "messages".into(),
        sha256: String::new(),
        examples: vec![e.clone(), e],
    };
    let t = Tokenizer::bytes();
    let rows = render_table(&table, &t, &RenderOptions::default()).unwrap();
    let got: Vec<(usize, String)> = rows.iter().map(|r| (r.row.example, trained(&t, r))).collect();
    let want = [(0, "a"), (0, "b"), (1, "a"), (1, "b")].map(|(i, s)| (i, format!("{s}<|im_end|>")));
    assert_eq!(got, want);
}

#[test]
fn the_first_bad_row_is_reported_whatever_the_threads() {
    let mut examples: Vec<Example> =
        (0..64).map(|_| example(&[("user", "q"), ("assistant", "a")])).collect();
    for (i, e) in examples.iter_mut().enumerate() {
        e.origin.line = i + 1;
        if i >= 20 {
            e.completions.clear();
        }
    }
    let table =
        Table { name: "t".into(), layout: "messages".into(), sha256: String::new(), examples };
    let error = render_table(&table, &Tokenizer::bytes(), &RenderOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("train.jsonl:21: there is no answer"), "{error}");
}

#[test]
fn raw_text_is_joined_closed_and_trained() {
    let t = Tokenizer::bytes();
    let r = run(&t, &raw("2+2=", "4"), LossOn::Assistant);
    assert_eq!((r.text.as_str(), trained(&t, &r).as_str()), ("2+2=4", "4<|im_end|>"));
    let r = run(&t, &raw("", "just text"), LossOn::Assistant);
    assert_eq!(trained(&t, &r), "just text<|im_end|>");
    let r = run(&t, &raw("ab", "c"), LossOn::All);
    assert_eq!(trained(&t, &r), "abc<|im_end|>");
    // Text that brings its own end is not closed twice.
    assert_eq!(run(&t, &raw("a", "b<|im_end|>"), LossOn::Assistant).tokens, [97, 98, 257]);
    assert_eq!(generation_prompt(&raw("2+2=", "4"), &t).unwrap(), t.encode("2+2=").unwrap());
    parity(&raw("2+2=", "4"), &t).unwrap();
}

/// Bytes, plus `ab` as one token, plus a beginning-of-text token that text gets.
fn merging() -> Tokenizer {
    let bytes = Tokenizer::bytes();
    let mut tokens: Vec<String> = (0..256).map(|id| bytes.token(id).unwrap()).collect();
    tokens.extend(["ab", "<s>", "</s>", "<pad>", "<unk>"].map(String::from));
    let mut types = vec![1; 257];
    types.extend([3; 4]);
    Tokenizer::from_gguf(GgufVocab {
        file: "m.gguf".into(),
        model: "gpt2".into(),
        tokens,
        types,
        merges: vec!["a b".into()],
        bos: Some(257),
        eos: Some(258),
        padding: Some(259),
        unknown: Some(260),
        add_bos: Some(true),
        chat_template: Some("{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}{{ 'a:' if add_generation_prompt }}".into()),
        ..GgufVocab::default()
    })
    .unwrap()
}

#[test]
fn a_token_across_the_boundary_belongs_to_the_answer() {
    let t = merging();
    let r = run(&t, &raw("xa", "b"), LossOn::Assistant);
    assert_eq!(r.tokens, [257, u32::from(b'x'), 256, 258]);
    assert_eq!(r.weights, [0.0, 0.0, 1.0, 1.0]);
    // Serving would read `x`, `a`: training and serving cannot agree on this row, and parity says so.
    let error = parity(&raw("xa", "b"), &t).unwrap_err().to_string();
    assert!(error.contains("differ from token 2"), "{error}");
}

#[test]
fn broken_rows_are_refused_by_name() {
    let t = merging();
    let doubling = with(
        "{{ '<|im_start|>' }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    );
    assert!(
        render(
            &example(&[("user", "q"), ("assistant", "a")]),
            0,
            &doubling,
            &RenderOptions::default()
        )
        .is_ok(),
        "only the declared token counts"
    );
    let text = refused(&t, &raw("<s>x", "y"));
    assert!(text.contains("<s> stands twice"), "{text}");
    let text = refused(&t, &example(&[("user", "q"), ("assistant", "a<pad>")]));
    assert!(text.contains("padding token <pad>"), "{text}");
    let text = refused(&t, &example(&[("user", "q"), ("assistant", "a<unk>")]));
    assert!(text.contains("unknown token <unk>"), "{text}");
    let mut off = example(&[("user", "q"), ("assistant", "a")]);
    off.completions[0].turns[0].weight = Some(0.0);
    assert!(refused(&t, &off).contains("no token of this row would be trained"));
    let text = refused(
        &with(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}",
        ),
        &example(&[("user", "q"), ("assistant", "a")]),
    );
    assert!(text.contains("end of turn 2 would never be trained"), "{text}");
    let text = refused(
        &with("{{ raise_exception('no') }}"),
        &example(&[("user", "q"), ("assistant", "a")]),
    );
    assert!(text.contains("t.jinja:1") && text.contains("refuses this conversation: no"), "{text}");
    let text = refused(
        &with(
            "{{ messages | length }}{% for m in messages %}{{ m.content | length + messages | length }}<|im_end|>{% endfor %}",
        ),
        &example(&[("user", "q"), ("assistant", "aaa"), ("user", "q"), ("assistant", "b")]),
    );
    assert!(text.contains("turn 2 (assistant) cannot be found"), "{text}");
}

#[test]
fn parity_sees_a_template_that_changes_its_mind() {
    let t = with(
        "{% for m in messages %}{{ '!' if messages | length > 1 }}{{ m.content }}<|im_end|>{% endfor %}{{ 'A:' if add_generation_prompt }}",
    );
    let error = parity(&example(&[("user", "q"), ("assistant", "a")]), &t).unwrap_err().to_string();
    assert!(error.starts_with("train.jsonl:17: "), "{error}");
}

#[test]
fn show_marks_what_is_trained_and_counts_by_role() {
    let t = Tokenizer::bytes();
    let mut e = example(&[("user", "q\nr"), ("assistant", "yes")]);
    let r = run(&t, &e, LossOn::Assistant);
    assert_eq!(
        coloured(&r, &t, false),
        "<|im_start|>user⏎\nq⏎\nr<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦yes<|im_end|>⟧⏎\n"
    );
    let colour = coloured(&r, &t, true);
    assert!(
        colour.contains("\x1b[0;38;5;231;48;5;28myes\x1b[0m")
            && colour.contains("\x1b[0;1m<|im_start|>\x1b[0m"),
        "{colour:?}"
    );
    let counts = Counts::of([&r, &r]);
    let of = |role: &str| counts.roles[role];
    assert_eq!(
        (of("user"), of("assistant")),
        (Count { tokens: 6, trained: 0 }, Count { tokens: 8, trained: 8 })
    );
    assert_eq!(
        (counts.total.tokens, counts.total.trained, counts.rows),
        (2 * r.tokens.len(), 8, 2)
    );
    let as_json: Value = serde_json::to_value(&counts).unwrap();
    assert_eq!(as_json["roles"]["assistant"]["trained"], 8);
    e.completions[0].turns[0].weight = Some(0.25);
    assert!(coloured(&run(&t, &e, LossOn::Assistant), &t, false).contains("⟦0.25|yes<|im_end|>⟧"));
}
