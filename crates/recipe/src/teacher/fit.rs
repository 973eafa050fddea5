//! `c`: the temperature under which a teacher's stored probabilities tell how often it is right.
//!
//! FIRST (Shum et al. 2024, paper 36): confidence is the first token's `q`, an answer is right where
//! that token is the one in the data, and `c` is the number of a two-stage grid with the smallest
//! expected calibration error. On data that the teacher learned from it is nearly always right, and no
//! correction would be found: the data must be held out.

use luthier_core::{Error, Result, Row};
use luthier_loss::term::distil::Calib;
use luthier_probe::calibration::{Calibration, Fit, two_stage};
use serde::Serialize;

use super::Spoken;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// Every `c` that was tried and its error.
    pub fit: Fit,
    /// The teacher as it is: its probability of its likeliest token.
    pub before: Calibration,
    /// With the `c` that was found.
    pub after: Calibration,
}

/// Finds `c` for what a teacher said of rows.
pub fn fit(calib: Calib, rows: &[Row], spoken: &[Spoken]) -> Result<Fitted> {
    if !matches!(calib, Calib::TempProb | Calib::TempLogit) {
        return Err(Error::input("--fit", "only temp_prob and temp_logit have a number to find"));
    }
    let mut answers: Vec<(Vec<f64>, bool)> = Vec::new();
    for (row, spoken) in rows.iter().zip(spoken) {
        let trained = row.targets.iter().zip(&row.weights).filter(|(_, w)| **w != 0.0);
        let k = spoken.told.k;
        let told = spoken.told.ids.chunks_exact(k).zip(spoken.told.logps.chunks_exact(k));
        for ((target, _), (ids, logps)) in trained.zip(told) {
            let p = logps.iter().map(|logp| f64::from(*logp).exp()).collect();
            answers.push((p, ids[0] == *target));
        }
    }
    let under = |calib: Calib, c: f64| {
        let judged = answers.iter().map(|(p, right)| {
            let mut q = p.clone();
            calib.apply(&mut q, c, 0.0);
            (q[0], *right)
        });
        Calibration::of(&judged.collect::<Vec<(f64, bool)>>())
    };
    let fit = two_stage(|c| Ok(under(calib, c)?.ece))?;
    let after = under(calib, fit.value)?;
    Ok(Fitted { before: under(Calib::None, 1.0)?, after, fit })
}

#[cfg(test)]
mod tests {
    use luthier_core::{Seed, batch::Told};

    use super::*;

    #[test]
    fn a_teacher_who_is_too_sure_is_made_less_so() {
        // Says 0.9 and is right in 6 of 10 cases: the best c gives 0.6.
        let mut rng = Seed(1).rng();
        let (mut rows, mut spoken) = (Vec::new(), Vec::new());
        for i in 0..2000 {
            let target = if i % 10 < 6 { 7 } else { 8 + rng.below(4) as u32 };
            rows.push(Row::from_tokens(&[1, target], &[0.0, 1.0], i));
            let told = Told {
                k: 5,
                ids: vec![7, 8, 9, 10, 11],
                logps: [0.9f32, 0.03, 0.03, 0.03, 0.01].map(f32::ln).to_vec(),
            };
            spoken.push(Spoken { told, targets: vec![0.0] });
        }
        let found = fit(Calib::TempProb, &rows, &spoken).unwrap();
        assert!((found.before.ece - 0.3).abs() < 1e-6, "{:?}", found.before);
        assert!(found.after.ece < 0.02, "{found:?}");
        let mut q = [0.9, 0.03, 0.03, 0.03, 0.01];
        Calib::TempProb.apply(&mut q, found.fit.value, 0.0);
        assert!((q[0] - 0.6).abs() < 0.02, "{q:?}");
        assert!(fit(Calib::None, &rows, &spoken).is_err());
    }
}
