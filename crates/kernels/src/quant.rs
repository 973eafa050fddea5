//! Stored number formats and their way back to f32.
//!
//! A format stores blocks: a few scales, then small integers. The formulas are those of the GGUF
//! reference; every multiplication and addition happens in f32 in the same order, so the values
//! are equal bit for bit (`tests/golden/make_gguf_quants.py` records them).

use luthier_core::{Error, Result};
use rayon::prelude::*;

use crate::{quant_k, simd::vectorised};

mod strip;
pub(crate) use strip::strip;

/// How values are stored. Plain floats count as blocks of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum GgmlType {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// 32 × 8 bits and a scale.
    Q8_0,
    /// 32 × 4 bits and a scale.
    Q4_0,
    /// 32 × 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 × 5 bits and a scale.
    Q5_0,
    /// 32 × 5 bits, a scale and a minimum.
    Q5_1,
    /// 256 × 2 bits with 16 scales and minima of 4 bits.
    Q2_K,
    /// 256 × 3 bits with 16 scales of 6 bits.
    Q3_K,
    /// 256 × 4 bits with 8 scales and minima of 6 bits.
    Q4_K,
    /// 256 × 5 bits with 8 scales and minima of 6 bits.
    Q5_K,
    /// 256 × 6 bits with 16 scales of 8 bits.
    Q6_K,
}

/// One row per format: the type, its GGUF number, elements and bytes of a block.
const TABLE: [(GgmlType, u32, usize, usize); 13] = [
    (GgmlType::F32, 0, 1, 4),
    (GgmlType::F16, 1, 1, 2),
    (GgmlType::BF16, 30, 1, 2),
    (GgmlType::Q8_0, 8, 32, 34),
    (GgmlType::Q4_0, 2, 32, 18),
    (GgmlType::Q4_1, 3, 32, 20),
    (GgmlType::Q5_0, 6, 32, 22),
    (GgmlType::Q5_1, 7, 32, 24),
    (GgmlType::Q2_K, 10, 256, 84),
    (GgmlType::Q3_K, 11, 256, 110),
    (GgmlType::Q4_K, 12, 256, 144),
    (GgmlType::Q5_K, 13, 256, 176),
    (GgmlType::Q6_K, 14, 256, 210),
];

/// Formats that exist but are not read, so that an error can name them.
const UNREAD: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (4, "Q4_2 (withdrawn)"),
    (5, "Q4_3 (withdrawn)"),
];

impl GgmlType {
    /// Every format that is read.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The format with this GGUF number; the error text names a format that is not read.
    pub fn from_id(id: u32) -> std::result::Result<Self, String> {
        if let Some(row) = TABLE.iter().find(|row| row.1 == id) {
            return Ok(row.0);
        }
        match UNREAD.iter().find(|row| row.0 == id) {
            Some((_, name)) => Err(format!("type {name}, which luthier does not read")),
            None => Err(format!("type number {id}, which is unknown")),
        }
    }

    fn row(self) -> &'static (GgmlType, u32, usize, usize) {
        // The table holds every variant; a test walks them all.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The number in a GGUF file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Values per block.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The name, as in `Q4_K`.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Bytes that `elements` values take; `None` when they do not fill whole blocks.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        let (n, bytes) = (self.block_elements(), self.block_bytes());
        elements.is_multiple_of(n).then_some(elements / n)?.checked_mul(bytes)
    }
}

/// Writes the values stored in `bytes` to `out`, on all threads when there are many.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let expected = ty.bytes_for(out.len()).ok_or_else(|| {
        let (name, n) = (ty.name(), ty.block_elements());
        Error::failed(name, format!("{} values do not fill blocks of {n}", out.len()))
    })?;
    if expected != bytes.len() {
        let what = format!("{} values take {expected} bytes, got {}", out.len(), bytes.len());
        return Err(Error::failed(ty.name(), what));
    }
    let elements = (1 << 16) / ty.block_elements() * ty.block_elements();
    let chunk_bytes = elements / ty.block_elements() * ty.block_bytes();
    out.par_chunks_mut(elements)
        .zip(bytes.par_chunks(chunk_bytes))
        .for_each(|(out, bytes)| dequantize_serial(ty, bytes, out));
    Ok(())
}

/// Calls `$block` with each block and its values. A macro, because a function handed over as an
/// argument would be compiled on its own, without the instructions that `vectorised` allows.
macro_rules! each {
    ($bytes:ident, $out:ident, $size:literal, $n:literal, $block:path) => {{
        let (blocks, values) = ($bytes.as_chunks::<$size>().0, $out.as_chunks_mut::<$n>().0);
        for (b, y) in blocks.iter().zip(values) {
            $block(b, y);
        }
    }};
}

vectorised! {
    /// The same on this thread. `bytes` and `out` hold the same number of whole blocks.
    pub fn dequantize_serial(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(ty.bytes_for(out.len()), Some(bytes.len()), "whole blocks");
        match ty {
            GgmlType::F32 => each!(bytes, out, 4, 1, f32),
            GgmlType::F16 => each!(bytes, out, 2, 1, f16),
            GgmlType::BF16 => each!(bytes, out, 2, 1, bf16),
            GgmlType::Q8_0 => each!(bytes, out, 34, 32, q8_0),
            GgmlType::Q4_0 => each!(bytes, out, 18, 32, q4_0),
            GgmlType::Q4_1 => each!(bytes, out, 20, 32, q4_1),
            GgmlType::Q5_0 => each!(bytes, out, 22, 32, q5_0),
            GgmlType::Q5_1 => each!(bytes, out, 24, 32, q5_1),
            GgmlType::Q2_K => each!(bytes, out, 84, 256, quant_k::q2_k),
            GgmlType::Q3_K => each!(bytes, out, 110, 256, quant_k::q3_k),
            GgmlType::Q4_K => each!(bytes, out, 144, 256, quant_k::q4_k),
            GgmlType::Q5_K => each!(bytes, out, 176, 256, quant_k::q5_k),
            GgmlType::Q6_K => each!(bytes, out, 210, 256, quant_k::q6_k),
        }
    }
}

#[inline(always)]
fn f32(b: &[u8; 4], y: &mut [f32; 1]) {
    y[0] = f32::from_le_bytes(*b);
}

#[inline(always)]
fn f16(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = half(u16::from_le_bytes(*b));
}

#[inline(always)]
fn bf16(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
}

/// A half float's value, exactly, in operations that vectorise: the exponent is moved into place
/// and its bias corrected by a multiplication, which takes care of subnormal numbers too.
#[inline(always)]
fn half(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let moved = u32::from(bits & 0x7fff) << 13;
    let infinite = f32::from_bits(moved | 0x7f80_0000);
    let value = if moved >= 0x7c00 << 13 { infinite } else { f32::from_bits(moved) * BIAS };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// The half float at byte `i` of one block, for formats with blocks of 32 in halves. Hidden from
/// the optimiser, which would otherwise work on the same byte of sixteen blocks side by side and
/// spend most of its time gathering them.
#[inline(always)]
fn scale_at(block: &[u8], i: usize) -> f32 {
    std::hint::black_box(half_at(block, i))
}

/// The half float at byte `i`.
#[inline(always)]
pub(crate) fn half_at(block: &[u8], i: usize) -> f32 {
    half(u16::from_le_bytes([block[i], block[i + 1]]))
}

/// `y = q · d`.
#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for j in 0..32 {
        y[j] = f32::from(b[2 + j] as i8) * d;
    }
}

/// `y = d · (q − 8)`; low nibbles are the first half of the block, high nibbles the second.
#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = scale_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = d * f32::from((q & 15) as i8 - 8);
        y[j + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `y = d · q + m`.
#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (scale_at(b, 0), half_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = d * f32::from(q & 15) + m;
        y[j + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of a block: bit `j` belongs to value `j`.
#[inline(always)]
fn fifth(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

/// `y = d · (q − 16)`.
#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half_at(b, 0), fifth(b, 2));
    for j in 0..16 {
        let q = b[6 + j];
        let (h0, h1) = ((high >> j & 1) as u8, (high >> (j + 16) & 1) as u8);
        y[j] = d * f32::from((q & 15 | h0 << 4) as i8 - 16);
        y[j + 16] = d * f32::from((q >> 4 | h1 << 4) as i8 - 16);
    }
}

/// `y = d · q + m`.
#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), fifth(b, 4));
    for j in 0..16 {
        let q = b[8 + j];
        let (h0, h1) = ((high >> j & 1) as u8, (high >> (j + 16) & 1) as u8);
        y[j] = d * f32::from(q & 15 | h0 << 4) + m;
        y[j + 16] = d * f32::from(q >> 4 | h1 << 4) + m;
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn ids_round_trip_and_the_table_is_complete() {
        for ty in GgmlType::all() {
            assert_eq!(GgmlType::from_id(ty.id()), Ok(ty));
            assert_eq!(ty.bytes_for(ty.block_elements() * 3), Some(ty.block_bytes() * 3));
            assert!((1usize << 18).is_multiple_of(ty.block_elements()));
        }
        assert!(GgmlType::from_id(23).unwrap_err().contains("IQ4_XS"));
        assert!(GgmlType::from_id(99).unwrap_err().contains("99"));
    }

    #[test]
    fn every_half_float_has_its_value() {
        for bits in 0..=u16::MAX {
            let (got, want) = (half(bits), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut out = [0f32; 32];
        let err = dequantize(GgmlType::Q4_0, &[0; 17], &mut out).unwrap_err().to_string();
        assert!(err.contains("18 bytes, got 17"), "{err}");
        assert!(dequantize(GgmlType::Q4_K, &[0; 18], &mut out).is_err());
    }

    #[test]
    fn large_tensors_are_read_in_parallel_chunks_alike() {
        let n = 200_000 / 32 * 32;
        let bytes: Vec<u8> = (0..n / 32 * 18).map(|i| (i % 251) as u8 & 0x3b).collect();
        let (mut all, mut one) = (vec![0f32; n], vec![0f32; n]);
        dequantize(GgmlType::Q4_0, &bytes, &mut all).unwrap();
        dequantize_serial(GgmlType::Q4_0, &bytes, &mut one);
        assert_eq!(all, one);
    }
}
