//! The super-block formats: 256 values share one or two half floats, and every 16 or 32 of them a
//! small integer scale (and minimum) of their own.

use crate::quant::half_at;

/// The eight 6-bit scales and minima of Q4_K and Q5_K, packed into twelve bytes: the first four of
/// each lie in the low bits of bytes 0–3 and 4–7; the last four have their low nibbles in bytes
/// 8–11 and their top two bits above the first four.
#[inline(always)]
fn scales_and_minima(p: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scale, mut minimum) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scale[j] = p[j] & 63;
        minimum[j] = p[j + 4] & 63;
        scale[j + 4] = p[j + 8] & 15 | p[j] >> 6 << 4;
        minimum[j + 4] = p[j + 8] >> 4 | p[j + 4] >> 6 << 4;
    }
    (scale, minimum)
}

#[inline(always)]
fn twelve(b: &[u8], at: usize) -> [u8; 12] {
    let mut out = [0; 12];
    out.copy_from_slice(&b[at..at + 12]);
    out
}

/// The scale and the minimum of one part of Q4_K and Q5_K; see [`scales_and_minima`].
#[inline(always)]
fn scale_and_minimum(p: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = match j {
        0..4 => (p[j] & 63, p[j + 4] & 63),
        _ => (p[j + 4] & 15 | p[j - 4] >> 6 << 4, p[j + 4] >> 4 | p[j] >> 6 << 4),
    };
    (f32::from(scale), f32::from(minimum))
}

/// Calls `$part` for each 32 values of a block.
macro_rules! parts {
    ($block:ident, $y:ident, $part:ident) => {
        for (part, y) in $y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            $part($block, part, y);
        }
    };
}

/// `y = (d·scale)·q − dmin·minimum`. Layout: 16 scale/minimum nibbles, 64 bytes of 2-bit values,
/// d, dmin. Each 32 bytes hold 128 values: bits 0–1 of all of them first, then bits 2–3, ….
#[inline(always)]
pub(crate) fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    parts!(b, y, q2_k_part);
}

/// The 32 values from `32·part` on.
#[inline(always)]
pub(crate) fn q2_k_part(b: &[u8; 84], part: usize, y: &mut [f32; 32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    let (byte, shift) = place(part);
    let values = &b[16 + byte..][..32];
    for (half, out) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let both = b[2 * part + half];
        let (dl, ml) = (d * f32::from(both & 15), dmin * f32::from(both >> 4));
        for (j, out) in out.iter_mut().enumerate() {
            *out = dl * f32::from(values[16 * half + j] >> shift & 3) - ml;
        }
    }
}

/// Where 32 values begin in 2-bit data: byte and bit.
#[inline(always)]
fn place(part: usize) -> (usize, usize) {
    (part / 4 * 32, part % 4 * 2)
}

/// `y = (d·(scale − 32))·(q − 4·[bit clear])`. Layout: 32 bytes of third bits, 64 bytes of 2-bit
/// values as in [`q2_k`], 16 scales of 6 bits in 12 bytes, d. Bit `k` of third-bit byte `j` belongs
/// to value `32k + j`.
#[inline(always)]
pub(crate) fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    parts!(b, y, q3_k_part);
}

/// The 32 values from `32·part` on.
#[inline(always)]
pub(crate) fn q3_k_part(b: &[u8; 110], part: usize, y: &mut [f32; 32]) {
    let (d, packed) = (half_at(b, 108), &b[96..108]);
    let (byte, shift) = place(part);
    let (third, values) = (&b[..32], &b[32 + byte..][..32]);
    for (half, out) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let group = 2 * part + half;
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        for (j, out) in out.iter_mut().enumerate() {
            let bit = third[16 * half + j] >> part & 1;
            let q = (values[16 * half + j] >> shift & 3) as i8 - if bit == 1 { 0 } else { 4 };
            *out = dl * f32::from(q);
        }
    }
}

/// `y = (d·scale)·q − dmin·minimum`. Layout: d, dmin, 12 bytes of scales and minima, 128 bytes of
/// nibbles; each 32 bytes hold 64 values, low nibbles first.
#[inline(always)]
pub(crate) fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scale, minimum) = scales_and_minima(&twelve(b, 4));
    for (part, out) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (dl, ml) = (d * f32::from(scale[part]), dmin * f32::from(minimum[part]));
        four_bits(&b[16..], part, (dl, ml), out);
    }
}

/// The 32 values from `32·part` on.
#[inline(always)]
pub(crate) fn q4_k_part(b: &[u8; 144], part: usize, y: &mut [f32; 32]) {
    let (scale, minimum) = scale_and_minimum(&b[4..16], part);
    four_bits(&b[16..], part, (half_at(b, 0) * scale, half_at(b, 2) * minimum), y);
}

#[inline(always)]
fn four_bits(nibbles: &[u8], part: usize, (dl, ml): (f32, f32), y: &mut [f32; 32]) {
    let (nibbles, shift) = (&nibbles[part / 2 * 32..][..32], part % 2 * 4);
    for (out, q) in y.iter_mut().zip(nibbles) {
        *out = dl * f32::from(q >> shift & 15) - ml;
    }
}

/// As [`q4_k`] with 32 bytes of fifth bits before the nibbles: bit `k` of byte `j` belongs to
/// value `32k + j`.
#[inline(always)]
pub(crate) fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scale, minimum) = scales_and_minima(&twelve(b, 4));
    for (part, out) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (dl, ml) = (d * f32::from(scale[part]), dmin * f32::from(minimum[part]));
        five_bits(&b[16..], part, (dl, ml), out);
    }
}

/// The 32 values from `32·part` on.
#[inline(always)]
pub(crate) fn q5_k_part(b: &[u8; 176], part: usize, y: &mut [f32; 32]) {
    let (scale, minimum) = scale_and_minimum(&b[4..16], part);
    five_bits(&b[16..], part, (half_at(b, 0) * scale, half_at(b, 2) * minimum), y);
}

#[inline(always)]
fn five_bits(bits: &[u8], part: usize, (dl, ml): (f32, f32), y: &mut [f32; 32]) {
    let (fifth, nibbles) = (&bits[..32], &bits[32 + part / 2 * 32..][..32]);
    let shift = part % 2 * 4;
    for (j, out) in y.iter_mut().enumerate() {
        let q = nibbles[j] >> shift & 15 | (fifth[j] >> part & 1) << 4;
        *out = dl * f32::from(q) - ml;
    }
}

/// `y = (d·scale)·(q − 32)`. Layout: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16
/// signed scales, d. Each half of the block is 128 values: 64 bytes of nibbles (low ones first)
/// and 32 bytes of pairs.
#[inline(always)]
pub(crate) fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    parts!(b, y, q6_k_part);
}

/// The 32 values from `32·part` on.
#[inline(always)]
pub(crate) fn q6_k_part(b: &[u8; 210], part: usize, y: &mut [f32; 32]) {
    let (d, half, quarter) = (half_at(b, 208), part / 4, part % 4);
    let nibbles = &b[half * 64 + quarter % 2 * 32..][..32];
    let pairs = &b[128 + half * 32..][..32];
    let (shift_low, shift_high) = (quarter / 2 * 4, quarter * 2);
    let scale = [192 + part * 2, 193 + part * 2].map(|i| d * f32::from(b[i] as i8));
    for (j, out) in y.iter_mut().enumerate() {
        let q = nibbles[j] >> shift_low & 15 | (pairs[j] >> shift_high & 3) << 4;
        *out = scale[j / 16] * f32::from(q as i8 - 32);
    }
}
