//! Top-k: tokens at least as probable as the k-th best. Equals of the k-th stay.

use super::{Candidate, Warp};

/// Keeps the `k` best candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// How many, at least 1.
    pub k: usize,
}

impl Warp for TopK {
    fn warp(&self, kept: &mut Vec<Candidate>) {
        if self.k < kept.len() {
            let mut logits: Vec<f32> = kept.iter().map(|c| c.logit).collect();
            let (_, kth, _) = logits.select_nth_unstable_by(self.k - 1, |a, b| b.total_cmp(a));
            let kth = *kth;
            kept.retain(|candidate| candidate.logit >= kth);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{ids, some_candidates};

    #[test]
    fn equals_the_twin_that_counts_better_tokens() {
        for (seed, k) in [(1, 1), (2, 3), (3, 10), (4, 39), (5, 40), (6, 100)] {
            let all = some_candidates(40, seed);
            let mut kept = all.clone();
            TopK { k }.warp(&mut kept);
            let better = |c: &Candidate| all.iter().filter(|o| o.logit > c.logit).count();
            let twin: Vec<Candidate> = all.iter().filter(|c| better(c) < k).copied().collect();
            assert_eq!(ids(&kept), ids(&twin), "seed {seed} k {k}");
        }
    }
}
