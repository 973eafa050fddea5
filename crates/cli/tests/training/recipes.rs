//! Every bundled recipe that trains, planned and run.

use std::fs;

use luthier_recipe::methods::RECIPES;

use super::{preference, run, workplace};

/// What bundled recipes are asked with, and what a model of two narrow blocks can do.
const INSTEAD: &[(&str, &str)] = &[
    ("smollm2-135m-instruct", "model"),
    ("\"HuggingFaceTB/SmolLM2-135M\"", "\"model\""),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "model"),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", "model"),
    ("quantize = \"stored\"", ""),
    ("data/test.jsonl", "test.jsonl"),
    ("data/general.txt", "general.txt"),
    ("data/train.jsonl", "train.jsonl"),
    ("\"stage1\"", "\"model\""),
    ("<empty_output>", "<|im_start|>"),
    ("block_size = 512", "block_size = 16"),
    ("dev.jsonl", "sentences.jsonl"),
    ("freeze_layers = 15", "freeze_layers = 1"),
    ("[train.update.nuclear]", "[train.update.nuclear]\nmin_dim_rank = 8\nmin_entries = 1"),
    ("r = 16", "r = 2"),
    ("r = 64", "r = 4"),
    ("r = 32", "r = 4"),
];

/// Solutions with steps, and sentences in two languages and in four files, for recipes that read them.
const SOLUTIONS: [(&str, &str); 7] = [
    (
        "rollouts.jsonl",
        r#"{"prompt": "2+2+2?", "completion": "4\n6", "reward": 1}
{"prompt": "2+2+2?", "completion": "4\n7", "reward": 0, "rollouts": [[{"text": "4\n6", "reward": 1}], [{"text": "6", "reward": 1}]]}
{"prompt": "1+1+2?", "completion": "3\n5", "reward": 0, "values": [1, 0], "rollouts": [[{"text": "2\n4", "reward": 1}]]}
{"prompt": "1+1+2=", "completion": "3\n5", "reward": 0, "values": [1, 0], "rollouts": [[{"text": "2\n4", "reward": 1}]]}
{"prompt": "1 1 2", "completion": "3\n5", "reward": 0, "values": [1, 0], "rollouts": [[{"text": "2\n4", "reward": 1}]]}
"#,
    ),
    (
        "solutions.jsonl",
        r#"{"prompt": "2+2+2?", "completion": "4\n6", "wrong": ["4\n7", {"text": "5\n8", "first_wrong_step": 1}], "right": ["4\n 6"]}
{"prompt": "1+1?", "completion": "2"}
"#,
    ),
    (
        "sentences.jsonl",
        r#"{"prompt": "the cat", "completion": "die Katze"}
{"prompt": "the dog", "completion": "der Hund"}
"#,
    ),
    ("en.txt", "The cat slept.\n\nIt rained all day.\n"),
    ("de.txt", "Die Katze schlief.\n\nEs regnete.\n\nDer Hund auch.\n"),
    ("cs.txt", "Pes spal.\n"),
    ("is.txt", "Hundurinn svaf.\n"),
];

/// A call that fails, and the right one.
const CALLS: &str = concat!(
    r#"{"messages": [{"role": "system", "content": "def get_sum(a: int):\ndef get_size(x: str):"}, "#,
    r#"{"role": "user", "content": "1?"}, {"role": "assistant", "content": "get_sum(b=1)"}, "#,
    r#"{"role": "tool", "content": "unexpected keyword b"}, "#,
    r#"{"role": "assistant", "content": "get_sum(a=1)"}]}"#,
    "\n"
);

#[test]
fn a_plan_says_what_will_happen_and_every_recipe_runs() {
    let work = workplace();
    let dir = work.path();
    // The others decode: tests/decoding.rs.
    for (name, text) in RECIPES.iter().filter(|(_, text)| text.contains("[train]")) {
        let recipe = dir.join("recipe-under-test.toml");
        let replaced = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
        let text = INSTEAD.iter().fold(text.to_string(), replaced);
        let preference = ["preference", "recipes/reward"].iter().any(|of| name.contains(of))
            || name == &"recipes/steps/dpo.toml";
        let text = match preference {
            true => text.replace("\"train.jsonl\"", &format!("\"{}\"", preference::data(name))),
            false => text,
        };
        let text = match name.ends_with("tools.toml") {
            true => text.replace("\"train.jsonl\"", "\"calls.jsonl\""),
            false => text,
        };
        fs::write(&recipe, text).unwrap();
        fs::write(dir.join("calls.jsonl"), CALLS.repeat(4)).unwrap();
        let pair = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
        fs::write(dir.join("pairs.jsonl"), pair.repeat(4)).unwrap();
        preference::files(dir);
        for (file, text) in SOLUTIONS {
            fs::write(dir.join(file), text).unwrap();
        }
        fs::write(dir.join("general.txt"), "It rained.\n\nThe cat slept.\n").unwrap();
        if name.contains("first") {
            run(dir, "teach --model model --data train.jsonl --out teacher.safetensors").text();
        }
        let plan = run(dir, "plan recipe-under-test.toml max_steps=2 --json").json();
        assert!(plan["peak_bytes"].as_u64().unwrap() > 0, "{name}");
        assert!(plan["trainable"].as_u64().unwrap() > 0, "{name}");
        let tree = run(dir, "plan recipe-under-test.toml max_steps=2");
        assert!(tree.text().contains("learning_rate"), "{name}: every default is printed");
        let out = name.replace('/', "-");
        let line = format!(
            "run recipe-under-test.toml --out {out} --json max_steps=2 batch_tokens=64 \
             metric=exact_match"
        );
        let line = if preference { line.replace("batch_tokens=64", "batch_size=1") } else { line };
        let line = match text_has_eval(name) {
            true => line,
            false => line.replace(" metric=exact_match", ""),
        };
        let done = run(dir, &line).json();
        // Two steps in every round.
        let rounds = if name.contains("lottery") { 2 } else { 1 };
        assert!(done["train"]["steps"] == 2 * rounds, "{name}: {done}");
        assert!(dir.join(&out).join("report.html").is_file(), "{name}");
        // Everything is done already: nothing is trained again, the numbers stay.
        let again = run(dir, &line).json();
        assert_eq!(again["after"], done["after"], "{name}");
        assert!(again["train"].is_null(), "{name}");
    }
}

fn text_has_eval(name: &str) -> bool {
    RECIPES.iter().any(|(n, text)| n == &name && text.contains("[eval]"))
}
