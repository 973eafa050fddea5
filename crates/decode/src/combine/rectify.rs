//! Rectified probabilities (Transformer Copilot, Zou et al. 2025, paper 40).
//!
//! `p̃ = p̂ + λ f`: a pilot's probabilities, moved by what a copilot expects their errors to be; numbers
//! below 0 count as 0, and the rest is made to sum to 1. Logits in and out: `ln p̃`. The first source
//! gives the pilot's logits, the second `f` where others give logits, for it lies on the scale of
//! probabilities. A recipe gives a source its copilot, `[decode.sources.NAME.copilot]`, and so has both
//! in one. **Departures**: where everything would be 0 the pilot alone speaks.

use luthier_core::{Error, Result};

use super::{Combine, expect_sources, log_z};

/// A probability that is 0 has this one's logarithm, as the paper has it for beams.
const LEAST: f64 = 1e-12;

/// A pilot and its copilot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rectify {
    /// How much of the correction; 0 is the pilot.
    pub lambda: f64,
}

impl Default for Rectify {
    fn default() -> Self {
        // Safe where nobody has chosen it on held-out data.
        Rectify { lambda: 0.3 }
    }
}

impl Rectify {
    /// The pilot's probabilities, moved.
    pub fn moved(&self, pilot_v: &[f64], f_v: &[f32]) -> Vec<f64> {
        let moved =
            pilot_v.iter().zip(f_v).map(|(p, f)| (p + self.lambda * f64::from(*f)).max(0.0));
        let moved: Vec<f64> = moved.collect();
        let sum: f64 = moved.iter().sum();
        match sum > 0.0 {
            true => moved.iter().map(|p| p / sum).collect(),
            false => pilot_v.to_vec(),
        }
    }
}

impl Combine for Rectify {
    fn check(&self, n_sources: usize) -> Result<()> {
        if !self.lambda.is_finite() {
            let what = format!("expected a finite number, got {}", self.lambda);
            return Err(Error::input("rectify.lambda", what));
        }
        expect_sources("rectify", 2, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let [pilot_v, f_v] = logits_sv else { unreachable!("two were checked for") };
        if self.lambda == 0.0 {
            out_v.copy_from_slice(pilot_v);
            return;
        }
        let z = log_z(pilot_v);
        let pilot_v: Vec<f64> = pilot_v.iter().map(|x| (f64::from(*x) - z).exp()).collect();
        let moved = self.moved(&pilot_v, f_v);
        out_v.iter_mut().zip(moved).for_each(|(out, p)| *out = p.max(LEAST).ln() as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined(lambda: f64, logits_v: &[f32], f_v: &[f32]) -> Vec<f64> {
        let rule = Rectify { lambda };
        rule.check(2).unwrap();
        let mut out = vec![0.0; logits_v.len()];
        rule.combine(&[logits_v, f_v], &mut out);
        out.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn the_papers_numbers() {
        let l = [0.75f32, -0.25, -0.25, -0.25];
        let got = combined(0.5, &[0.0; 4], &l);
        for (got, want) in got.iter().zip([0.625f64, 0.125, 0.125, 0.125]) {
            assert!((got.exp() - want).abs() < 1e-6, "{got}");
        }
        // A copilot that knows the errors gives the answer.
        let sure = combined(1.0, &[0.0; 4], &l);
        assert!((sure[0].exp() - 1.0).abs() < 1e-6 && sure[1].exp() < 1e-6);
        let same = combined(0.0, &[0.1, 0.7, -2.0, 0.3], &l);
        assert_eq!(same, [0.1f32, 0.7, -2.0, 0.3].map(f64::from));
    }

    #[test]
    fn what_goes_below_nothing_is_nothing_and_the_rest_sums_to_one() {
        let got = combined(1.0, &[0.0, 0.0], &[0.3, -0.9]);
        assert!((got[0].exp() - 1.0).abs() < 1e-6 && got[1].exp() < 1e-11, "{got:?}");
        assert_eq!(Rectify { lambda: 1.0 }.moved(&[0.5, 0.5], &[-1.0, -1.0]), [0.5, 0.5]);
        assert!(Rectify { lambda: f64::NAN }.check(2).is_err());
        assert!(Rectify::default().check(1).is_err());
    }
}
