//! Frequency and presence penalty, as in OpenAI's HTTP interface:
//! `logit ← logit − count · per_count − [count > 0] · once`, counting the answer only.

use crate::SoFar;

/// Makes tokens of the answer less probable, by count or once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frequency {
    /// Subtracted for each occurrence.
    pub per_count: f32,
    /// Subtracted once.
    pub once: f32,
}

impl Frequency {
    /// Edits `logits_v` in place.
    pub fn penalise(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let mut tokens = so_far.tokens.to_vec();
        tokens.sort_unstable();
        for same in tokens.chunk_by(|a, b| a == b) {
            if let Some(logit) = logits_v.get_mut(same[0] as usize) {
                *logit -= same.len() as f32 * self.per_count + self.once;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_from_the_answer_alone() {
        let mut logits = [1.0, 1.0, 1.0];
        let so_far = SoFar { prompt: &[0, 0], tokens: &[2, 1, 2] };
        Frequency { per_count: 0.5, once: 0.25 }.penalise(&so_far, &mut logits);
        assert_eq!(logits, [1.0, 0.25, -0.25]);
    }
}
