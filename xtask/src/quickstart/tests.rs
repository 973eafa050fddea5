use super::*;
use std::collections::BTreeSet;

/// A committed line, taken apart without the generator's own types.
struct Read {
    user: String,
    answer: String,
}

fn committed(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(name: &str) -> Vec<Read> {
    let read = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let turns = row["messages"].as_array().unwrap();
        let text = |n: usize, role: &str| {
            assert_eq!(turns[n]["role"], role);
            turns[n]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(turns.len(), 3);
        assert_eq!(text(0, "system"), grammar().unwrap().system);
        Read { user: text(1, "user"), answer: text(2, "assistant") }
    };
    committed(name).lines().map(read).collect()
}

/// The words of a sentence, with its slots all alike.
fn shape(sentence: &str) -> String {
    let mut out = String::new();
    for (n, part) in sentence.split(['{', '}']).enumerate() {
        out.push_str(if n % 2 == 1 { " _ " } else { part });
    }
    out.retain(|c| c.is_alphanumeric() || c == ' ' || c == '_');
    out.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `sentence` with anything in its slots is `user`, up to capitals and the final mark.
fn fits(sentence: &str, user: &str) -> bool {
    let plain = |s: &str| s.to_lowercase().trim_end_matches(['.', '?']).to_owned();
    let (sentence, user) = (plain(sentence), plain(user));
    let fixed: Vec<&str> = sentence
        .split(['{', '}'])
        .enumerate()
        .filter(|(n, _)| n % 2 == 0)
        .map(|(_, s)| s)
        .collect();
    let (first, last) = (fixed[0], fixed[fixed.len() - 1]);
    let Some(rest) = user.strip_prefix(first) else { return false };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    for part in &fixed[1..fixed.len() - 1] {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    !rest.is_empty()
}

#[test]
fn the_committed_files_are_the_generated_ones() {
    for (name, text) in files().unwrap() {
        assert!(committed(name) == text, "{name}: run `cargo run -p xtask -- quickstart-data`");
        assert_eq!(text.lines().count(), if name == "test.jsonl" { TEST_ROWS } else { TRAIN_ROWS });
    }
}

#[test]
fn no_sentence_of_the_test_is_trained_on() {
    let grammar = grammar().unwrap();
    let all = |f: fn(&Intent) -> &Vec<String>| -> Vec<String> {
        grammar.intents.iter().flat_map(f).map(|s| shape(s)).collect()
    };
    let (train, test) = (all(|i| &i.train), all(|i| &i.test));
    let mut seen = BTreeSet::new();
    for sentence in train.iter().chain(&test) {
        assert!(seen.insert(sentence), "twice: {sentence}");
    }
    for intent in &grammar.intents {
        assert!(intent.train.len() >= 14 && intent.test.len() >= 3, "{}", intent.action);
    }
    // The same from the finished files: no test sentence gives a trained request, whatever its
    // slots hold, and every test sentence is in use.
    let sentences = || grammar.intents.iter().flat_map(|i| &i.test);
    for row in read("train.jsonl") {
        let found = sentences().find(|s| fits(s, &row.user));
        assert!(found.is_none(), "{:?} is {found:?}", row.user);
    }
    let tested = read("test.jsonl");
    for sentence in sentences() {
        assert!(tested.iter().any(|row| fits(sentence, &row.user)), "unused: {sentence}");
    }
}

#[test]
fn requests_are_all_different_and_none_is_in_both_files() {
    let mut seen = BTreeSet::new();
    for row in read("train.jsonl").iter().chain(&read("test.jsonl")) {
        assert!(seen.insert(row.user.to_lowercase()), "twice: {}", row.user);
    }
}

#[test]
fn answers_are_compact_ordered_json_that_copies_from_the_request() {
    let grammar = grammar().unwrap();
    for row in read("train.jsonl").iter().chain(&read("test.jsonl")) {
        let answer: Map<String, Value> = serde_json::from_str(&row.answer).unwrap();
        assert_eq!(Value::Object(answer.clone()).to_string(), row.answer);
        let action = answer["action"].as_str().unwrap();
        let intent = grammar.intents.iter().find(|i| i.action == action).unwrap();
        let keys: Vec<&str> = answer.keys().map(String::as_str).collect();
        assert_eq!(keys[0], "action");
        let allowed = intent.slots.iter().map(|s| s.key.as_str());
        let expected: Vec<&str> = allowed.filter(|k| keys.contains(k)).collect();
        assert_eq!(keys[1..], expected, "{}", row.answer);
        assert!(keys.len() > 1, "{}", row.answer);
        for value in answer.values().skip(1) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert!(row.user.contains(&value), "{value:?} is not in {:?}", row.user);
            assert!(!value.is_empty() && value.trim() == value);
            assert!(!value.contains(['.', ',', '"', '\'']) || value.parse::<f64>().is_ok());
        }
    }
}

#[test]
fn at_least_half_of_the_test_values_are_never_trained_on() {
    let values = |name: &str| -> Vec<(String, String)> {
        let of = |row: Read| {
            let answer: Map<String, Value> = serde_json::from_str(&row.answer).unwrap();
            answer.into_iter().filter(|(k, _)| k != "action").map(|(k, v)| (k, v.to_string()))
        };
        read(name).into_iter().flat_map(of).collect()
    };
    let trained: BTreeSet<_> = values("train.jsonl").into_iter().collect();
    let tested = values("test.jsonl");
    let unseen = tested.iter().filter(|v| !trained.contains(*v)).count();
    assert!(unseen * 2 >= tested.len(), "{unseen} of {}", tested.len());
}

#[test]
fn pools_hold_enough_values_and_none_twice() {
    for (name, pool) in grammar().unwrap().pools {
        let all: Vec<&String> = pool.groups.iter().flat_map(|(a, b)| a.iter().chain(b)).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert!(name == "state" || (distinct.len() == all.len() && all.len() >= 37), "{name}");
        assert!(all.iter().all(|v| !v.is_empty()), "{name}: an empty value");
    }
}

#[test]
fn the_general_text_is_long_enough_to_measure_on() {
    let text = committed("general.txt");
    let words = text.split_whitespace().count();
    assert!((1_200..=1_500).contains(&words), "{words} words");
}
