//! Min-p (arXiv 2407.01082): tokens with at least `p` times the best token's probability.

use super::{Candidate, Warp, best_logit};

/// Keeps what is not hopeless next to the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinP {
    /// The smallest probability, relative to the best token's.
    pub p: f32,
}

impl Warp for MinP {
    fn warp(&self, kept: &mut Vec<Candidate>) {
        let (best, p) = (best_logit(kept), f64::from(self.p));
        kept.retain(|c| f64::from(c.logit - best).exp() >= p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{ids, some_candidates};

    #[test]
    fn equals_the_twin_on_full_probabilities() {
        for (seed, p) in [(1, 0.05f32), (2, 0.3), (3, 0.99), (4, 1.0)] {
            let all = some_candidates(50, seed);
            let mut kept = all.clone();
            MinP { p }.warp(&mut kept);
            let z: f64 = all.iter().map(|c| f64::from(c.logit).exp()).sum();
            let probs: Vec<f64> = all.iter().map(|c| f64::from(c.logit).exp() / z).collect();
            let top = probs.iter().copied().fold(0.0, f64::max);
            let stays = |q: &f64| *q >= f64::from(p) * top;
            let twin: Vec<u32> =
                all.iter().zip(&probs).filter(|(_, q)| stays(q)).map(|(c, _)| c.id).collect();
            assert_eq!(ids(&kept), twin, "seed {seed}");
        }
    }
}
