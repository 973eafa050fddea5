//! Activations as 16-bit integers, in the order in which the weights of a format come apart.
//!
//! `x ≈ scale · q` for each 32 numbers, `scale = max |x| / 32767`. The error is at most half a
//! scale: 2⁻¹⁶ of the block's largest number, where bf16 leaves up to 2⁻⁹ of that very number.

use crate::simd::vectorised;

/// Weights that are expanded together: four vectors of 32 words.
pub(super) const CHUNK: usize = 128;

/// Which weights of a chunk an expanded vector holds. Vector `v` of four and 128-bit lane `l` of
/// four hold eight words. Bit 0 of `v` says low or high nibbles, bit 1 even or odd bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A lane per block of 32; high nibbles are the block's second half.
    Lanes,
    /// Two lanes per group of 32; low nibbles are groups 0 and 2, high nibbles 1 and 3.
    Alternate,
    /// Two lanes per group of 32; low nibbles are groups 0 and 1, high nibbles 2 and 3.
    Halves,
}

impl Order {
    /// Vector and lane of the words `16 · half + 2j + odd` of a group.
    fn place(self, group: usize, half: usize, odd: usize) -> (usize, usize) {
        match self {
            Order::Lanes => (2 * odd + half, group),
            Order::Alternate => (2 * odd + group % 2, group / 2 * 2 + half),
            Order::Halves => (2 * odd + group / 2, group % 2 * 2 + half),
        }
    }
}

/// The activations that meet one chunk of weights.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Chunk {
    /// Four vectors of integers.
    pub q: [i16; CHUNK],
    /// The scale of each four words' sum where the nibbles are low.
    pub low: [f32; 16],
    /// The same where they are high.
    pub high: [f32; 16],
    /// The sum of each group's numbers, at every fourth place; for formats with a minimum.
    pub sum: [f32; 16],
}

/// `n` rows of activations; the rows' chunks for the same weights lie side by side.
pub(super) struct Activations {
    chunks: Vec<Chunk>,
    n: usize,
}

impl Activations {
    pub(super) fn new(order: Order, x: &[f32], n: usize, i: usize) -> Self {
        let per_row = i.div_ceil(CHUNK);
        let none = Chunk { q: [0; CHUNK], low: [0.0; 16], high: [0.0; 16], sum: [0.0; 16] };
        let mut chunks = vec![none; per_row * n];
        for (a, x) in x.chunks_exact(i).enumerate() {
            for (c, x) in x.chunks(CHUNK).enumerate() {
                fill(order, x, &mut chunks[c * n + a]);
            }
        }
        Activations { chunks, n }
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.n
    }

    /// Chunk `c` of rows `a..a + N`.
    #[inline]
    pub(super) fn from<const N: usize>(&self, c: usize, a: usize) -> &[Chunk; N] {
        let at = c * self.n + a;
        self.chunks[at..at + N].first_chunk().expect("a slice of this very length")
    }
}

vectorised! {
    fn fill(order: Order, x: &[f32], chunk: &mut Chunk) {
        for (group, x) in x.as_chunks::<32>().0.iter().enumerate() {
            // Without their sign, floats are ordered as the integers of the same bits.
            let top = x.iter().fold(0, |top, x| (x.to_bits() & 0x7fff_ffff).max(top));
            let top = f32::from_bits(top);
            // Rows with an infinity or NaN give NaN, which the caller can see; blocks of numbers
            // below the smallest that has an inverse count as zeros.
            let (scale, inverse) = match top {
                top if !top.is_finite() => (f32::NAN, 0.0),
                top if top < 1e-33 => (0.0, 0.0),
                top => (top / 32767.0, 32767.0 / top),
            };
            let mut q = [0i16; 32];
            let mut sum = 0i32;
            for j in 0..32 {
                // Adding and taking away 1.5 · 2²³ rounds to the nearest whole number.
                let whole = x[j] * inverse + 12_582_912.0;
                let whole = whole.to_bits() as i32 - 0x4b40_0000;
                q[j] = whole as i16;
                sum = sum.wrapping_add(whole);
            }
            for half in 0..2 {
                for odd in 0..2 {
                    let (v, lane) = order.place(group, half, odd);
                    let to = &mut chunk.q[v * 32 + lane * 8..][..8];
                    for j in 0..8 {
                        to[j] = q[16 * half + 2 * j + odd];
                    }
                    let scales = if v % 2 == 0 { &mut chunk.low } else { &mut chunk.high };
                    scales[lane * 4..][..4].fill(scale);
                }
            }
            chunk.sum[group * 4] = sum as f32 * scale;
        }
    }
}
