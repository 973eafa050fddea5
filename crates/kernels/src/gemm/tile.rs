//! Micro-kernels: a tile of up to 12 × 32 sums held in registers while `k` runs.
//!
//! Operands come packed in 32-bit *steps* (see [`super::pack`]): one f32 number, or two bf16
//! numbers that are neighbours along `k`. The left operand has its rows [`DEPTH`] steps apart, the
//! right one is a panel of [`WIDTH`] columns per step.

use super::Output;
use crate::simd::Level;

/// Columns of a panel.
pub(super) const WIDTH: usize = 32;
/// Steps of a panel at most; also the distance between packed rows of the left operand.
pub(super) const DEPTH: usize = 384;

/// What a packed step holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// One number.
    F32,
    /// Two numbers.
    Bf16,
}

/// Rows of the largest tile.
pub(super) fn height(level: Level) -> usize {
    match level {
        Level::Avx512 | Level::Avx512Bf16 => 12,
        Level::Avx2 => 6,
        Level::Portable => 4,
    }
}

/// `c (+)= a·b` for one tile of `rows` × `cols`.
///
/// # Safety
/// `a` holds `rows` rows of `steps` steps [`DEPTH`] apart, `b` holds `steps × WIDTH`, `c` rows of at
/// least `cols` numbers `c_row` apart; nobody else touches those of `c`. The processor has `level`,
/// and `rows` is at most its [`height`]; bf16 steps need [`Level::Avx512Bf16`].
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tile(
    level: Level,
    step: Step,
    rows: usize,
    cols: usize,
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_row: usize,
    output: Output,
) {
    let add = output == Output::Add;
    debug_assert!(rows <= height(level) && cols <= WIDTH && steps <= DEPTH);
    // SAFETY: passed on from the caller.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => {
                x86::wide(step, rows, cols, steps, a, b, c, c_row, add);
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::narrow(rows, cols, steps, a, b, c, c_row, add),
            _ => portable(rows, cols, steps, a, b, c, c_row, add),
        }
    }
}

/// Plain loops over fixed arrays, eight columns at a time.
#[allow(clippy::too_many_arguments)]
unsafe fn portable(
    rows: usize,
    cols: usize,
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    const C: usize = 8;
    for j in (0..cols).step_by(C) {
        let mut sums = [[0f32; C]; 4];
        for s in 0..steps {
            // SAFETY: a panel has WIDTH columns, so eight from `j` are inside it.
            let b = unsafe { *b.add(s * WIDTH + j).cast::<[f32; C]>() };
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                // SAFETY: row `r` has `steps` steps.
                let x = f32::from_bits(unsafe { *a.add(r * DEPTH + s) });
                for (sum, b) in sums.iter_mut().zip(&b) {
                    *sum += x * b;
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(rows) {
            for (l, sum) in sums.iter().enumerate().take(cols - j) {
                // SAFETY: column `j + l` is below `cols`.
                let c = unsafe { &mut *c.add(r * c_row + j + l) };
                *c = if add { *c + sum } else { *sum };
            }
        }
    }
}

// Indices are numbers of registers here, in loops that are unrolled.
#[allow(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{DEPTH, Step, WIDTH};

    macro_rules! by_rows {
        ($rows:expr, $f:ident, [$($r:literal)*], $two:expr, $args:tt) => {
            match ($rows, $two) {
                $(($r, true) => by_rows!(@call $f, $r, 2, $args),
                  ($r, false) => by_rows!(@call $f, $r, 1, $args),)*
                _ => {}
            }
        };
        (@call $f:ident, $r:literal, $v:literal, ($($arg:expr),*)) => { $f::<$r, $v>($($arg),*) };
    }

    #[allow(clippy::too_many_arguments)]
    pub unsafe fn wide(
        step: Step,
        rows: usize,
        cols: usize,
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let two = cols > 16;
        // SAFETY: passed on from the caller.
        unsafe {
            match step {
                Step::F32 => by_rows!(rows, wide_f32, [1 2 3 4 5 6 7 8 9 10 11 12], two,
                    (cols, steps, a, b, c, c_row, add)),
                Step::Bf16 => by_rows!(rows, wide_bf16, [1 2 3 4 5 6 7 8 9 10 11 12], two,
                    (cols, steps, a, b, c, c_row, add)),
            }
        }
    }

    /// Asks for the lines of `c` that a tile will write, while its sums are being made. A prefetch
    /// reads nothing: an address beyond the end does no harm.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn expect<const R: usize, const V: usize>(c: *mut f32, c_row: usize) {
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(r * c_row + v * 16).cast());
            }
        }
    }

    /// Writes the sums of a tile, the last vector under a mask.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const R: usize, const V: usize>(
        sums: [[__m512; V]; R],
        cols: usize,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let last = (1u32 << (cols - (V - 1) * 16)) - 1;
        for r in 0..R {
            for v in 0..V {
                // SAFETY: vector `v` of row `r` is inside the tile; the mask ends at `cols`.
                unsafe {
                    let c = c.add(r * c_row + v * 16);
                    let mask = if v + 1 == V { last as __mmask16 } else { 0xffff };
                    let sum = match add {
                        true => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sums[r][v]),
                        false => sums[r][v],
                    };
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn wide_f32<const R: usize, const V: usize>(
        cols: usize,
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        expect::<R, V>(c, c_row);
        let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
        for _ in 0..steps {
            let mut columns = [_mm512_setzero_ps(); V];
            // SAFETY: step `s` of a panel and of every row exists.
            unsafe {
                for v in 0..V {
                    columns[v] = _mm512_loadu_ps(b.add(v * 16));
                }
                for r in 0..R {
                    let x = _mm512_set1_ps(*a.add(r * DEPTH));
                    for v in 0..V {
                        sums[r][v] = _mm512_fmadd_ps(x, columns[v], sums[r][v]);
                    }
                }
                a = a.add(1);
                b = b.add(WIDTH);
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { store::<R, V>(sums, cols, c, c_row, add) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn wide_bf16<const R: usize, const V: usize>(
        cols: usize,
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        expect::<R, V>(c, c_row);
        let (mut a, mut b) = (a.cast::<i32>(), b.cast::<i32>());
        for _ in 0..steps {
            let mut columns = [_mm512_setzero_si512(); V];
            // SAFETY: step `s` of a panel and of every row exists; both types are 512 bits wide.
            unsafe {
                for v in 0..V {
                    columns[v] = _mm512_loadu_epi32(b.add(v * 16));
                }
                for r in 0..R {
                    let x = _mm512_set1_epi32(*a.add(r * DEPTH));
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    for v in 0..V {
                        let column = std::mem::transmute::<__m512i, __m512bh>(columns[v]);
                        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], x, column);
                    }
                }
                a = a.add(1);
                b = b.add(WIDTH);
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { store::<R, V>(sums, cols, c, c_row, add) }
    }

    #[allow(clippy::too_many_arguments)]
    pub unsafe fn narrow(
        rows: usize,
        cols: usize,
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        for half in 0..cols.div_ceil(16) {
            let (at, cols) = (half * 16, (cols - half * 16).min(16));
            // SAFETY: passed on from the caller; 16 columns from `at` are inside the panel.
            unsafe {
                by_rows!(rows, narrow_f32, [1 2 3 4 5 6], true,
                    (cols, steps, a, b.add(at), c.add(at), c_row, add));
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow_f32<const R: usize, const V: usize>(
        cols: usize,
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
        for _ in 0..steps {
            let mut columns = [_mm256_setzero_ps(); V];
            // SAFETY: step `s` of a panel and of every row exists.
            unsafe {
                for v in 0..V {
                    columns[v] = _mm256_loadu_ps(b.add(v * 8));
                }
                for r in 0..R {
                    let x = _mm256_set1_ps(*a.add(r * DEPTH));
                    for v in 0..V {
                        sums[r][v] = _mm256_fmadd_ps(x, columns[v], sums[r][v]);
                    }
                }
                a = a.add(1);
                b = b.add(WIDTH);
            }
        }
        for r in 0..R {
            let mut row = [0f32; 16];
            for v in 0..V {
                // SAFETY: V is 2, so 16 numbers are written at most.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr().add(v * 8), sums[r][v]) };
            }
            for (j, sum) in row.iter().enumerate().take(cols) {
                // SAFETY: column `j` is below `cols`.
                let c = unsafe { &mut *c.add(r * c_row + j) };
                *c = if add { *c + sum } else { *sum };
            }
        }
    }
}
