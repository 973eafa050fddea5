//! Running sums: six digits, and after each but the first the sum of all up to it, by its last digit.
//!
//! `d1 … d6 | s2 … s6 end` with `s_k = (s_{k−1} + d_k) mod 10`, `s1 = d1`: five steps of one token, each of
//! which follows from the one before. As text a solution has a step to a line, so that the steps of
//! `luthier_data::solution` work on it as they do on any other.

use luthier_core::{Error, Example, Policy, Result, Row, Seed, StateDict, Table, Turn};
use luthier_data::parts::AnswerWeights;
use luthier_decode::{Finish, Generate, Sampler, generate};

use crate::{
    measure::Silent,
    small::{INITIALIZER_RANGE, Sizes, Small},
};

/// Digits of a problem.
pub const DIGITS: usize = 6;
/// Steps of its solution.
pub const STEPS: usize = DIGITS - 1;
/// Ends the problem.
pub const BAR: u32 = 10;
/// Ends the solution.
pub const END: u32 = 11;
/// "Wait": what stands before is wrong.
pub const WAIT: u32 = 12;
/// All tokens.
pub const VOCAB: usize = 13;

/// Six digits.
pub type Problem = [u32; DIGITS];

/// Problems drawn with replacement: there are a million.
pub fn problems(n: usize, seed: Seed) -> Vec<Problem> {
    let mut rng = seed.rng();
    (0..n).map(|_| std::array::from_fn(|_| rng.below(10) as u32)).collect()
}

/// The tokens up to the solution.
pub fn prompt(problem: &Problem) -> Vec<u32> {
    problem.iter().copied().chain([BAR]).collect()
}

/// The right steps from step `from` on (counted from 0), where the one before it said `sum`.
pub fn carry_on(problem: &Problem, from: usize, sum: u32) -> Vec<u32> {
    let mut sum = sum;
    let step = |digit: &u32| {
        sum = (sum + digit) % 10;
        sum
    };
    problem[from + 1..].iter().map(step).collect()
}

/// The right solution, without its end.
pub fn solution(problem: &Problem) -> Vec<u32> {
    carry_on(problem, 0, problem[0])
}

/// Whether the last thing that is said is the right sum: nobody looks at the way to it.
pub fn right(problem: &Problem, said: &[u32]) -> bool {
    said.last() == solution(problem).last()
}

/// Tokens as lines.
pub fn text(said: &[u32]) -> String {
    said.iter()
        .map(|token| format!("{}\n", if *token == WAIT { "W".into() } else { token.to_string() }))
        .collect()
}

/// Lines as tokens.
pub fn tokens(text: &str) -> Result<Vec<u32>> {
    let token = |word: &str| match word {
        "W" => Ok(WAIT),
        digit => digit.parse().map_err(|_| Error::failed(word, "is no step of a sum")),
    };
    text.split_whitespace().map(token).collect()
}

/// A problem and what was said of it, as an example of words.
pub fn example(problem: &Problem, said: &[u32], line: usize) -> Example {
    let digits: Vec<String> = problem.iter().map(u32::to_string).collect();
    let turns = vec![Turn::new("user", digits.join(" "))];
    Example::new("sums", line, turns, Some(Turn::new("assistant", text(said))))
}

/// Examples as the table that the steps of `luthier_data` take.
pub fn table(examples: Vec<Example>) -> Table {
    let (name, layout) = ("sums".to_string(), "made".to_string());
    Table { name, layout, sha256: String::new(), examples }
}

/// The rows of an example, one for each answer, with the weights that its parts have.
pub fn rows(example: &Example, number: usize) -> Result<Vec<Row>> {
    let asked = tokens(&example.prompt[0].content)?;
    let row = |(i, completion): (usize, &luthier_core::Completion)| {
        let weights = AnswerWeights::of(example, i)?.unwrap_or_default();
        let said = tokens(completion.text())?;
        let mut ids: Vec<u32> = asked.iter().copied().chain([BAR]).collect();
        let mut counts = vec![0.0; ids.len()];
        let mut from = 0;
        for (line, token) in completion.text().split_inclusive('\n').zip(&said) {
            let part = weights.parts.iter().find(|(a, b, _)| (*a..*b).contains(&from));
            ids.push(*token);
            counts.push(part.map_or(1.0, |(_, _, weight)| *weight));
            from += line.len();
        }
        ids.push(END);
        counts.push(weights.end.unwrap_or(1.0));
        Ok(Row::from_tokens(&ids, &counts, number))
    };
    example.completions.iter().enumerate().map(row).collect()
}

/// The rows of all examples.
pub fn all_rows(examples: &[Example]) -> Result<Vec<Row>> {
    let each: Vec<Vec<Row>> =
        examples.iter().enumerate().map(|(i, e)| rows(e, i)).collect::<Result<_>>()?;
    Ok(each.concat())
}

/// Right solutions to learn from.
pub fn clean_rows(problems: &[Problem]) -> Result<Vec<Row>> {
    let example = |(i, p): (usize, &Problem)| example(p, &solution(p), i);
    all_rows(&problems.iter().enumerate().map(example).collect::<Vec<Example>>())
}

/// A small decoder whose matrices have a deviation of `1/√width` and whose embeddings have one of 1, as
/// most libraries begin with: at the 0.02 of large models a narrow one stays lost for long.
pub fn blank(sizes: Sizes, seed: Seed) -> Result<Small> {
    let small = Small::random(sizes, seed)?;
    let mut weights = StateDict::default();
    for (name, tensor) in small.weights.iter() {
        let wanted = match (name.contains("embed"), tensor.dims().len()) {
            (true, _) => 1.0 / INITIALIZER_RANGE,
            (false, 2) => 1.0 / (sizes.width as f64).sqrt() / INITIALIZER_RANGE,
            _ => 1.0,
        };
        weights.insert(name, (tensor * wanted)?);
    }
    Small::of(sizes, weights)
}

/// What a policy says after each prompt, up to its end; nothing where it found none in time.
pub fn said(
    policy: &Policy,
    prompts: &[Vec<u32>],
    temperature: f32,
    max_new_tokens: usize,
    seed: u64,
) -> Result<Vec<Option<Vec<u32>>>> {
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    let sampler = Sampler { temperature, seed, ..Sampler::default() };
    let (eos, max_batch) = (vec![END], 256);
    let options = Generate {
        max_new_tokens,
        max_batch,
        prefill_tokens: 4096,
        eos,
        sampler,
        ..Generate::default()
    };
    let all = generate(policy, prompts, &options, &Silent, &mut |_, _, _| ())?;
    let ended = |mut one: luthier_decode::Generated| {
        (one.finish == Finish::Eos).then(|| {
            one.tokens.pop();
            one.tokens
        })
    };
    Ok(all.into_iter().map(ended).collect())
}

/// The share of problems with the right last sum.
pub fn accuracy(
    policy: &Policy,
    problems: &[Problem],
    temperature: f32,
    max_new_tokens: usize,
    seed: u64,
) -> Result<f64> {
    let prompts: Vec<Vec<u32>> = problems.iter().map(prompt).collect();
    let all = said(policy, &prompts, temperature, max_new_tokens, seed)?;
    let ok = |(p, said): &(&Problem, &Option<Vec<u32>>)| said.as_ref().is_some_and(|s| right(p, s));
    Ok(problems.iter().zip(&all).filter(ok).count() as f64 / problems.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Problem = [3, 1, 4, 1, 5, 9];

    #[test]
    fn sums_run_and_text_is_tokens() {
        assert_eq!(solution(&P), [4, 8, 9, 4, 3]);
        assert_eq!(carry_on(&P, 2, 0), [1, 6, 5]);
        assert!(right(&P, &[0, 0, 3]) && !right(&P, &[4, 8, 9, 4]) && !right(&P, &[]));
        let said = [4, WAIT, 8];
        assert_eq!(text(&said), "4\nW\n8\n");
        assert_eq!(tokens("4\nW\n8\n").unwrap(), said);
        assert!(tokens("x").is_err());
    }

    #[test]
    fn rows_have_the_weights_of_their_parts() {
        let mut example = example(&P, &solution(&P), 0);
        let row = &rows(&example, 4).unwrap()[0];
        assert_eq!(row.targets[DIGITS..], [4, 8, 9, 4, 3, END]);
        assert_eq!((row.trained(), row.example, row.ids[DIGITS]), (6, 4, BAR));
        let weights = AnswerWeights { parts: vec![(0, 4, 0.0), (6, 8, 0.5)], end: Some(0.0) };
        AnswerWeights::put(&[Some(weights)], &mut example);
        let row = &rows(&example, 4).unwrap()[0];
        assert_eq!(row.weights[DIGITS..], [0.0, 0.0, 1.0, 0.5, 1.0, 0.0]);
        // A model may say any token, also one of two digits.
        example.completions[0].turns[0].content = text(&[4, BAR, 9]);
        let weights = AnswerWeights { parts: vec![(0, 5, 0.0)], end: None };
        AnswerWeights::put(&[Some(weights)], &mut example);
        let row = &rows(&example, 4).unwrap()[0];
        assert_eq!(
            (&row.targets[DIGITS..], &row.weights[DIGITS..]),
            (&[4, BAR, 9, END][..], &[0.0, 0.0, 1.0, 1.0][..])
        );
        assert_eq!(clean_rows(&[P, P]).unwrap().len(), 2);
    }
}
