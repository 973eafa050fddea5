//! Products with a few rows of activations, as in decoding: each weight is used so few times that
//! reading it is the work, and packing it as the large products do would cost more than it saves.

use std::{marker::PhantomData, ops::Range};

use half::bf16;

use crate::{
    blocks,
    num::{Numbers, Precision, narrow},
    pool::Buffer,
    simd::{self, Level},
    threads,
};

/// Up to this many rows of activations, [`few_rows`] is faster than the large product.
pub const FEW: usize = 8;

/// `y = x wᵀ` for `x` `(n, i)`, `w` `(o, i)` and `y` `(n, o)`, all row-major.
///
/// With [`Precision::Bf16`] and weights held in bf16, activations are rounded to bf16; weights of
/// any other kind are used exactly (see [`blocks::few_rows`] for quantised ones). Sums are f32, and
/// the same at any number of threads and for any number of rows beside.
pub fn few_rows(
    precision: Precision,
    x: &[f32],
    n: usize,
    w: Numbers,
    o: usize,
    i: usize,
    y: &mut [f32],
) {
    assert_eq!(w.len(), o * i, "few_rows: weight ({o}, {i})");
    if let Numbers::Blocks(w) = w {
        assert_eq!(w.dims(), (o, i), "few_rows: weight ({o}, {i})");
        return blocks::few_rows(precision, w, x, n, y);
    }
    few_rows_at(simd::level(), precision, x, n, w, o, i, y);
}

/// As [`few_rows`] for weights that are not quantised, with the instructions of `level`, which the
/// processor must have.
#[allow(clippy::too_many_arguments)]
pub fn few_rows_at(
    level: Level,
    precision: Precision,
    x: &[f32],
    n: usize,
    w: Numbers,
    o: usize,
    i: usize,
    y: &mut [f32],
) {
    assert_eq!(x.len(), n * i, "few_rows: {n} rows of {i}");
    assert_eq!(y.len(), n * o, "few_rows: {n} rows of {o}");
    assert!(level <= simd::best(), "few_rows: the processor lacks {level:?}");
    if y.is_empty() || i == 0 {
        return y.fill(0.0);
    }
    let y = Columns::new(y, o);
    match w {
        Numbers::F32(w) => threads::for_each(ranges(o, i * n), |rows| {
            for r in rows {
                dots(level, &w[r * i..(r + 1) * i], x, n, |a, sum| y.set(a, r, sum));
            }
        }),
        Numbers::Bf16(w) => {
            let rounded = (precision == Precision::Bf16).then(|| {
                let mut rounded = Buffer::new(x.len());
                narrow(x, &mut rounded);
                rounded
            });
            // Without instructions for it, the same numbers are multiplied as f32.
            let wide: Option<Vec<f32>> = (rounded.as_ref())
                .filter(|_| !halves(level))
                .map(|x| x.iter().map(|x| x.to_f32()).collect());
            threads::for_each(ranges(o, i * n), |rows| {
                let widened = rounded.is_none() || wide.is_some();
                let mut buffer = Buffer::new(if widened { i } else { 0 });
                for r in rows {
                    let w = &w[r * i..(r + 1) * i];
                    match (&rounded, &wide) {
                        (Some(x), None) => dots_bf16(w, x, n, |a, sum| y.set(a, r, sum)),
                        (_, x_wide) => {
                            crate::num::widen(w, &mut buffer);
                            let x = x_wide.as_deref().unwrap_or(x);
                            dots(level, &buffer, x, n, |a, sum| y.set(a, r, sum));
                        }
                    }
                }
            });
        }
        Numbers::Blocks(_) => unreachable!("few_rows sends blocks elsewhere"),
    }
}

/// Cuts `o` rows into tasks: enough work in each to be worth a thread's attention, and enough of
/// them that a thread which was held up does not hold up the rest.
pub(crate) fn ranges(o: usize, work: usize) -> Vec<Range<usize>> {
    /// Multiplications of a task: some 12 µs' worth, which is what waking another thread takes.
    const WAKING: usize = 1 << 19;
    let parts = match threads::count() {
        1 => 1,
        threads => (o * work / threads::least(WAKING)).clamp(1, threads * 4),
    };
    // Multiples of four, because rows are multiplied four at a time.
    let rows = o.div_ceil(parts).next_multiple_of(4);
    (0..o).step_by(rows).map(|from| from..(from + rows).min(o)).collect()
}

/// A row-major matrix whose columns are shared out among threads.
pub(crate) struct Columns<'a> {
    at: *mut f32,
    rows: usize,
    width: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: `set` is the only access, and each task sets columns that no other task sets.
unsafe impl Sync for Columns<'_> {}
// SAFETY: as above; a pointer to plain numbers may be used on any thread.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(crate) fn new(y: &'a mut [f32], width: usize) -> Self {
        Columns { at: y.as_mut_ptr(), rows: y.len() / width, width, _borrowed: PhantomData }
    }

    pub(crate) fn set(&self, row: usize, column: usize, value: f32) {
        assert!(row < self.rows && column < self.width);
        // SAFETY: within the borrowed slice by the line above. Tasks have disjoint ranges of
        // columns, see `ranges`, so no number is written by two threads.
        unsafe { *self.at.add(row * self.width + column) = value };
    }
}

/// Calls `tile` for groups of 8, 4, 2 and 1 of `n` rows, with the first row of each.
macro_rules! groups {
    ($n:expr, |$a:ident, $count:ident| $tile:expr) => {{
        let mut $a = 0;
        while $a < $n {
            match $n - $a {
                8.. => {
                    const $count: usize = 8;
                    $tile;
                    $a += 8
                }
                4.. => {
                    const $count: usize = 4;
                    $tile;
                    $a += 4
                }
                2.. => {
                    const $count: usize = 2;
                    $tile;
                    $a += 2
                }
                _ => {
                    const $count: usize = 1;
                    $tile;
                    $a += 1
                }
            }
        }
    }};
}
pub(crate) use groups;

/// The products of `w` with each of `n` rows of the same width.
pub(crate) fn dots(level: Level, w: &[f32], x: &[f32], n: usize, mut set: impl FnMut(usize, f32)) {
    let i = w.len();
    groups!(n, |a, N| {
        let sums = dots_of::<N>(level, w, &x[a * i..(a + N) * i]);
        sums.into_iter().enumerate().for_each(|(k, sum)| set(a + k, sum));
    });
}

#[cfg(target_arch = "x86_64")]
fn dots_of<const N: usize>(level: Level, w: &[f32], x: &[f32]) -> [f32; N] {
    match level {
        // SAFETY: `level` is never above what the processor has.
        Level::Avx2 => unsafe { wide::avx2(w, x) },
        // SAFETY: as above.
        l if l >= Level::Avx512 => unsafe { wide::avx512(w, x) },
        _ => plain(w, x),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn dots_of<const N: usize>(_level: Level, w: &[f32], x: &[f32]) -> [f32; N] {
    plain(w, x)
}

/// Sixteen sums side by side, which the compiler keeps in vector registers.
#[inline(always)]
fn plain<const N: usize>(w: &[f32], x: &[f32]) -> [f32; N] {
    let i = w.len();
    std::array::from_fn(|a| {
        let x = &x[a * i..(a + 1) * i];
        let ((w, w_end), (x, x_end)) = (w.as_chunks::<16>(), x.as_chunks::<16>());
        let mut sums = [0f32; 16];
        for (w, x) in w.iter().zip(x) {
            for j in 0..16 {
                sums[j] += w[j] * x[j];
            }
        }
        let end: f32 = w_end.iter().zip(x_end).map(|(w, x)| w * x).sum();
        sums.iter().sum::<f32>() + end
    })
}

/// Whether `level` multiplies bf16 numbers in pairs.
fn halves(level: Level) -> bool {
    level >= Level::Avx512Bf16
}

/// The products of `w` with each of `n` rows of the same width, all in bf16, summed in f32.
fn dots_bf16(w: &[bf16], x: &[bf16], n: usize, mut set: impl FnMut(usize, f32)) {
    let i = w.len();
    groups!(n, |a, N| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: called only where `halves` found the instructions.
        let sums: [f32; N] = unsafe { wide::avx512_bf16(w, &x[a * i..(a + N) * i]) };
        #[cfg(not(target_arch = "x86_64"))]
        let sums = [f32::NAN; N];
        sums.into_iter().enumerate().for_each(|(k, sum)| set(a + k, sum));
    });
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::{arch::x86_64::*, mem::transmute};

    use half::bf16;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<const N: usize>(w: &[f32], x: &[f32]) -> [f32; N] {
        super::plain(w, x)
    }

    /// Defines the products of `w` with each of `N` rows: `$lanes` numbers to a vector, `$mask` one
    /// bit for each of them, `$load(mask, at)` reads a vector, `$multiply(sum, w, x)` adds to sums.
    macro_rules! dots {
        ($name:ident, $features:literal, $type:ty, $lanes:literal, $mask:ty,
         |$bits:ident, $at:ident| $load:expr, $multiply:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name<const N: usize>(w: &[$type], x: &[$type]) -> [f32; N] {
                let i = w.len();
                assert_eq!(x.len(), N * i);
                // Two sums of each row, whatever their number, hide the adder's latency.
                let mut sums = [[_mm512_setzero_ps(); 2]; N];
                let mut add = |from: usize, $bits: $mask, c: usize| {
                    let load = |p: &[$type], at: usize| {
                        let $at = p.as_ptr().wrapping_add(at);
                        // SAFETY: the mask leaves out what lies past the rows; such lanes are not
                        // read. Vector types that are turned into each other have 512 bits.
                        unsafe { $load }
                    };
                    let w = load(w, from);
                    for (a, sums) in sums.iter_mut().enumerate() {
                        sums[c] = $multiply(sums[c], w, load(x, a * i + from));
                    }
                };
                let whole = i / (2 * $lanes) * (2 * $lanes);
                for from in (0..whole).step_by(2 * $lanes) {
                    add(from, !0, 0);
                    add(from + $lanes, !0, 1);
                }
                for (c, from) in (whole..i).step_by($lanes).enumerate() {
                    add(from, ((1u64 << (i - from).min($lanes)) - 1) as $mask, c);
                }
                sums.map(|[a, b]| _mm512_reduce_add_ps(_mm512_add_ps(a, b)))
            }
        };
    }

    dots!(
        avx512,
        "avx512f,avx512vl,avx512bw,avx512dq",
        f32,
        16,
        __mmask16,
        |mask, at| _mm512_maskz_loadu_ps(mask, at),
        add_products
    );
    dots!(
        avx512_bf16,
        "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16",
        bf16,
        32,
        __mmask32,
        |mask, at| transmute::<__m512i, __m512bh>(_mm512_maskz_loadu_epi16(mask, at.cast())),
        _mm512_dpbf16_ps
    );

    #[target_feature(enable = "avx512f")]
    fn add_products(sum: __m512, w: __m512, x: __m512) -> __m512 {
        _mm512_fmadd_ps(w, x, sum)
    }
}
