//! Means over seeds, and how sure they are.

use serde::{Serialize, Serializer};

/// A number measured over seeds with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    #[serde(serialize_with = "short")]
    pub mean: f64,
    /// How far it may be off by chance; one seed does not tell.
    #[serde(serialize_with = "short_or_none")]
    pub standard_error: Option<f64>,
}

/// The mean; not a number where there is nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of the population that `values` were drawn from (divisor n − 1).
pub fn deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let (mean, n) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    Some((squares / (n - 1.0)).sqrt())
}

impl Estimate {
    /// The mean of one value per seed; its error is the deviation over `√n`.
    pub fn of(values: &[f64]) -> Self {
        let error = deviation(values).map(|sd| sd / (values.len() as f64).sqrt());
        Estimate { mean: mean(values), standard_error: error }
    }

    /// The mean of `of − minus`, pair by pair: what both arms owe to a seed cancels.
    ///
    /// # Panics
    /// When there are not as many values of the one as of the other.
    pub fn difference(of: &[f64], minus: &[f64]) -> Self {
        assert_eq!(of.len(), minus.len(), "pairs of seeds");
        let pairs: Vec<f64> = of.iter().zip(minus).map(|(a, b)| a - b).collect();
        Estimate::of(&pairs)
    }

    /// The standard deviation over seeds, with the error `sd / √(2(n − 1))` that it has where the
    /// values are normal.
    pub fn spread(values: &[f64]) -> Self {
        let Some(sd) = deviation(values) else {
            return Estimate { mean: f64::NAN, standard_error: None };
        };
        let error = sd / (2.0 * (values.len() as f64 - 1.0)).sqrt();
        Estimate { mean: sd, standard_error: Some(error) }
    }

    /// The difference of two numbers that were measured apart from each other.
    pub fn minus(self, other: Estimate) -> Self {
        let both = self.standard_error.zip(other.standard_error);
        Estimate {
            mean: self.mean - other.mean,
            standard_error: both.map(|(a, b)| (a * a + b * b).sqrt()),
        }
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = digits(self.mean);
        write!(f, "{:.digits$}", self.mean)?;
        match self.standard_error {
            Some(error) => write!(f, " ± {error:.digits$}"),
            None => Ok(()),
        }
    }
}

/// Decimals that leave a large number short and a small one readable.
fn digits(x: f64) -> usize {
    match x.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    }
}

/// Four significant digits: more is noise, and a committed file should not change by noise.
fn rounded(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

/// Writes a number with four significant digits.
pub(crate) fn short<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(rounded(*x))
}

fn short_or_none<S: Serializer>(x: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    x.map(rounded).serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_deviation_and_errors_are_those_of_the_textbook() {
        // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, squares sum to 32.
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let of = Estimate::of(&values);
        assert_eq!(of.mean, 5.0);
        let sd = (32.0f64 / 7.0).sqrt();
        assert!((of.standard_error.unwrap() - sd / 8f64.sqrt()).abs() < 1e-12);
        let spread = Estimate::spread(&values);
        assert!((spread.mean - sd).abs() < 1e-12);
        assert!((spread.standard_error.unwrap() - sd / 14f64.sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::of(&[3.0]).standard_error, None);
        assert_eq!(deviation(&[3.0]), None);
    }

    #[test]
    fn pairs_cancel_what_a_seed_does_to_both() {
        let (a, b) = ([10.0, 20.0, 30.5], [9.0, 19.0, 29.0]);
        let paired = Estimate::difference(&a, &b);
        assert!((paired.mean - 3.5 / 3.0).abs() < 1e-12);
        // Differences 1, 1, 1.5: sd √(1/12), over √3.
        assert!((paired.standard_error.unwrap() - 1.0 / 6.0).abs() < 1e-12);
        let apart = Estimate::of(&a).minus(Estimate::of(&b));
        assert!((apart.mean - paired.mean).abs() < 1e-12);
        assert!(apart.standard_error.unwrap() > 5.0);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(rounded(0.123_456_7), 0.1235);
        assert_eq!(rounded(-1234.56), -1235.0);
        assert_eq!(rounded(0.0), 0.0);
        let shown = Estimate { mean: 0.91, standard_error: Some(0.0123) };
        assert_eq!(shown.to_string(), "0.910 ± 0.012");
        assert_eq!(Estimate { mean: 12.34, standard_error: None }.to_string(), "12.3");
    }
}
