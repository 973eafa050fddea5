//! The weighted F1 score of labels (as in Fatemi et al. 2024, paper 76).
//!
//! `Σ_c share(c) · 2 P_c R_c / (P_c + R_c)`, over the classes that occur among the right answers. An
//! answer that is no label is wrong: it misses its class and is nobody's precision. **Departures**: none.

use luthier_core::{Error, Result};

/// The score of answers, `None` where one is no label.
pub fn weighted_f1(answers: &[Option<u32>], right: &[u32]) -> Result<f64> {
    if answers.len() != right.len() || right.is_empty() {
        let what = format!("{} answers to {} questions", answers.len(), right.len());
        return Err(Error::input("weighted_f1", what));
    }
    let classes = right.iter().max().map_or(0, |most| *most as usize + 1);
    let (mut hits, mut given, mut asked) =
        (vec![0usize; classes], vec![0usize; classes], vec![0usize; classes]);
    for (answer, right) in answers.iter().zip(right) {
        asked[*right as usize] += 1;
        hits[*right as usize] += usize::from(*answer == Some(*right));
        if let Some(given) = answer.and_then(|answer| given.get_mut(answer as usize)) {
            *given += 1;
        }
    }
    // 2 P R / (P + R) = 2 hits / (given + asked), which is 0 without a hit.
    let f1 = |c: usize| 2.0 * hits[c] as f64 / (given[c] + asked[c]).max(1) as f64;
    let sum: f64 = (0..classes).map(|c| asked[c] as f64 * f1(c)).sum();
    Ok(sum / right.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_answer_has_a_third_of_two_balanced_classes() {
        let right = [0, 0, 1, 1];
        let score = |answers: &[Option<u32>]| weighted_f1(answers, &right).unwrap();
        assert!((score(&[Some(0); 4]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(score(&[Some(0), Some(0), Some(1), Some(1)]), 1.0);
        // What is no label, or one that nobody asked for, is a miss and nothing else.
        let missed = score(&[Some(0), None, Some(1), Some(1)]);
        assert!((missed - 0.5 * (2.0 / 3.0) - 0.5).abs() < 1e-12, "{missed}");
        assert_eq!(missed, score(&[Some(0), Some(7), Some(1), Some(1)]));
        // Classes count by how often they are asked for.
        let skewed = weighted_f1(&[Some(0), Some(0), Some(0), Some(0)], &[0, 0, 0, 1]).unwrap();
        assert!((skewed - 0.75 * (6.0 / 7.0)).abs() < 1e-12);
        assert!(weighted_f1(&[], &[]).is_err() && weighted_f1(&[None], &right).is_err());
    }
}
