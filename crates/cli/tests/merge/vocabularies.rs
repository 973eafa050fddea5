//! Models with differing vocabularies: mergekit's rows, token by token, and a tokenizer that fits.

use std::{collections::BTreeMap, fs};

use luthier_core::{StateDict, io};
use luthier_model::{Source, Tokenizer};
use serde_json::{Value, json};

use crate::{
    MEAN, golden, merge, numbers, sized,
    support::{luthier, pico},
};

type Vocabularies = BTreeMap<String, BTreeMap<String, usize>>;

#[test]
fn rows_of_tokens_are_mergekits() {
    let dir = tempfile::tempdir().unwrap();
    let folder = golden().join("tokens");
    let expected = StateDict::load(&folder.join("expected.safetensors")).unwrap();
    let vocabularies: Vocabularies = io::read_json(&folder.join("vocabularies.json")).unwrap();
    assert_eq!(vocabularies.len(), 6);
    for (case, theirs) in &vocabularies {
        let file = folder.join(format!("{case}.yml"));
        let args = ["merge", file.to_str().unwrap(), "--out", case, "--json"];
        let ran = luthier(dir.path(), &args, "");
        assert_eq!(ran.code, 0, "{case}: {}", ran.stderr);
        let out = dir.path().join(case);
        let merged = StateDict::load(&out.join("model.safetensors")).unwrap();
        let tokenizer = Tokenizer::open(&out).unwrap();
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (ours, want) =
                (numbers(&merged, name), numbers(&expected, &format!("{case}/{name}")));
            assert_eq!(ours.len(), want.len(), "{case}: {name}");
            let mut pairs: Vec<(String, usize, usize)> = Vec::new();
            for (token, id) in theirs {
                let own = tokenizer.id(token).unwrap_or_else(|| panic!("{case}: no {token}"));
                pairs.push((token.clone(), own as usize, *id));
            }
            // Rows that fill the table up.
            pairs.extend((theirs.len()..want.len() / 16).map(|id| (format!("fill {id}"), id, id)));
            for (token, own, id) in pairs {
                let row = ours[own * 16..][..16].iter().zip(&want[id * 16..][..16]);
                for (x, y) in row {
                    assert!((x - y).abs() < 1e-5, "{case}: {name}: {token}: {x}, expected {y}");
                }
            }
        }
        // No token without a row, and every special one where the file says.
        assert_eq!(tokenizer.vocab_size(), theirs.len(), "{case}");
        let vocab = Source::open(&out).unwrap().config().vocab;
        assert!(tokenizer.vocab_size() <= vocab && ours_begin(&tokenizer), "{case}");
    }
}

/// Whether tokens of the tests' models are found in text.
fn ours_begin(tokenizer: &Tokenizer) -> bool {
    let ids = tokenizer.encode("<s> a b</s>").unwrap();
    let words: Vec<String> = ids.iter().filter_map(|id| tokenizer.token(*id)).collect();
    words == ["<s>", "a", "b", "</s>"]
}

#[test]
fn an_added_token_is_special_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = golden().join("tokens/union.yml");
    let args = ["merge", file.to_str().unwrap(), "--out", "out", "--json"];
    assert_eq!(luthier(dir.path(), &args, "").code, 0);
    let tokenizer = Tokenizer::open(&dir.path().join("out")).unwrap();
    let special = |token: &str| tokenizer.is_special(tokenizer.id(token).unwrap());
    assert!(special("<|im_end|>") && special("<|fim|>") && !special("z") && !special("y"));
    let ids = tokenizer.encode("a<|im_end|>").unwrap();
    assert_eq!(ids.last().copied(), tokenizer.id("<|im_end|>"));
}

#[test]
fn vocabularies_of_other_lengths_are_lined_up_on_request() {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("a"), 1);
    sized(&dir.path().join("b"), json!({"vocab_size": 264}));
    merge(dir.path(), MEAN, "no").refused(&["b", "[259, 32]", "[264, 32]", "tokenizer"]);
    assert!(!dir.path().join("no").exists());
    let text = format!("{MEAN}tokenizer: {{source: b}}\n");
    assert_eq!(merge(dir.path(), &text, "out").code, 0);
    let of = |name: &str| Source::open(&dir.path().join(name)).unwrap();
    let (a, b, out) = (of("a"), of("b"), of("out"));
    assert_eq!(out.config().vocab, 259);
    let table = |of: &Source| of.load_f32("model.embed_tokens.weight").unwrap();
    let pair = table(&a).into_iter().zip(table(&b));
    for (got, (x, y)) in table(&out).into_iter().zip(pair) {
        assert!((got - (x + y) / 2.0).abs() < 1e-6);
    }
}

#[test]
fn a_tied_table_grows_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    sized(&at.join("a"), json!({"tie_word_embeddings": true}));
    sized(&at.join("b"), json!({"tie_word_embeddings": true}));
    let text = format!(
        "{MEAN}tokenizer: {{source: base, tokens: {{<|new|>: {{source: {{kind: model_token, \
         model: b, token_id: 7}}}}}}, pad_to_multiple_of: 32}}\ndtype: float32\n"
    );
    let ran = merge(at, &text, "out");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (out, b) = (Source::open(&at.join("out")).unwrap(), Source::open(&at.join("b")).unwrap());
    assert!(out.config().tied && !out.has("lm_head.weight"));
    assert_eq!(out.config().vocab, 288);
    let (table, lent) = (
        out.load_f32("model.embed_tokens.weight").unwrap(),
        b.load_f32("model.embed_tokens.weight").unwrap(),
    );
    assert_eq!(table[259 * 32..][..32], lent[7 * 32..][..32]);
    // The rest is the mean of all rows that are tokens'.
    for column in 0..32 {
        let mean = (0..260).map(|r| f64::from(table[r * 32 + column])).sum::<f64>() / 260.0;
        assert!((f64::from(table[287 * 32 + column]) - mean).abs() < 1e-6);
    }
    let said = luthier(
        at,
        &["generate", "--model", "out", "--prompt", "a<|new|>", "--max-new-tokens", "2"],
        "",
    );
    assert_eq!(said.code, 0, "{}", said.stderr);
}

#[test]
fn rules_about_tokens_that_cannot_be_kept_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pico(&at.join("a"), 1);
    pico(&at.join("b"), 2);
    let refuse = |rules: &str, words: &[&str]| {
        merge(at, &format!("{MEAN}tokenizer: {{{rules}}}\n"), "no").refused(words);
    };
    refuse("tokens: {<|new|>: {}}", &["tokenizer.tokens.<|new|>", "no model has this token"]);
    refuse("tokens: {<|new|>: {source: b}}", &["b has no token"]);
    refuse("tokens: {<|new|>: {force: true}}", &["forces a row"]);
    refuse("tokens: {a: {source: {kind: model_token, model: b}}}", &["token or token_id"]);
    refuse(
        "tokens: {a: {source: {kind: model_token, model: b, token_id: 999}}}",
        &["below 259", "got 999"],
    );
    refuse("tokens: {a: {source: {kind: one}}}", &["unknown kind", "zero"]);
    refuse("tokens: {a: {sauce: b}}", &["`sauce`", "source"]);
    refuse("pad_to_multiple_of: 0", &["pad_to_multiple_of", "got 0"]);
    assert!(!at.join("no").exists());
}

#[test]
fn a_special_token_without_a_row_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = pico(&at.join("a"), 1);
    for name in ["config.json", "generation_config.json"] {
        let path = a.join(name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["eos_token_id"] = json!([257, 400]);
        config["pad_token_id"] = json!(400);
        fs::write(&path, config.to_string()).unwrap();
    }
    let text = "merge_method: passthrough\nmodels: [{model: a}]\n";
    let ran = merge(at, text, "out");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told = ran.json()["notes"].to_string();
    assert!(told.contains("pad_token_id") && told.contains("400"), "{told}");
    for name in ["config.json", "generation_config.json"] {
        let config: Value = io::read_json(&at.join("out").join(name)).unwrap();
        assert!(!config.to_string().contains("400"), "{name}: {config}");
    }
    let config: Value = io::read_json(&at.join("out/config.json")).unwrap();
    assert!(config["eos_token_id"].to_string().contains("257"), "{config}");
}
