//! The laws of this seam, run over its table of methods: what comes out is a subset of what went
//! in or a declared addition, and the same seed gives the same rows at any thread count.

use std::collections::HashMap;

use luthier_core::{Example, Method, Seed, Table, Turn};
use luthier_data::{Chain, Kind, METHODS, Step, choose::split::split};
use proptest::prelude::*;

/// Rows whose prompts repeat in other spelling: row 3 asks what row 0 asks, and so on.
fn table(n: usize) -> Table {
    let examples = (0..n)
        .map(|i| {
            let ask = if i % 6 == 3 { format!("  ASK {}  ", i - 3) } else { format!("ask {i}") };
            let group = if i % 6 == 3 { i - 3 } else { i };
            let mut example = Example::new(
                "t.jsonl",
                i + 1,
                vec![Turn::new("user", ask)],
                Some(Turn::new("assistant", format!("answer {group}"))),
            );
            example.marks.insert("score".into(), i as f64 / n as f64);
            example
        })
        .collect();
    Table { name: "t.jsonl".into(), layout: "made".into(), sha256: "00".into(), examples }
}

/// A setting of every method; a method without one fails the laws.
fn setting(name: &str) -> &'static str {
    match name {
        "limit" => "limit = { n = 7 }",
        "sample" => "sample = { n = 7 }",
        "filter" => "filter = { mark = \"score\", min = 0.25, max = 0.75 }",
        "dedup" => "dedup = {}",
        "split" => "split = { eval_fraction = 0.2, keep = \"eval\" }",
        "call_turns" => "call_turns = {}",
        "key_tokens" => "key_tokens = { no_call = \"keep\" }",
        "system" => "system = { text = \"Be brief.\" }",
        "response_only" => "response_only = {}",
        "weigh" => "weigh = { column = \"score\", by = \"top\", share = 0.25 }",
        "deconfound" => {
            "deconfound = { outcome = \"y\", confounders = [\"c\"], instruments = [\"z\"] }"
        }
        "rank" => "rank = { column = \"score\", margin = 0.1 }",
        "shuffle" => "shuffle = {}",
        "interleave" => "interleave = {}",
        "correct" => "correct = {}",
        "translate" => "translate = { source = \"A\", target = \"B\", bidirectional = false }",
        "step_pairs" => "step_pairs = { pair_form = \"full\" }",
        "step_weights" => "step_weights = {}",
        other => panic!("no setting of `{other}` for the laws"),
    }
}

/// Steps on solutions that a model wrote, and nothing else: tests/solutions.rs has their laws.
const OF_SOLUTIONS: [&str; 2] = ["step_pairs", "step_weights"];
/// Steps that need columns of numbers: what they do to them is tested beside them.
const OF_COLUMNS: [&str; 2] = ["deconfound", "rank"];

fn plain(method: &&Method) -> bool {
    !OF_SOLUTIONS.contains(&method.name) && !OF_COLUMNS.contains(&method.name)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    steps: Chain,
}

fn chain(steps: &[&str]) -> Chain {
    let text: String = steps.iter().map(|s| format!("[[steps]]\n{s}\n")).collect();
    toml::from_str::<Data>(&text).unwrap().steps
}

fn lines(table: &Table) -> Vec<usize> {
    table.examples.iter().map(|e| e.origin.line).collect()
}

#[test]
fn every_method_gives_a_subset_or_its_declared_addition() {
    let before = table(60);
    let of_line: HashMap<usize, &Example> =
        before.examples.iter().map(|e| (e.origin.line, e)).collect();
    for method in METHODS.iter().filter(plain) {
        let step = chain(&[setting(method.name)]);
        assert_eq!(step.0[0].name(), method.name);
        let after = step.apply(before.clone(), Seed(5)).unwrap();
        let mut seen = lines(&after);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), after.examples.len(), "{}: a row came twice", method.name);
        for example in &after.examples {
            let mut example = example.clone();
            if method.name == "system" {
                assert_eq!(example.prompt.remove(0), Turn::new("system", "Be brief."));
            }
            let mut before = of_line[&example.origin.line].clone();
            if method.name == "response_only" {
                let users = before.prompt.iter_mut().filter(|turn| turn.role == "user");
                users.for_each(|turn| turn.content.clear());
            }
            if method.name == "translate" {
                let asked = format!("\nA: {}\nB:", before.prompt[0].content);
                assert!(example.prompt[0].content.ends_with(&asked));
                (example.form, example.prompt) = (before.form, before.prompt.clone());
            }
            assert_eq!(example, before, "{}", method.name);
        }
        let all = [
            "system",
            "response_only",
            "shuffle",
            "call_turns",
            "key_tokens",
            "interleave",
            "correct",
            "translate",
        ]
        .contains(&method.name);
        assert_eq!(after.examples.len() == before.examples.len(), all, "{}", method.name);
    }
}

#[test]
fn the_same_seed_gives_the_same_rows_at_any_thread_count() {
    for method in METHODS.iter().filter(plain) {
        let step = chain(&[setting(method.name)]);
        let run = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| lines(&step.apply(table(60), Seed(seed)).unwrap()))
        };
        assert_eq!(run(1, 8), run(4, 8), "{}", method.name);
        let random = ["sample", "split", "shuffle"].contains(&method.name);
        assert_eq!(run(1, 8) != run(1, 9), random, "{}", method.name);
    }
}

#[test]
fn a_chain_runs_in_order_and_notes_what_each_step_did() {
    let chain = chain(&["dedup = {}", "shuffle = {}", "limit = { n = 20 }"]);
    let (after, notes) = chain.apply_noting(table(60), Seed(1)).unwrap();
    assert_eq!(after.examples.len(), 20);
    let counts: Vec<_> = notes.iter().map(|n| (n.step, n.rows_in, n.rows_out)).collect();
    assert_eq!(counts, [("dedup", 60, 50), ("shuffle", 50, 50), ("limit", 50, 20)]);
    assert!(lines(&after).iter().any(|l| *l > 30), "limit took the shuffled rows, not the first");
}

#[test]
fn a_step_keeps_its_randomness_when_others_change() {
    let of =
        |first: &str| lines(&chain(&[first, "shuffle = {}"]).apply(table(30), Seed(2)).unwrap());
    assert_eq!(of("limit = { n = 30 }"), of("system = { text = \"x\" }"));
}

#[test]
fn dedup_keeps_the_first_and_sees_through_case_and_space() {
    let after = chain(&["dedup = {}"]).apply(table(12), Seed(0)).unwrap();
    assert_eq!(lines(&after), [1, 2, 3, 5, 6, 7, 8, 9, 11, 12]);
    let exact = chain(&["dedup = { ignore_case = false }"]).apply(table(12), Seed(0)).unwrap();
    assert_eq!(exact.examples.len(), 12);
    let mut other = table(2);
    other.examples[1].prompt = other.examples[0].prompt.clone();
    let by = |by: &str| chain(&[by]).apply(other.clone(), Seed(0)).unwrap().examples.len();
    assert_eq!((by("dedup = {}"), by("dedup = { by = \"prompt\" }")), (2, 1));
}

#[test]
fn filter_looks_at_marks_completions_and_columns() {
    let mut t = table(4);
    for (i, example) in t.examples.iter_mut().enumerate() {
        example.marks.clear();
        example.columns.insert("len".into(), i.into());
        let mut second = example.completions[0].clone();
        example.completions[0].marks.insert("reward".into(), i as f64);
        second.marks.insert("reward".into(), 10.0 + i as f64);
        example.completions.push(second);
    }
    let run = |step: &str| chain(&[step]).apply(t.clone(), Seed(0));
    assert_eq!(lines(&run("filter = { mark = \"len\", min = 2 }").unwrap()), [3, 4]);
    let rewarded = run("filter = { mark = \"reward\", min = 3, max = 11 }").unwrap();
    assert_eq!(lines(&rewarded), [1, 2, 4]);
    assert!(rewarded.examples.iter().all(|e| e.completions.len() == 1));
    let text = run("filter = { mark = \"lenn\", min = 2 }").unwrap_err().to_string();
    assert!(
        text.starts_with("t.jsonl:1: filter expected the mark `lenn`; numbers found: len, reward"),
        "{text}"
    );
    assert_eq!(run("filter = { mark = \"no\", missing = \"keep\" }").unwrap().examples.len(), 4);
    let text = run("filter = { mark = \"no\", missing = \"drop\" }").unwrap_err().to_string();
    assert!(text.starts_with("data.steps, step 1 (filter): leaves none of the 4 rows"), "{text}");
}

#[test]
fn bad_settings_are_refused() {
    let run = |step: &str| chain(&[step]).apply(table(6), Seed(0)).unwrap_err().to_string();
    assert!(run("sample = { n = 7 }").starts_with("sample.n: cannot draw 7 rows"));
    assert!(run("split = { eval_fraction = 1.0 }").starts_with("eval_fraction: expected a share"));
    assert!(
        run("filter = { mark = \"score\", min = 2, max = 1 }")
            .starts_with("filter: min 2 is above")
    );
    let parse = |text: &str| match toml::from_str::<Data>(text) {
        Ok(_) => panic!("{text} was taken"),
        Err(error) => error.to_string(),
    };
    assert!(parse("[[steps]]\nlimt = { n = 1 }").contains("unknown variant `limt`"));
    assert!(parse("[[steps]]\nlimit = { m = 1 }").contains("unknown field `m`"));
}

#[test]
fn kinds_write_what_they_read() {
    for method in METHODS {
        let step = &chain(&[setting(method.name)]).0[0];
        let text = toml::to_string(step).unwrap();
        assert_eq!(&toml::from_str::<Kind>(&text).unwrap(), step);
    }
}

proptest! {
    #[test]
    fn a_split_parts_the_rows_and_no_equal_rows(n in 2usize..80, fraction in 0.01f64..0.99, seed: u64) {
        let before = table(n);
        let (train, eval) = split(before.clone(), fraction, Seed(seed)).unwrap();
        let (a, b) = (lines(&train), lines(&eval));
        prop_assert!(!a.is_empty() && !b.is_empty());
        prop_assert!(a.is_sorted() && b.is_sorted());
        let mut all = [a.clone(), b.clone()].concat();
        all.sort_unstable();
        prop_assert_eq!(all, lines(&before));
        let key = |line: &usize| before.examples[line - 1].completions[0].text().to_owned();
        prop_assert!(!a.iter().any(|l| b.iter().any(|m| key(l) == key(m))));
        let wanted = (n as f64 * fraction).round().clamp(1.0, n as f64 - 1.0);
        prop_assert!((b.len() as f64 - wanted).abs() <= 1.0, "{} of {wanted}", b.len());
    }
}
