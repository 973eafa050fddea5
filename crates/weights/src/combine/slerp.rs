//! Spherical linear interpolation (Shoemake 1985) between the base, at `t = 0`, and the other input.
//!
//! `(sin((1 − t) · θ) · a + sin(t · θ) · b) / sin θ`, θ the angle between the whole tensors; where
//! `|cos θ| > 0.9995`, and where a tensor is (nearly) zero, the straight line. **Departures**: none.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Put, Work, add, dot},
};

/// Beyond this cosine the straight line and the arc are the same to a few digits, and the arc's
/// formula divides small numbers; mergekit's threshold.
const STRAIGHT: f64 = 0.9995;

/// A tensor shorter than this has no direction; mergekit's threshold.
const NO_LENGTH: f64 = 1e-8;

/// `merge_method: slerp`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slerp {
    /// How far to go from the base.
    pub t: f64,
}

impl Slerp {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(Slerp { t: given.number("t") }))
    }

    fn weights(&self, (aa, ab, bb): (f64, f64, f64)) -> (f64, f64) {
        let length = |square: f64| Some(square.sqrt()).filter(|n| *n > NO_LENGTH).unwrap_or(1.0);
        let cosine = (ab / (length(aa) * length(bb))).clamp(-1.0, 1.0);
        arc(self.t, cosine, cosine.abs() > STRAIGHT)
    }
}

/// The weights of both ends.
pub(super) fn arc(t: f64, cosine: f64, straight: bool) -> (f64, f64) {
    if straight {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}

impl Combine for Slerp {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let dots = work.gather(Cut::Anywhere, As::Values, |_, loaded| {
            let (a, b) = (&loaded.base, &loaded.others[0]);
            Ok((dot(a, a), dot(a, b), dot(b, b)))
        })?;
        let dots = dots.into_iter().fold((0.0, 0.0, 0.0), |s, d| (s.0 + d.0, s.1 + d.1, s.2 + d.2));
        let (of_base, of_other) = self.weights(dots);
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            add(&mut loaded.out, of_base as f32, &loaded.base);
            add(&mut loaded.out, of_other as f32, &loaded.others[0]);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arc_keeps_length_and_halves_the_angle() {
        let slerp = Slerp { t: 0.5 };
        let (a, b) = slerp.weights((4.0, 0.0, 4.0));
        assert!((a - b).abs() < 1e-15 && (a - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(slerp.weights((1.0, 0.9999, 1.0)), (0.5, 0.5));
        assert_eq!(slerp.weights((0.0, 0.0, 1.0)).0, slerp.weights((0.0, 0.0, 1.0)).1);
    }
}
