//! Temperature: `logit ← logit / t`, up to a constant that changes no probability.

use super::{Candidate, Warp};

/// Flattens (above 1) or sharpens (below 1) the distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// The divisor, above 0.
    pub t: f32,
}

impl Warp for Temperature {
    fn warp(&self, kept: &mut Vec<Candidate>) {
        // Measured from the best logit, so that a tiny temperature cannot overflow at the top.
        let best = super::best_logit(kept);
        kept.iter_mut().for_each(|candidate| candidate.logit = (candidate.logit - best) / self.t);
        kept.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{ids, some_candidates};

    #[test]
    fn probability_ratios_take_the_power_of_one_over_t() {
        let before = some_candidates(9, 1);
        let mut after = before.clone();
        Temperature { t: 0.5 }.warp(&mut after);
        for (b, a) in before.windows(2).zip(after.windows(2)) {
            let (b, a) = (b[0].logit - b[1].logit, a[0].logit - a[1].logit);
            assert!((2.0 * b - a).abs() < 1e-6);
        }
    }

    #[test]
    fn the_cold_limit_is_greedy() {
        let mut kept = vec![Candidate { id: 3, logit: 1.0 }, Candidate { id: 5, logit: 2.0 }];
        Temperature { t: 1e-39 }.warp(&mut kept);
        assert_eq!(ids(&kept), [5]);
    }
}
