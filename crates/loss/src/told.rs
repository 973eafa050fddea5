//! What the log says of a step or an evaluation: the means of what objectives told, and two numbers that
//! are no means but follow from some.
//!
//! - `ece`, the expected calibration error of objectives that are sure of something (a label, the better
//!   answer of a pair): `Σ_bins |Σ w·(right − confidence)| / Σ w` over ten bins of equal width. What a bin
//!   holds adds up over passes as any logged mean does, so every bin is a [`Log`] of its own until here.
//! - `rewards/margins` where wanted and unwanted answers come one by one: the difference of their means.

use crate::{Log, pair::answers::tell_weighted};

/// One name for every bin of confidence.
const BINS: [&str; 10] =
    ["ece/0", "ece/1", "ece/2", "ece/3", "ece/4", "ece/5", "ece/6", "ece/7", "ece/8", "ece/9"];
const MARGINS: &str = "rewards/margins";

/// Tells of one answer how sure the policy was of it, and whether it was right.
pub(crate) fn sure(logs: &mut Vec<Log>, confidence: f64, right: bool, weight: f64) {
    let bin = ((confidence * BINS.len() as f64) as usize).min(BINS.len() - 1);
    tell_weighted(logs, BINS[bin], f64::from(u8::from(right)) - confidence, weight);
}

/// The same of a question with two answers: `lead` is the log-odds of yes, which is right where `yes`. A
/// lead of 0 says nothing and is right about nothing, as it counts in accuracies.
pub(crate) fn sure_of(logs: &mut Vec<Log>, lead: f64, yes: bool, weight: f64) {
    let confidence = 1.0 / (1.0 + (-lead.abs()).exp());
    sure(logs, confidence, lead != 0.0 && (lead > 0.0) == yes, weight);
}

/// The numbers of a log by name.
pub fn numbers(logs: &[Log]) -> Vec<(&'static str, f64)> {
    let of_bin = |log: &&Log| BINS.contains(&log.name);
    let told = logs.iter().filter(|log| log.weight != 0.0 && !of_bin(log));
    let mut numbers: Vec<(&'static str, f64)> =
        told.map(|log| (log.name, log.sum / log.weight)).collect();
    let of = |numbers: &[(&'static str, f64)], name: &str| {
        numbers.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    let rewards = ["rewards/chosen", "rewards/rejected"].map(|name| of(&numbers, name));
    if let ([Some(chosen), Some(rejected)], None) = (rewards, of(&numbers, MARGINS)) {
        numbers.push((MARGINS, chosen - rejected));
    }
    let weight: f64 = logs.iter().filter(of_bin).map(|log| log.weight).sum();
    if weight > 0.0 {
        let gap: f64 = logs.iter().filter(of_bin).map(|log| log.sum.abs()).sum();
        numbers.push(("ece", gap / weight));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(logs: &[Log], name: &str) -> Option<f64> {
        numbers(logs).iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    #[test]
    fn bins_that_are_added_up_give_the_error_of_all() {
        let answers = [(0.95, true), (0.85, true), (0.85, false), (0.65, true)];
        let tell = |answers: &[(f64, bool)], weight: f64| {
            let mut logs = Vec::new();
            answers.iter().for_each(|(confidence, right)| {
                sure(&mut logs, *confidence, *right, weight);
            });
            logs
        };
        // (0.05 + |0.15 − 0.85| + 0.35) / 4; weights that are all the same change nothing.
        for weight in [1.0, 0.3] {
            let error = of(&tell(&answers, weight), "ece").unwrap();
            assert!((error - 0.275).abs() < 1e-12, "{error}");
        }
        // The two of one bin in two passes: their gaps meet before they are made positive.
        let mut all = tell(&answers[..2], 1.0);
        for log in tell(&answers[2..], 1.0) {
            tell_weighted(&mut all, log.name, log.sum / log.weight, log.weight);
        }
        assert!((of(&all, "ece").unwrap() - 0.275).abs() < 1e-12);
        assert_eq!(of(&tell(&[(1.0, true)], 1.0), "ece"), Some(0.0));
        assert_eq!(of(&[], "ece"), None);
    }

    #[test]
    fn a_lead_is_a_chance() {
        for (lead, yes, gap) in
            [(3f64.ln(), true, 0.25), (-(3f64.ln()), true, 0.75), (0.0, true, 0.5)]
        {
            let mut logs = Vec::new();
            sure_of(&mut logs, lead, yes, 2.0);
            assert!((of(&logs, "ece").unwrap() - gap).abs() < 1e-12, "{lead}");
        }
    }

    #[test]
    fn margins_of_single_answers_are_the_difference_of_their_means() {
        let log = |name, sum, weight| Log { name, sum, weight };
        let mut logs = vec![log("rewards/chosen", 6.0, 3.0), log("rewards/rejected", -1.0, 2.0)];
        assert_eq!(of(&logs, MARGINS), Some(2.5));
        assert_eq!(of(&logs[..1], MARGINS), None);
        logs.push(log(MARGINS, 8.0, 2.0));
        assert_eq!(numbers(&logs).len(), 3);
        assert_eq!(of(&logs, MARGINS), Some(4.0));
    }
}
