//! Mirostat 2.0 (Basu et al. 2021, arXiv 2007.14966, algorithm 2): keeps the surprise of an answer's
//! tokens around a target, as llama.cpp does.
//!
//! Tokens with `−log2 p > mu` are dropped (the best stays), one of the others is drawn, and
//! `mu ← mu − eta · (−log2 p' − tau)` with its probability `p'` among the kept; `mu` begins at `2 tau`.
//! **Departures**: none from llama.cpp's second version.

use super::{Candidate, best_logit, draw, top_p::best_first};

/// Feedback on surprise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// The surprise aimed at, in bits.
    pub tau: f32,
    /// How fast the limit follows.
    pub eta: f32,
}

impl Mirostat {
    /// Leaves those whose surprise is at most `mu`, in the order of their ids.
    fn keep(kept: &mut Vec<Candidate>, mu: f32) {
        kept.sort_unstable_by(best_first);
        let best = best_logit(kept);
        let weight = |c: &Candidate| f64::from(c.logit - best).exp();
        let z: f64 = kept.iter().map(weight).sum();
        let n = kept.iter().take_while(|c| -(weight(c) / z).log2() <= f64::from(mu)).count();
        kept.truncate(n.max(1));
        kept.sort_unstable_by_key(|candidate| candidate.id);
    }

    /// Draws at quantile `u` and moves `mu`.
    pub fn draw(&self, mut kept: Vec<Candidate>, u: f64, mu: &mut f32) -> u32 {
        Mirostat::keep(&mut kept, *mu);
        let best = best_logit(&kept);
        let weight = |c: &Candidate| f64::from(c.logit - best).exp();
        let token = draw(&kept, u);
        let z: f64 = kept.iter().map(weight).sum();
        let drawn = kept.iter().find(|c| c.id == token).map_or(1.0, |c| weight(c) / z);
        *mu -= self.eta * (-drawn.log2() as f32 - self.tau);
        token
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;
    use crate::choose::tests::some_candidates;

    #[test]
    fn a_step_by_hand() {
        // Probabilities 1/2, 1/4, 1/8, 1/8: surprises of 1, 2, 3, 3 bits.
        let kept: Vec<Candidate> = ([0.5f32, 0.25, 0.125, 0.125].iter().zip(0u32..))
            .map(|(p, id)| Candidate { id, logit: p.ln() })
            .collect();
        let rule = Mirostat { tau: 1.0, eta: 0.5 };
        let mut mu = 2.0f32 + 1e-4;
        // Two stay, at 2/3 and 1/3; the second has a surprise of log2 3.
        assert_eq!(rule.draw(kept.clone(), 0.9, &mut mu), 1);
        assert!((mu - (2.0 - 0.5 * (3f32.log2() - 1.0))).abs() < 1e-3, "{mu}");
        // Below the best token's own surprise it stays alone, and the limit rises.
        let mut mu = 0.1;
        assert_eq!(rule.draw(kept, 0.9, &mut mu), 0);
        assert!((mu - 0.6).abs() < 1e-6, "{mu}");
    }

    /// tests/golden/make_llamacpp.py: the same tokens are kept, step after step, while the same are drawn.
    #[test]
    fn steps_are_those_of_llama_cpp() {
        let golden = include_str!("../../../../tests/golden/llamacpp.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
        let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
        let mut sizes = std::collections::BTreeSet::new();
        for run in list(&golden["mirostat"]) {
            let rule = Mirostat { tau: number(&run["tau"]), eta: number(&run["eta"]) };
            let mut mu = 2.0 * rule.tau;
            for step in list(&run["steps"]) {
                let all: Vec<Candidate> = list(&step["logits"])
                    .iter()
                    .zip(0u32..)
                    .map(|(logit, id)| Candidate { id, logit: number(logit) })
                    .collect();
                let mut kept = all.clone();
                Mirostat::keep(&mut kept, mu);
                let mut theirs: Vec<(u64, f32)> = list(&step["kept"])
                    .iter()
                    .zip(list(&step["p"]))
                    .map(|(id, p)| (id.as_u64().unwrap(), number(&p)))
                    .collect();
                theirs.sort_unstable_by_key(|(id, _)| *id);
                let z: f32 = kept.iter().map(|c| c.logit.exp()).sum();
                // The quantile in the middle of the token that they drew.
                let (mut below, mut u) = (0.0, None);
                assert_eq!(kept.len(), theirs.len());
                for (candidate, (id, p)) in kept.iter().zip(&theirs) {
                    assert_eq!(u64::from(candidate.id), *id);
                    assert!((candidate.logit.exp() / z - p).abs() < 1e-5, "{id}: {p}");
                    if step["token"] == *id {
                        u = Some(below + f64::from(*p) / 2.0);
                    }
                    below += f64::from(*p);
                }
                sizes.insert(kept.len());
                let token = rule.draw(all, u.unwrap(), &mut mu);
                assert_eq!(step["token"], token);
            }
        }
        assert!(sizes.len() > 10, "{sizes:?}");
    }

    #[test]
    fn the_mean_surprise_comes_to_the_target() {
        for tau in [1.0f32, 3.0] {
            let rule = Mirostat { tau, eta: 0.1 };
            let (mut mu, mut rng, mut sum) = (2.0 * tau, Seed(1).rng(), 0.0);
            let n = 3000;
            for i in 0..n {
                let before = mu;
                rule.draw(some_candidates(300, i % 40), rng.uniform(), &mut mu);
                sum += (before - mu) / rule.eta + tau;
            }
            let mean = sum / n as f32;
            assert!((mean - tau).abs() < 0.1, "{tau} {mean}");
        }
    }
}
