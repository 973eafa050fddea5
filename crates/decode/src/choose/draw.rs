//! The choice itself: the best token, or a draw in proportion to probability.

use luthier_core::{Error, Result};
use luthier_kernels::math;

use super::{Candidate, best_logit};

/// The token with the largest logit; of equals, the one with the lowest id.
pub fn greedy(logits_v: &[f32]) -> Result<Candidate> {
    let mut best = Candidate { id: 0, logit: f32::NEG_INFINITY };
    for (id, logit) in (0u32..).zip(logits_v) {
        if logit.is_nan() || *logit == f32::INFINITY {
            return Err(Error::failed("logits", format!("token {id} has the logit {logit}"))
                .hint("the weights or a hook produced a number that is not finite"));
        }
        if *logit > best.logit {
            best = Candidate { id, logit: *logit };
        }
    }
    if best.logit == f32::NEG_INFINITY {
        return Err(Error::failed("logits", "no token is left to choose")
            .hint("the bans and forced tokens exclude each other"));
    }
    Ok(best)
}

/// The candidate at quantile `u` (in [0, 1)) of the cumulative distribution in id order.
pub fn draw(kept: &[Candidate], u: f64) -> u32 {
    let mut logits: Vec<f32> = kept.iter().map(|candidate| candidate.logit).collect();
    kept.get(quantile(&mut logits, best_logit(kept), u)).map_or(0, |candidate| candidate.id)
}

/// The place of quantile `u` (in [0, 1)) among tokens with these logits, the largest of them `best`,
/// which become weights.
pub(super) fn quantile(logits_v: &mut [f32], best: f32, u: f64) -> usize {
    /// Weights summed in f32; their sums are added in f64.
    const STRETCH: usize = 512;
    let sums: Vec<f64> = (logits_v.chunks_mut(STRETCH))
        .map(|stretch| f64::from(math::exp_sum(stretch, 1.0, best)))
        .collect();
    let mut left = u * sums.iter().sum::<f64>();
    let mut last = 0;
    for (i, (stretch, sum)) in logits_v.chunks(STRETCH).zip(sums).enumerate() {
        if left >= sum {
            left -= sum;
            continue;
        }
        for (j, weight) in stretch.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = i * STRETCH + j;
            if left < f64::from(*weight) {
                return last;
            }
            left -= f64::from(*weight);
        }
        // Rounding can leave a sliver behind the last token of a stretch.
        return last;
    }
    // Or behind the last of all.
    logits_v.iter().rposition(|weight| *weight > 0.0).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, f32::NEG_INFINITY, 3.0]).unwrap().id, 1);
        assert_eq!(greedy(&[-5.0, -5.0]).unwrap().id, 0);
    }

    #[test]
    fn logits_without_an_answer_are_an_error() {
        assert!(greedy(&[f32::NEG_INFINITY; 3]).is_err());
        assert!(greedy(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1"));
        assert!(greedy(&[f32::INFINITY]).is_err());
    }

    #[test]
    fn draws_follow_the_softmax() {
        let kept: Vec<Candidate> =
            [(2, 1.0f32), (5, 0.0), (9, -1.0)].map(|(id, p)| Candidate { id, logit: p }).to_vec();
        let z: f64 = kept.iter().map(|c| f64::from(c.logit).exp()).sum();
        let mut rng = Seed(3).rng();
        let n = 40_000;
        let mut counts = std::collections::BTreeMap::new();
        (0..n).for_each(|_| *counts.entry(draw(&kept, rng.uniform())).or_insert(0) += 1);
        for candidate in &kept {
            let p = f64::from(candidate.logit).exp() / z;
            let got = f64::from(counts[&candidate.id]) / f64::from(n);
            // Four standard deviations of a binomial share.
            assert!((got - p).abs() < 4.0 * (p * (1.0 - p) / f64::from(n)).sqrt(), "{p} {got}");
        }
    }

    #[test]
    fn every_place_has_its_share_of_the_unit_interval() {
        // More than one stretch, some tokens without a chance.
        let logits: Vec<f32> = (0..1300).map(|i| [f32::NEG_INFINITY, 0.0, 1.0][i % 3]).collect();
        let weight = |l: &f32| f64::from(*l).exp();
        let z: f64 = logits.iter().map(weight).sum();
        let mut below = 0.0;
        for (i, logit) in logits.iter().enumerate().filter(|(_, l)| l.is_finite()) {
            let share = weight(logit) / z;
            for u in [below + 0.01 * share, below + 0.99 * share] {
                assert_eq!(quantile(&mut logits.clone(), 1.0, u), i);
            }
            below += share;
        }
        assert_eq!(quantile(&mut logits.clone(), 1.0, 1.0 - f64::EPSILON / 2.0), 1298);
    }

    #[test]
    fn the_ends_of_the_unit_interval_are_covered() {
        let kept = [Candidate { id: 4, logit: 0.0 }, Candidate { id: 7, logit: 0.0 }];
        assert_eq!((draw(&kept, 0.0), draw(&kept, 0.499), draw(&kept, 0.5)), (4, 4, 7));
        assert_eq!(draw(&kept, 1.0 - f64::EPSILON / 2.0), 7);
    }
}
