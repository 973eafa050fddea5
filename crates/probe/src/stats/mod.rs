//! How sure one can be of a number.

mod bootstrap;
mod mcnemar;
mod wilson;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub use bootstrap::{Bootstrap, quantile};
pub use mcnemar::mcnemar;
pub use wilson::wilson;

/// How an interval was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// Percentile bootstrap.
    Bootstrap,
    /// Wilson's score interval, when all outcomes are 0 or all are 1: there the bootstrap sees no
    /// spread and would claim certainty.
    Wilson,
}

/// A metric over a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name.
    pub metric: String,
    /// The mean outcome.
    pub value: f64,
    /// Number of outcomes.
    pub n: usize,
    /// 95 % interval.
    pub ci95: [f64; 2],
    /// How the interval was made.
    pub interval: Interval,
}

impl Score {
    /// The mean of `outcomes` with its interval.
    pub fn of(metric: &str, outcomes: &[f64], bootstrap: &Bootstrap) -> Result<Self> {
        let (n, sum) = (outcomes.len(), outcomes.iter().sum::<f64>());
        let all = |v: f64| n > 0 && outcomes.iter().all(|o| *o == v);
        let (ci95, interval) = if all(0.0) || all(1.0) {
            (wilson(sum as usize, n), Interval::Wilson)
        } else {
            (bootstrap.mean(outcomes)?, Interval::Bootstrap)
        };
        Ok(Score { metric: metric.to_string(), value: sum / n as f64, n, ci95, interval })
    }
}

/// Which test gave a comparison's p-value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Exact McNemar test, for outcomes of 0 and 1.
    Mcnemar,
    /// Paired bootstrap of the difference.
    PairedBootstrap,
}

/// Two models on the same examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The metric's name.
    pub metric: String,
    /// Mean of the first.
    pub before: f64,
    /// Mean of the second.
    pub after: f64,
    /// `after − before`.
    pub difference: f64,
    /// 95 % interval of the difference (paired bootstrap).
    pub ci95: [f64; 2],
    /// Two-sided p-value of "no difference".
    pub p_value: f64,
    /// Where the p-value comes from.
    pub test: Test,
    /// Examples where the second was better.
    pub better: usize,
    /// Examples where the second was worse (both in the metric's own direction: larger).
    pub worse: usize,
    /// Number of pairs.
    pub n: usize,
}

impl Comparison {
    /// Compares outcomes of the same examples in the same order.
    pub fn of(metric: &str, before: &[f64], after: &[f64], bootstrap: &Bootstrap) -> Result<Self> {
        let n = before.len();
        if n != after.len() {
            let what =
                format!("a paired test needs the same examples, got {n} and {}", after.len());
            return Err(Error::input(metric, what)
                .hint("evaluate both models on the same file and with the same limit"));
        }
        let (difference, ci95, p_bootstrap) = bootstrap.paired(before, after)?;
        let better = before.iter().zip(after).filter(|(b, a)| a > b).count();
        let worse = before.iter().zip(after).filter(|(b, a)| a < b).count();
        let binary = before.iter().chain(after).all(|o| *o == 0.0 || *o == 1.0);
        let (p_value, test) = if binary {
            (mcnemar(better, worse), Test::Mcnemar)
        } else {
            (p_bootstrap, Test::PairedBootstrap)
        };
        let mean = |o: &[f64]| o.iter().sum::<f64>() / n as f64;
        let (before, after) = (mean(before), mean(after));
        let metric = metric.to_string();
        Ok(Comparison { metric, before, after, difference, ci95, p_value, test, better, worse, n })
    }
}
