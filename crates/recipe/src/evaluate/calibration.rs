//! How well a model's confidence tells whether it is right: at every trained token, or over the choices
//! of a question.

use luthier_core::{Batch, Policy, Result, Row, Table, batch::pack};
use luthier_kernels::threads;
use luthier_model::Tokenizer;
use luthier_probe::{
    Bootstrap, Calibration, Score,
    calibration::{NextToken, tokens},
    stats::Interval,
};

use super::{Evaluated, Limits, OnDone, PASS_TOKENS, rows};

/// The expected calibration error of next tokens: the likeliest token's share of the whole distribution
/// against how often it is the one that stands there. The interval resamples tokens; outcomes are each
/// token's `−(confidence − right)²`.
pub fn calibration(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    settings: &NextToken,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Evaluated> {
    let rows = rows(tokenizer, table, limits)?;
    let behind = policy.hooks.virtual_tokens;
    let all: Vec<usize> = (0..rows.len()).collect();
    let (mut answers, mut done) = (Vec::new(), 0);
    for pass in pack(&all, |row| rows[row].len() + behind, PASS_TOKENS) {
        let placed: Vec<Row> = pass.iter().map(|row| rows[*row].clone().behind(behind)).collect();
        answers.extend(threads::together(|| tokens(policy, &Batch::from_rows(&placed)))?);
        done += pass.len();
        on_done(done, rows.len());
    }
    let found = Calibration::in_bins(&answers, settings.bins)?;
    let outcome = |(conf, right): &(f64, bool)| -(conf - f64::from(u8::from(*right))).powi(2);
    let score = Score {
        metric: "calibration".to_string(),
        value: found.ece,
        n: found.n,
        ci95: interval(&answers, settings.bins)?,
        interval: Interval::Bootstrap,
    };
    let tokens_read = rows.iter().map(Row::len).sum();
    let plain = Evaluated::of(score, answers.iter().map(outcome).collect(), Vec::new());
    Ok(Evaluated { tokens_read, calibration: Some(found), ..plain })
}

/// The softmax over the log-probabilities of a question's choices, and whether the likeliest is right.
pub(super) fn of_choices(logps: &[f64], picked: usize, answer: usize) -> (f64, bool) {
    let of = |i: usize| (logps[i] - logps[picked]).exp();
    (1.0 / (0..logps.len()).map(of).sum::<f64>(), picked == answer)
}

/// A 95 % interval of the error over resampled answers.
fn interval(answers: &[(f64, bool)], bins: usize) -> Result<[f64; 2]> {
    let bootstrap = Bootstrap { resamples: RESAMPLES, ..Bootstrap::default() };
    bootstrap.interval(answers.len(), |draws| {
        let again: Vec<(f64, bool)> = draws.map(|i| answers[i]).collect();
        Calibration::in_bins(&again, bins).map_or(f64::NAN, |found| found.ece)
    })
}

/// Fewer than for means, since every one sorts all answers.
const RESAMPLES: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_in_a_choice_is_its_share_of_all() {
        let (conf, right) = of_choices(&[-1.0, -2.0, -1.0 - 3f64.ln()], 0, 0);
        let want = 1.0 / (1.0 + (-1f64).exp() + 1.0 / 3.0);
        assert!((conf - want).abs() < 1e-12 && right);
        assert!(!of_choices(&[-1.0, -2.0], 0, 1).1);
    }

    #[test]
    fn an_interval_holds_its_error() {
        let mut rng = luthier_core::Seed(1).rng();
        let answers: Vec<(f64, bool)> = (0..500).map(|_| (0.9, rng.uniform() < 0.6)).collect();
        let [low, high] = interval(&answers, 10).unwrap();
        let found = Calibration::of(&answers).unwrap().ece;
        assert!(low < found && found < high && high - low < 0.15, "{low} {found} {high}");
    }
}
