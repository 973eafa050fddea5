//! Solutions in steps: pairs at the step that goes wrong, weights by advantage, corrections.

use luthier_core::{Example, Result, Seed, Table, Turn};
use luthier_data::{
    Kind, Step,
    parts::AnswerWeights,
    solution::{
        PitRule,
        correct::{Correct, Strategy},
        step_pairs::{PairForm, StepPairs},
    },
};
use serde_json::{Value, json};

fn example(line: usize, prompt: &str, text: &str, columns: Value) -> Example {
    let turns = vec![Turn::new("user", prompt)];
    let mut example = Example::new("r.jsonl", line, turns, Some(Turn::new("assistant", text)));
    if let Value::Object(map) = columns {
        example.columns = map;
    }
    example
}

fn table(examples: Vec<Example>) -> Table {
    let (name, layout) = ("r.jsonl".to_string(), "made".to_string());
    Table { name, layout, sha256: String::new(), examples }
}

fn step(text: &str) -> Kind {
    toml::from_str(text).unwrap()
}

fn tried(text: &str, reward: u8) -> Value {
    json!({"text": text, "reward": reward})
}

/// Two right and two wrong solutions of one problem, one problem that is always right, one never.
fn rollouts() -> Table {
    let first = json!({"reward": 0, "topic": "sums", "rollouts": [
        [tried("a\nb\nc\n", 1)], [tried("b\nc", 1)], [tried("x", 0)], [tried("x", 0)],
    ]});
    // Its values are given; its first step is the pit.
    let second =
        json!({"reward": 0, "values": [1.0, 0.0, 0.0], "rollouts": [[tried("a\nb\nc", 1)]]});
    table(vec![
        example(1, "p", "a\nb\nc", json!({"reward": 1})),
        example(2, "p", "a\nbad\nb\nc\n", first),
        example(3, "easy", "yes", json!({"reward": 1})),
        example(4, "p", "bad\nworse\nworst", second),
        example(5, "hard", "no", json!({"reward": 0, "values": [0.0]})),
        example(6, "p", "a\nb\n\nc", json!({"reward": 1})),
    ])
}

/// An answer without what has no weight.
fn learned(example: &Example, i: usize) -> String {
    let text = example.completions[i].text();
    let weights = AnswerWeights::of(example, i).unwrap().unwrap_or_default();
    let free =
        |at: &usize| weights.parts.iter().any(|(a, b, w)| (*a..*b).contains(at) && *w == 0.0);
    text.chars().enumerate().filter(|(at, _)| !free(at)).map(|(_, c)| c).collect()
}

#[test]
fn a_pair_shares_what_was_right_and_parts_at_the_pit() {
    let (pairs, report) = StepPairs::default().pairs(&rollouts(), Seed(1)).unwrap();
    assert_eq!((report.problems, report.pairs), (3, 2));
    assert_eq!((report.all_right, report.all_wrong, report.no_chosen), (1, 1, 0));
    assert!(report.to_string().contains("2 (67 %) give none"), "{report}");
    let [first, second] = &pairs[..] else { panic!("{}", pairs.len()) };
    assert_eq!(first.origin.line, 2);
    assert_eq!(first.completions[0].text(), "a\nb\nc");
    assert_eq!(first.completions[1].text(), "a\nbad\n");
    assert_eq!((learned(first, 0), learned(first, 1)), ("b\nc".into(), "bad\n".into()));
    let end = |e: &Example, i| AnswerWeights::of(e, i).unwrap().and_then(|w| w.end);
    assert_eq!((end(first, 0), end(first, 1)), (None, Some(0.0)));
    let marks = |e: &Example| [0, 1].map(|i| e.completions[i].marks["chosen"]);
    assert_eq!((marks(first), marks(second)), ([1.0, 0.0], [1.0, 0.0]));
    // At the first step any right solution will do; nothing is shared.
    assert_eq!((learned(second, 1), second.origin.line), ("bad\n".into(), 4));
    assert!(["a\nb\nc", "a\nb\n\nc"].contains(&learned(second, 0).as_str()));
    // What the pairs are made of is gone, what else the row has stays.
    assert_eq!((first.columns.get("rollouts"), first.columns.get("reward")), (None, None));
    assert_eq!(first.columns["topic"], "sums");
}

#[test]
fn forms_rules_and_limits_do_what_they_are_called() {
    let run = |step: StepPairs| step.pairs(&rollouts(), Seed(3)).unwrap().0;
    let texts = |pairs: &[Example]| -> Vec<String> {
        pairs.iter().map(|p| p.completions[1].text().to_string()).collect()
    };
    let full = run(StepPairs { pair_form: PairForm::Full, ..StepPairs::default() });
    assert_eq!(texts(&full), ["a\nbad\nb\nc\n", "bad\nworse\nworst"]);
    assert!(full.iter().all(|p| AnswerWeights::of(p, 1).unwrap().is_none()));
    let prefix = run(StepPairs { pair_form: PairForm::FullVsPrefix, ..StepPairs::default() });
    assert_eq!(texts(&prefix), ["a\nbad\n", "bad\n"]);
    assert_eq!(learned(&prefix[0], 1), "a\nbad\n");
    let one = run(StepPairs { max_pairs_per_problem: 1, ..StepPairs::default() });
    assert_eq!(one.len(), 1);
    let random = StepPairs { pit_rule: PitRule::Random, ..StepPairs::default() };
    let steps: std::collections::BTreeSet<String> = (0..40)
        .flat_map(|seed| random.pairs(&rollouts(), Seed(seed)).unwrap().0)
        .map(|pair| learned(&pair, 1))
        .collect();
    assert!(steps.contains("a\n") && steps.contains("bad\n"), "{steps:?}");
    let drawn = |seed| random.pairs(&rollouts(), Seed(seed)).unwrap().0;
    assert_eq!(drawn(5), drawn(5));
    let none = step("step_pairs = { k = 0 }").apply(rollouts(), Seed(0)).unwrap_err();
    assert!(none.to_string().starts_with("step_pairs.k"), "{none}");
    let easy = table(vec![example(1, "p", "yes", json!({"reward": 1}))]);
    let error = step("step_pairs = {}").apply(easy, Seed(0)).unwrap_err().to_string();
    assert!(error.contains("no pair can be made: 0 pairs of 1 prompts"), "{error}");
}

#[test]
fn steps_weigh_what_they_add() {
    let rows = table(vec![
        example(1, "p", "é1\ntwo\n", json!({"reward": 0, "values": [0.5, 0.6]})),
        example(2, "p", "fine", json!({"reward": 1})),
    ]);
    let after = step("step_weights = { beta = 0.5, clip = 1.1 }").apply(rows, Seed(0)).unwrap();
    let weights = AnswerWeights::of(&after.examples[0], 0).unwrap().unwrap();
    let [(0, 3, first), (3, 7, second)] = weights.parts[..] else { panic!("{weights:?}") };
    assert!((first - 1.1).abs() < 1e-6 && (second - (-1.2f32).exp()).abs() < 1e-6);
    assert_eq!(weights.end, Some(second));
    assert!(AnswerWeights::of(&after.examples[1], 0).unwrap().is_none());
    let alone = table(vec![example(3, "p", "bad", json!({"reward": 0}))]);
    let error = step("step_weights = {}").apply(alone, Seed(0)).unwrap_err().to_string();
    assert!(error.starts_with("r.jsonl:3: a wrong solution without"), "{error}");
}

#[test]
fn signed_steps_weigh_what_they_take_away_below_0() {
    let rows = table(vec![
        example(1, "p", "one\ntwo\nthree", json!({"reward": 0, "values": [0.5, 0.75, 0.75]})),
        example(2, "p", "fine", json!({"reward": 1})),
    ]);
    let after = step("step_weights = { by = \"signed\" }").apply(rows, Seed(0)).unwrap();
    let weights = AnswerWeights::of(&after.examples[0], 0).unwrap().unwrap();
    assert_eq!(weights.parts, [(0, 4, 0.25), (4, 8, 0.0), (8, 13, -0.75)]);
    assert_eq!(weights.end, Some(-0.75));
    assert!(AnswerWeights::of(&after.examples[1], 0).unwrap().is_none());
}

fn corrected(step: &Correct, wrong: Value) -> Result<Vec<Example>> {
    let columns = json!({"wrong": wrong, "right": ["s1\nother\nfinal", "s1\nno\nfalse"]});
    let plain = example(2, "q", "alone", json!({}));
    let rows = table(vec![example(1, "p", "s1\ns2\ns3\nfinal", columns), plain]);
    Ok(step.corrected(&rows, Seed(4))?.0)
}

fn words(strategy: Strategy) -> Correct {
    Correct {
        strategy,
        fix_phrases: vec!["Wait. ".into()],
        restart_phrases: vec!["Again:\n".into()],
        ..Correct::default()
    }
}

#[test]
fn a_trajectory_keeps_the_first_wrong_step_and_drops_what_follows() {
    let wrong = json!([{"text": "s1\ns2\nw3\nw4\nfalse", "first_wrong_step": 3}]);
    let made = corrected(&words(Strategy::Both), wrong.clone()).unwrap();
    let texts: Vec<&str> = made.iter().map(|e| e.completions[0].text()).collect();
    let fixed = "s1\ns2\nw3\nWait. s3\nfinal";
    // The other right solution ends otherwise, so there is one to draw.
    let anew = "s1\ns2\nw3\nAgain:\ns1\nother\nfinal";
    assert_eq!(texts, ["s1\ns2\ns3\nfinal", fixed, anew, "alone"]);
    assert!(made.iter().all(|e| e.columns.is_empty()));
    // Found by comparison; masked; with all that follows.
    let found = json!(["s1\ns2\nw3\nw4\nfalse"]);
    let masked = Correct { mask_error_step: true, ..words(Strategy::FixContinue) };
    let made = corrected(&masked, found).unwrap();
    assert_eq!(made[1].completions[0].text(), fixed);
    assert_eq!(learned(&made[1], 0), "s1\ns2\nWait. s3\nfinal");
    let whole = Correct { stop_at_first_error: false, ..words(Strategy::FixContinue) };
    let made = corrected(&whole, wrong).unwrap();
    assert_eq!(made[1].completions[0].text(), "s1\ns2\nw3\nw4\nfalse\nWait. s3\nfinal");
    // Every row ends right.
    let ends = |e: &Example| e.completions[0].text().lines().last().unwrap().to_string();
    assert!(made.iter().take(2).all(|e| ends(e) == "final"));
}

#[test]
fn what_cannot_be_mended_is_left_out_and_counted() {
    let wrong = json!([
        {"text": "w1\nfalse", "first_wrong_step": 1},
        {"text": "s1\nfalse", "first_wrong_step": 9},
        {"text": "odd\nfinal"},
        {"text": "t1\nw2\nfalse", "first_wrong_step": 2},
        {"text": "t1\nw2\nfalse", "first_wrong_step": 2, "fix": "t2\nfinal", "source": "self"},
        {"text": "t1\nw2\nfalse", "first_wrong_step": 2, "fix": "t2\nnowhere"},
    ]);
    let step = words(Strategy::FixContinue);
    let columns = json!({"wrong": wrong});
    let rows = table(vec![example(1, "p", "s1\ns2\nfinal", columns)]);
    let (made, report) = step.corrected(&rows, Seed(1)).unwrap();
    let texts: Vec<&str> = made.iter().skip(1).map(|e| e.completions[0].text()).collect();
    assert_eq!(texts, ["w1\nWait. s1\ns2\nfinal", "t1\nw2\nWait. t2\nfinal"]);
    let counts =
        (report.wrong, report.no_step, report.ends_right, report.unmended, report.corrective);
    assert_eq!(counts, (6, 1, 1, 2, 2));
    let own = Correct {
        error_source: toml::from_str::<toml::Table>("x = \"self\"").unwrap()["x"]
            .clone()
            .try_into()
            .unwrap(),
        ..step.clone()
    };
    assert_eq!(own.corrected(&rows, Seed(1)).unwrap().0.len(), 2);
    // A share of 0 is plain learning; a third is one for two plain rows.
    let share = |share| {
        let step = Correct { correction_share: Some(share), ..step.clone() };
        let two = [&rows.examples[..], &[example(2, "q", "alone", json!({}))]].concat();
        step.corrected(&table(two), Seed(1)).unwrap().0.len()
    };
    assert_eq!((share(0.0), share(1.0 / 3.0), share(0.9)), (2, 3, 4));
    for bad in ["{ correction_share = 1.0 }", "{ fix_phrases = [] }", "{ step_split = \"\" }"] {
        let step = self::step(&format!("correct = {bad}"));
        assert_eq!(step.apply(rows.clone(), Seed(0)).unwrap_err().exit_code(), 2, "{bad}");
    }
    let broken = table(vec![example(7, "p", "x", json!({"wrong": [{"txt": 1}]}))]);
    let error = step.corrected(&broken, Seed(0)).unwrap_err().to_string();
    assert!(error.starts_with("r.jsonl:7: column wrong"), "{error}");
}

#[test]
fn the_final_answer_may_follow_a_mark() {
    let step = Correct { answer_after: Some("####".into()), ..words(Strategy::FreshRestart) };
    let columns = json!({"wrong": ["a\n#### 8."], "right": []});
    let rows = table(vec![example(1, "p", "b\n#### 7", columns)]);
    let (made, _) = step.corrected(&rows, Seed(1)).unwrap();
    assert_eq!(made[1].completions[0].text(), "a\nAgain:\nb\n#### 7");
    let rows = table(vec![example(9, "p", "no mark", json!({"wrong": []}))]);
    let error = step.corrected(&rows, Seed(1)).unwrap_err().to_string();
    assert!(error.starts_with("r.jsonl:9: its right solution has no final answer"), "{error}");
}

#[test]
fn files_are_drawn_by_their_shares_and_short_ones_again() {
    let rows = |file: &str, n: usize| -> Vec<Example> {
        let row =
            |i: usize| Example::new(file, i + 1, Vec::new(), Some(Turn::new("assistant", file)));
        (0..n).map(row).collect()
    };
    let both = table([rows("x/en.txt", 40), rows("x/is.txt", 200)].concat());
    let drawn =
        step("interleave = { share = { en = 0.25 } }").apply(both.clone(), Seed(2)).unwrap();
    let of = |t: &Table, file: &str| t.examples.iter().filter(|e| &*e.origin.file == file).count();
    let share = of(&drawn, "x/en.txt") as f64 / drawn.examples.len() as f64;
    assert!((share - 0.25).abs() < 0.06, "{share}");
    assert!(drawn.layout.contains("interleaved: en 0.250, is 0.750"), "{}", drawn.layout);
    let all: std::collections::HashSet<(String, usize)> =
        drawn.examples.iter().map(|e| (e.origin.file.to_string(), e.origin.line)).collect();
    assert_eq!(all.len(), 240);
    let first = "interleave = { share = { en = 0.25 }, stopping = \"first_exhausted\" }";
    let first = step(first).apply(both.clone(), Seed(2)).unwrap();
    let ends = (of(&first, "x/en.txt"), of(&first, "x/is.txt"));
    assert!(ends.0 == 40 || ends.1 == 200, "{ends:?}");
    let error = step("interleave = { share = { de = 0.25 } }").apply(both, Seed(2)).unwrap_err();
    assert!(error.to_string().starts_with("interleave.share.de"), "{error}");
}
