//! Decoding by tables and flags: what they print, and what they refuse.

mod support;

use std::{fs, path::Path};

use serde_json::Value;
use support::{Ran, adapter, luthier, pico};

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("m"), 1);
    pico(&dir.path().join("small"), 2);
    adapter(&dir.path().join("m"), &dir.path().join("a"));
    let qa =
        "{\"prompt\":\"one?\",\"completion\":\"1\"}\n{\"prompt\":\"two?\",\"completion\":\"2\"}\n";
    fs::write(dir.path().join("qa.jsonl"), qa).unwrap();
    dir
}

fn run(dir: &Path, line: &str) -> Ran {
    luthier(dir, &line.split_whitespace().collect::<Vec<_>>(), "")
}

fn texts(ran: Ran) -> Vec<String> {
    let value = ran.json();
    let text = |v: &Value| v["text"].as_str().unwrap().to_string();
    value.as_array().unwrap().iter().map(text).collect()
}

#[test]
fn a_table_names_sources_and_the_flags_its_model() {
    let dir = workplace();
    let tail = "--prompt hello --max-new-tokens 12 --json";
    let write = |text: &str| fs::write(dir.path().join("d.toml"), text).unwrap();
    let with = || texts(run(dir.path(), &format!("generate --decode d.toml {tail}")));
    let alone = |model: &str| texts(run(dir.path(), &format!("generate {model} {tail}")));
    let head = "[models]\npolicy = \"m\"\n";

    // What has coefficient 1 decides alone, whoever else is there.
    let mixed = |small: f32, tuned: f32| {
        write(&format!(
            "{head}[decode.sources.small]\nmodel = \"small\"\n[decode.sources.tuned]\n\
                model = \"policy\"\nadapter = \"a\"\n[decode.combine.linear]\n\
                sources = [\"small\", \"tuned\", \"base\"]\ncoefficients = [{small:?}, {tuned:?}, 0.0]\n"
        ));
        with()
    };
    assert_eq!(mixed(1.0, 0.0), alone("--model small"));
    assert_eq!(mixed(0.0, 1.0), alone("--adapter a --model m"));
    assert_ne!(mixed(0.5, 0.5), alone("--model small"));

    // Emulating the tuning of a model of its own size is that tuning.
    let emulate = format!(
        "{head}[decode.sources.tuned]\nmodel = \"policy\"\nadapter = \"a\"\n\
            [decode.combine.emulate]\nbase = \"base\"\n\
            deltas = [{{tuned = \"tuned\", untuned = \"base\"}}]\n"
    );
    write(&emulate);
    assert_eq!(with(), alone("--adapter a --model m"));
    write(&format!("{emulate}[decode.draft]\nsource = \"tuned\"\ntokens = 3\n"));
    assert_eq!(with(), alone("--adapter a --model m"));

    // All of what tuning adds to each block is the tuned model, none of it is not.
    let scaled = |by: f32| {
        write(&format!(
            "{head}[decode.sources.more]\nmodel = \"policy\"\nadapter = \"a\"\nscaled = {by:?}\n\
                [decode.combine.linear]\nsources = [\"more\"]\ncoefficients = [1.0]\n"
        ));
        with()
    };
    assert_eq!(scaled(1.0), alone("--adapter a --model m"));
    assert_ne!(scaled(0.0), alone("--adapter a --model m"));

    // Tuning that is a folder of its own: all of it is that model, none of it has its embeddings alone.
    let between = |by: f32| {
        write(&format!(
            "{head}[decode.sources.more]\nmodel = \"small\"\nbase = \"policy\"\nscaled = {by:?}\n\
                [decode.combine.linear]\nsources = [\"more\"]\ncoefficients = [1.0]\n"
        ));
        with()
    };
    assert_eq!(between(1.0), alone("--model small"));
    assert_ne!(between(0.0), alone("--model small"));
    write(&format!(
        "{head}[decode.sources.more]\nbase = \"small\"\n[decode.combine.linear]\n\
            sources = [\"more\"]\ncoefficients = [1.0]\n"
    ));
    run(dir.path(), &format!("generate --decode d.toml {tail}")).refused(&["more.base", "scaled"]);

    write(&format!("{head}[decode.sources.x]\nmodel = \"small\"\n"));
    run(dir.path(), &format!("generate --decode d.toml {tail}")).refused(&["sources.x", "policy"]);
    write(&format!("{head}[decode.combine.proxy]\n"));
    run(dir.path(), &format!("generate --decode d.toml {tail}")).refused(&["`expert`"]);
    write(head);
    run(dir.path(), &format!("generate --decode d.toml {tail}")).refused(&["no [decode] table"]);
}

#[test]
fn texts_are_a_source() {
    let dir = workplace();
    fs::write(dir.path().join("notes.txt"), "hello there, hello there, hello there\n").unwrap();
    let tail = "--prompt hello --raw --max-new-tokens 12 --json";
    let with = |weights: &str, texts: &str| {
        let table = format!(
            "[models]\npolicy = \"m\"\n[decode.sources.notes.ngram]\n{texts}\n\
                [decode.combine.mixture]\nsources = [\"policy\", \"notes\"]\nweights = {weights}\n"
        );
        fs::write(dir.path().join("d.toml"), table).unwrap();
        run(dir.path(), &format!("generate --decode d.toml {tail}"))
    };
    let data = "data = \"notes.txt\"\nn = 6";
    let alone = texts(run(dir.path(), &format!("generate --model m {tail}")));
    assert_eq!(texts(with("[1.0, 0.0]", data)), alone);
    assert_eq!(texts(with("[0.0, 1.0]", data)), [" there, hell"]);
    assert_ne!(texts(with("[0.5, 0.5]", data)), alone);
    with("[0.5, 0.5]", "data = \"notes.txt\"\nn = 0").refused(&["sources.notes.ngram.n", "0"]);
    with("[0.5, 0.5]", "data = \"nowhere.txt\"").refused(&["nowhere.txt"]);
    let both = "data = \"notes.txt\"\n[decode.sources.notes]\nscaled = 2.0";
    assert_ne!(with("[0.5, 0.5]", both).code, 0);
}

#[test]
fn an_answer_has_the_form_that_is_asked_for() {
    let dir = workplace();
    let line = "generate --model m --prompt hello --temperature 1 --n 6 --json";
    for text in texts(run(dir.path(), &format!("{line} --choice yes,no"))) {
        assert!(["yes", "no"].contains(&text.as_str()), "{text}");
    }
    for text in texts(run(dir.path(), &format!("{line} --regex [0-9]{{3}}-[ab]"))) {
        let bytes = text.as_bytes();
        assert!(bytes.len() == 5 && bytes[..3].iter().all(u8::is_ascii_digit), "{text}");
        assert!(bytes[3] == b'-' && matches!(bytes[4], b'a' | b'b'), "{text}");
    }
    let schema = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0,
        "maximum": 9}, "ok": {"type": "boolean"}}, "required": ["n", "ok"],
        "additionalProperties": false}"#;
    fs::write(dir.path().join("s.json"), schema).unwrap();
    for text in texts(run(dir.path(), &format!("{line} --json-schema s.json"))) {
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value["n"].as_u64().unwrap() < 10 && value["ok"].is_boolean(), "{text}");
    }
    fs::write(dir.path().join("g.lark"), "start: \"(\" start \")\" | \"x\"\n").unwrap();
    for text in texts(run(dir.path(), &format!("{line} --grammar g.lark --max-new-tokens 40"))) {
        let depth = text.matches('(').count();
        if text.ends_with(')') || text == "x" {
            assert_eq!(text, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
        }
    }
    run(dir.path(), &format!("{line} --regex (")).refused(&["regex"]);
    run(dir.path(), &format!("{line} --regex a --choice a,b")).refused(&["--choice"]);
    fs::write(dir.path().join("bad.json"), "{").unwrap();
    run(dir.path(), &format!("{line} --json-schema bad.json")).refused(&["bad.json:1"]);
}

#[test]
fn searches_and_several_answers() {
    let dir = workplace();
    let line = "generate --model m --prompt hello --max-new-tokens 10";
    let greedy = run(dir.path(), line);
    assert_eq!(run(dir.path(), &format!("{line} --num-beams 1")).text(), greedy.text());
    let beams = run(dir.path(), &format!("{line} --num-beams 4 --length-penalty 0.5"));
    assert_eq!(beams.code, 0, "{}", beams.stderr);
    let drawn = format!("{line} --temperature 1 --seed 3");
    let best = run(dir.path(), &format!("{drawn} --best-of 4"));
    let four = texts(run(dir.path(), &format!("{drawn} --n 4 --json")));
    assert!(four.contains(&best.text().trim_end_matches('\n').to_string()), "{four:?}");
    let most = run(dir.path(), &format!("{drawn} --self-consistency 3"));
    assert!(four.contains(&most.text().trim_end_matches('\n').to_string()));
    run(dir.path(), &format!("{line} --best-of 4")).refused(&["--temperature"]);
    run(dir.path(), &format!("{drawn} --best-of 0")).refused(&["--best-of"]);
    run(dir.path(), &format!("{drawn} --best-of 2 --n 2")).refused(&["--n"]);
    run(dir.path(), &format!("{line} --length-penalty 2")).refused(&["--num-beams"]);
}

#[test]
fn guidance_changes_answers_and_one_is_none() {
    let dir = workplace();
    let line = "generate --model m --prompt hello --max-new-tokens 12";
    let plain = run(dir.path(), line);
    assert_eq!(run(dir.path(), &format!("{line} --guidance-scale 1")).text(), plain.text());
    let guided = run(dir.path(), &format!("{line} --guidance-scale 3"));
    assert_ne!(guided.text(), plain.text());
    let negative = run(dir.path(), &format!("{line} --guidance-scale 3 --negative-prompt bye"));
    assert_ne!(negative.text(), guided.text());
    run(dir.path(), &format!("{line} --negative-prompt x")).refused(&["--guidance-scale"]);
}

#[test]
fn samplers_of_peers_are_flags() {
    let dir = workplace();
    let line = "generate --model m --prompt hello --max-new-tokens 20 --temperature 1.2";
    let plain = run(dir.path(), line);
    for more in ["--top-h 0.3", "--mirostat-tau 1"] {
        let ran = run(dir.path(), &format!("{line} {more}"));
        assert_ne!(ran.text(), plain.text(), "{more}");
        assert_eq!(run(dir.path(), &format!("{line} {more}")).text(), ran.text());
    }
    // Without a draw a small model soon repeats itself.
    let line = "generate --model m --prompt hello --max-new-tokens 80";
    let dry = run(dir.path(), &format!("{line} --dry-multiplier 5 --dry-allowed-length 1"));
    assert_ne!(dry.text(), run(dir.path(), line).text());
    let line = format!("{line} --temperature 1");
    run(dir.path(), &format!("{line} --mirostat-tau 3 --top-p 0.5")).refused(&["Mirostat"]);
    run(dir.path(), &format!("{line} --top-h 1.5")).refused(&["--top-h"]);
    run(dir.path(), &format!("{line} --dry-multiplier 1 --dry-base 0")).refused(&["--dry-base"]);
}

#[test]
fn ranking_is_a_probe_of_what_a_model_knows() {
    let dir = workplace();
    let line = "probe ranking --model m --data qa.jsonl --n-negatives 3";
    let value = run(dir.path(), &format!("{line} --json")).json();
    assert_eq!((&value["metric"], &value["n"]), (&"ranking".into(), &2.into()));
    assert!((0.0..=1.0).contains(&value["value"].as_f64().unwrap()));
    assert!(run(dir.path(), line).text().starts_with("ranking  "));
    run(dir.path(), &line.replace("--n-negatives 3", "--n-negatives 0"))
        .refused(&["--n-negatives"]);
}

#[test]
fn evaluation_decodes_by_the_same_flags() {
    let dir = workplace();
    let line = "eval --model m --data qa.jsonl --json";
    let choice = run(dir.path(), &format!("{line} --choice 1")).json();
    assert_eq!((choice["value"].as_f64(), choice["n"].as_u64()), (Some(0.5), Some(2)));
    let more = "--self-consistency 3 --temperature 1 --choice 1,2";
    assert_eq!(run(dir.path(), &format!("{line} {more}")).json()["n"], 2);
    let metric = "--metric nll --choice 1";
    run(dir.path(), &format!("{line} {metric}")).refused(&["decode", "exact_match"]);
    run(dir.path(), &format!("{line} --temperature 1")).refused(&["--best-of"]);
}
