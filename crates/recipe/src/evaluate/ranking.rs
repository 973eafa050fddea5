//! Response ranking (Hewitt et al. 2024, arXiv 2409.14254): does a model find the true answer to a
//! question likelier than answers to other questions, before it is tuned to answer at all?
//!
//! An answer's score is the mean log-probability of its tokens after the question in chat format (their
//! sum would rank by length). Each question is compared with `n_negatives` answers drawn uniformly, with
//! replacement, from those of the same set; strictly greater wins. A share well above 0.5 says that tuning
//! on answers alone will work. **Departures**: (1) a draw of the true answer, or of one of the same
//! tokens, is left out, where the published code counts it as lost.

use luthier_core::{Error, Policy, Result, Row, Seed, Table};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, generation_prompt, render_table},
};
use luthier_probe::{Bootstrap, Score};

use super::{OnDone, likelihood::measured};

/// A question's tokens and its true answer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Up to the answer.
    pub prompt: Vec<u32>,
    /// The answer, with the token that ends it.
    pub response: Vec<u32>,
}

/// The share of comparisons that the true answer wins; outcomes are each question's own share.
pub fn ranking(
    policy: &Policy,
    pairs: &[Pair],
    n_negatives: usize,
    seed: Seed,
    on_done: OnDone,
) -> Result<Score> {
    let mut rows = Vec::new();
    let row = |prompt: &[u32], response: &[u32], example| {
        let tokens = [prompt, response].concat();
        let answers = |i: usize| f32::from(u8::from(i >= prompt.len()));
        let weights: Vec<f32> = (0..tokens.len()).map(answers).collect();
        Row::from_tokens(&tokens, &weights, example)
    };
    for (i, pair) in pairs.iter().enumerate() {
        rows.push(row(&pair.prompt, &pair.response, i));
        let mut rng = seed.split("ranking").at(i as u64).rng();
        for _ in 0..n_negatives {
            let other = &pairs[rng.below(pairs.len())].response;
            if *other != pair.response {
                rows.push(row(&pair.prompt, other, i));
            }
        }
    }
    let mut scores: Vec<Vec<f64>> = vec![Vec::new(); pairs.len()];
    // The rows of a question come in their order, the true answer's first.
    for one in measured(policy, &rows, on_done)? {
        scores[one.example].push(-one.sum / one.weight);
    }
    let share = |all: &Vec<f64>| {
        let (own, others) = all.split_first()?;
        let won = others.iter().filter(|other| own > other).count();
        (!others.is_empty()).then(|| won as f64 / others.len() as f64)
    };
    let outcomes: Vec<f64> = scores.iter().filter_map(share).collect();
    if outcomes.is_empty() {
        return Err(Error::input("ranking", "there is no other answer to compare with")
            .hint("the questions' answers must differ"));
    }
    Score::of("ranking", &outcomes, &Bootstrap::default())
}

/// The questions of a table with their first answers, through the model's chat template.
pub fn pairs(table: &Table, tokenizer: &Tokenizer) -> Result<Vec<Pair>> {
    let mut first = table.clone();
    for example in &mut first.examples {
        example.completions.truncate(1);
        // Earlier turns of the assistant belong to the question.
        let mut said = example.prompt.iter_mut().filter(|turn| turn.role == "assistant");
        said.by_ref().for_each(|turn| turn.weight = Some(0.0));
    }
    let rendered = render_table(&first, tokenizer, &RenderOptions::default())?;
    let pair = |(rendered, example): (luthier_model::render::Rendered, &luthier_core::Example)| {
        let prompt = generation_prompt(example, tokenizer)?;
        let tokens = &rendered.tokens;
        // What the template writes behind the end of the turn is nobody's answer.
        let end = rendered.weights.iter().rposition(|w| *w > 0.0).map_or(0, |i| i + 1);
        let response = tokens.get(prompt.len()..end).filter(|_| tokens.starts_with(&prompt));
        let response = response.filter(|response| !response.is_empty()).ok_or_else(|| {
            Error::input(
                example.origin.to_string(),
                "its answer does not follow its question token \
                by token in this model's chat template",
            )
        })?;
        Ok(Pair { response: response.to_vec(), prompt })
    };
    rendered.into_iter().zip(&first.examples).map(pair).collect()
}
