//! Several answers to one prompt become one: the likeliest, the best by a score, or the one most agree on.

use crate::Generated;

/// The mean log-probability of an answer's tokens; answers that were not measured have none.
pub fn mean_logprob(answer: &Generated) -> Option<f64> {
    let n = answer.logprobs.len();
    (n > 0).then(|| answer.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / n as f64)
}

/// Best-of-n: the place of the answer with the largest score; of equals the first. A score that is not a
/// number is below all.
pub fn best_of(answers: &[Generated], score: impl Fn(&Generated) -> f64) -> Option<usize> {
    let key = |answer: &Generated| {
        let score = score(answer);
        if score.is_nan() { f64::NEG_INFINITY } else { score }
    };
    let scores: Vec<f64> = answers.iter().map(key).collect();
    (0..answers.len()).reduce(|best, i| if scores[i] > scores[best] { i } else { best })
}

/// Self-consistency (Wang et al. 2023, arXiv 2203.11171): the place of the first answer with which most
/// of all answers agree. `agree(one, other)` is asked of an answer and itself too: what an answer has to
/// say may be nothing, and then it has no vote. Of equally many votes what was said first counts.
pub fn majority(
    answers: &[Generated],
    agree: impl Fn(&Generated, &Generated) -> bool,
) -> Option<usize> {
    let votes = |i: usize| answers.iter().filter(|other| agree(other, &answers[i])).count();
    let votes: Vec<usize> = (0..answers.len()).map(votes).collect();
    (0..answers.len()).reduce(|best, i| if votes[i] > votes[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Finish;

    fn answers(all: &[(&str, &[f32])]) -> Vec<Generated> {
        let answer = |(text, logprobs): &(&str, &[f32])| Generated {
            tokens: vec![0; logprobs.len()],
            text: text.to_string(),
            finish: Finish::Eos,
            logprobs: logprobs.to_vec(),
        };
        all.iter().map(answer).collect()
    }

    #[test]
    fn the_likeliest_is_likeliest_per_token() {
        let all = answers(&[("a", &[-1.0]), ("b", &[-0.5, -0.7, -0.6]), ("c", &[-0.6])]);
        let mean = |a: &Generated| mean_logprob(a).unwrap_or(f64::NEG_INFINITY);
        assert_eq!(best_of(&all, mean), Some(1));
        assert_eq!(best_of(&all, |a| if a.text == "c" { 1.0 } else { f64::NAN }), Some(2));
        assert_eq!(best_of(&all, |_| 0.0), Some(0));
        assert_eq!(best_of(&[], |_| 0.0), None);
    }

    #[test]
    fn most_votes_win_and_silence_has_none() {
        let all =
            answers(&[("x", &[]), ("2", &[]), ("3", &[]), ("y", &[]), ("3", &[]), ("2", &[])]);
        let number = |a: &Generated, b: &Generated| {
            a.text.parse::<i32>().is_ok_and(|n| b.text.parse() == Ok(n))
        };
        assert_eq!(majority(&all, number), Some(1));
        assert_eq!(majority(&all[2..], number), Some(0));
        assert_eq!(majority(&all[..1], number), Some(0));
        assert_eq!(majority(&answers(&[("x", &[]), ("3", &[])]), number), Some(1));
    }
}
