//! Products of blocks with 16-bit activations: exact sums of integers, four per lane and chunk,
//! then one f32 multiplication by the two scales.

use std::ops::Range;

use super::{
    Blocks,
    activations::{Activations, Order},
};
use crate::{
    few::Columns,
    quant::GgmlType,
    simd::{self, Level},
};

/// The inner loop for one stored format, for processors with AVX-512 VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(GgmlType);

impl Kernel {
    /// That of a format, if it has one.
    pub fn of(ty: GgmlType) -> Option<Self> {
        use GgmlType::*;
        matches!(ty, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4_K | Q5_K | Q6_K).then_some(Kernel(ty))
    }

    /// Whether this processor (and `LUTHIER_SIMD`) can run it.
    pub fn here() -> bool {
        simd::level() >= Level::Avx512 && vnni()
    }

    pub(super) fn order(self) -> Order {
        match self.0 {
            GgmlType::Q4_K | GgmlType::Q5_K => Order::Alternate,
            GgmlType::Q6_K => Order::Halves,
            _ => Order::Lanes,
        }
    }

    /// Sets the columns `rows` of `y`. The caller has seen that [`Kernel::here`] holds.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn run(self, blocks: &Blocks, x: &Activations, rows: Range<usize>, y: &Columns) {
        use super::expand::*;
        let run = match self.0 {
            GgmlType::Q8_0 => wide::run::<Q8_0>,
            GgmlType::Q4_0 => wide::run::<Q4_0>,
            GgmlType::Q4_1 => wide::run::<Q4_1>,
            GgmlType::Q5_0 => wide::run::<Q5_0>,
            GgmlType::Q5_1 => wide::run::<Q5_1>,
            GgmlType::Q4_K => wide::run::<Q4K>,
            GgmlType::Q5_K => wide::run::<Q5K>,
            GgmlType::Q6_K => wide::run::<Q6K>,
            other => unreachable!("{other:?} has no kernel"),
        };
        // SAFETY: the processor has the instructions.
        unsafe { run(blocks, x, rows, y) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn run(self, _: &Blocks, _: &Activations, _: Range<usize>, _: &Columns) {
        unreachable!("never here on this architecture")
    }
}

#[cfg(target_arch = "x86_64")]
fn vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn vnni() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::{
        arch::{asm, x86_64::*},
        ops::Range,
    };

    use super::super::{
        Blocks,
        activations::{Activations, Chunk},
        expand::{Expanded, Format},
    };
    use crate::few::{Columns, groups};

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    pub(super) fn run<F: Format>(
        blocks: &Blocks,
        x: &Activations,
        rows: Range<usize>,
        y: &Columns,
    ) {
        let mut r = rows.start;
        while r < rows.end {
            let left = rows.end - r;
            // As many rows as leave room in the registers for the activations they share.
            groups!(x.rows(), |a, N| match left {
                4.. if N == 1 => tile::<F, 4, N>(blocks, x, r, a, y),
                _ => (r..rows.end.min(r + 4)).for_each(|r| tile::<F, 1, N>(blocks, x, r, a, y)),
            });
            r += 4;
        }
    }

    /// The body with each number below `n`, which is at most 8, one after another: what is indexed
    /// by it can then stay in registers.
    macro_rules! unrolled {
        ($n:expr, |$k:ident| $body:block) => { unrolled!($n, $k, $body, 0 1 2 3 4 5 6 7) };
        ($n:expr, $k:ident, $body:block, $($i:literal)*) => {
            $(if $i < $n { let $k: usize = $i; $body })*
        };
    }

    /// Rows `r..r + R` of the weight with activations `a..a + N`.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    fn tile<F: Format, const R: usize, const N: usize>(
        blocks: &Blocks,
        x: &Activations,
        r: usize,
        a: usize,
        y: &Columns,
    ) {
        let row = |k| blocks.row(r + k).expect("kernels are those of file formats");
        let rows: [&[u8]; R] = std::array::from_fn(row);
        let mut sums = [[_mm512_setzero_ps(); N]; R];
        let whole = rows[0].len() / F::BYTES;
        for block in 0..whole {
            for part in 0..F::PER {
                let x = x.from::<N>(block * F::PER + part, a);
                // SAFETY: this function has the features.
                unsafe { add::<F, R, N>(&rows, block * F::BYTES, part, F::BYTES, x, &mut sums) };
            }
        }
        let left = rows[0].len() - whole * F::BYTES;
        if left > 0 {
            // Only formats with blocks of 32 come here: the last chunk has fewer than four.
            let x = x.from::<N>(whole * F::PER, a);
            // SAFETY: as above.
            unsafe { add::<F, R, N>(&rows, whole * F::BYTES, 0, left, x, &mut sums) };
        }
        for (k, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                y.set(a + j, r + k, _mm512_reduce_add_ps(sum));
            }
        }
    }

    /// Adds the products of the chunk `part` of the `bytes` bytes at `at` of each row. It has no
    /// features of its own, because it must become part of `tile` for `sums` to be registers.
    ///
    /// # Safety
    /// The caller has the features of `tile`.
    #[inline(always)]
    unsafe fn add<F: Format, const R: usize, const N: usize>(
        rows: &[&[u8]; R],
        at: usize,
        part: usize,
        bytes: usize,
        x: &[Chunk; N],
        sums: &mut [[__m512; N]; R],
    ) {
        unrolled!(R, |k| {
            let row = &rows[k][at..at + bytes];
            // SAFETY: `expand` reads `bytes` bytes and no more; features as the caller promised.
            let w = unsafe { F::expand(row.as_ptr(), part, bytes) };
            unrolled!(N, |j| {
                // SAFETY: features as the caller promised.
                sums[k][j] = unsafe { multiply::<F>(&w, &x[j], sums[k][j]) };
            });
        });
    }

    /// `sum + a · x[0] + b · x[2]` in pairs of words, for vectors `x` of 32 words. Spelt out, because
    /// the compiler would take each of the two apart into a product and a sum.
    ///
    /// # Safety
    /// `x` is three aligned vectors.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    unsafe fn products(sum: __m512i, a: __m512i, b: __m512i, x: *const i16) -> __m512i {
        let mut sum = sum;
        // SAFETY: reads what the caller promised, writes the one register.
        unsafe {
            asm!(
                "vpdpwssd {sum}, {a}, [{x}]",
                "vpdpwssd {sum}, {b}, [{x} + 128]",
                sum = inout(zmm_reg) sum,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                x = in(reg) x,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        sum
    }

    /// Adds the products of one chunk with one row of activations.
    ///
    /// # Safety
    /// As for `add`.
    #[inline(always)]
    unsafe fn multiply<F: Format>(w: &Expanded, x: &Chunk, sum: __m512) -> __m512 {
        // SAFETY: `q` is four aligned vectors, each other array one.
        unsafe {
            let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            low = products(low, w.w[0], w.w[2], x.q.as_ptr());
            if !F::SPLIT {
                high = low;
            }
            high = products(high, w.w[1], w.w[3], x.q.as_ptr().add(32));
            let mut sum = sum;
            if F::SPLIT {
                let low = _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_load_ps(x.low.as_ptr()));
                sum = _mm512_fmadd_ps(low, w.low, sum);
            }
            let scale = if F::SPLIT { &x.high } else { &x.low };
            let high = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_load_ps(scale.as_ptr()));
            sum = _mm512_fmadd_ps(high, w.high, sum);
            if F::MINIMUM {
                sum = _mm512_fmadd_ps(_mm512_load_ps(x.sum.as_ptr()), w.minimum, sum);
            }
            sum
        }
    }
}
