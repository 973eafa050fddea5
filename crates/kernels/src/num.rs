//! How numbers are held: f32, bf16, or (weights only) the blocks of a quantised file.

use half::bf16;
pub use luthier_core::Held;

use crate::{blocks::Blocks, simd::vectorised};

/// The arithmetic of matrix products. Everything else is f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Operands and sums in f32.
    #[default]
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

/// Numbers at rest.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// The upper half of single precision.
    Bf16(&'a [bf16]),
    /// Quantised rows.
    Blocks(&'a Blocks),
}

impl Numbers<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(x) => x.len(),
            Numbers::Bf16(x) => x.len(),
            Numbers::Blocks(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers `at..at + out.len()` as f32.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Numbers::F32(x) => out.copy_from_slice(&x[at..at + out.len()]),
            Numbers::Bf16(x) => widen(&x[at..at + out.len()], out),
            Numbers::Blocks(x) => x.read(at, out),
        }
    }
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(x: &'a [f32]) -> Self {
        Numbers::F32(x)
    }
}

impl<'a> From<&'a Vec<f32>> for Numbers<'a> {
    fn from(x: &'a Vec<f32>) -> Self {
        Numbers::F32(x)
    }
}

impl<'a> From<&'a [bf16]> for Numbers<'a> {
    fn from(x: &'a [bf16]) -> Self {
        Numbers::Bf16(x)
    }
}

impl<'a> From<&'a Held> for Numbers<'a> {
    fn from(x: &'a Held) -> Self {
        match x {
            Held::F32(x) => Numbers::F32(x),
            Held::Bf16(x) => Numbers::Bf16(x),
        }
    }
}

/// Appends `x` as `precision` multiplies it: bf16 operands lose nothing by being held so. What is
/// held already decides where there is something.
pub fn hold(to: &mut Held, precision: Precision, x: &[f32]) {
    if to.is_empty() && precision == Precision::Bf16 {
        *to = Held::Bf16(Vec::new());
    }
    match to {
        Held::F32(to) => to.extend_from_slice(x),
        Held::Bf16(to) => {
            let from = to.len();
            to.resize(from + x.len(), bf16::ZERO);
            narrow(x, &mut to[from..]);
        }
    }
}

vectorised! {
    /// f32 to bf16, to nearest, ties to even; NaN stays NaN.
    pub fn narrow(from: &[f32], to: &mut [bf16]) {
        for (x, y) in from.iter().zip(to) {
            let bits = x.to_bits();
            let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *y = bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16);
        }
    }
}

vectorised! {
    /// bf16 to f32, exactly.
    pub fn widen(from: &[bf16], to: &mut [f32]) {
        for (x, y) in from.iter().zip(to) {
            *y = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_reference_crate_does() {
        let special = [f32::NAN, f32::INFINITY, -0.0, f32::MAX, f32::MIN_POSITIVE, 1.003_906_3];
        let many = (0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(21_473)));
        let x: Vec<f32> = special.into_iter().chain(many).collect();
        let mut y = vec![bf16::ZERO; x.len()];
        narrow(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let want = bf16::from_f32(*x);
            assert!(y.to_bits() == want.to_bits() || (y.is_nan() && want.is_nan()), "{x}: {y}");
        }
        let mut back = vec![0f32; x.len()];
        widen(&y, &mut back);
        assert!(back.iter().zip(&y).all(|(b, y)| b.to_bits() == y.to_f32().to_bits()));
    }
}
