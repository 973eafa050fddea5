//! Matrix products: `c (+)= Σ a·b` over strided views of f32, bf16 or quantised numbers.

mod pack;
mod tile;
mod turned;

use std::{cell::RefCell, ops::Range};

use crate::{
    few::{FEW, few_rows},
    num::{Numbers, Precision},
    pool::{self, Buffer},
    simd::{self, Level},
    threads,
};
use pack::{Kind, Operand, per_step};
use tile::{DEPTH, Step, Tile, WIDTH, height, tile};

/// A matrix view: element `(r, c)` is number `at + r·row + c·col`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: Numbers<'a>,
    at: usize,
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `row` numbers between the beginnings of rows.
    pub fn rows(data: impl Into<Numbers<'a>>, row: usize) -> Self {
        View { data: data.into(), at: 0, row, col: 1 }
    }

    /// The transpose: rows become columns.
    pub fn t(self) -> Self {
        View { row: self.col, col: self.row, ..self }
    }

    /// What remains below row `r` and right of column `c`.
    pub fn from(self, r: usize, c: usize) -> Self {
        View { at: self.at + r * self.row + c * self.col, ..self }
    }

    /// The numbers of row `r` of a matrix whose rows are contiguous, as f32.
    pub fn read_row(&self, r: usize, out: &mut [f32]) {
        assert_eq!(self.col, 1, "rows of this view are not contiguous");
        self.data.read(self.at + r * self.row, out);
    }

    fn covers(&self, rows: usize, cols: usize) -> bool {
        let last = || self.at + (rows - 1) * self.row + (cols - 1) * self.col;
        rows == 0 || cols == 0 || last() < self.data.len()
    }
}

/// One product of a sum: `a` `(m, k)` times `b` `(k, n)`.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Left operand.
    pub a: View<'a>,
    /// Right operand.
    pub b: View<'a>,
    /// The width that is summed over.
    pub k: usize,
}

/// What becomes of the numbers that were in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// They are overwritten.
    Set,
    /// The sum is added to them.
    Add,
}

/// Rows of the left operand packed at a time: with [`DEPTH`] steps each, 576 KiB.
const ROWS: usize = 384;
/// Panels of quantised numbers that stay while all rows pass by them: 3 MiB at most.
const PANELS: usize = 64;
/// Multiplications below which one thread does it all.
const SMALL: usize = 1 << 20;

/// `c (+)= Σ a·b`, an `(m, n)` matrix.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The arithmetic.
    pub precision: Precision,
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// What is summed.
    pub terms: &'a [Term<'a>],
    /// What becomes of the numbers that are there.
    pub output: Output,
}

/// A [`Product`] into `c`, row-major, `c_row` numbers between the beginnings of rows.
pub fn product(
    precision: Precision,
    m: usize,
    n: usize,
    terms: &[Term],
    output: Output,
    c: &mut [f32],
    c_row: usize,
) {
    Product { precision, m, n, terms, output }.run(c, c_row);
}

impl Product<'_> {
    /// Computes it. Sums run in an order that depends on the widths alone, never on the number of
    /// threads, and on `m` only in that up to [`FEW`] rows with whole weights are multiplied in
    /// another order than more.
    pub fn run(&self, c: &mut [f32], c_row: usize) {
        match self.is_few(c_row) {
            true => self.run_few(c),
            false => self.run_at(simd::level(), c, c_row),
        }
    }

    /// Whether there are so few rows that reading the right operands is the work, and these are
    /// whole rows of weights.
    fn is_few(&self, c_row: usize) -> bool {
        let (m, n) = (self.m, self.n);
        let whole = |t: &Term| {
            let b = t.b;
            let rows = b.row == 1 && b.col == t.k && b.at == 0 && b.data.len() == n * t.k;
            t.a.covers(m, t.k) && t.a.col == 1 && rows && t.k > 0
        };
        let sizes = m <= FEW && n >= WIDTH && c_row == n;
        sizes && !self.terms.is_empty() && self.terms.iter().all(whole)
    }

    fn run_few(&self, c: &mut [f32]) {
        let Product { precision, m, n, .. } = *self;
        let c = &mut c[..m * n];
        let alone = self.output == Output::Set && self.terms.len() == 1;
        let mut sum = Buffer::new(if alone { 0 } else { m * n });
        for (i, Term { a, b, k }) in self.terms.iter().enumerate() {
            let mut rows = |x: &[f32]| {
                if i == 0 && self.output == Output::Set {
                    return few_rows(precision, x, m, b.data, n, *k, c);
                }
                few_rows(precision, x, m, b.data, n, *k, &mut sum);
                c.iter_mut().zip(&sum[..]).for_each(|(c, x)| *c += x);
            };
            if a.row == *k || m == 1 {
                pool::read(a.data, a.at..a.at + m * k, rows);
                continue;
            }
            let mut x = Buffer::new(m * k);
            x.chunks_exact_mut(*k).enumerate().for_each(|(r, x)| a.read_row(r, x));
            rows(&x);
        }
    }

    /// Computes it in blocks with the instructions of `level`, which the processor must have.
    pub fn run_at(&self, level: Level, c: &mut [f32], c_row: usize) {
        let Product { precision, m, n, terms, output } = *self;
        assert!(level <= simd::best(), "{level:?} is not to be had on this processor");
        for t in terms {
            assert!(t.a.covers(m, t.k) && t.b.covers(t.k, n), "a view reaches beyond its numbers");
        }
        if m == 0 || n == 0 {
            return;
        }
        assert!((m - 1) * c_row + n <= c.len(), "the product does not fit");
        assert!(n <= c_row || m == 1, "rows of the product overlap");
        let kind = match (precision, level) {
            (Precision::F32, _) => Kind { step: Step::F32, round: false },
            (Precision::Bf16, Level::Avx512Bf16) => Kind { step: Step::Bf16, round: false },
            (Precision::Bf16, _) => Kind { step: Step::F32, round: true },
        };
        let steps: Vec<usize> = terms.iter().map(|t| t.k.div_ceil(per_step(kind.step))).collect();
        let total: usize = steps.iter().sum();
        if total == 0 {
            if output == Output::Set {
                c.chunks_mut(c_row).take(m).for_each(|row| row[..n].fill(0.0));
            }
            return;
        }
        let to = Target { c: c.as_mut_ptr(), row: c_row };
        let job = Job { level, kind, terms, steps: &steps, total, output, to };
        let threads = if m * n * total < threads::least(SMALL) { 1 } else { threads::count() };
        if job.turns(m) {
            let pieces = threads;
            let cut = |i: usize| n * i / pieces;
            let tasks = (0..pieces).map(|i| cut(i)..cut(i + 1)).collect();
            let turned = |columns| PACKED.with_borrow_mut(|packed| job.turned(m, columns, packed));
            return threads::for_each(tasks, turned);
        }
        if threads == 1 {
            return job.run(0..m, 0..n);
        }
        // Columns are cut where there are enough of them, so that no panel is packed twice; a few
        // more pieces than threads even out their speeds.
        let (panels, pieces) = (n.div_ceil(WIDTH), 2 * threads);
        if panels >= 2 * pieces {
            let cut = |i: usize| (panels * i / pieces * WIDTH).min(n);
            let tasks = (0..pieces).map(|i| cut(i)..cut(i + 1)).collect();
            threads::for_each(tasks, |columns| job.run(0..m, columns));
        } else {
            let cut = |i: usize| m * i / pieces;
            let tasks = (0..pieces).map(|i| cut(i)..cut(i + 1)).collect();
            threads::for_each(tasks, |rows| job.run(rows, 0..n));
        }
    }
}

/// Where the sums go.
struct Target {
    c: *mut f32,
    row: usize,
}

// SAFETY: a target is shared by pieces of one product that write to disjoint rows or columns, all
// within the exclusive borrow that `Product::run_at` holds until every piece is done.
unsafe impl Sync for Target {}

struct Job<'a> {
    level: Level,
    kind: Kind,
    terms: &'a [Term<'a>],
    /// Of each term.
    steps: &'a [usize],
    total: usize,
    output: Output,
    to: Target,
}

/// A cache line, so that packed operands begin at one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u32; 16]);

#[derive(Default)]
struct Packed {
    left: Vec<Line>,
    panel: Vec<Line>,
    scratch: Vec<Line>,
}

thread_local! {
    static PACKED: RefCell<Packed> = RefCell::default();
}

/// The first `n` steps of a buffer that grows to the largest size asked for.
fn grown(buffer: &mut Vec<Line>, n: usize) -> &mut [u32] {
    let lines = n.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 16]));
    }
    steps(&mut buffer[..lines])
}

fn steps(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is sixteen u32 without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

impl Job<'_> {
    fn run(&self, rows: Range<usize>, columns: Range<usize>) {
        // Expanding quantised numbers is dear enough to do it once, not for each part of the rows.
        let blocks = |t: &Term| matches!(t.b.data, Numbers::Blocks(_));
        let stay = rows.len() > ROWS && self.terms.iter().any(blocks);
        let most = if stay { PANELS * WIDTH } else { columns.len().max(1) };
        // Nothing below calls back into a product, so the buffers of this thread are free.
        PACKED.with_borrow_mut(|packed| {
            for j in columns.clone().step_by(most) {
                let columns = j..columns.end.min(j + most);
                self.blocks(rows.clone(), columns, stay, packed);
            }
        });
    }

    /// The steps of all terms end to end, cut into as few equal parts as fit a panel.
    fn depths(&self) -> impl Iterator<Item = Range<usize>> {
        let (total, parts) = (self.total, self.total.div_ceil(DEPTH));
        (0..parts).map(move |d| total * d / parts..total * (d + 1) / parts)
    }

    /// Part of the product; with `stay`, the panels of all its columns are there side by side.
    fn blocks(&self, rows: Range<usize>, columns: Range<usize>, stay: bool, packed: &mut Packed) {
        let Packed { left, panel, scratch } = packed;
        let panels = if stay { columns.len().div_ceil(WIDTH) } else { 1 };
        let panels = grown(panel, panels * DEPTH * WIDTH);
        let scratch = grown(scratch, DEPTH * WIDTH);
        let left = grown(left, ROWS.min(rows.len()) * DEPTH);
        let highest = height(self.level);
        for depth in self.depths() {
            let output = if depth.start == 0 { self.output } else { Output::Add };
            let parts = rows.len().div_ceil(ROWS);
            for part in 0..parts {
                let r0 = rows.start + rows.len() * part / parts;
                let height = rows.start + rows.len() * (part + 1) / parts - r0;
                self.each(&depth, |term, at, span| {
                    let operand = Operand { kind: self.kind, view: term.a, k: term.k, span };
                    operand.rows((r0, height), &mut left[at..], scratch);
                });
                // Tiles of nearly the same height.
                let tiles = height.div_ceil(highest);
                for j0 in columns.clone().step_by(WIDTH) {
                    let width = WIDTH.min(columns.end - j0);
                    let at = if stay { (j0 - columns.start) * DEPTH } else { 0 };
                    let panel = &mut panels[at..][..DEPTH * WIDTH];
                    if part == 0 || !stay {
                        self.each(&depth, |term, at, span| {
                            let view = term.b;
                            let operand = Operand { kind: self.kind, view, k: term.k, span };
                            operand.panel((j0, width), &mut panel[at * WIDTH..], scratch);
                        });
                    }
                    for i in 0..tiles {
                        let (r, end) = (height * i / tiles, height * (i + 1) / tiles);
                        // SAFETY: the packed rows and the panel hold `depth.len()` steps; the
                        // target's rows and columns are this piece's own; `level` was checked.
                        unsafe {
                            let t = Tile {
                                rows: end - r,
                                cols: width,
                                steps: depth.len(),
                                a: left.as_ptr().add(r * DEPTH),
                                a_row: DEPTH,
                                ahead: std::ptr::null(),
                                b: panel.as_ptr(),
                                c: self.to.c.add((r0 + r) * self.to.row + j0),
                                c_row: self.to.row,
                                output,
                            };
                            tile(self.level, self.kind.step, t);
                        }
                    }
                }
            }
        }
    }

    /// Calls `f` for the part of every term that lies in `depth`: the term, where in the block its
    /// part begins, and which of its steps it is.
    fn each(&self, depth: &Range<usize>, mut f: impl FnMut(&Term, usize, (usize, usize))) {
        let mut begin = 0;
        for (term, steps) in self.terms.iter().zip(self.steps) {
            let (from, to) = (depth.start.max(begin), depth.end.min(begin + steps));
            if from < to {
                f(term, from - depth.start, (from - begin, to - begin));
            }
            begin += steps;
        }
    }
}
