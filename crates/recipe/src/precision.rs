//! `models.precision` and `models.quantize`: the arithmetic of matrix products, for training,
//! evaluation and generation, and at what size a base is held that others learn beside.

use std::str::FromStr;

use luthier_core::{Error, Result, nearest::suggest};
use luthier_kernels::{num, simd};
use luthier_model::{Holding, load};
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

/// How the weights of a base are held while something is trained on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// As `stored` where the file is quantised, none of its weights learn, and they would take more
    /// than 1 GiB expanded; else as `none`, which trains a little faster.
    #[default]
    Auto,
    /// As numbers of the arithmetic.
    None,
    /// As the file has them, and expanded block by block where they are multiplied.
    Stored,
    /// Linear weights in the blocks as 4-bit normal numbers (QLoRA), quantised as they are loaded.
    Nf4,
}

/// Bytes up to which a base is expanded unasked: less than a training step takes beside it.
const SMALL: u64 = 1 << 30;

impl Quantize {
    /// How `parameters` weights are held for products of `precision`, where `frozen` says that none
    /// of them learns.
    pub fn holding(
        self,
        precision: num::Precision,
        double_quant: bool,
        frozen: bool,
        parameters: u64,
    ) -> Result<Holding> {
        let quantize = match self {
            Quantize::Nf4 if frozen => Some(load::Quantize::Nf4 { double_quant }),
            Quantize::Nf4 => {
                let what = "nf4 is for a base that rests, and train.params makes its weights learn";
                return Err(Error::input("models.quantize", what)
                    .hint("learn an adapter (train.params.lora), or leave models.quantize out"));
            }
            _ => None,
        };
        let width = match precision {
            num::Precision::F32 => 4,
            num::Precision::Bf16 => 2,
        };
        let stored = match self {
            Quantize::Auto => frozen && parameters * width > SMALL,
            _ => self == Quantize::Stored,
        };
        Ok(Holding { precision, stored, quantize })
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
    fn a_base_is_quantised_where_none_of_its_weights_learns() {
        let large = SMALL / 4 + 1;
        let of =
            |quantize: Quantize, frozen| quantize.holding(num::Precision::F32, true, frozen, large);
        let stored = |quantize, frozen| of(quantize, frozen).unwrap().stored;
        let small = Quantize::Auto.holding(num::Precision::Bf16, true, true, large).unwrap();
        assert!(!small.stored);
        assert!(stored(Quantize::Auto, true) && !stored(Quantize::Auto, false));
        assert!(stored(Quantize::Stored, true) && stored(Quantize::Stored, false));
        assert!(!stored(Quantize::None, true) && !stored(Quantize::Nf4, true));
        let nf4 = of(Quantize::Nf4, true).unwrap().quantize;
        assert_eq!(nf4, Some(load::Quantize::Nf4 { double_quant: true }));
        let error = of(Quantize::Nf4, false).unwrap_err().to_string();
        assert!(error.contains("models.quantize") && error.contains("lora"), "{error}");
    }

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
