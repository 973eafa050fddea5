//! The tensors that become one, seen a piece at a time, and the passes over their pieces.
//!
//! A combination never holds a tensor. It makes passes of statistics, each piece on some thread and
//! their results put together in the order of the pieces, and one last pass that gives every piece of
//! the output away. Memory is a few pieces per thread, whatever the tensor's size.

use std::cell::RefCell;

use luthier_core::{Error, Result, Seed};
use rayon::prelude::*;

/// Numbers of a piece: with a few inputs, what one thread holds stays in its second-level cache.
pub const PIECE: usize = 1 << 16;

/// Pieces that one thread counts before counts are put together, which costs as much as one piece.
const RUN: usize = 8;

/// The inputs of one output tensor, all of one shape.
pub trait Operands: Sync {
    /// Sizes, which all inputs share.
    fn dims(&self) -> &[usize];
    /// How many inputs there are, and which of them the others are compared with. What a method reads
    /// beside the models follows them.
    fn inputs(&self) -> (usize, Option<usize>);
    /// Numbers `from..from + out.len()` of an input, in row order.
    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()>;
}

/// Takes the numbers that begin at a position of the output. Pieces come in any order, from any
/// thread, and together cover the output once.
pub type Put<'a> = &'a (dyn Fn(usize, &[f32]) -> Result<()> + Sync);

/// A run of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first of them.
    pub from: usize,
    /// How many.
    pub len: usize,
}

/// Where one piece may end and the next begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Anywhere.
    Anywhere,
    /// Between rows, for what looks at a row at a time; a vector is one row.
    Rows,
}

/// One tensor's work: its operands, the size of pieces, and where its random choices come from.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    operands: &'a dyn Operands,
    piece: usize,
    seed: Seed,
    table: Option<Table<'a>>,
}

/// A number from 0 up to 1, excluded, for an input besides the base and a place in its tensor.
pub type Table<'a> = &'a (dyn Fn(usize, usize) -> f64 + Sync);

/// The random choices about one input. A draw belongs to a place, never to an order.
#[derive(Clone, Copy)]
pub enum Draws<'a> {
    /// By a seed.
    Seed(Seed),
    /// By a table, for the input of this number.
    Table(Table<'a>, usize),
}

impl Draws<'_> {
    /// A number from 0 up to 1, excluded: below a chance, it wins.
    pub fn at(&self, at: usize) -> f64 {
        match self {
            Draws::Seed(seed) => (seed.at(at as u64).0 >> 11) as f64 / (1u64 << 53) as f64,
            Draws::Table(table, input) => table(*input, at),
        }
    }
}

/// What a pass reads into, kept from piece to piece.
#[derive(Default)]
pub struct Loaded {
    /// The base, if there is one.
    pub base: Vec<f32>,
    /// The other inputs, in their order.
    pub others: Vec<Vec<f32>>,
    /// The numbers to give away, zeros at first.
    pub out: Vec<f32>,
    /// Room for whatever a combination needs besides.
    pub spare: Vec<f32>,
    /// More of it.
    pub more: Vec<f32>,
    /// Room for what numbers are sorted by.
    pub keys: Vec<Vec<u32>>,
}

thread_local! {
    /// Buffers between passes: memory that is given back and asked for again must be cleared by the
    /// system each time, which takes longer than most passes over it.
    static KEPT: RefCell<Vec<Loaded>> = const { RefCell::new(Vec::new()) };
}

/// Buffers of this thread, which come back to it.
struct Lent(Loaded);

impl Lent {
    fn take() -> Lent {
        Lent(KEPT.with(|kept| kept.borrow_mut().pop()).unwrap_or_default())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let loaded = std::mem::take(&mut self.0);
        // A thread that ends has nowhere to keep them.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().push(loaded));
    }
}

/// What the numbers of the other inputs are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// As they are.
    Values,
    /// What they differ by from the base; the same as values where there is no base.
    Deltas,
}

impl<'a> Work<'a> {
    /// The work on `operands`; `seed` belongs to this tensor alone.
    pub fn new(operands: &'a dyn Operands, seed: Seed) -> Self {
        Work { operands, piece: PIECE, seed, table: None }
    }

    /// The same with pieces of another size, at least 1.
    pub fn in_pieces_of(self, piece: usize) -> Self {
        Work { piece: piece.max(1), ..self }
    }

    /// The same with draws that somebody else made, such as those of another program.
    pub fn with_draws(self, table: Table<'a>) -> Self {
        Work { table: Some(table), ..self }
    }

    /// Numbers of the tensor.
    pub fn len(&self) -> usize {
        self.operands.dims().iter().product()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of a row: the last size; of a vector, all of them.
    pub fn row(&self) -> usize {
        self.operands.dims().last().copied().unwrap_or(1)
    }

    /// Whether it is a vector: one row, without columns to speak of.
    pub fn is_vector(&self) -> bool {
        self.operands.dims().len() < 2
    }

    /// Whether there is a base.
    pub fn has_base(&self) -> bool {
        self.operands.inputs().1.is_some()
    }

    /// How many inputs there are besides the base.
    pub fn others(&self) -> usize {
        let (n, base) = self.operands.inputs();
        n - usize::from(base.is_some())
    }

    /// Numbers of the base from a position on.
    pub fn base(&self, from: usize, len: usize) -> Result<Vec<f32>> {
        let (_, base) = self.operands.inputs();
        let base = base.ok_or_else(|| Error::failed("merge", "works from a base without one"))?;
        let mut out = vec![0f32; len];
        self.operands.read(base, from, &mut out)?;
        Ok(out)
    }

    /// The first numbers of an input, the base counted among them: for what needs a tensor at once.
    pub fn whole(&self, input: usize, out: &mut [f32]) -> Result<()> {
        self.operands.read(input, 0, out)
    }

    /// The random choices about the `other`-th input.
    pub fn draws(&self, other: usize) -> Draws<'a> {
        match self.table {
            Some(table) => Draws::Table(table, other),
            None => Draws::Seed(self.seed.split("input").at(other as u64)),
        }
    }

    fn pieces(&self, cut: Cut) -> impl IndexedParallelIterator<Item = Piece> + use<> {
        let (len, row) = (self.len(), self.row().max(1));
        let size = match cut {
            Cut::Anywhere => self.piece,
            Cut::Rows => (self.piece / row).max(1) * row,
        };
        let of = move |i: usize| Piece { from: i * size, len: size.min(len - i * size) };
        (0..len.div_ceil(size)).into_par_iter().map(of)
    }

    /// Reads a piece of every input.
    fn load(&self, piece: Piece, what: As, to: &mut Loaded) -> Result<()> {
        let (n, base) = self.operands.inputs();
        to.out.clear();
        to.out.resize(piece.len, 0.0);
        to.others.resize(self.others(), Vec::new());
        if let Some(base) = base {
            to.base.resize(piece.len, 0.0);
            self.operands.read(base, piece.from, &mut to.base)?;
        }
        for (input, values) in (0..n).filter(|i| Some(*i) != base).zip(&mut to.others) {
            values.resize(piece.len, 0.0);
            self.operands.read(input, piece.from, values)?;
            if base.is_some() && what == As::Deltas {
                values.iter_mut().zip(&to.base).for_each(|(x, b)| *x -= b);
            }
        }
        Ok(())
    }

    /// A pass of statistics: what `visit` makes of every piece, in the order of the pieces.
    pub fn gather<T: Send>(
        &self,
        cut: Cut,
        what: As,
        visit: impl Fn(Piece, &mut Loaded) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let each = |lent: &mut Lent, piece| -> Result<T> {
            self.load(piece, what, &mut lent.0)?;
            visit(piece, &mut lent.0)
        };
        self.pieces(cut).map_init(Lent::take, each).collect()
    }

    /// A look at a single piece.
    pub fn visit<T>(
        &self,
        piece: Piece,
        what: As,
        visit: impl FnOnce(&mut Loaded) -> Result<T>,
    ) -> Result<T> {
        let mut lent = Lent::take();
        self.load(piece, what, &mut lent.0)?;
        visit(&mut lent.0)
    }

    /// A pass whose results may be put together in any order, as counts may.
    pub fn tally<T: Send>(
        &self,
        (cut, what): (Cut, As),
        none: impl Fn() -> T + Sync + Send,
        visit: impl Fn(&mut T, Piece, &mut Loaded) -> Result<()> + Sync,
        join: impl Fn(T, T) -> T + Sync + Send,
    ) -> Result<T> {
        let each = |(mut sum, mut lent): (T, Lent), piece| -> Result<(T, Lent)> {
            self.load(piece, what, &mut lent.0)?;
            visit(&mut sum, piece, &mut lent.0)?;
            Ok((sum, lent))
        };
        let pieces = self.pieces(cut).with_min_len(RUN);
        let sums = pieces.try_fold(|| (none(), Lent::take()), each);
        sums.map(|sum| sum.map(|(sum, _)| sum)).try_reduce(&none, |a, b| Ok(join(a, b)))
    }

    /// The last pass: `fill` computes `out` of every piece, which is then given away.
    pub fn write(
        &self,
        cut: Cut,
        what: As,
        put: Put<'_>,
        fill: impl Fn(Piece, &mut Loaded) -> Result<()> + Sync,
    ) -> Result<()> {
        let each = |lent: &mut Lent, piece: Piece| -> Result<()> {
            self.load(piece, what, &mut lent.0)?;
            fill(piece, &mut lent.0)?;
            put(piece.from, &lent.0.out)
        };
        self.pieces(cut).map_init(Lent::take, each).collect()
    }

    /// The last pass of a sum: `Σ weights[i] · others[i]`, or `base + Σ weights[i] · deltas[i]`.
    pub fn write_sum(&self, what: As, weights: &[f64], put: Put<'_>) -> Result<()> {
        self.write(Cut::Anywhere, what, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            for (x, weight) in others.iter().zip(weights) {
                add(out, *weight as f32, x);
            }
            if what == As::Deltas && self.has_base() {
                add(out, 1.0, base);
            }
            Ok(())
        })
    }
}

/// `to += weight · x`.
pub fn add(to: &mut [f32], weight: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
}

/// The inner product, summed in f64 in eight lanes.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (pairs_a, pairs_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = pairs_a.remainder().iter().zip(pairs_b.remainder());
    let rest: f64 = rest.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (a, b) in pairs_a.zip(pairs_b) {
        for ((sum, x), y) in lanes.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*x) * f64::from(*y);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// The sum of absolute values, in f64 in eight lanes.
pub fn l1(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| f64::from(x.abs())).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += f64::from(x.abs()));
    }
    lanes.iter().sum::<f64>() + rest
}
