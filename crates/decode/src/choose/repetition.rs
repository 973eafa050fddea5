//! Repetition penalty (CTRL, arXiv 1909.05858, section 4.1): for every token of prompt and answer,
//! `logit ← logit / penalty` where it is positive and `logit · penalty` where it is negative.

use crate::SoFar;

/// Makes tokens that were already seen less probable; each counts once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// Above 1 discourages, below 1 encourages.
    pub penalty: f32,
}

impl Repetition {
    /// Edits `logits_v` in place.
    pub fn penalise(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let mut seen: Vec<u32> = [so_far.prompt, so_far.tokens].concat();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits_v.get_mut(id as usize) {
                let negative = *logit < 0.0;
                *logit = if negative { *logit * self.penalty } else { *logit / self.penalty };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seen_tokens_move_away_from_the_top_once() {
        let mut logits = [2.0, -2.0, 4.0, -4.0, 0.0];
        let so_far = SoFar { prompt: &[0, 0, 9], tokens: &[1, 0] };
        Repetition { penalty: 2.0 }.penalise(&so_far, &mut logits);
        assert_eq!(logits, [1.0, -4.0, 4.0, -4.0, 0.0]);
    }
}
