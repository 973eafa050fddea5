//! The verbs that read: what they print, what they print for scripts, and what they refuse.

mod support;

use std::fs;

use serde_json::Value;
use support::{Ran, adapter, luthier, pico, run};

const QA: &str = "{\"prompt\":\"one?\",\"completion\":\"1\"}\n\
    {\"prompt\":\"two?\",\"completion\":\"2\"}\n\
    {\"prompt\":\"three?\",\"completion\":\"3\"}\n";

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("m"), 1);
    fs::write(dir.path().join("qa.jsonl"), QA).unwrap();
    dir
}

#[test]
fn generate_says_the_same_each_time_and_whatever_the_number_of_answers() {
    let dir = workplace();
    let sample = "generate --model m --prompt hello --max-new-tokens 20 --temperature 1 --seed 5";
    let one = run(dir.path(), sample);
    assert_eq!(one.text(), run(dir.path(), sample).text());
    assert_ne!(one.text(), run(dir.path(), &sample.replace("seed 5", "seed 6")).text());
    let three = run(dir.path(), &format!("{sample} --n 3 --json")).json();
    let list = three.as_array().unwrap();
    assert_eq!(list.len(), 3);
    assert_eq!(format!("{}\n", list[0]["text"].as_str().unwrap()), one.text());
    assert_ne!(list[0]["text"], list[1]["text"]);
    for answer in list {
        let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
        let [times @ .., first, last] = keys.as_slice() else { panic!("{keys:?}") };
        assert_eq!(times, ["prompt", "text", "tokens", "finish"]);
        assert_eq!([first.as_str(), last.as_str()], ["first_token_seconds", "seconds"]);
        let seconds = |key: &str| answer[key].as_f64().unwrap();
        assert!(0.0 < seconds("first_token_seconds"));
        assert!(seconds("first_token_seconds") <= seconds("seconds"));
        assert_eq!(answer["prompt"], "hello");
        let ids = answer["tokens"].as_array().unwrap();
        assert!(!ids.is_empty() && ids.iter().all(|id| id.as_u64().unwrap() < 259));
        match answer["finish"].as_str().unwrap() {
            "length" => assert_eq!(ids.len(), 20),
            "eos" => assert!(ids.last().unwrap().as_u64().unwrap() >= 257),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn generate_reads_prompts_from_everywhere() {
    let dir = workplace();
    let texts = |ran: Ran| -> Vec<(String, String)> {
        let text = |v: &Value, key: &str| v[key].as_str().unwrap().to_string();
        let value = ran.json();
        value.as_array().unwrap().iter().map(|v| (text(v, "prompt"), text(v, "text"))).collect()
    };
    let tail = "--max-new-tokens 8 --json";
    let flag = texts(run(dir.path(), &format!("generate --model m --prompt one? {tail}")));
    let line = format!("generate --model m {tail}");
    let args: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(texts(luthier(dir.path(), &args, "one?\n")), flag);
    fs::write(dir.path().join("p.txt"), "one?\n\ntwo?\n").unwrap();
    fs::write(dir.path().join("p.jsonl"), "{\"prompt\":\"one?\"}\n{\"prompt\":\"two?\"}\n")
        .unwrap();
    let lines = texts(run(dir.path(), &format!("generate --model m --prompts p.txt {tail}")));
    assert_eq!(
        lines,
        texts(run(dir.path(), &format!("generate --model m --prompts p.jsonl {tail}")))
    );
    assert_eq!((lines.len(), &lines[0]), (2, &flag[0]));
    // A data file with answers asks its prompts.
    let asked = texts(run(dir.path(), &format!("generate --model m --prompts qa.jsonl {tail}")));
    assert_eq!((asked.len(), &asked[0]), (3, &flag[0]));
    // Without the template, or with a system turn, the model reads something else.
    for more in ["--raw", "--system Sing."] {
        let line = format!("generate --model m --prompt one? {more} {tail}");
        assert_ne!(texts(run(dir.path(), &line))[0].1, flag[0].1, "{more}");
    }
}

#[test]
fn generate_ends_at_a_stop_text() {
    let dir = workplace();
    let line = "generate --model m --prompt hello --max-new-tokens 30 --temperature 1 --json";
    let whole = run(dir.path(), line).json()[0]["text"].as_str().unwrap().to_string();
    let stop = whole.chars().skip(3).find(|c| c.is_ascii_alphanumeric()).unwrap();
    let cut = run(dir.path(), &format!("{line} --stop {stop}")).json();
    assert_eq!(cut[0]["text"], whole.split(stop).next().unwrap());
    assert_eq!(cut[0]["finish"], "stop");
}

#[test]
fn generate_can_be_held_to_a_length() {
    let dir = workplace();
    fs::write(dir.path().join("p.txt"), "one?\ntwo?\nthree?\n").unwrap();
    let line = "generate --model m --prompts p.txt --temperature 1.5 --json";
    let free = run(dir.path(), &format!("{line} --max-new-tokens 200")).json();
    assert!(free.as_array().unwrap().iter().any(|a| a["finish"] == "eos"), "{free}");
    let held = run(dir.path(), &format!("{line} --min-new-tokens 200 --max-new-tokens 200"));
    assert!(held.stderr.contains("600 new tokens in"), "{}", held.stderr);
    for answer in held.json().as_array().unwrap() {
        let ids = answer["tokens"].as_array().unwrap();
        assert_eq!((ids.len(), &answer["finish"]), (200, &"length".into()));
        assert!(ids.iter().all(|id| *id != 257), "an end within the answer");
    }
}

#[test]
fn precision_changes_little_and_is_told() {
    let dir = workplace();
    let nll = |precision: &str| {
        let line = "eval --model m --data qa.jsonl --metric nll --json --precision";
        let value = run(dir.path(), &format!("{line} {precision}")).json();
        assert_eq!(value["model"]["precision"], precision);
        value["value"].as_f64().unwrap()
    };
    let (exact, rounded) = (nll("f32"), nll("bf16"));
    assert!(exact != rounded && (exact - rounded).abs() < 0.05 * exact, "{exact} {rounded}");
    let line = "eval --model m --data qa.jsonl --metric nll --json";
    let auto = run(dir.path(), line).json();
    assert!(["f32", "bf16"].contains(&auto["model"]["precision"].as_str().unwrap()));
    run(dir.path(), "generate --model m --prompt x --precision fp16").refused(&["fp16", "bf16"]);
}

#[test]
fn an_adapter_changes_the_answers_and_knows_its_base() {
    let dir = workplace();
    adapter(&dir.path().join("m"), &dir.path().join("a"));
    let tail = "--prompt hello --max-new-tokens 16";
    let base = run(dir.path(), &format!("generate --model m {tail}"));
    let tuned = run(dir.path(), &format!("generate --model m --adapter a {tail}"));
    assert_ne!(base.text(), tuned.text());
    assert_eq!(run(dir.path(), &format!("generate --adapter a {tail}")).text(), tuned.text());
    let line = "eval --model m --adapter a --data qa.jsonl --metric nll --against base --json";
    let value = run(dir.path(), line).json();
    let plain = run(dir.path(), "eval --model m --data qa.jsonl --metric nll --json").json();
    assert_ne!(value["value"], plain["value"]);
    let against = &value["against"];
    assert_eq!((&against["metric"], &against["n"]), (&"logp".into(), &3.into()));
    assert!(against["difference"].as_f64().unwrap() != 0.0);
    // Against itself there is no difference.
    let line = "eval --model m --adapter a --data qa.jsonl --metric nll --against a --json";
    assert_eq!(run(dir.path(), line).json()["against"]["difference"], 0.0);
    // A model with other weights of the same shape is not its base.
    pico(&dir.path().join("other"), 2);
    run(dir.path(), "generate --model other --adapter a --prompt x")
        .refused(&["another base model", "hint:"]);
    run(dir.path(), "generate --model m --adapter m --prompt x")
        .refused(&["no adapter", "--model"]);
    run(dir.path(), "generate --model m --adapter nowhere --prompt x").refused(&["nowhere"]);
}

#[test]
fn eval_prints_one_value_with_an_interval() {
    let dir = workplace();
    let line = "eval --model m --data qa.jsonl --metric exact_match --max-new-tokens 6 --json";
    let value = run(dir.path(), &format!("{line} --answers out/answers.jsonl")).json();
    let keys: Vec<&String> = value.as_object().unwrap().keys().take(4).collect();
    assert_eq!(keys, ["metric", "value", "n", "ci95"]);
    assert_eq!((&value["metric"], &value["n"]), (&"exact_match".into(), &3.into()));
    let ci95: Vec<f64> = serde_json::from_value(value["ci95"].clone()).unwrap();
    assert!(ci95[0] <= value["value"].as_f64().unwrap() && ci95[1] > 0.0);
    // Time is that of the evaluation, and all tokens count.
    let number = |key: &str| value[key].as_f64().unwrap();
    let (tokens, new) = (number("tokens_read"), number("tokens"));
    assert!(tokens > 3.0 * 20.0 && (3.0..=18.0).contains(&new), "{value}");
    assert!((number("tokens_per_second") * number("seconds") / tokens - 1.0).abs() < 1e-6);
    let answers = fs::read_to_string(dir.path().join("out/answers.jsonl")).unwrap();
    let rows: Vec<Value> = answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!((&rows[1]["origin"], &rows[1]["expected"]), (&"qa.jsonl:2".into(), &"2".into()));
    // The answers are those that generate gives.
    let said = run(dir.path(), "generate --model m --prompt two? --max-new-tokens 6 --json").json();
    assert_eq!(rows[1]["answer"], said[0]["text"]);
    let one = run(dir.path(), &format!("{line} --limit 1")).json();
    assert_eq!(one["n"], 1);
    // People get a sentence.
    let text = run(dir.path(), "eval --model m --data qa.jsonl --max-new-tokens 6");
    assert!(
        text.text().starts_with("exact_match  0.0000  95 % interval [0.0000,"),
        "{}",
        text.stdout
    );
}

#[test]
fn eval_knows_all_metrics() {
    let dir = workplace();
    let choices = "{\"question\":\"sky?\",\"choices\":[\"blue\",\"stone\"],\"answer\":\"blue\"}\n\
        {\"question\":\"wall?\",\"choices\":[\"blue\",\"stone\"],\"answer\":\"B\"}\n";
    fs::write(dir.path().join("c.jsonl"), choices).unwrap();
    let value = run(dir.path(), "eval --model m --data c.jsonl --metric choice --json").json();
    assert_eq!(value["acc"], value["value"]);
    assert!(value["acc_norm"].is_number());
    let nll = run(dir.path(), "eval --model m --data qa.jsonl --metric nll --json").json();
    let ppl = run(dir.path(), "eval --model m --data qa.jsonl --metric perplexity --json").json();
    assert_eq!((&nll["metric"], &ppl["metric"]), (&"nll".into(), &"perplexity".into()));
    let number = |v: &Value| v["value"].as_f64().unwrap();
    assert!((number(&nll).exp() / number(&ppl) - 1.0).abs() < 1e-9);
    fs::write(dir.path().join("g.txt"), "Some words.\n\nAnd some more of them.\n").unwrap();
    let text = run(dir.path(), "eval --model m --data g.txt --metric perplexity --json").json();
    assert_eq!((&text["n"], &text["tokens"]), (&2.into(), &(10 + 21).into()));
    let json = "{\"prompt\":\"a\",\"completion\":\"{\\\"x\\\":1}\"}\n";
    fs::write(dir.path().join("j.jsonl"), json).unwrap();
    let line = "eval --model m --data j.jsonl --metric json_match --max-new-tokens 4";
    let value = run(dir.path(), &format!("{line} --json")).json();
    assert_eq!(value["fields"]["x"]["missing"], 1);
    assert!(run(dir.path(), line).text().contains("missing"));
}

#[test]
fn show_prints_what_is_trained() {
    let dir = workplace();
    let ran = run(dir.path(), "show --model m --data qa.jsonl -n 1");
    let text = ran.text();
    assert!(text.starts_with("── qa.jsonl:1: "), "{text}");
    assert!(text.contains("⟦1<|im_end|>⟧") && !text.contains("two?"), "{text}");
    assert!(text.contains("assistant") && text.contains("total"), "{text}");
    assert!(ran.stderr.contains("prompt/completion"), "{}", ran.stderr);
    let value = run(dir.path(), "show --model m --data qa.jsonl --json").json();
    // Each answer is one byte and the token that ends it.
    assert_eq!(value["counts"]["total"]["trained"], 6);
    let row = &value["rows"][0];
    let weights: Vec<f64> = serde_json::from_value(row["weights"].clone()).unwrap();
    assert_eq!(weights.len(), row["ids"].as_array().unwrap().len());
    assert_eq!(weights.iter().sum::<f64>(), 2.0);
    // Settings are those of a recipe, and too long rows are counted.
    let ran = run(dir.path(), "show --model m --data qa.jsonl loss_on=all max_length=8");
    assert!(ran.text().contains("rows over length") && ran.stderr.contains("training refuses"));
    let recipe = "[models]\npolicy = \"m\"\n[data]\ntrain = \"qa.jsonl\"\n";
    fs::write(dir.path().join("r.toml"), recipe).unwrap();
    let by_recipe = run(dir.path(), "show r.toml -n 1");
    assert!(by_recipe.text().contains("⟦1<|im_end|>⟧"));
}

#[test]
fn chat_answers_each_line_and_keeps_the_conversation() {
    let dir = workplace();
    let line = "chat --model m --max-new-tokens 8 --temperature 0";
    let args: Vec<&str> = line.split_whitespace().collect();
    let said = |input: &str| luthier(dir.path(), &args, input).text().to_string();
    let once = said("one?\n");
    let afresh = said("one?\n/reset\none?\n");
    assert_eq!(afresh, format!("{once}{once}"));
    assert_ne!(said("one?\none?\n"), afresh);
    assert_eq!(said("one?\n/quit\none?\n"), once);
}

#[test]
fn methods_are_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let value = run(dir.path(), "methods --json").json();
    let list = value.as_array().unwrap();
    for method in list {
        assert!(method["name"].is_string() && method["seam"].is_string());
        assert!(method["paper"].is_null() || method["paper"].is_u64());
        assert!(method["recipe"].is_null() || method["recipe"].is_string());
    }
    let lora = list.iter().find(|m| m["name"] == "lora" && m["seam"] == "params").unwrap();
    assert_eq!(lora["recipe"], "recipes/lora/sft.toml");
    let text = run(dir.path(), "methods");
    assert_eq!(text.text().lines().count(), list.len() + 1);
    assert!(run(dir.path(), "methods adamw").text().contains("[train.update.adamw]"));
    run(dir.path(), "methods adamq").refused(&["adamq", "did you mean adam"]);
}

#[test]
fn pull_finds_what_is_here() {
    let dir = workplace();
    let value = run(dir.path(), "pull m --json").json();
    assert_eq!((&value["name"], &value["path"]), (&"m".into(), &"m".into()));
    assert_eq!(value["sha256"].as_str().unwrap().len(), 64);
    // Two tables of 259 x 32; per layer q, o 32 x 32, k, v 16 x 32, three of 64 x 32, two norms.
    let layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32;
    assert_eq!(value["parameters"], 2 * 259 * 32 + 2 * layer + 32);
    run(dir.path(), "pull smollm2-135m-instrct").refused(&["did you mean smollm2-135m-instruct"]);
}

#[test]
fn bad_arguments_and_files_get_one_clear_error() {
    let dir = workplace();
    let bad = "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\",\n";
    fs::write(dir.path().join("bad.jsonl"), bad).unwrap();
    let long = format!("{{\"prompt\":\"{}\",\"completion\":\"b\"}}\n", "long ".repeat(120));
    fs::write(dir.path().join("long.jsonl"), long).unwrap();
    for (line, words) in [
        ("eval --model m --data bad.jsonl", &["bad.jsonl:2"][..]),
        ("eval --model m --data nowhere.jsonl", &["nowhere.jsonl"]),
        ("eval --model m --data qa.jsonl --metric exact_mach", &["--metric", "`exact_match`"]),
        ("eval --model m --data qa.jsonl --metric choice", &["qa.jsonl:1", "choices"]),
        ("eval --model m --data qa.jsonl --metric json_mach", &["json_match"]),
        ("eval --model m --data qa.jsonl --against base", &["--against base", "--adapter"]),
        ("eval --model m --data qa.jsonl --against qa", &["qa"]),
        ("eval --model m --data qa.jsonl --limit 0", &["--limit"]),
        ("eval --model m --data long.jsonl", &["long.jsonl:1", "context is 512"]),
        ("eval --model m --data qa.jsonl --metric nll --max-length 1000", &["--max-length", "512"]),
        ("eval --model m --data qa.jsonl --metric nll --max-length 1", &["max_length"]),
        ("generate --model m --prompt x --temperature -1", &["--temperature"]),
        ("generate --model m --prompt x --top-p 0.9", &["--top-p", "--temperature 0.7"]),
        ("generate --model m --prompt x --n 0", &["--n"]),
        (
            "generate --model m --prompt x --max-new-tokens 4 --min-new-tokens 5",
            &["--min-new-tokens", "--max-new-tokens 4"],
        ),
        ("generate --model nowhere --prompt x", &["nowhere", "built-in"]),
        ("generate --prompt x", &["--model"]),
        ("generate --model m --prompts nowhere.txt", &["nowhere.txt"]),
        ("generate --model m", &["--prompt"]),
        ("show --model m", &["data.train"]),
        ("show --data qa.jsonl", &["models.policy"]),
        ("show --model m --data qa.jsonl los_on=all", &["los_on", "loss_on"]),
        ("show nowhere.toml", &["nowhere.toml"]),
        ("show a.toml b.toml", &["b.toml"]),
    ] {
        let ran = run(dir.path(), line);
        ran.refused(words);
        let errors = ran.stderr.lines().filter(|l| l.starts_with("error:")).count();
        assert_eq!(errors, 1, "{line}: {}", ran.stderr);
    }
    // A refused evaluation leaves no file behind.
    run(dir.path(), "eval --model m --data bad.jsonl --answers left.jsonl")
        .refused(&["bad.jsonl:2"]);
    assert!(!dir.path().join("left.jsonl").exists());
}
