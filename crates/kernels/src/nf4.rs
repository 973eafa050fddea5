//! NF4 (Dettmers et al. 2023, QLoRA): 4-bit numbers for normally distributed weights.
//!
//! Blocks of 64: `w ≈ scale · code[q]`, `scale = max |w|`, `q` the nearest of sixteen codes to
//! `w / scale`. With double quantisation a scale is `mean + largest · dynamic[p]`: one byte `p` per
//! block, one f32 `largest` per 256 blocks, one `mean` for all, and the codes `q` are still chosen
//! by the exact scale. The numbers are bitsandbytes' `quantize_4bit(quant_type="nf4")`, without and
//! with `compress_statistics`, in the order of its bytes.
//!
//! **Departures**: (1) the mean of the scales is summed in f64; (2) a block of zeros is zeros, where
//! the reference divides by zero; (3) a block with a number that is not finite is not a number
//! throughout, so that it shows.

use rayon::prelude::*;

use crate::simd::{self, Level, vectorised};

/// Numbers that share a scale.
pub const BLOCK: usize = 64;
/// Scales that share a scale of their own.
pub const NESTED: usize = 256;

/// The sixteen codes (QLoRA, appendix E): quantiles of the normal distribution, scaled to 1, with an
/// exact zero.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Between each code and the next; what lies there exactly gets the lower one.
const BETWEEN: [f32; 15] = {
    let (mut between, mut k) = ([0.0; 15], 0);
    while k < 15 {
        between[k] = (CODE[k] + CODE[k + 1]) / 2.0;
        k += 1;
    }
    between
};

/// The codes of quantised scales (Dettmers et al. 2022, "dynamic" 8-bit numbers), ascending: for each
/// power of ten from 1e-6 to 1 twice as many equal steps between a tenth of it and itself as for the
/// one before, of either sign, each by its middle; 0; and 1.
pub static DYNAMIC: [f32; 256] = {
    const TENS: [f64; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let (mut codes, mut ten) = ([0.0; 256], 0);
    while ten < 7 {
        // Those of lower powers, and the zero, lie between the two signs.
        let (steps, mut step) = (1usize << ten, 0);
        while step < steps {
            let middle = 0.1 + 0.9 * (step as f64 + 0.5) / steps as f64;
            let code = (TENS[ten] * middle) as f32;
            codes[127 + steps + step] = code;
            codes[127 - steps - step] = -code;
            step += 1;
        }
        ten += 1;
    }
    codes[255] = 1.0;
    codes
};

/// Some numbers as NF4.
#[derive(Clone, Debug)]
pub struct Nf4 {
    /// Two codes to a byte, the first in its upper half.
    codes: Vec<u8>,
    scales: Scales,
    len: usize,
}

#[derive(Clone, Debug)]
enum Scales {
    Plain(Vec<f32>),
    Double { codes: Vec<u8>, largest: Vec<f32>, mean: f32 },
}

impl Nf4 {
    /// Quantises `x`, on all threads; with `double_quant` the scales too.
    pub fn quantise(x: &[f32], double_quant: bool) -> Self {
        /// Numbers of one task.
        const TASK: usize = 256 * BLOCK;
        let (mut codes, mut scales) =
            (vec![0u8; x.len().div_ceil(2)], vec![0f32; x.len().div_ceil(BLOCK)]);
        let tasks = codes.par_chunks_mut(TASK / 2).zip(scales.par_chunks_mut(TASK / BLOCK));
        x.par_chunks(TASK).zip(tasks).for_each(|(x, (codes, scales))| {
            let parts = codes.chunks_mut(BLOCK / 2).zip(scales);
            for (x, (codes, scale)) in x.chunks(BLOCK).zip(parts) {
                *scale = quantise_block(x, codes);
            }
        });
        let scales = if double_quant { Scales::double(&scales) } else { Scales::Plain(scales) };
        Nf4 { codes, scales, len: x.len() }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes they take.
    pub fn size(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(scales) => size_of_val(&scales[..]),
            Scales::Double { codes, largest, .. } => {
                codes.len() + size_of_val(&largest[..]) + size_of::<f32>()
            }
        };
        self.codes.len() + scales
    }

    /// The codes, two to a byte, the first in its upper half.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale of a block, as the numbers are read with.
    pub fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(scales) => scales[block],
            Scales::Double { codes, largest, mean } => {
                DYNAMIC[usize::from(codes[block])] * largest[block / NESTED] + mean
            }
        }
    }

    /// All numbers.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.len];
        out.par_chunks_mut(1 << 14).enumerate().for_each(|(i, out)| self.read(i << 14, out));
        out
    }

    /// Numbers `at..at + out.len()`.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        assert!(at + out.len() <= self.len, "numbers beyond the last were asked for");
        #[cfg(target_arch = "x86_64")]
        if simd::level() >= Level::Avx512 {
            // SAFETY: the level says that the processor has AVX-512.
            return unsafe { x86::read(self, at, out) };
        }
        self.read_by(at, out, expand);
    }

    /// Numbers `at..at + 32`, and as many `stride`, `2·stride`, … after them. Both are multiples of
    /// 32, so that no 32 numbers have two scales.
    pub(crate) fn strip(&self, at: usize, stride: usize, out: &mut [[f32; 32]]) {
        debug_assert!(at.is_multiple_of(32) && stride.is_multiple_of(32));
        #[cfg(target_arch = "x86_64")]
        if simd::level() >= Level::Avx512 {
            // SAFETY: the level says that the processor has AVX-512.
            return unsafe { x86::strip(self, at, stride, out) };
        }
        self.strip_by(at, stride, out, expand);
    }

    #[inline(always)]
    fn read_by(&self, at: usize, out: &mut [f32], expand: impl Fn(&[u8], f32, &mut [f32])) {
        let (mut at, mut out) = (at, out);
        while !out.is_empty() {
            let n = (BLOCK - at % BLOCK).min(out.len());
            let (here, rest) = std::mem::take(&mut out).split_at_mut(n);
            let scale = self.scale(at / BLOCK);
            if at.is_multiple_of(2) && n.is_multiple_of(16) {
                expand(&self.codes[at / 2..(at + n) / 2], scale, here);
            } else {
                for (k, y) in (at..).zip(here) {
                    let shift = if k.is_multiple_of(2) { 4 } else { 0 };
                    *y = CODE[usize::from(self.codes[k / 2] >> shift & 15)] * scale;
                }
            }
            (at, out) = (at + n, rest);
        }
    }

    #[inline(always)]
    fn strip_by(
        &self,
        at: usize,
        stride: usize,
        out: &mut [[f32; 32]],
        expand: impl Fn(&[u8], f32, &mut [f32]),
    ) {
        for (r, out) in out.iter_mut().enumerate() {
            let at = at + r * stride;
            expand(&self.codes[at / 2..at / 2 + 16], self.scale(at / BLOCK), &mut out[..]);
        }
    }
}

impl Scales {
    fn double(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
        let mean = (sum / scales.len().max(1) as f64) as f32;
        let mut largest = Vec::with_capacity(scales.len().div_ceil(NESTED));
        let mut codes = Vec::with_capacity(scales.len());
        for scales in scales.chunks(NESTED) {
            let top = scales.iter().fold(0f32, |top, s| top.max((s - mean).abs()));
            let inverse = inverse(top);
            codes.extend(scales.iter().map(|s| nearest((s - mean) * inverse)));
            // A mean that is no number is seen in every scale.
            largest.push(top);
        }
        Scales::Double { codes, largest, mean }
    }
}

/// What becomes of `x` when it is quantised: LoftQ's residual is what this leaves.
pub fn roundtrip(x: &[f32]) -> Vec<f32> {
    Nf4::quantise(x, false).to_vec()
}

/// `1 / x`, or 0 for what is too small to have an inverse.
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The place of the nearest number in [`DYNAMIC`], of two as near the lower.
fn nearest(x: f32) -> u8 {
    let above = DYNAMIC.partition_point(|code| *code < x).clamp(1, 255);
    let nearer = DYNAMIC[above] - x < x - DYNAMIC[above - 1];
    (if nearer { above } else { above - 1 }) as u8
}

vectorised! {
    /// Writes the codes of at most [`BLOCK`] numbers and returns their scale.
    fn quantise_block(x: &[f32], codes: &mut [u8]) -> f32 {
        // Without their sign, floats are ordered as the integers of the same bits.
        let top = x.iter().fold(0, |top, x| (x.to_bits() & 0x7fff_ffff).max(top));
        let top = f32::from_bits(top);
        let (inverse, mut q) = (inverse(top), [0u8; BLOCK]);
        for (x, q) in x.iter().zip(&mut q) {
            let (x, mut place) = (x * inverse, 0u32);
            for between in BETWEEN {
                place += u32::from(x > between);
            }
            *q = place as u8;
        }
        for (codes, q) in codes.iter_mut().zip(q.as_chunks::<2>().0) {
            *codes = q[0] << 4 | q[1];
        }
        if top.is_finite() { top } else { f32::NAN }
    }
}

/// Numbers from their codes: twice as many as there are bytes.
#[inline(always)]
fn expand(codes: &[u8], scale: f32, out: &mut [f32]) {
    let scaled = CODE.map(|code| code * scale);
    for (codes, out) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = [scaled[usize::from(codes >> 4)], scaled[usize::from(codes & 15)]];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CODE, Nf4};

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    pub fn read(numbers: &Nf4, at: usize, out: &mut [f32]) {
        numbers.read_by(at, out, |codes, scale, out| expand(codes, scale, out));
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    pub fn strip(numbers: &Nf4, at: usize, stride: usize, out: &mut [[f32; 32]]) {
        numbers.strip_by(at, stride, out, |codes, scale, out| expand(codes, scale, out));
    }

    /// Sixteen numbers at a time, looked up in one register: bytes are doubled, and the first of
    /// each two moved down by a code. The look-up itself reads the lower four bits only.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    fn expand(codes: &[u8], scale: f32, out: &mut [f32]) {
        // SAFETY: sixteen codes.
        let code = unsafe { _mm512_loadu_ps(CODE.as_ptr()) };
        let scaled = _mm512_mul_ps(code, _mm512_set1_ps(scale));
        let shifts = _mm512_set1_epi64(4);
        let (codes, out) = (codes.as_chunks::<8>().0, out.as_chunks_mut::<16>().0);
        for (codes, out) in codes.iter().zip(out) {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*codes));
            let twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes));
            let numbers = _mm512_permutexvar_ps(_mm512_srlv_epi32(twice, shifts), scaled);
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), numbers) };
        }
    }
}
