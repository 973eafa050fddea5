//! BLEU, chrF and ROUGE-L against sacrebleu's and rouge_score's numbers (`tests/golden/make_metrics.py`).

use luthier_probe::{
    Bootstrap, Metric,
    metric::{Bleu, Chrf, Kind, PassAtK, RougeL},
};
use luthier_testkit::golden;
use serde::Deserialize;
use serde_json::Value;

/// The score of a set of answers, each with what was expected.
type Corpus<'a> = dyn Fn(&[(&str, &str)]) -> f64 + 'a;

#[derive(Deserialize)]
struct Golden {
    pairs: Vec<[String; 2]>,
    sets: Vec<Vec<usize>>,
    bleu: Vec<Case>,
    chrf: Vec<Case>,
    rouge_l: Vec<[f64; 3]>,
}

#[derive(Deserialize)]
struct Case {
    settings: Value,
    sets: Vec<f64>,
    sentences: Vec<f64>,
}

fn recorded() -> Golden {
    let text = std::fs::read_to_string(golden::golden("metrics.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Golden {
    fn set(&self, chosen: &[usize]) -> Vec<(&str, &str)> {
        chosen.iter().map(|i| (self.pairs[*i][0].as_str(), self.pairs[*i][1].as_str())).collect()
    }

    /// Numbers of sets and of single answers, and the same through the trait.
    fn agree(
        &self,
        case: &Case,
        metric: &dyn Metric,
        corpus: &Corpus,
        sentence: &dyn Fn(&str, &str) -> f64,
    ) {
        let close = |got: f64, want: f64, what: &str| {
            assert!((got - want).abs() < 1e-9, "{} {what}: {got} {want}", case.settings);
        };
        for (chosen, want) in self.sets.iter().zip(&case.sets) {
            let pairs = self.set(chosen);
            close(corpus(&pairs), *want, "set");
            let few = Bootstrap { resamples: 50, seed: 1 };
            let score = metric.over(&pairs, &few).unwrap().unwrap();
            close(score.value, *want, "score");
            assert!(score.ci95[0] <= score.ci95[1] && score.n == chosen.len());
        }
        for ([answer, expected], want) in self.pairs.iter().zip(&case.sentences) {
            close(sentence(answer, expected), *want, answer);
            close(100.0 * metric.judge(answer, expected).value, *want, answer);
        }
    }
}

#[test]
fn bleu_is_sacrebleus() {
    let golden = recorded();
    assert!(golden.bleu.len() > 10);
    for case in &golden.bleu {
        let bleu: Bleu = serde_json::from_value(case.settings.clone()).unwrap();
        golden.agree(case, &bleu, &|p| bleu.corpus(p), &|a, e| bleu.sentence(a, e));
    }
}

#[test]
fn chrf_is_sacrebleus() {
    let golden = recorded();
    for case in &golden.chrf {
        let chrf: Chrf = serde_json::from_value(case.settings.clone()).unwrap();
        golden.agree(case, &chrf, &|p| chrf.corpus(p), &|a, e| chrf.sentence(a, e));
    }
}

#[test]
fn rouge_l_is_rouge_scores() {
    let golden = recorded();
    for ([answer, expected], want) in golden.pairs.iter().zip(&golden.rouge_l) {
        let got = RougeL {}.scores(answer, expected);
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{answer}: {got:?}");
    }
}

#[test]
fn every_judge_of_text_takes_any_text() {
    let names = ["exact_match", "json_match", "bleu", "chrf", "rouge_l"];
    let kinds = names.map(|name| Kind::named("metric", name).unwrap());
    let long = "ab ".repeat(3000);
    for kind in &kinds {
        let judge = kind.text().unwrap();
        for answer in ["", " ", "\u{0}", "&amp", "木\u{1c}!", ".,.,", "9-", "-\n", &long] {
            let value = judge.judge(answer, "{\"a\": \"b c\"}").value;
            assert!((0.0..=1.0).contains(&value), "{} {answer:.9}: {value}", kind.name());
        }
        let own = judge.judge("{\"a\": \"b c\"}", "{\"a\": \"b c\"}").value;
        assert!((own - 1.0).abs() < 1e-9, "{}: {own}", kind.name());
        assert!(judge.check("t:1", " ").is_err() || kind.name() == "exact_match");
    }
    assert!(Kind::PassAtK(PassAtK::default()).text().is_none());
}
