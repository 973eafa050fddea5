//! Likeness of answers, chances among several, and what becomes of rows on the way to tokens.

use luthier_core::{Form, Policy, Seed, Table};
use luthier_loss::Unit;
use luthier_model::Tokenizer;
use luthier_probe::{
    Kind,
    metric::{Bleu, Chrf, ExactMatch, PassAtK, pass_at_k},
};
use luthier_recipe::{
    Recipe,
    evaluate::{Evaluated, Limits, compare, evaluate},
    prepare,
};

mod small;

use small::{chat, policy, table};

fn run(policy: &Policy, table: &Table, metric: &Kind) -> Evaluated {
    let limits = Limits { max_new_tokens: 6, ..Limits::default() };
    let mut heard = (0, 0);
    let on_done = &mut |done, total| heard = (done, total);
    let got = evaluate(policy, &Tokenizer::bytes(), table, metric, &limits, on_done).unwrap();
    assert_eq!(heard, (table.examples.len(), table.examples.len()));
    got
}

#[test]
fn a_set_is_scored_as_one_and_compared_answer_by_answer() {
    let rows = |n: usize| (0..n).map(|i| chat(i + 1, &"q".repeat(i + 1), "some words here"));
    let table = table(rows(5).collect());
    for kind in [Kind::Bleu(Bleu::default()), Kind::Chrf(Chrf::default())] {
        let got = run(&policy(1), &table, &kind);
        let pairs: Vec<(&str, &str)> =
            got.answers.iter().map(|r| (r.answer.as_str(), r.expected.as_str())).collect();
        let (want, alone): (f64, Vec<f64>) = match &kind {
            Kind::Bleu(bleu) => {
                (bleu.corpus(&pairs), pairs.iter().map(|(a, e)| bleu.sentence(a, e)).collect())
            }
            Kind::Chrf(chrf) => {
                (chrf.corpus(&pairs), pairs.iter().map(|(a, e)| chrf.sentence(a, e)).collect())
            }
            _ => unreachable!(),
        };
        assert!((got.score.value - want).abs() < 1e-9);
        assert!(got.outcomes.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(got.signature.as_ref().unwrap().starts_with("nrefs:1|case:mixed"));
        let comparison = compare(&got, &got).unwrap();
        assert!(comparison.metric.ends_with("of single answers") && comparison.difference == 0.0);
    }
    let rouge = run(&policy(1), &table, &Kind::named("m", "rouge_l").unwrap());
    assert!(rouge.signature.is_none() && rouge.score.n == 5);
}

#[test]
fn chances_follow_from_how_many_answers_were_right() {
    let ask = |expected: &[String]| {
        let row = |(i, text): (usize, &String)| chat(i + 1, &"ask".repeat(i + 1), text);
        table(expected.iter().enumerate().map(row).collect())
    };
    let options = PassAtK { k: vec![2, 1, 5], n: 5, seed: 4, ..PassAtK::default() };
    let kind = Kind::PassAtK(options);
    let first = run(&policy(2), &ask(&vec!["nobody says this".to_string(); 4]), &kind);
    assert_eq!((first.score.metric.as_str(), first.score.value), ("pass@2", 0.0));
    assert_eq!(first.answers.len(), 20);
    // Asked again, the same is said; two questions expect the third of it.
    let said = |i: usize| first.answers[5 * i + 2].answer.clone();
    assert_ne!(first.answers[0].answer, first.answers[1].answer);
    let expected = [said(0), "none".into(), said(2), "none".into()];
    let again = run(&policy(2), &ask(&expected), &kind);
    let right: Vec<usize> = again
        .answers
        .chunks(5)
        .zip(&expected)
        .map(|(said, want)| said.iter().filter(|row| row.answer.trim() == want.trim()).count())
        .collect();
    assert!(right[0] >= 1 && right[2] >= 1 && right[1] + right[3] == 0, "{right:?}");
    for (score, k) in again.passing.iter().zip([2, 1, 5]) {
        let want = right.iter().map(|c| pass_at_k(5, *c, k)).sum::<f64>() / 4.0;
        assert!((score.value - want).abs() < 1e-12 && score.metric == format!("pass@{k}"));
    }
    assert_eq!(again.outcomes.len(), 4);
    let text = serde_json::to_string(&again).unwrap();
    assert_eq!(serde_json::from_str::<Evaluated>(&text).unwrap(), again);
    assert!(ExactMatch::default().strip);
}

fn data(text: &str) -> luthier_recipe::schema::Data {
    Recipe::parse(text, "r.toml").unwrap().data
}

#[test]
fn texts_become_blocks_and_the_rest_is_told() {
    let raw = |(i, text): (usize, &str)| {
        let mut example = chat(i + 1, "", text);
        (example.prompt, example.form) = (Vec::new(), Form::Raw);
        example
    };
    let texts = ["first text", "second", "third one"];
    let all = || table(texts.into_iter().enumerate().map(raw).collect());
    let tokenizer = Tokenizer::bytes();
    let data = data("[data]\nblock_size = 8\nmax_length = 4\n");
    let got = prepare::prepare(all(), &data, &tokenizer, Unit::Row).unwrap();
    let whole = prepare::render(&all(), &data, &tokenizer, Unit::Row).unwrap();
    let tokens: Vec<u32> = whole.iter().flat_map(|r| r.tokens.clone()).collect();
    assert_eq!((got.rows.len(), got.cut.tokens_cut), (tokens.len() / 8, tokens.len() % 8));
    for (row, block) in got.rows.iter().zip(tokens.chunks(8)) {
        assert_eq!((&row.ids[..], &row.targets[..]), (&block[..7], &block[1..]));
        assert_eq!(row.trained(), 7);
    }
    let pair = Unit::Pair { reference: false };
    let error = prepare::prepare(all(), &data, &tokenizer, pair);
    assert!(error.err().unwrap().exit_code() == 2);
    let long = self::data("[data]\nblock_size = 4096\n");
    let error = prepare::prepare(all(), &long, &tokenizer, Unit::Row).err().unwrap();
    assert!(error.to_string().starts_with("data.block_size"), "{error}");
}

#[test]
fn held_out_sentences_are_asked_in_the_same_words() {
    let dir = tempfile::tempdir().unwrap();
    let row = "{\"prompt\": \"the cat\", \"completion\": \"die Katze\"}\n";
    for name in ["train.jsonl", "dev.jsonl"] {
        std::fs::write(dir.path().join(name), row.repeat(3)).unwrap();
    }
    let steps =
        "steps = [{ limit = { n = 2 } }, { translate = { source = \"E\", target = \"D\" } }]";
    let text = format!("[data]\ntrain = \"train.jsonl\"\neval = \"dev.jsonl\"\n{steps}\n");
    let path = dir.path().join("r.toml");
    std::fs::write(&path, text).unwrap();
    let data = Recipe::load(&path, &[]).unwrap().data;
    let (train, eval) = prepare::both(&data, &Tokenizer::bytes(), Seed(1), Unit::Row).unwrap();
    let eval = eval.unwrap();
    // The limit is for what is trained on.
    assert_eq!((train.table.examples.len(), eval.table.examples.len()), (4, 6));
    let asked = &eval.table.examples[1].prompt[0].content;
    assert_eq!(asked, "Translate this from D to E:\nD: die Katze\nE:");
    // The translation and the end of text, and nothing else.
    assert_eq!(eval.rows[1].trained(), "the cat".len() + 1);
}
