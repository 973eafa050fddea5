//! `models.precision`: the arithmetic of matrix products, for training, evaluation and generation.

use std::str::FromStr;

use luthier_core::{Error, Result, nearest::suggest};
use luthier_kernels::{num, simd};
use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where the processor has instructions for it, else f32.
    #[default]
    Auto,
    /// Exactly as the reference computes.
    F32,
    /// Operands of matrix products rounded to bf16; sums, and everything else, in f32.
    Bf16,
}

impl Precision {
    /// What may be asked for.
    pub const NAMES: [&str; 3] = ["auto", "f32", "bf16"];

    /// What is done on this machine.
    pub fn resolve(self) -> num::Precision {
        match self {
            Precision::Auto if simd::has_bf16() => num::Precision::Bf16,
            Precision::Auto | Precision::F32 => num::Precision::F32,
            Precision::Bf16 => num::Precision::Bf16,
        }
    }
}

impl From<num::Precision> for Precision {
    fn from(precision: num::Precision) -> Self {
        match precision {
            num::Precision::F32 => Precision::F32,
            num::Precision::Bf16 => Precision::Bf16,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Precision::Auto, Precision::F32, Precision::Bf16];
        match Precision::NAMES.iter().position(|name| *name == text) {
            Some(i) => Ok(all[i]),
            None => Err(Error::input("precision", format!("there is no `{text}`"))
                .hint(suggest(text, Precision::NAMES))),
        }
    }
}

/// The name of an arithmetic that is in use.
pub fn name(precision: num::Precision) -> &'static str {
    match precision {
        num::Precision::F32 => "f32",
        num::Precision::Bf16 => "bf16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_recipes() {
        for text in Precision::NAMES {
            let precision: Precision = text.parse().unwrap();
            assert_eq!(serde_json::to_value(precision).unwrap(), text);
            if precision != Precision::Auto {
                assert_eq!(name(precision.resolve()), text);
                assert_eq!(Precision::from(precision.resolve()), precision);
            }
        }
        assert_eq!(Precision::Auto.resolve() == num::Precision::Bf16, simd::has_bf16());
        let error = "bf61".parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains("bf61") && error.contains("bf16"), "{error}");
    }
}
