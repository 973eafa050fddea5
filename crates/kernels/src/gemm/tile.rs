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
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub rows: usize,
    pub cols: usize,
    pub steps: usize,
    /// Rows of steps, `a_row` steps apart ([`DEPTH`] where they were packed), aligned or not.
    pub a: *const u32,
    pub a_row: usize,
    /// What will be read next, to be fetched meanwhile: a line per step. Not read.
    pub ahead: *const u32,
    /// A panel: [`WIDTH`] columns of each step.
    pub b: *const u32,
    /// Rows of sums, `c_row` numbers apart.
    pub c: *mut f32,
    pub c_row: usize,
    pub output: Output,
}

/// Computes a tile.
///
/// # Safety
/// `a` holds `rows` rows of `steps` steps, `b` holds `steps × WIDTH`, `c` rows of at least `cols`
/// numbers; nobody else touches those of `c`. The processor has `level`, and `rows` is at most its
/// [`height`]; bf16 steps need [`Level::Avx512Bf16`].
pub(super) unsafe fn tile(level: Level, step: Step, t: Tile) {
    debug_assert!(t.rows <= height(level) && t.cols <= WIDTH && t.steps <= DEPTH);
    // SAFETY: passed on from the caller.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => x86::wide(step, t),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::narrow(t),
            _ => portable(t),
        }
    }
}

impl Tile {
    /// Writes one sum.
    ///
    /// # Safety
    /// Row `r` and column `j` are inside the tile.
    unsafe fn put(&self, r: usize, j: usize, sum: f32) {
        // SAFETY: inside the tile by the caller, whose own the tile is.
        let c = unsafe { &mut *self.c.add(r * self.c_row + j) };
        *c = if self.output == Output::Add { *c + sum } else { sum };
    }
}

/// Plain loops over fixed arrays, eight columns at a time.
unsafe fn portable(t: Tile) {
    const C: usize = 8;
    for j in (0..t.cols).step_by(C) {
        let mut sums = [[0f32; C]; 4];
        for s in 0..t.steps {
            // SAFETY: a panel has WIDTH columns, so eight from `j` are inside it.
            let b = unsafe { *t.b.add(s * WIDTH + j).cast::<[f32; C]>() };
            for (r, sums) in sums.iter_mut().enumerate().take(t.rows) {
                // SAFETY: row `r` has `steps` steps.
                let x = f32::from_bits(unsafe { t.a.add(r * t.a_row + s).read_unaligned() });
                for (sum, b) in sums.iter_mut().zip(&b) {
                    *sum += x * b;
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(t.rows) {
            for (l, sum) in sums.iter().enumerate().take(t.cols - j) {
                // SAFETY: row `r` is below `rows`, column `j + l` below `cols`.
                unsafe { t.put(r, j + l, *sum) };
            }
        }
    }
}

// Indices are numbers of registers here, in loops that are unrolled.
#[allow(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, mem::transmute};

    use super::{DEPTH, Output, Step, Tile, WIDTH};

    macro_rules! by_rows {
        ($f:ident, $t:expr, $two:expr, [$($r:literal)*]) => {
            match ($t.rows, $two, $t.a_row == DEPTH) {
                $(($r, true, true) => $f::<$r, 2, true>($t),
                  ($r, true, false) => $f::<$r, 2, false>($t),
                  ($r, false, true) => $f::<$r, 1, true>($t),
                  ($r, false, false) => $f::<$r, 1, false>($t),)*
                _ => {}
            }
        };
    }

    pub unsafe fn wide(step: Step, t: Tile) {
        let two = t.cols > 16;
        // SAFETY: passed on from the caller.
        unsafe {
            match step {
                Step::F32 => by_rows!(wide_f32, t, two, [1 2 3 4 5 6 7 8 9 10 11 12]),
                Step::Bf16 => by_rows!(wide_bf16, t, two, [1 2 3 4 5 6 7 8 9 10 11 12]),
            }
        }
    }

    /// Asks for the lines of `c` that a tile will write, while its sums are being made. A prefetch
    /// reads nothing: an address beyond the end does no harm.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn expect<const R: usize, const V: usize>(t: Tile) {
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(t.c.wrapping_add(r * t.c_row + v * 16).cast());
            }
        }
    }

    /// Writes the sums of a tile, the last vector under a mask.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const R: usize, const V: usize>(sums: [[__m512; V]; R], t: Tile) {
        let last = (1u32 << (t.cols - (V - 1) * 16)) - 1;
        for r in 0..R {
            for v in 0..V {
                // SAFETY: vector `v` of row `r` is inside the tile; the mask ends at `cols`.
                unsafe {
                    let c = t.c.add(r * t.c_row + v * 16);
                    let mask = if v + 1 == V { last as __mmask16 } else { 0xffff };
                    let sum = match t.output {
                        Output::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sums[r][v]),
                        Output::Set => sums[r][v],
                    };
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }

    /// Defines the micro-kernel that adds `$multiply(x, column, sum)` for vectors of steps.
    macro_rules! wide {
        ($name:ident, $features:literal, |$x:ident, $column:ident, $sum:ident| $multiply:expr) => {
            #[target_feature(enable = $features)]
            unsafe fn $name<const R: usize, const V: usize, const PACKED: bool>(t: Tile) {
                let a_row = if PACKED { DEPTH } else { t.a_row };
                let mut sums = [[_mm512_setzero_ps(); V]; R];
                expect::<R, V>(t);
                let (mut a, mut b, mut ahead) = (t.a.cast::<i32>(), t.b.cast::<i32>(), t.ahead);
                for _ in 0..t.steps {
                    let mut columns = [_mm512_setzero_si512(); V];
                    // SAFETY: this step of the panel and of every row exists; vectors of steps and
                    // of what is in them have the same 512 bits.
                    unsafe {
                        if !PACKED {
                            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                            ahead = ahead.wrapping_add(16);
                        }
                        for v in 0..V {
                            columns[v] = _mm512_loadu_epi32(b.add(v * 16));
                        }
                        for r in 0..R {
                            let $x = _mm512_set1_epi32(a.add(r * a_row).read_unaligned());
                            for v in 0..V {
                                let ($column, $sum) = (columns[v], sums[r][v]);
                                sums[r][v] = $multiply;
                            }
                        }
                        a = a.add(1);
                        b = b.add(WIDTH);
                    }
                }
                // SAFETY: passed on from the caller.
                unsafe { store::<R, V>(sums, t) }
            }
        };
    }

    wide!(wide_f32, "avx512f", |x, column, sum| {
        _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(column), sum)
    });
    wide!(wide_bf16, "avx512f,avx512bf16", |x, column, sum| {
        let x = transmute::<__m512i, __m512bh>(x);
        _mm512_dpbf16_ps(sum, x, transmute::<__m512i, __m512bh>(column))
    });

    pub unsafe fn narrow(t: Tile) {
        for at in (0..t.cols).step_by(16) {
            // SAFETY: passed on from the caller; 16 columns from `at` are inside the panel.
            unsafe {
                let half =
                    Tile { cols: (t.cols - at).min(16), b: t.b.add(at), c: t.c.add(at), ..t };
                by_rows!(narrow_f32, half, true, [1 2 3 4 5 6]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow_f32<const R: usize, const V: usize, const PACKED: bool>(t: Tile) {
        let a_row = if PACKED { DEPTH } else { t.a_row };
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        let (mut a, mut b) = (t.a.cast::<f32>(), t.b.cast::<f32>());
        for _ in 0..t.steps {
            let mut columns = [_mm256_setzero_ps(); V];
            // SAFETY: this step of the panel and of every row exists.
            unsafe {
                for v in 0..V {
                    columns[v] = _mm256_loadu_ps(b.add(v * 8));
                }
                for r in 0..R {
                    let x = _mm256_set1_ps(a.add(r * a_row).read_unaligned());
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
                // SAFETY: V is 2 at most, so 16 numbers are written at most.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr().add(v * 8), sums[r][v]) };
            }
            for (j, sum) in row.iter().enumerate().take(t.cols) {
                // SAFETY: row `r` is below `rows`, column `j` below `cols`.
                unsafe { t.put(r, j, *sum) };
            }
        }
    }
}
