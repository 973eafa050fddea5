//! Operands in the order the micro-kernels read them.
//!
//! A step is 32 bits along `k`: one f32 or two bf16 numbers, the first in the lower half. Runs that
//! are contiguous along `k` are converted and, for panels, transposed; runs contiguous across `k`
//! pair two neighbouring rows. Widths that do not fill a step are completed by zeros.

use half::bf16;

use super::{
    View,
    tile::{DEPTH, Step, WIDTH},
};
use crate::{
    num::{Numbers, narrow},
    simd::vectorised,
};

/// Rows of quantised numbers expanded at a time, to 8 KiB.
#[cfg(target_arch = "x86_64")]
const STRIP: usize = 64;

/// Numbers per step.
pub(super) fn per_step(step: Step) -> usize {
    match step {
        Step::F32 => 1,
        Step::Bf16 => 2,
    }
}

/// How numbers become steps.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub step: Step,
    /// Rounds to bf16 where the arithmetic asks for it but the steps are f32.
    pub round: bool,
}

/// Some steps of an operand.
pub(super) struct Operand<'a> {
    pub kind: Kind,
    pub view: View<'a>,
    /// Numbers of the operand along `k`.
    pub k: usize,
    /// The first step to pack and the one after the last.
    pub span: (usize, usize),
}

impl Operand<'_> {
    /// Rows `r0..r0 + rows` of a left operand, each [`DEPTH`] steps apart.
    pub fn rows(&self, (r0, rows): (usize, usize), out: &mut [u32], scratch: &mut [u32]) {
        let (a, steps) = (&self.view, self.steps());
        if a.col == 1 {
            for (r, out) in out.chunks_mut(DEPTH).enumerate().take(rows) {
                self.along((r0 + r) * a.row, &mut out[..steps]);
            }
            return;
        }
        assert_eq!(a.row, 1, "rows or columns of a view are contiguous");
        // A panel of rows at a time: neighbours along `k` side by side, then turned.
        for r in (0..rows).step_by(WIDTH) {
            let width = WIDTH.min(rows - r);
            self.across(a.col, (r0 + r, width), scratch);
            let (from, out) = (&scratch[..steps * WIDTH], &mut out[r * DEPTH..]);
            turn(from, WIDTH, (steps, width), out, DEPTH);
        }
    }

    /// Columns `j0..j0 + cols` of a right operand as a panel; absent columns are zero.
    pub fn panel(&self, (j0, cols): (usize, usize), out: &mut [u32], scratch: &mut [u32]) {
        let (b, (s0, s1), steps) = (&self.view, self.span, self.steps());
        if b.row != 1 || (b.col == 1 && cols > 1) {
            assert_eq!(b.col, 1, "rows or columns of a view are contiguous");
            return self.across(b.row, (j0, cols), out);
        }
        // Columns are contiguous along k: a weight stored as rows of outputs.
        match (b.data, self.kind) {
            // Whole steps that need no conversion are turned where they lie.
            (Numbers::F32(x), Kind { step: Step::F32, round: false }) => {
                turn(&x[b.at + j0 * b.col + s0..], b.col, (cols, steps), out, WIDTH);
            }
            (Numbers::Bf16(x), Kind { step: Step::Bf16, .. }) if 2 * s1 <= self.k => {
                turn(&x[b.at + j0 * b.col + 2 * s0..], b.col, (cols, steps), out, WIDTH);
            }
            _ => {
                for (c, line) in scratch.chunks_mut(DEPTH).enumerate().take(cols) {
                    self.along((j0 + c) * b.col, &mut line[..steps]);
                }
                turn(scratch, DEPTH, (cols, steps), out, WIDTH);
            }
        }
        if cols < WIDTH {
            for step in out.chunks_exact_mut(WIDTH).take(steps) {
                step[cols..].fill(0);
            }
        }
    }

    fn steps(&self) -> usize {
        self.span.1 - self.span.0
    }

    /// A run that lies along `k`, beginning at number `at` of the view.
    fn along(&self, at: usize, out: &mut [u32]) {
        let (at, data, (s0, s1)) = (self.view.at + at, self.view.data, self.span);
        match self.kind.step {
            Step::F32 => {
                let out = floats(out);
                data.read(at + s0, out);
                if self.kind.round {
                    round(out);
                }
            }
            Step::Bf16 => {
                let (from, to) = (2 * s0, (2 * s1).min(self.k));
                if to < 2 * s1
                    && let Some(last) = out.last_mut()
                {
                    *last = 0;
                }
                let out = &mut halves(out)[..to - from];
                match data {
                    Numbers::F32(x) => narrow(&x[at + from..at + to], out),
                    Numbers::Bf16(x) => out.copy_from_slice(&x[at + from..at + to]),
                    Numbers::Blocks(x) => x.read_bf16(at + from, out),
                }
            }
        }
    }

    /// `width` neighbouring runs across `k`, from number `c0` on: what belongs to number `p` of `k`
    /// begins at `p·stride`.
    fn across(&self, stride: usize, (c0, width): (usize, usize), out: &mut [u32]) {
        let (data, (s0, s1), per) = (self.view.data, self.span, per_step(self.kind.step));
        let at = self.view.at + c0 + s0 * per * stride;
        let mut done = 0;
        // Whole pairs of full panels, by far the most frequent, go in one sweep.
        #[cfg(target_arch = "x86_64")]
        if self.kind.step == Step::Bf16 && width == WIDTH {
            let whole = s1.min(self.k / 2) - s0;
            let last = at + (2 * whole).saturating_sub(1) * stride + WIDTH;
            assert!(whole == 0 || last <= data.len() && whole * WIDTH <= out.len());
            // SAFETY: the assert bounds every row that is read and what is written; bf16 steps are
            // chosen only where the processor has AVX-512 with bf16.
            unsafe {
                match data {
                    Numbers::Bf16(x) => {
                        x86::pairs(x.as_ptr().add(at), stride, whole, out.as_mut_ptr());
                        done = whole;
                    }
                    Numbers::F32(x) => {
                        x86::pairs_f32(x.as_ptr().add(at), stride, whole, out.as_mut_ptr());
                        done = whole;
                    }
                    Numbers::Blocks(x) => {
                        let mut strip = [[0f32; WIDTH]; STRIP];
                        for s in (0..whole).step_by(STRIP / 2) {
                            let (steps, at) = ((whole - s).min(STRIP / 2), at + 2 * s * stride);
                            x.strip(at, stride, &mut strip[..2 * steps]);
                            let out = out.as_mut_ptr().add(s * WIDTH);
                            x86::pairs_f32(strip.as_flattened().as_ptr(), WIDTH, steps, out);
                        }
                        done = whole;
                    }
                }
            }
        }
        if let (Step::F32, WIDTH, Numbers::Blocks(x)) = (self.kind.step, width, data) {
            let out = floats(&mut out[..(s1 - s0) * WIDTH]);
            x.strip(at, stride, out.as_chunks_mut().0);
            if self.kind.round {
                round(out);
            }
            done = s1 - s0;
        }
        let (mut first, mut second) = ([0f32; WIDTH], [0f32; WIDTH]);
        let steps = out.chunks_exact_mut(WIDTH).enumerate().take(s1 - s0).skip(done);
        for (s, out) in steps {
            let (at, p) = (at + s * per * stride, (s0 + s) * per);
            out[width..].fill(0);
            match self.kind.step {
                Step::F32 => {
                    let out = &mut floats(out)[..width];
                    data.read(at, out);
                    if self.kind.round {
                        round(out);
                    }
                }
                Step::Bf16 => {
                    data.read(at, &mut first[..width]);
                    match p + 1 < self.k {
                        true => data.read(at + stride, &mut second[..width]),
                        false => second.fill(0.0),
                    }
                    pair(&first[..width], &second[..width], out);
                }
            }
        }
    }
}

fn floats(steps: &mut [u32]) -> &mut [f32] {
    // SAFETY: the same size and alignment, and every bit pattern is a number.
    unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast(), steps.len()) }
}

fn halves(steps: &mut [u32]) -> &mut [bf16] {
    // SAFETY: two halves in each step, of lesser alignment; every bit pattern is a number.
    unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast(), steps.len() * 2) }
}

#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    // Not-a-number keeps its upper half; every other number rounds to nearest, ties to even.
    if x.is_nan() { bits | 0x0040_0000 } else { bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) }
}

vectorised! {
    fn round(x: &mut [f32]) {
        for x in x {
            *x = f32::from_bits(rounded(*x) & 0xffff_0000);
        }
    }
}

vectorised! {
    fn pair(first: &[f32], second: &[f32], out: &mut [u32]) {
        for ((a, b), out) in first.iter().zip(second).zip(out) {
            *out = (rounded(*a) >> 16) | (rounded(*b) & 0xffff_0000);
        }
    }
}

/// `out[c·out_row + r] = from[r·row + c]` for `rows` × `cols` steps; `from` may hold numbers of half
/// a step, `row` of which lie between the beginnings of rows.
pub(super) fn turn<T: Copy>(
    from: &[T],
    row: usize,
    (rows, cols): (usize, usize),
    out: &mut [u32],
    out_row: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let size = size_of::<T>();
    assert!(
        ((rows - 1) * row) * size + cols * 4 <= size_of_val(from),
        "rows to turn are cut short"
    );
    assert!((cols - 1) * out_row + rows <= out.len(), "no room for what is turned");
    let (from, row) = (from.as_ptr().cast::<u8>(), row * size);
    let (mut full_r, mut full_c) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() >= crate::simd::Level::Avx512 {
        (full_r, full_c) = (rows / 16 * 16, cols / 16 * 16);
        for r in (0..full_r).step_by(16) {
            for c in (0..full_c).step_by(16) {
                // SAFETY: the asserts bound the whole matrix, this block is inside it, and the
                // level says that the processor has AVX-512.
                unsafe {
                    let to = out.as_mut_ptr().add(c * out_row + r);
                    x86::turn16(from.add(r * row + c * 4), row, to, out_row);
                }
            }
        }
    }
    // What does not fill a block: the columns right of the blocks, then the rows below them.
    for r in 0..rows {
        let begin = if r < full_r { full_c } else { 0 };
        for c in begin..cols {
            // SAFETY: inside the matrix by the asserts; steps need not be aligned.
            let step = unsafe { from.add(r * row + c * 4).cast::<u32>().read_unaligned() };
            out[c * out_row + r] = step;
        }
    }
}

// Indices are numbers of registers here, in loops that are unrolled.
#[allow(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::WIDTH;

    /// Thirty-two columns of two rows after another, as pairs.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pairs(from: *const bf16, stride: usize, steps: usize, to: *mut u32) {
        let (mut low, mut high) = ([0u16; 32], [0u16; 32]);
        for i in 0..16 {
            (low[2 * i], low[2 * i + 1]) = (i as u16, 32 + i as u16);
            (high[2 * i], high[2 * i + 1]) = (16 + i as u16, 48 + i as u16);
        }
        // SAFETY: the caller bounds what is read and written; the tables are 64 bytes.
        unsafe {
            let low = _mm512_loadu_epi16(low.as_ptr().cast());
            let high = _mm512_loadu_epi16(high.as_ptr().cast());
            for s in 0..steps {
                let row = from.add(2 * s * stride).cast::<i16>();
                let (a, b) = (_mm512_loadu_epi16(row), _mm512_loadu_epi16(row.add(stride)));
                let to = to.add(s * WIDTH).cast::<i16>();
                _mm512_storeu_epi16(to, _mm512_permutex2var_epi16(a, low, b));
                _mm512_storeu_epi16(to.add(32), _mm512_permutex2var_epi16(a, high, b));
            }
        }
    }

    /// The same from f32.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pairs_f32(from: *const f32, stride: usize, steps: usize, to: *mut u32) {
        let mut turn = [0u16; 32];
        for i in 0..16 {
            (turn[2 * i], turn[2 * i + 1]) = (i as u16, 16 + i as u16);
        }
        // SAFETY: the caller bounds what is read and written; the table is 64 bytes, and both
        // types of the transmute are vectors of 512 bits.
        unsafe {
            let turn = _mm512_loadu_epi16(turn.as_ptr().cast());
            for s in 0..steps {
                let row = from.add(2 * s * stride);
                for half in 0..2 {
                    let a = _mm512_loadu_ps(row.add(16 * half));
                    let b = _mm512_loadu_ps(row.add(stride + 16 * half));
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
                    let pairs = _mm512_permutexvar_epi16(turn, both);
                    _mm512_storeu_epi32(to.add(s * WIDTH + 16 * half).cast(), pairs);
                }
            }
        }
    }

    /// A 16 × 16 block of steps, turned; rows of `from` begin `row` bytes apart.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn turn16(from: *const u8, row: usize, to: *mut u32, to_row: usize) {
        let mut x = [_mm512_setzero_si512(); 16];
        let mut y = [_mm512_setzero_si512(); 16];
        for i in 0..16 {
            // SAFETY: the caller's block has sixteen rows of sixteen numbers.
            x[i] = unsafe { _mm512_loadu_epi32(from.add(i * row).cast()) };
        }
        // Within 128-bit lanes: pairs of rows, then pairs of pairs.
        for i in 0..8 {
            y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        for i in 0..4 {
            let j = 4 * i;
            x[j] = _mm512_unpacklo_epi64(y[j], y[j + 2]);
            x[j + 1] = _mm512_unpackhi_epi64(y[j], y[j + 2]);
            x[j + 2] = _mm512_unpacklo_epi64(y[j + 1], y[j + 3]);
            x[j + 3] = _mm512_unpackhi_epi64(y[j + 1], y[j + 3]);
        }
        // Now x[4g + c] holds, in lane l, column 4l + c of rows 4g..4g + 4: lanes change places.
        for c in 0..4 {
            let a = _mm512_shuffle_i32x4::<0x88>(x[c], x[4 + c]);
            let b = _mm512_shuffle_i32x4::<0xdd>(x[c], x[4 + c]);
            let d = _mm512_shuffle_i32x4::<0x88>(x[8 + c], x[12 + c]);
            let e = _mm512_shuffle_i32x4::<0xdd>(x[8 + c], x[12 + c]);
            y[c] = _mm512_shuffle_i32x4::<0x88>(a, d);
            y[8 + c] = _mm512_shuffle_i32x4::<0xdd>(a, d);
            y[4 + c] = _mm512_shuffle_i32x4::<0x88>(b, e);
            y[12 + c] = _mm512_shuffle_i32x4::<0xdd>(b, e);
        }
        for i in 0..16 {
            // SAFETY: as for the loads.
            unsafe { _mm512_storeu_epi32(to.add(i * to_row).cast(), y[i]) };
        }
    }
}
