//! Divergences between a teacher's probabilities `r` and a student's `p`, one outcome at a time.
//!
//! | name | over outcomes, the sum of | |
//! |---|---|---|
//! | `forward_kl` | `r (log r − log p)` | covers all that the teacher does |
//! | `reverse_kl` | `p (log p − log r)` | keeps to what the teacher does most |
//! | `js` | `β r (log r − log m) + (1 − β) p (log p − log m)`, `m = (1 − β) p + β r` | TRL's generalised one; β = 0 is `forward_kl` and β = 1 `reverse_kl`, as there |
//! | `skew_kl` | `r (log r − log m)`, `m = α r + (1 − α) p` | DistiLLM |
//! | `skew_reverse_kl` | `p (log p − log m)`, `m = (1 − α) r + α p` | DistiLLM |

use serde::{Deserialize, Serialize};

/// Which divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// `KL(teacher ‖ student)`.
    #[default]
    ForwardKl,
    /// `KL(student ‖ teacher)`.
    ReverseKl,
    /// Generalised Jensen–Shannon, by `beta`.
    Js,
    /// `KL(teacher ‖ mixture)`, by `alpha`.
    SkewKl,
    /// `KL(student ‖ mixture)`, by `alpha`.
    SkewReverseKl,
}

/// A divergence with its number: what an outcome adds, and how that changes with `p`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measure {
    Forward,
    Reverse,
    /// The teacher's share of the mixture, and of the sum.
    Js(f32),
    /// The share of the first distribution in the mixture.
    Skew(f32),
    SkewReverse(f32),
}

impl Divergence {
    pub(super) fn measure(self, beta: f64, alpha: f64) -> Measure {
        match self {
            Divergence::ForwardKl => Measure::Forward,
            Divergence::ReverseKl => Measure::Reverse,
            Divergence::Js if beta == 0.0 => Measure::Forward,
            Divergence::Js if beta == 1.0 => Measure::Reverse,
            Divergence::Js => Measure::Js(beta as f32),
            Divergence::SkewKl => Measure::Skew(alpha as f32),
            Divergence::SkewReverseKl => Measure::SkewReverse(alpha as f32),
        }
    }
}

impl Measure {
    /// What an outcome adds, and its derivative by the student's probability times that probability.
    /// Logarithms are given besides, since a probability may have become 0 by rounding.
    #[inline(always)]
    pub(super) fn point(self, p: f32, r: f32, log_p: f32, log_r: f32) -> (f32, f32) {
        match self {
            Measure::Forward => match r > 0.0 {
                true => (r * (log_r - log_p), -r),
                false => (0.0, 0.0),
            },
            Measure::Reverse => match p > 0.0 {
                true => (p * (log_p - log_r), p * (log_p - log_r + 1.0)),
                false => (0.0, 0.0),
            },
            Measure::Js(beta) => {
                let (own, mine) = (1.0 - beta, beta);
                let log_m = (own * p + mine * r).ln();
                let of_teacher = if r > 0.0 { mine * r * (log_r - log_m) } else { 0.0 };
                let of_student = if p > 0.0 { own * p * (log_p - log_m) } else { 0.0 };
                // The rest of the derivative is `own · (1 − m / m)`.
                (of_teacher + of_student, of_student)
            }
            Measure::Skew(alpha) => {
                let m = alpha * r + (1.0 - alpha) * p;
                match r > 0.0 {
                    true => (r * (log_r - m.ln()), -(1.0 - alpha) * p * (r / m)),
                    false => (0.0, 0.0),
                }
            }
            Measure::SkewReverse(alpha) => {
                let m = (1.0 - alpha) * r + alpha * p;
                match p > 0.0 {
                    true => {
                        let apart = p * (log_p - m.ln());
                        (apart, apart + p * (1.0 - alpha * p / m))
                    }
                    false => (0.0, 0.0),
                }
            }
        }
    }

    /// Between two distributions over few outcomes, with the derivative by each of `p`.
    pub(super) fn between(self, p: &[f64], r: &[f64]) -> (f64, Vec<f64>) {
        let mut apart = 0.0;
        let mut slopes = Vec::with_capacity(p.len());
        for (p, r) in p.iter().zip(r) {
            let (p, r) = (*p, *r);
            let (f, slope) = self.exact(p, r);
            apart += f;
            slopes.push(slope);
        }
        (apart, slopes)
    }

    /// [`Measure::point`] in f64, with the derivative itself.
    fn exact(self, p: f64, r: f64) -> (f64, f64) {
        let times = |by: f64, of: f64| if by > 0.0 { by * of.ln() } else { 0.0 };
        match self {
            Measure::Forward if r > 0.0 => (r * (r / p).ln(), -r / p),
            Measure::Forward => (0.0, 0.0),
            Measure::Reverse => (times(p, p / r), (p / r).ln() + 1.0),
            Measure::Js(beta) => {
                let (mine, own) = (f64::from(beta), 1.0 - f64::from(beta));
                let m = own * p + mine * r;
                (mine * times(r, r / m) + own * times(p, p / m), own * (p / m).ln())
            }
            Measure::Skew(alpha) => {
                let alpha = f64::from(alpha);
                let m = alpha * r + (1.0 - alpha) * p;
                (times(r, r / m), if r > 0.0 { -(1.0 - alpha) * r / m } else { 0.0 })
            }
            Measure::SkewReverse(alpha) => {
                let alpha = f64::from(alpha);
                let m = (1.0 - alpha) * r + alpha * p;
                (times(p, p / m), (p / m).ln() + 1.0 - alpha * p / m)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Measure; 5] = [
        Measure::Forward,
        Measure::Reverse,
        Measure::Js(0.3),
        Measure::Skew(0.1),
        Measure::SkewReverse(0.2),
    ];

    #[test]
    fn slopes_are_those_of_finite_differences_and_both_forms_agree() {
        let (p, r) = ([0.5, 0.3, 0.15, 0.05], [0.2, 0.2, 0.59, 0.01]);
        for measure in ALL {
            let (apart, slopes) = measure.between(&p, &r);
            assert!(apart > 0.0 && measure.between(&r, &r).0.abs() < 1e-12, "{measure:?}");
            for i in 0..p.len() {
                let at = |by: f64| {
                    let mut moved = p;
                    moved[i] += by;
                    measure.between(&moved, &r).0
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((slope - slopes[i]).abs() < 1e-6, "{measure:?} {slope} {}", slopes[i]);
                let (pf, rf) = (p[i] as f32, r[i] as f32);
                let (f, by_p) = measure.point(pf, rf, pf.ln(), rf.ln());
                assert!((f64::from(f) - measure.exact(p[i], r[i]).0).abs() < 1e-6, "{measure:?}");
                assert!((f64::from(by_p) - p[i] * slopes[i]).abs() < 1e-6, "{measure:?}");
            }
        }
    }

    #[test]
    fn what_one_side_rules_out_is_no_number_gone_wrong() {
        for measure in ALL {
            let (f, slope) = measure.point(0.0, 0.0, -200.0, f32::NEG_INFINITY);
            assert_eq!((f, slope), (0.0, 0.0), "{measure:?}");
            assert!(measure.between(&[1.0, 0.0], &[1.0, 0.0]).0.abs() < 1e-12, "{measure:?}");
        }
        let (f, _) = Measure::Reverse.point(0.5, 0.0, 0.5f32.ln(), f32::NEG_INFINITY);
        assert_eq!(f, f32::INFINITY);
    }
}
