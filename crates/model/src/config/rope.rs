//! Rotary frequencies, as transformers 5 computes them.
//!
//! transformers works in f32 and rounds after every operation. The exponents are rounded the same
//! way here (their error would be multiplied by `ln theta`), the powers are taken in f64.

use std::f64::consts::PI;

use luthier_core::{Error, Result};

/// Rotary positions: base, width and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many values of a head rotate (all of them in the supported architectures).
    pub dim: usize,
    /// How frequencies are changed for longer texts.
    pub scaling: Scaling,
}

/// How frequencies are changed for texts longer than those of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of long waves.
        factor: f64,
        /// Waves longer than `original_max_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_positions: usize,
    },
    /// YaRN: a ramp over dimensions, and a factor on cosines and sines.
    Yarn {
        /// Divisor of long waves.
        factor: f64,
        /// Context length of pre-training.
        original_max_positions: usize,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is fully divided.
        beta_slow: f64,
        /// The factor on cosines and sines; computed from the others when absent.
        attention_factor: Option<f64>,
        /// Numerator's slope of that factor.
        mscale: Option<f64>,
        /// Denominator's slope of that factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's bounds are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// A divisor for every frequency, as in GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

impl Rope {
    /// Radians per position for each pair of dimensions, and what cosines and sines are
    /// multiplied by.
    pub fn inv_freq(&self) -> (Vec<f32>, f32) {
        let power: Vec<f32> = (0..self.dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.dim as f32;
                f64::from(self.theta as f32).powf(f64::from(exponent)) as f32
            })
            .collect();
        let plain = power.iter().map(|p| 1.0 / p);
        match &self.scaling {
            Scaling::None => (plain.collect(), 1.0),
            Scaling::Linear { factor } => (plain.map(|f| f / *factor as f32).collect(), 1.0),
            Scaling::Factors(divisors) => {
                (plain.zip(divisors).map(|(f, divisor)| f / divisor).collect(), 1.0)
            }
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let original = *original_max_positions as f64;
                let (low, high) = (*low_freq_factor, *high_freq_factor);
                let (longest, shortest) = ((original / high) as f32, (original / low) as f32);
                let scaled = plain.map(|f| {
                    let wave = (2.0 * PI) as f32 / f;
                    if wave < longest {
                        f
                    } else if wave > shortest {
                        f / *factor as f32
                    } else {
                        let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
                        (1.0 - smooth) * f / *factor as f32 + smooth * f
                    }
                });
                (scaled.collect(), 1.0)
            }
            Scaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_bounds();
                // Equal bounds would divide by zero.
                let high = if low == high { high + 0.001 } else { high };
                let scaled = power.iter().enumerate().map(|(i, p)| {
                    let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    let keep = 1.0 - ramp;
                    (1.0 / (*factor as f32 * p)) * (1.0 - keep) + (1.0 / p) * keep
                });
                (scaled.collect(), self.yarn_attention() as f32)
            }
        }
    }

    /// The dimensions between which YaRN's ramp lies.
    fn yarn_bounds(&self) -> (f64, f64) {
        let Scaling::Yarn { original_max_positions, beta_fast, beta_slow, truncate, .. } =
            self.scaling
        else {
            return (0.0, 0.0);
        };
        let dim = self.dim as f64;
        let at = |rotations: f64| {
            let ratio = original_max_positions as f64 / (rotations * 2.0 * PI);
            dim * ratio.ln() / (2.0 * self.theta.ln())
        };
        let (low, high) = (at(beta_fast), at(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        (low.max(0.0), high.min(dim - 1.0))
    }

    fn yarn_attention(&self) -> f64 {
        let Scaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self.scaling
        else {
            return 1.0;
        };
        let slope = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        match (attention_factor, mscale, mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(a), Some(b)) if a != 0.0 && b != 0.0 => slope(a) / slope(b),
            _ => slope(1.0),
        }
    }

    /// Refuses numbers from which no frequencies follow; `at` names the file.
    pub fn check(&self, at: &str) -> Result<()> {
        let bad = |what: String| Err(Error::input(at, what));
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return bad(format!("rope_theta: expected a number above 1, got {}", self.theta));
        }
        let (factor, original) = match &self.scaling {
            Scaling::None => return Ok(()),
            Scaling::Factors(f) if f.len() != self.dim / 2 => {
                let (expected, got) = (self.dim / 2, f.len());
                return bad(format!("rope factors: expected {expected} values, got {got}"));
            }
            Scaling::Factors(f) => {
                return match f.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
                    Some(x) => bad(format!("rope factors: expected positive numbers, got {x}")),
                    None => Ok(()),
                };
            }
            Scaling::Linear { factor } => (*factor, 1),
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                if !(*low_freq_factor > 0.0 && high_freq_factor > low_freq_factor) {
                    return bad(format!(
                        "rope scaling: expected 0 < low_freq_factor < high_freq_factor, got \
                         {low_freq_factor} and {high_freq_factor}"
                    ));
                }
                (*factor, *original_max_positions)
            }
            Scaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, .. } => {
                if !(*beta_fast > 0.0 && *beta_slow > 0.0) {
                    return bad(format!(
                        "rope scaling: expected positive beta_fast and beta_slow, got {beta_fast} \
                         and {beta_slow}"
                    ));
                }
                (*factor, *original_max_positions)
            }
        };
        if !(factor.is_finite() && factor > 0.0) {
            return bad(format!("rope scaling factor: expected a positive number, got {factor}"));
        }
        if original == 0 {
            return bad("rope scaling: original_max_position_embeddings is 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> serde_json::Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/rope_frequencies.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Every case of the golden file is a `config.json` with the frequencies transformers gave.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let cases = golden();
        let mut kinds = std::collections::BTreeSet::new();
        for case in cases.as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let config = super::super::ModelConfig::from_hf(&case["config"], name).unwrap();
            let (got, attention) = config.rope.inv_freq();
            let expected: Vec<f64> =
                case["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert_eq!(got.len(), expected.len(), "{name}");
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                let error = (f64::from(*g) - e).abs() / e;
                assert!(error < 4e-7, "{name}[{i}]: {g} for {e}");
            }
            let e = case["attention_factor"].as_f64().unwrap();
            assert!((f64::from(attention) - e).abs() < 1e-6, "{name}: {attention} for {e}");
            kinds.insert(format!("{:?}", std::mem::discriminant(&config.rope.scaling)));
        }
        assert_eq!(kinds.len(), 4, "none, linear, llama3 and yarn are all there");
    }

    #[test]
    fn factors_divide() {
        let rope = Rope { theta: 100.0, dim: 4, scaling: Scaling::Factors(vec![1.0, 8.0]) };
        assert_eq!(rope.inv_freq().0, [1.0, 0.1f32 / 8.0]);
        let short = Rope { scaling: Scaling::Factors(vec![1.0]), ..rope };
        assert!(short.check("f").unwrap_err().to_string().contains("expected 2 values, got 1"));
    }
}
