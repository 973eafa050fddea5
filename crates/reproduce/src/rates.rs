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

/// The rate of every arm, found where an arm is run for the first time.
#[derive(Default)]
pub struct Chosen(Vec<(&'static str, &'static str)>);

impl Chosen {
    /// A run at the rate of `arm`: the first time at all `rates`, of which the best is its own from then on.
    pub fn run<T>(
        &mut self,
        arm: &'static str,
        rates: &[&'static str],
        goodness: impl Fn(&T) -> f64,
        mut run: impl FnMut(&'static str) -> Result<T>,
    ) -> Result<T> {
        if let Some((_, rate)) = self.0.iter().find(|(of, _)| *of == arm) {
            return run(rate);
        }
        let (rate, best) = best(rates, goodness, run)?;
        self.0.push((arm, rate));
        Ok(best)
    }

    /// For a note, in the order they were found.
    pub fn note(&self) -> String {
        let at: Vec<String> = self.0.iter().map(|(arm, rate)| format!("{arm} {rate}")).collect();
        format!("rates: {}", at.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_keeps_the_rate_that_was_best_the_first_time() {
        let mut chosen = Chosen::default();
        let mut run = |arm, good: [f64; 2]| {
            let mut tried = Vec::new();
            let of = |rate| {
                tried.push(rate);
                Ok((rate, good[usize::from(rate == "1e-3")]))
            };
            let (rate, _) = chosen.run(arm, &["1e-4", "1e-3"], |run| run.1, of).unwrap();
            (rate, tried.len())
        };
        assert_eq!(run("a", [0.1, 0.2]), ("1e-3", 2));
        assert_eq!(run("b", [0.2, 0.1]), ("1e-4", 2));
        assert_eq!(run("a", [0.2, 0.1]), ("1e-3", 1));
        assert_eq!(chosen.note(), "rates: a 1e-3, b 1e-4");
    }

    #[test]
    fn the_first_of_the_best_is_taken() {
        let good = |x: &f64| *x;
        let of = |rate: &str| Ok(if rate == "1e-4" { 0.1 } else { 0.7 });
        assert_eq!(best(&["1e-4", "3e-4", "1e-3"], good, of).unwrap(), ("3e-4", 0.7));
        assert_eq!(best(&["1e-4"], good, of).unwrap(), ("1e-4", 0.1));
    }
}
