//! The two-stage search of one number (FIRST, paper 36): 0.1, 0.2, … 1.0, then steps of 0.02 as far as
//! 0.1 around the best.

use luthier_core::Result;
use serde::Serialize;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The number with the smallest error; of equals the first that was tried.
    pub value: f64,
    /// Its error.
    pub error: f64,
    /// Every number that was tried, in order, and its error.
    pub tried: Vec<(f64, f64)>,
}

/// Tries numbers above 0, up to 1.
pub fn two_stage(mut error: impl FnMut(f64) -> Result<f64>) -> Result<Fit> {
    // In hundredths, so that both stages meet the same numbers.
    let mut tried: Vec<(u32, f64)> = Vec::new();
    let mut attempt = |hundredths: u32, tried: &mut Vec<(u32, f64)>| -> Result<()> {
        if tried.iter().all(|(known, _)| *known != hundredths) {
            tried.push((hundredths, error(f64::from(hundredths) / 100.0)?));
        }
        Ok(())
    };
    let best = |tried: &[(u32, f64)]| {
        let least = |best: (u32, f64), one: &(u32, f64)| if one.1 < best.1 { *one } else { best };
        tried.iter().fold((0, f64::INFINITY), least)
    };
    for tenths in 1..=10 {
        attempt(tenths * 10, &mut tried)?;
    }
    let (around, _) = best(&tried);
    for step in 0..=10 {
        let hundredths = (around + 2 * step).saturating_sub(10);
        if (1..=100).contains(&hundredths) {
            attempt(hundredths, &mut tried)?;
        }
    }
    let (value, error) = best(&tried);
    let number = |hundredths: u32| f64::from(hundredths) / 100.0;
    let tried = tried.into_iter().map(|(c, error)| (number(c), error)).collect();
    Ok(Fit { value: number(value), error, tried })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_refined_around_its_best() {
        let fit = two_stage(|c| Ok((c - 0.37f64).abs())).unwrap();
        assert!((fit.value - 0.36).abs() < 1e-12 || (fit.value - 0.38).abs() < 1e-12, "{fit:?}");
        // Of the eleven around 0.4 three were known.
        assert_eq!(fit.tried.len(), 10 + 8);
        assert!((fit.tried[0].0, fit.tried[9].0) == (0.1, 1.0) && fit.error < 0.0101);
        let small = two_stage(Ok).unwrap();
        assert_eq!(small.value, 0.02);
        let large = two_stage(|c| Ok(-c)).unwrap();
        assert_eq!((large.value, large.tried.iter().all(|(c, _)| *c <= 1.0)), (1.0, true));
    }
}
