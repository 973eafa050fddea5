//! Evaluation against the plainest possible computation: whole texts, one at a time, no cache.

use std::sync::Arc;

use luthier_core::{Completion, Example, Form, Policy, Rows, Seed, Table, Turn};
use luthier_model::{
    Tokenizer,
    render::{generation_prompt, prompt_text},
};
use luthier_probe::metric::{Choice, ExactMatch, JsonMatch, Kind, Measure, Nll};
use luthier_recipe::evaluate::{Evaluated, Limits, answers, compare, evaluate, general};
use serde_json::json;

mod small;

use small::{chat, policy, table};

/// Log-probability of each token after the first, from a pass over the whole text.
fn naive_logps(policy: &Policy, ids: &[u32]) -> Vec<f64> {
    let logits = policy.logits(ids, Arc::new(Rows::single(ids.len()))).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let pairs = logits.iter().zip(&ids[1..]);
    pairs
        .map(|(row, target)| {
            let z: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            f64::from(row[*target as usize]) - z.ln()
        })
        .collect()
}

fn run(policy: &Policy, table: &Table, metric: &Kind) -> Evaluated {
    let mut heard = Vec::new();
    let limits = Limits { max_new_tokens: 12, ..Limits::default() };
    let result =
        evaluate(policy, &Tokenizer::bytes(), table, metric, &limits, &mut |done, total| {
            heard.push((done, total));
        })
        .unwrap();
    let (done, total) = *heard.last().unwrap();
    assert_eq!(done, total);
    assert!(heard.windows(2).all(|w| w[0].0 <= w[1].0));
    result
}

#[test]
fn choices_score_as_if_each_were_read_alone() {
    let (policy, tokenizer) = (policy(1), Tokenizer::bytes());
    let mut examples = Vec::new();
    for i in 0..24 {
        let mut example =
            chat(i + 1, &format!("What comes after {i}, and why so? {}", "x".repeat(i)), "");
        example.completions.clear();
        // The first two choices share a beginning; one is a single byte.
        example.columns.insert("choices".into(), json!(["one", "once more", "7", "ä"]));
        example.columns.insert("answer".into(), json!(i % 4));
        if i % 3 == 0 {
            example.form = Form::Raw;
        }
        examples.push(example);
    }
    let table = table(examples);
    let metric = Choice { measure: Measure::AccNorm };
    let got = run(&policy, &table, &Kind::Choice(metric));
    let (mut right, mut first) = (0, 0);
    for (i, row) in got.answers.iter().enumerate() {
        let prompt = prompt_text(&table.examples[i], &tokenizer).unwrap();
        let begin = tokenizer.encode(&prompt).unwrap().len();
        let texts = ["one", "once more", "7", "ä"];
        let want: Vec<f64> = texts
            .iter()
            .map(|text| {
                let ids = tokenizer.encode(&format!("{prompt}{text}")).unwrap();
                naive_logps(&policy, &ids)[begin - 1..].iter().sum()
            })
            .collect();
        let logps = row.logps.as_ref().unwrap();
        for (got, want) in logps.iter().zip(&want) {
            assert!((got - want).abs() < 1e-4, "question {i}: {logps:?} {want:?}");
        }
        let best = |score: &dyn Fn(usize) -> f64| {
            (0..4).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap()
        };
        right += usize::from(best(&|c| want[c] / texts[c].chars().count() as f64) == i % 4);
        first += usize::from(best(&|c| want[c]) == i % 4);
        assert_eq!(row.answer, texts[best(&|c| want[c])]);
        assert_eq!(row.expected, texts[i % 4]);
    }
    let shares = got.choice.unwrap();
    assert_eq!(got.score.value, right as f64 / 24.0);
    assert_eq!((shares.acc, shares.acc_norm), (first as f64 / 24.0, right as f64 / 24.0));
}

#[test]
fn answers_are_greedy_and_judged_in_table_order() {
    let (policy, tokenizer) = (policy(2), Tokenizer::bytes());
    let greedy = |example: &Example| {
        let mut ids = generation_prompt(example, &tokenizer).unwrap();
        let begin = ids.len();
        while ids.len() < begin + 12 {
            let logits = policy.logits(&ids, Arc::new(Rows::single(ids.len()))).unwrap();
            let rows = logits.to_vec2::<f32>().unwrap();
            let row = rows.last().unwrap();
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
            if tokenizer.eos_ids().contains(&best) {
                break;
            }
            ids.push(best);
        }
        tokenizer.decode(&ids[begin..]).unwrap()
    };
    let mut examples = Vec::new();
    for i in 0..20 {
        let mut example = chat(i + 1, &format!("{}?", "ab".repeat(20 - i)), "nothing like it");
        if i % 3 == 0 {
            let said = greedy(&example);
            example.completions[0].turns = vec![Turn::new("assistant", said)];
        }
        examples.push(example);
    }
    let got = run(&policy, &table(examples.clone()), &Kind::ExactMatch(ExactMatch::default()));
    let want: Vec<f64> = (0..20).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
    assert_eq!(got.outcomes, want);
    assert_eq!(got.score.value, 7.0 / 20.0);
    let asked = examples.iter().map(|e| generation_prompt(e, &tokenizer).unwrap().len());
    assert_eq!(got.tokens_read - got.tokens_new, asked.sum::<usize>());
    assert!(got.tokens_new > 20 && got.tokens_new <= 20 * 12);
    for (row, example) in got.answers.iter().zip(&examples) {
        assert_eq!(row.answer, greedy(example));
        assert_eq!(row.prompt, example.prompt[0].content);
        assert_eq!(row.origin, example.origin.to_string());
    }
    // What was measured survives being written down.
    let text = serde_json::to_string(&got).unwrap();
    assert_eq!(serde_json::from_str::<Evaluated>(&text).unwrap(), got);
}

#[test]
fn turns_before_the_expected_one_are_given() {
    let tool = vec![
        Turn::new("assistant", "let me look"),
        Turn::new("tool", "42"),
        Turn::new("assistant", "it is 42"),
    ];
    let mut example = chat(1, "how many?", "");
    example.completions = vec![Completion { turns: tool.clone(), ..Completion::default() }];
    let got =
        run(&policy(3), &table(vec![example.clone()]), &Kind::ExactMatch(ExactMatch::default()));
    assert_eq!(got.answers[0].expected, "it is 42");
    // The same as asking with these turns in the prompt.
    example.prompt.extend(tool[..2].iter().cloned());
    example.completions = vec![Completion { turns: tool[2..].to_vec(), ..Completion::default() }];
    let plain = run(&policy(3), &table(vec![example]), &Kind::ExactMatch(ExactMatch::default()));
    assert_eq!(got.answers[0].answer, plain.answers[0].answer);
}

#[test]
fn plain_text_is_measured_once_per_token_in_windows() {
    let (policy, tokenizer) = (policy(4), Tokenizer::bytes());
    let texts = ["A first text that is longer than one window of sixteen.", "short", "x"];
    let examples = texts.iter().enumerate().map(|(i, text)| {
        let mut example = chat(i + 1, "", text);
        (example.prompt, example.form) = (Vec::new(), Form::Raw);
        example
    });
    let table = table(examples.collect());
    let got = general(&policy, &tokenizer, &table, 16).unwrap();
    let (mut sum, mut tokens) = (0.0, 0);
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        for begin in (0..ids.len() - 1).step_by(15) {
            let logps = naive_logps(&policy, &ids[begin..(begin + 16).min(ids.len())]);
            sum -= logps.iter().sum::<f64>();
            tokens += logps.len();
        }
    }
    assert_eq!(tokens, 54 + 4);
    assert_eq!((got.report.tokens, got.report.n), (tokens, 4 + 1));
    assert!((got.report.nll - sum / tokens as f64).abs() < 1e-5);
    // As a metric it is the same number, and texts need not be named as such.
    let limits = Limits { max_length: 16, ..Limits::default() };
    let nll = Kind::Nll(Nll {});
    let metric = evaluate(&policy, &tokenizer, &table, &nll, &limits, &mut |_, _| ()).unwrap();
    assert_eq!((metric.score.value, metric.score.n), (got.report.nll, 5));
    assert!(metric.score.ci95[0] < metric.score.value && metric.score.value < metric.score.ci95[1]);
}

#[test]
fn passes_side_by_side_change_neither_order_nor_a_bit() {
    let (policy, tokenizer) = (policy(9), Tokenizer::bytes());
    // More than three passes; lengths and words differ, so that a mistaken order would show.
    let examples = (0..40).map(|i| {
        let text = format!("{i} ").repeat(60 + (i * 29) % 120);
        let mut example = chat(i + 1, "", &text);
        (example.prompt, example.form) = (Vec::new(), Form::Raw);
        example
    });
    let table = table(examples.collect());
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| general(&policy, &tokenizer, &table, 1024).unwrap())
    };
    let got = on(1);
    assert_eq!(got, on(2));
    assert_eq!(got, on(5));
    assert!(got.tokens_read > 3 * 4096 && got.tokens_read == got.report.tokens);
    assert!(got.rows.iter().map(|row| row.example).eq(0..40));
    for (row, example) in got.rows.iter().zip(&table.examples) {
        let ids = tokenizer.encode(example.completions[0].text()).unwrap();
        let want = -naive_logps(&policy, &ids).iter().sum::<f64>();
        assert!((row.sum - want).abs() < 1e-5 * want, "{}: {} {want}", row.example, row.sum);
    }
    let metric = run(&policy, &table, &Kind::Nll(Nll {}));
    assert_eq!(metric.tokens_read, got.tokens_read);
}

#[test]
fn a_conversations_likelihood_is_that_of_its_answer() {
    let (policy, tokenizer) = (policy(5), Tokenizer::bytes());
    let table = table(vec![chat(1, "hello there", "good day"), chat(2, "and you?", "fine")]);
    let got = run(&policy, &table, &Kind::Nll(Nll {}));
    let (mut sum, mut tokens) = (0.0, 0);
    for example in &table.examples {
        let prompt = prompt_text(example, &tokenizer).unwrap();
        let whole = format!("{prompt}{}<|im_end|>", example.completions[0].text());
        let begin = tokenizer.encode(&prompt).unwrap().len();
        let logps = naive_logps(&policy, &tokenizer.encode(&whole).unwrap());
        sum -= logps[begin - 1..].iter().sum::<f64>();
        tokens += logps.len() + 1 - begin;
    }
    assert_eq!(got.likelihood.as_ref().unwrap().report.tokens, tokens);
    assert!((got.score.value - sum / tokens as f64).abs() < 1e-5);
}

#[test]
fn two_models_are_compared_pair_by_pair_with_larger_as_better() {
    let table = table(vec![chat(1, "hello there", "good day"), chat(2, "and you?", "fine")]);
    let nll = Kind::Nll(Nll {});
    let (one, other) = (run(&policy(6), &table, &nll), run(&policy(7), &table, &nll));
    let comparison = compare(&one, &other).unwrap();
    let mean = |e: &Evaluated| e.outcomes.iter().sum::<f64>() / 2.0;
    assert!((comparison.difference - (mean(&other) - mean(&one))).abs() < 1e-12);
    assert!(mean(&one) < 0.0, "log-probabilities are negative");
    let better = one.outcomes.iter().zip(&other.outcomes).filter(|(a, b)| b > a).count();
    assert_eq!((comparison.better, comparison.metric.as_str()), (better, "logp"));
    assert_eq!(compare(&one, &one).unwrap().difference, 0.0);
    let exact = run(&policy(6), &table, &Kind::ExactMatch(ExactMatch::default()));
    assert!(compare(&one, &exact).is_err());
}

#[test]
fn what_cannot_be_judged_is_refused_by_its_line() {
    let tokenizer = Tokenizer::bytes();
    let refused = |example: Example, metric: Kind, part: &str| {
        let table = table(vec![chat(1, "q", "{}"), example]);
        let limits = Limits::default();
        let error =
            evaluate(&policy(8), &tokenizer, &table, &metric, &limits, &mut |_, _| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("t.jsonl:") && text.contains(part), "{text}");
        assert_eq!(error.exit_code(), 2);
    };
    let exact = || Kind::ExactMatch(ExactMatch::default());
    refused(Example { completions: Vec::new(), ..chat(2, "q", "") }, exact(), "no expected answer");
    refused(chat(2, "q", "not JSON"), Kind::JsonMatch(JsonMatch {}), "t.jsonl:2");
    refused(chat(2, "q", "a"), Kind::Choice(Choice::default()), "choices");
    let nothing = answers(&policy(8), &tokenizer, &table(Vec::new()), &exact(), 4, &mut |_, _| ());
    assert_eq!(nothing.unwrap_err().exit_code(), 2);
}

#[test]
fn ranking_is_the_share_that_the_true_answer_wins() {
    use luthier_recipe::evaluate::{Pair, pairs, ranking};
    let policy = policy(7);
    let all: Vec<Pair> = (0..9u32)
        .map(|i| Pair {
            prompt: vec![65 + i, 66, 67 + i % 3],
            response: (0..1 + i % 4).map(|j| 97 + i + j).chain([257]).collect(),
        })
        .collect();
    // Every other answer by hand: with as many draws as this, each is drawn.
    let mean = |prompt: &[u32], response: &[u32]| {
        let logps = naive_logps(&policy, &[prompt, response].concat());
        let own = &logps[prompt.len() - 1..];
        own.iter().sum::<f64>() / own.len() as f64
    };
    let score = ranking(&policy, &all, 400, Seed(1), &mut |_, _| ()).unwrap();
    let mut won = 0.0;
    for pair in &all {
        let own = mean(&pair.prompt, &pair.response);
        let others = all.iter().filter(|other| other.response != pair.response);
        let lower = others.filter(|other| mean(&pair.prompt, &other.response) < own);
        won += lower.count() as f64 / 8.0 / 9.0;
    }
    assert!((score.value - won).abs() < 0.02, "{} {won}", score.value);
    assert_eq!(score.n, 9);
    let same = vec![all[0].clone(); 3];
    assert!(ranking(&policy, &same, 5, Seed(1), &mut |_, _| ()).is_err());

    // Pairs of a table: the prompt as it is asked, the answer with its end.
    let tokenizer = Tokenizer::bytes();
    let table = table(vec![chat(1, "one?", "1"), chat(2, "two?", "22")]);
    for (pair, example) in pairs(&table, &tokenizer).unwrap().iter().zip(&table.examples) {
        assert_eq!(pair.prompt, generation_prompt(example, &tokenizer).unwrap());
        let text = example.completions[0].text();
        assert_eq!(tokenizer.decode(&pair.response).unwrap(), text);
        assert_eq!(pair.response.len(), text.len() + 1);
    }
}
