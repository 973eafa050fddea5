//! Products with few rows: the roles of the operands are exchanged.
//!
//! Packing a panel of the right operand costs as much as multiplying it by thirty rows. When its
//! columns lie along `k` as the micro-kernel wants the rows of a left operand, they are read where
//! they lie, the few rows become the panel, and the tile of sums is turned as it is written. Every
//! sum runs over the same steps in the same order as in [`super::Product::run_at`].

use std::ops::Range;

use super::{
    Job, Line, Output, Packed, Term,
    pack::{Operand, per_step, turn},
    tile::{DEPTH, Step, Tile, WIDTH, height, tile},
};
use crate::{few::FEW, num::Numbers};

/// Up to this many rows, not packing saves more than turning the sums costs.
pub(super) const TURNED: usize = 64;
/// Rows of a tile at most, rounded to whole blocks of [`turn`].
const HIGH: usize = 16;

impl Job<'_> {
    /// The steps of a right operand's column `j` from step `s` on, if it needs no conversion.
    fn lies(&self, term: &Term, j: usize, s: usize) -> Option<*const u32> {
        let at = term.b.at + j * term.b.col + s * per_step(self.kind.step);
        match (term.b.data, self.kind.step) {
            _ if term.b.row != 1 || self.kind.round => None,
            (Numbers::F32(x), Step::F32) => Some(x[at..].as_ptr().cast()),
            (Numbers::Bf16(x), Step::Bf16)
                if term.k.is_multiple_of(2) && term.b.col.is_multiple_of(2) =>
            {
                Some(x[at..].as_ptr().cast())
            }
            _ => None,
        }
    }

    /// Whether `m` rows are few enough, and the first right operand is read where it lies.
    pub(super) fn turns(&self, m: usize) -> bool {
        let first = self.terms.first();
        (FEW + 1..=TURNED).contains(&m)
            && first.is_some_and(|term| term.k > 0 && self.lies(term, 0, 0).is_some())
    }

    /// Columns `columns` of the product, all of its `m` rows.
    pub(super) fn turned(&self, m: usize, columns: Range<usize>, packed: &mut Packed) {
        let Packed { left, panel, scratch } = packed;
        let wide = m.next_multiple_of(WIDTH);
        let panel = super::grown(panel, self.total * wide);
        let scratch = super::grown(scratch, DEPTH * WIDTH);
        let left = super::grown(left, HIGH * DEPTH);
        let depths: Vec<_> = self.depths().collect();
        for depth in &depths {
            for p in (0..m).step_by(WIDTH) {
                let panel = &mut panel[depth.start * wide + p * depth.len()..];
                self.each(depth, |term, at, span| {
                    let view = term.a.t();
                    let operand = Operand { kind: self.kind, view, k: term.k, span };
                    let width = WIDTH.min(m - p);
                    operand.panel((p, width), &mut panel[at * WIDTH..], scratch);
                });
            }
        }
        let mut sums = [Line([0; 16]); HIGH * TURNED / 16];
        let sums = super::steps(&mut sums);
        let tiles = columns.len().div_ceil(height(self.level));
        for i in 0..tiles {
            let cut = |i: usize| columns.start + columns.len() * i / tiles;
            let (j, rows) = (cut(i), cut(i + 1) - cut(i));
            for depth in &depths {
                let mut place = None;
                self.each(depth, |term, at, span| {
                    if span.1 - span.0 == depth.len() {
                        let stride = term.b.col / per_step(self.kind.step);
                        place = self.lies(term, j, span.0).map(|a| (a, stride));
                    }
                    if place.is_none() {
                        let view = term.b.t();
                        let operand = Operand { kind: self.kind, view, k: term.k, span };
                        operand.rows((j, rows), &mut left[at..], scratch);
                    }
                });
                let (a, a_row) = place.unwrap_or((left.as_ptr(), DEPTH));
                for p in (0..m).step_by(WIDTH) {
                    let b = panel[depth.start * wide + p * depth.len()..].as_ptr();
                    let t = Tile {
                        rows,
                        cols: WIDTH.min(m - p),
                        steps: depth.len(),
                        a,
                        a_row,
                        // The rows after these, as far as the steps before this depth got.
                        ahead: a.wrapping_add(rows * a_row + depth.start * (HIGH - 1)),
                        b,
                        c: sums[p..].as_mut_ptr().cast(),
                        c_row: wide,
                        output: if depth.start == 0 { Output::Set } else { Output::Add },
                    };
                    // SAFETY: `a` has `rows` columns of the right operand, which the views cover,
                    // or their packed copies; the panel was packed above; the sums have room for
                    // HIGH rows of `wide` numbers; `level` was checked.
                    unsafe { tile(self.level, self.kind.step, t) };
                }
            }
            turn(sums, wide, (HIGH, m), scratch, HIGH);
            for (r, sums) in scratch.chunks_exact(HIGH).enumerate().take(m) {
                // SAFETY: row `r` of the product has these columns, which are this piece's own.
                let c = unsafe {
                    std::slice::from_raw_parts_mut(self.to.c.add(r * self.to.row + j), rows)
                };
                for (c, sum) in c.iter_mut().zip(sums) {
                    let sum = f32::from_bits(*sum);
                    *c = if self.output == Output::Add { *c + sum } else { sum };
                }
            }
        }
    }
}
