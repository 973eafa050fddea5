//! Which learning rate an arm takes.

use luthier_core::Result;

/// The rate whose run is best by `goodness`, and that run; of equals the first.
pub fn best<T>(
    rates: &[&'static str],
    goodness: impl Fn(&T) -> f64,
    mut run: impl FnMut(&'static str) -> Result<T>,
) -> Result<(&'static str, T)> {
    let mut best = (rates[0], run(rates[0])?);
    for rate in &rates[1..] {
        let next = run(rate)?;
        if goodness(&next) > goodness(&best.1) {
            best = (rate, next);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_best_is_taken() {
        let good = |x: &f64| *x;
        let of = |rate: &str| Ok(if rate == "1e-4" { 0.1 } else { 0.7 });
        assert_eq!(best(&["1e-4", "3e-4", "1e-3"], good, of).unwrap(), ("3e-4", 0.7));
        assert_eq!(best(&["1e-4"], good, of).unwrap(), ("1e-4", 0.1));
    }
}
