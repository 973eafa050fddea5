//! Percentile bootstrap (Efron 1979): draw as many outcomes as there are, with replacement, many
//! times, and take the 2.5 % and 97.5 % quantiles of what comes out.

use luthier_core::{Error, Result, Seed};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Seeded resampling; resample `r` has its own generator, so threads change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// How often to draw.
    pub resamples: usize,
    /// Where the randomness comes from.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { resamples: 10_000, seed: 0 }
    }
}

/// The quantile `q` of sorted values, linear between neighbours (numpy's default).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

impl Bootstrap {
    /// 95 % interval of the mean.
    pub fn mean(&self, values: &[f64]) -> Result<[f64; 2]> {
        let n = values.len() as f64;
        let means =
            self.resample(values.len(), |draws| draws.map(|i| values[i]).sum::<f64>() / n)?;
        Ok(interval(means))
    }

    /// 95 % interval of `Σ numerators / Σ denominators`, drawing pairs.
    pub fn ratio(&self, numerators: &[f64], denominators: &[f64]) -> Result<[f64; 2]> {
        assert_eq!(numerators.len(), denominators.len(), "one denominator per numerator");
        let ratios = self.resample(numerators.len(), |draws| {
            let add = |(a, b), i: usize| (a + numerators[i], b + denominators[i]);
            let (above, below) = draws.fold((0.0, 0.0), add);
            above / below
        })?;
        Ok(interval(ratios))
    }

    /// 95 % interval of any number that is made of drawn outcomes, which are named by their place.
    pub fn interval(
        &self,
        n: usize,
        statistic: impl Fn(&mut dyn Iterator<Item = usize>) -> f64 + Sync,
    ) -> Result<[f64; 2]> {
        Ok(interval(self.resample(n, statistic)?))
    }

    /// Mean of `after − before`, its 95 % interval, and the two-sided p-value of "no difference":
    /// twice the share of resamples on the other side of 0.
    pub fn paired(&self, before: &[f64], after: &[f64]) -> Result<(f64, [f64; 2], f64)> {
        assert_eq!(before.len(), after.len(), "one pair per example");
        let gains: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
        let n = gains.len() as f64;
        let means = self.resample(gains.len(), |draws| draws.map(|i| gains[i]).sum::<f64>() / n)?;
        let count = |side: fn(&f64) -> bool| means.iter().filter(|m| side(m)).count();
        let rarer = count(|m| *m <= 0.0).min(count(|m| *m >= 0.0));
        // The data itself counts as one resample: no finite number of draws shows p = 0.
        let p = (2.0 * (rarer + 1) as f64 / (self.resamples + 1) as f64).min(1.0);
        Ok((gains.iter().sum::<f64>() / n, interval(means), p))
    }

    fn resample(
        &self,
        n: usize,
        statistic: impl Fn(&mut dyn Iterator<Item = usize>) -> f64 + Sync,
    ) -> Result<Vec<f64>> {
        if n == 0 {
            return Err(Error::input("data", "nothing was measured: there is no example")
                .hint("the file or the filter left nothing"));
        }
        if self.resamples == 0 {
            return Err(Error::input("bootstrap.resamples", "expected at least 1, got 0"));
        }
        let seed = Seed(self.seed).split("bootstrap");
        let draw = |r: usize| {
            let mut rng = seed.at(r as u64).rng();
            statistic(&mut (0..n).map(|_| rng.below(n)))
        };
        let mut values: Vec<f64> = (0..self.resamples).into_par_iter().map(draw).collect();
        values.sort_unstable_by(f64::total_cmp);
        Ok(values)
    }
}

fn interval(sorted: Vec<f64>) -> [f64; 2] {
    [quantile(&sorted, 0.025), quantile(&sorted, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Intervals from scipy 1.17.1, `scipy.stats.bootstrap(…, method="percentile",
    // n_resamples=1_000_000, rng=numpy.random.default_rng(0))` on these columns.
    const X: [f64; 12] = [0.2, 1.5, 3.1, 0.7, 2.2, 9.0, 0.1, 1.1, 4.4, 2.8, 0.9, 1.7];
    const W: [f64; 12] = [3.0, 10.0, 7.0, 2.0, 8.0, 20.0, 1.0, 5.0, 9.0, 6.0, 4.0, 7.0];
    const Y: [f64; 12] = [0.5, 1.0, 3.5, 1.7, 2.0, 7.0, 0.9, 1.9, 4.9, 3.8, 0.4, 2.7];

    fn close(got: [f64; 2], want: [f64; 2], within: f64) {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < within, "{got:?} {want:?}");
        }
    }

    #[test]
    fn intervals_equal_scipys_within_the_noise_of_resampling() {
        let many = Bootstrap { resamples: 200_000, seed: 1 };
        close(many.mean(&X).unwrap(), [1.175, 3.7917], 0.012);
        close(many.ratio(&X, &W).unwrap(), [0.23594, 0.41119], 0.002);
        let (difference, ci95, p) = many.paired(&X, &Y).unwrap();
        assert!((difference - 0.216_666_666_666_7).abs() < 1e-12);
        close(ci95, [-0.30833, 0.65], 0.005);
        assert!((p - 0.38117).abs() < 0.006, "{p}");
    }

    #[test]
    fn quantiles_equal_numpys() {
        // numpy.percentile([15, 20, 35, 40, 50], [2.5, 40, 97.5])
        let sorted = [15.0, 20.0, 35.0, 40.0, 50.0];
        assert_eq!([0.025, 0.4, 0.975].map(|q| quantile(&sorted, q)), [15.5, 29.0, 49.0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let four = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let run = || Bootstrap::default().mean(&X).unwrap().map(f64::to_bits);
        assert_eq!(one.install(run), four.install(run));
        let other = Bootstrap { seed: 9, ..Bootstrap::default() }.mean(&X).unwrap();
        assert_ne!(run(), other.map(f64::to_bits));
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert_eq!(Bootstrap::default().mean(&[]).unwrap_err().exit_code(), 2);
    }
}
