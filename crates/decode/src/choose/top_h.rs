//! Top-H (Potraghloo et al. 2025, arXiv 2509.02510): the best tokens whose entropy stays within a share
//! of the whole entropy, with transformers' setting and meaning.
//!
//! Among the 100 best tokens, best first: a token stays while `Σ −p log p` up to and with it is at most
//! `h · Σ −p log p` over all 100; the best always stays. **Departures**: none from transformers, whose
//! sum runs over the probabilities of the 100, not of the kept as in the paper.

use super::{Candidate, Warp, best_logit, top_p::best_first};

/// transformers looks no further.
const MOST: usize = 100;

/// Keeps tokens up to a share of the entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopH {
    /// The share, above 0 and at most 1.
    pub h: f32,
}

impl Warp for TopH {
    fn warp(&self, kept: &mut Vec<Candidate>) {
        if kept.len() > MOST {
            kept.select_nth_unstable_by(MOST - 1, best_first);
            kept.truncate(MOST);
        }
        kept.sort_unstable_by(best_first);
        let best = best_logit(kept);
        let weight = |c: &Candidate| f64::from(c.logit - best).exp();
        let z: f64 = kept.iter().map(weight).sum();
        let entropy = |c: &Candidate| {
            let p = weight(c) / z;
            if p > 0.0 { -p * p.ln() } else { 0.0 }
        };
        let limit = f64::from(self.h) * kept.iter().map(entropy).sum::<f64>();
        let mut sum = 0.0;
        let stays = kept.iter().take_while(|c| {
            sum += entropy(c);
            sum <= limit
        });
        let n = stays.count().max(1);
        kept.truncate(n);
        kept.sort_unstable_by_key(|candidate| candidate.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{ids, some_candidates};

    #[test]
    fn equals_the_twin_on_full_probabilities() {
        for (seed, n, h) in
            [(1, 10, 0.5f32), (2, 90, 0.4), (3, 90, 0.9), (4, 400, 0.3), (5, 3, 0.1)]
        {
            let all = some_candidates(n, seed);
            let mut kept = all.clone();
            TopH { h }.warp(&mut kept);
            let mut best: Vec<Candidate> = all.clone();
            best.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
            best.truncate(100);
            let z: f64 = best.iter().map(|c| f64::from(c.logit).exp()).sum();
            let terms: Vec<f64> =
                (best.iter().map(|c| f64::from(c.logit).exp() / z)).map(|p| -p * p.ln()).collect();
            let whole: f64 = terms.iter().sum();
            let within = |i: usize| terms[..=i].iter().sum::<f64>() <= f64::from(h) * whole;
            let mut twin: Vec<u32> =
                (0..best.len()).filter(|i| *i == 0 || within(*i)).map(|i| best[i].id).collect();
            twin.sort_unstable();
            assert_eq!(ids(&kept), twin, "seed {seed}");
            assert!(kept.len() < all.len(), "seed {seed}");
        }
    }
}
