//! Top-p, nucleus sampling (arXiv 1904.09751, section 3.1): the fewest best tokens whose
//! probabilities reach `p`. A token stays while the tokens before it hold less than `p`.

use std::cmp::Ordering;

use super::{Candidate, Warp, best_logit};

/// Keeps the nucleus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopP {
    /// Probability to reach, above 0 and below 1.
    pub p: f32,
}

/// Best first; of equals, the lowest id first.
pub(super) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

impl Warp for TopP {
    fn warp(&self, kept: &mut Vec<Candidate>) {
        let best = best_logit(kept);
        let weight = |c: &Candidate| f64::from(c.logit - best).exp();
        let target = f64::from(self.p) * kept.iter().map(weight).sum::<f64>();
        // The nucleus is small next to the vocabulary: sort the best few hundred, then more.
        let (mut sorted, mut before, mut want) = (0, 0.0, 256);
        while sorted < kept.len() {
            let end = (sorted + want).min(kept.len());
            if end < kept.len() {
                kept[sorted..].select_nth_unstable_by(want - 1, best_first);
            }
            kept[sorted..end].sort_unstable_by(best_first);
            for (rank, candidate) in kept[sorted..end].iter().enumerate() {
                if before >= target && sorted + rank > 0 {
                    kept.truncate(sorted + rank);
                    break;
                }
                before += weight(candidate);
            }
            (sorted, want) = (end, want * 4);
        }
        kept.sort_unstable_by_key(|candidate| candidate.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{ids, some_candidates};

    /// Drop the worst while what is dropped, itself included, stays within `1 − p`.
    fn twin(all: &[Candidate], p: f64) -> Vec<u32> {
        let mut ascending = all.to_vec();
        ascending.sort_by(|a, b| a.logit.total_cmp(&b.logit).then(b.id.cmp(&a.id)));
        let z: f64 = all.iter().map(|c| f64::from(c.logit).exp()).sum();
        let mut tail = 0.0;
        let mut stay: Vec<u32> = Vec::new();
        for (i, candidate) in ascending.iter().enumerate() {
            tail += f64::from(candidate.logit).exp() / z;
            if tail > 1.0 - p || i + 1 == ascending.len() {
                stay.push(candidate.id);
            }
        }
        stay.sort_unstable();
        stay
    }

    #[test]
    fn equals_the_twin_that_drops_the_tail() {
        for (seed, n, p) in [
            (1, 10, 0.5),
            (2, 40, 0.9),
            (3, 40, 0.01),
            (4, 3000, 0.95),
            (5, 3000, 0.6),
            (6, 1, 0.3),
        ] {
            let all = some_candidates(n, seed);
            let mut kept = all.clone();
            TopP { p }.warp(&mut kept);
            assert_eq!(ids(&kept), twin(&all, f64::from(p)), "seed {seed} p {p}");
        }
    }
}
