//! How each format's blocks become vectors of 16-bit integers, 128 weights at a time.
//!
//! A 16-bit word of packed nibbles holds four weights, so a mask and three shifts take a chunk
//! apart without moving anything between lanes; the activations were put in that order instead.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

/// A chunk: `weight = scale · w − minimum`, one scale for each pair of neighbouring words and the
/// same pair of the next vector but one.
pub(super) struct Expanded {
    /// Low nibbles of even bytes, high of even, low of odd, high of odd.
    pub w: [__m512i; 4],
    /// Scales of low nibbles (and of high ones, when the format has one scale per lane).
    pub low: __m512,
    /// Scales of high nibbles.
    pub high: __m512,
    /// What is added to all weights of group `g`, at place `4g`; any value at other places.
    pub minimum: __m512,
}

/// A stored format. Its functions want AVX-512 F, VL, BW and DQ.
pub(super) trait Format {
    /// Whether high nibbles have scales of their own.
    const SPLIT: bool;
    /// Whether there are minima.
    const MINIMUM: bool;
    /// Bytes of [`Format::PER`] chunks.
    const BYTES: usize;
    /// Chunks that share their scales' bytes.
    const PER: usize;

    /// Expands the chunk `part` of those that begin at `p`, of which there are `bytes` bytes; what
    /// would lie past them is zero.
    unsafe fn expand(p: *const u8, part: usize, bytes: usize) -> Expanded;
}

/// Bytes `at..at + 64` of those at `p`, zero from `bytes` on.
#[inline(always)]
unsafe fn load(p: *const u8, at: usize, bytes: usize) -> __m512i {
    match bytes.saturating_sub(at) {
        64.. => _mm512_loadu_si512(p.add(at).cast()),
        left => _mm512_maskz_loadu_epi8((1u64 << left) - 1, p.wrapping_add(at).cast()),
    }
}

/// Word indices for lanes: word `stride · lane + first + j · step`, `j` in 0..8.
const fn words(stride: u16, first: u16, step: u16) -> [u16; 32] {
    let mut index = [0; 32];
    let mut k = 0;
    while k < 32 {
        index[k] = stride * (k as u16 / 8) + first + k as u16 % 8 * step;
        k += 1;
    }
    index
}

/// Word indices for scales: word `stride · lane + first` for the first sixteen places, the one
/// after it for the others.
const fn pairs(stride: u16, first: u16) -> [u16; 32] {
    let mut index = [0; 32];
    let mut k = 0;
    while k < 32 {
        index[k] = stride * (k as u16 % 16 / 4) + first + k as u16 / 16;
        k += 1;
    }
    index
}

#[inline(always)]
unsafe fn pick(index: &'static [u16; 32], a: __m512i, b: __m512i) -> __m512i {
    _mm512_permutex2var_epi16(a, _mm512_loadu_si512(index.as_ptr().cast()), b)
}

#[inline(always)]
unsafe fn low_halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_castsi512_si256(words))
}

#[inline(always)]
unsafe fn high_halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(words))
}

/// The four nibbles of each word.
#[inline(always)]
unsafe fn nibbles(q: __m512i) -> [__m512i; 4] {
    let mask = _mm512_set1_epi16(15);
    [
        _mm512_and_si512(q, mask),
        _mm512_and_si512(_mm512_srli_epi16::<4>(q), mask),
        _mm512_and_si512(_mm512_srli_epi16::<8>(q), mask),
        _mm512_srli_epi16::<12>(q),
    ]
}

#[inline(always)]
unsafe fn minus(w: [__m512i; 4], offset: i16) -> [__m512i; 4] {
    let (offset, [a, b, c, d]) = (_mm512_set1_epi16(offset), w);
    [
        _mm512_sub_epi16(a, offset),
        _mm512_sub_epi16(b, offset),
        _mm512_sub_epi16(c, offset),
        _mm512_sub_epi16(d, offset),
    ]
}

/// Adds 16 to the weights for which `bits` has one of `mask`.
#[inline(always)]
unsafe fn sixteen(w: __m512i, bits: __m512i, mask: __m512i) -> __m512i {
    let set = _mm512_test_epi16_mask(bits, mask);
    _mm512_mask_add_epi16(w, set, w, _mm512_set1_epi16(16))
}

/// Adds the fifth bits: those of a block's first and second half are in each word of its lane.
#[inline(always)]
unsafe fn fifth(w: [__m512i; 4], first: __m512i, second: __m512i) -> [__m512i; 4] {
    const fn bits(odd: u16) -> [u16; 32] {
        let mut bits = [0; 32];
        let mut k = 0;
        while k < 32 {
            bits[k] = 1 << (2 * (k as u16 % 8) + odd);
            k += 1;
        }
        bits
    }
    static EVEN: [u16; 32] = bits(0);
    static ODD: [u16; 32] = bits(1);
    let [a, b, c, d] = w;
    let (even, odd) =
        (_mm512_loadu_si512(EVEN.as_ptr().cast()), _mm512_loadu_si512(ODD.as_ptr().cast()));
    [
        sixteen(a, first, even),
        sixteen(b, second, even),
        sixteen(c, first, odd),
        sixteen(d, second, odd),
    ]
}

/// Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 weights, each a scale, with `MINIMUM` its minimum, with
/// `FIFTH` the fifth bits (two words), and eight words of nibbles.
pub(super) struct Simple<const MINIMUM: bool, const FIFTH: bool>;

pub(super) type Q4_0 = Simple<false, false>;
pub(super) type Q4_1 = Simple<true, false>;
pub(super) type Q5_0 = Simple<false, true>;
pub(super) type Q5_1 = Simple<true, true>;

impl<const MINIMUM: bool, const FIFTH: bool> Simple<MINIMUM, FIFTH> {
    /// The words before the fifth bits, and before the nibbles.
    const SCALES_END: u16 = 1 + MINIMUM as u16;
    const BITS_END: u16 = Self::SCALES_END + 2 * FIFTH as u16;
    /// Words of a block.
    const STRIDE: u16 = Self::BITS_END + 8;
    const SCALES: &'static [u16; 32] = &pairs(Self::STRIDE, 0);
    const FIRST: &'static [u16; 32] = &words(Self::STRIDE, Self::SCALES_END, 0);
    const SECOND: &'static [u16; 32] = &words(Self::STRIDE, Self::SCALES_END + 1, 0);
    const WORDS: &'static [u16; 32] = &words(Self::STRIDE, Self::BITS_END, 1);
}

impl<const MINIMUM: bool, const FIFTH: bool> Format for Simple<MINIMUM, FIFTH> {
    const SPLIT: bool = false;
    const MINIMUM: bool = MINIMUM;
    const BYTES: usize = 4 * 2 * Self::STRIDE as usize;
    const PER: usize = 1;

    #[inline(always)]
    unsafe fn expand(p: *const u8, _part: usize, bytes: usize) -> Expanded {
        let (a, b) = (load(p, 0, bytes), load(p, 64, bytes.min(Self::BYTES)));
        let scales = pick(Self::SCALES, a, b);
        let low = low_halves(scales);
        let mut w = nibbles(pick(Self::WORDS, a, b));
        if FIFTH {
            w = fifth(w, pick(Self::FIRST, a, b), pick(Self::SECOND, a, b));
        }
        if !MINIMUM {
            w = minus(w, if FIFTH { 16 } else { 8 });
        }
        Expanded { w, low, high: low, minimum: if MINIMUM { high_halves(scales) } else { low } }
    }
}

pub(super) struct Q8_0;

impl Q8_0 {
    /// Sixteen bytes of each of four blocks, from their byte `at` on.
    #[inline(always)]
    unsafe fn half(p: *const u8, at: usize, bytes: usize) -> __m512i {
        let q = _mm512_castsi128_si512(Self::lane(p, at, bytes));
        let q = _mm512_inserti32x4::<1>(q, Self::lane(p, 34 + at, bytes));
        let q = _mm512_inserti32x4::<2>(q, Self::lane(p, 68 + at, bytes));
        _mm512_inserti32x4::<3>(q, Self::lane(p, 102 + at, bytes))
    }

    #[inline(always)]
    unsafe fn lane(p: *const u8, at: usize, bytes: usize) -> __m128i {
        let there = if at < bytes { !0 } else { 0 };
        _mm_maskz_loadu_epi8(there, p.wrapping_add(at).cast())
    }
}

impl Format for Q8_0 {
    const SPLIT: bool = false;
    const MINIMUM: bool = false;
    const BYTES: usize = 136;
    const PER: usize = 1;

    #[inline(always)]
    unsafe fn expand(p: *const u8, _part: usize, bytes: usize) -> Expanded {
        let (first, second) = (Q8_0::half(p, 2, bytes), Q8_0::half(p, 18, bytes));
        let w = [
            _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(first)),
            _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(second)),
            _mm512_srai_epi16::<8>(first),
            _mm512_srai_epi16::<8>(second),
        ];
        static SCALES: [u16; 32] = pairs(17, 0);
        let low = low_halves(pick(&SCALES, load(p, 0, bytes), load(p, 64, bytes.min(128))));
        Expanded { w, low, high: low, minimum: low }
    }
}

/// Four bytes, one for each of the lanes' groups, as numbers: byte `lanes[l]` for lane `l`.
#[inline(always)]
unsafe fn bytes_of(four: u32, lanes: [i32; 4]) -> __m512 {
    let [a, b, c, d] = lanes;
    let (a, b, c, d) = (8 * a, 8 * b, 8 * c, 8 * d);
    let shifts = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    let bytes = _mm512_srlv_epi32(_mm512_set1_epi32(four as i32), shifts);
    _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(255)))
}

/// Scales and minima of groups `4 · part..` of Q4_K and Q5_K; see `scales_and_minima` of `quant_k`.
#[inline(always)]
unsafe fn six_bits(p: *const u8, part: usize) -> (u32, u32) {
    let [a, b, c] = p.add(4).cast::<[u32; 3]>().read_unaligned();
    match part {
        0 => (a & 0x3f3f_3f3f, b & 0x3f3f_3f3f),
        _ => (c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030),
    }
}

/// The scales of Q4_K and Q5_K beside their weights.
#[inline(always)]
unsafe fn with_scales(p: *const u8, part: usize, w: [__m512i; 4]) -> Expanded {
    let halves = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
    let d = low_halves(_mm512_broadcastw_epi16(_mm512_castsi512_si128(halves)));
    let dmin = low_halves(_mm512_broadcastw_epi16(_mm512_castsi512_si128(
        _mm512_srli_epi32::<16>(halves),
    )));
    let (scales, minima) = six_bits(p, part);
    let minima = _mm512_mul_ps(dmin, bytes_of(minima, [0, 1, 2, 3]));
    Expanded {
        w,
        low: _mm512_mul_ps(d, bytes_of(scales, [0, 0, 2, 2])),
        high: _mm512_mul_ps(d, bytes_of(scales, [1, 1, 3, 3])),
        minimum: _mm512_sub_ps(_mm512_setzero_ps(), minima),
    }
}

pub(super) struct Q4K;

impl Format for Q4K {
    const SPLIT: bool = true;
    const MINIMUM: bool = true;
    const BYTES: usize = 144;
    const PER: usize = 2;

    #[inline(always)]
    unsafe fn expand(p: *const u8, part: usize, _bytes: usize) -> Expanded {
        with_scales(p, part, nibbles(load(p, 16 + 64 * part, 144)))
    }
}

pub(super) struct Q5K;

impl Format for Q5K {
    const SPLIT: bool = true;
    const MINIMUM: bool = true;
    const BYTES: usize = 176;
    const PER: usize = 2;

    #[inline(always)]
    unsafe fn expand(p: *const u8, part: usize, _bytes: usize) -> Expanded {
        let w = nibbles(load(p, 48 + 64 * part, 176));
        let bits = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.add(16).cast()));
        // Lanes 0 and 1 want bit `4 · part` of each byte, lanes 2 and 3 the one after the next.
        let bits = _mm512_srl_epi16(bits, _mm_cvtsi32_si128(4 * part as i32));
        let lanes = _mm512_setr_epi64(0, 0, 0, 0, -1, -1, -1, -1);
        let bits = _mm512_ternarylogic_epi64::<0xca>(lanes, _mm512_srli_epi16::<2>(bits), bits);
        let w = [
            sixteen(w[0], bits, _mm512_set1_epi16(1)),
            sixteen(w[1], bits, _mm512_set1_epi16(2)),
            sixteen(w[2], bits, _mm512_set1_epi16(1 << 8)),
            sixteen(w[3], bits, _mm512_set1_epi16(2 << 8)),
        ];
        with_scales(p, part, w)
    }
}

pub(super) struct Q6K;

impl Q6K {
    /// How far pairs of bits are moved to bit 4 of their byte. The pair of quarter `g` of a chunk
    /// lies at bit `2g`; lanes 2 and 3 hold the quarter after that of lanes 0 and 1.
    #[inline(always)]
    unsafe fn shifts(near: i64, far: i64) -> __m512i {
        let (near, far) = (near * 0x1_0001_0001_0001, far * 0x1_0001_0001_0001);
        _mm512_setr_epi64(near, near, near, near, far, far, far, far)
    }

    #[inline(always)]
    unsafe fn join(w: __m512i, pairs: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0xf8>(w, pairs, _mm512_set1_epi16(0x30))
    }

    /// Four signed bytes, one for each lane, times `d`.
    #[inline(always)]
    unsafe fn scales(d: __m512, four: i32) -> __m512 {
        let up = _mm512_setr_epi32(24, 24, 24, 24, 16, 16, 16, 16, 8, 8, 8, 8, 0, 0, 0, 0);
        let bytes = _mm512_sllv_epi32(_mm512_set1_epi32(four), up);
        _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(bytes)))
    }
}

impl Format for Q6K {
    const SPLIT: bool = true;
    const MINIMUM: bool = false;
    const BYTES: usize = 210;
    const PER: usize = 2;

    #[inline(always)]
    unsafe fn expand(p: *const u8, part: usize, _bytes: usize) -> Expanded {
        let [a, b, c, d] = nibbles(load(p, 64 * part, 210));
        let pairs = _mm256_loadu_si256(p.add(128 + 32 * part).cast());
        let pairs = _mm512_broadcast_i64x4(pairs);
        let w = [
            Q6K::join(a, _mm512_sllv_epi16(pairs, Q6K::shifts(4, 2))),
            Q6K::join(b, _mm512_srlv_epi16(pairs, Q6K::shifts(0, 2))),
            Q6K::join(c, _mm512_srlv_epi16(pairs, Q6K::shifts(4, 6))),
            Q6K::join(d, _mm512_srlv_epi16(pairs, Q6K::shifts(8, 10))),
        ];
        let d16 = _mm512_cvtph_ps(_mm256_set1_epi16(p.add(208).cast::<i16>().read_unaligned()));
        let [near, far] = p.add(192 + 8 * part).cast::<[i32; 2]>().read_unaligned();
        let (low, high) = (Q6K::scales(d16, near), Q6K::scales(d16, far));
        Expanded { w: minus(w, 32), low, high, minimum: low }
    }
}
