//! Weights at their quantised size: a file's blocks, or numbers quantised as they were loaded.

mod activations;
#[cfg(target_arch = "x86_64")]
mod expand;
mod integer;

use candle_core::{Result, bail};
use half::bf16;

use crate::{
    few::{Columns, dots, ranges},
    nf4::{self, Nf4},
    num::{Precision, narrow},
    quant::{self, GgmlType},
    simd, threads,
};
use activations::Activations;
pub use integer::Kernel;

/// A `(o, i)` matrix of quantised numbers, row after row.
#[derive(Clone, Debug)]
pub struct Blocks {
    stored: Stored,
    o: usize,
    i: usize,
}

#[derive(Clone, Debug)]
enum Stored {
    /// In a file's format, whose blocks do not cross rows.
    File(GgmlType, Vec<u8>),
    /// Quantised here; blocks may cross rows.
    Nf4(Nf4),
}

impl Blocks {
    /// From the bytes of `o` rows, whose blocks do not cross rows.
    pub fn new(ty: GgmlType, bytes: Vec<u8>, o: usize, i: usize) -> Result<Self> {
        match ty.bytes_for(i) {
            Some(row) if row.checked_mul(o) == Some(bytes.len()) => {
                Ok(Blocks { stored: Stored::File(ty, bytes), o, i })
            }
            Some(row) => bail!("{o} rows of {row} bytes expected, got {} bytes", bytes.len()),
            None => bail!("rows of {i} numbers do not fill blocks of {}", ty.name()),
        }
    }

    /// From the numbers of `o` rows.
    pub fn nf4(numbers: Nf4, o: usize, i: usize) -> Result<Self> {
        match numbers.len() {
            n if o.checked_mul(i) == Some(n) => Ok(Blocks { stored: Stored::Nf4(numbers), o, i }),
            n => bail!("a ({o}, {i}) weight needs {} numbers, got {n}", o * i),
        }
    }

    /// How the numbers are stored: `Q4_K`, …, `NF4`.
    pub fn name(&self) -> String {
        match &self.stored {
            Stored::File(ty, _) => ty.name(),
            Stored::Nf4(_) => "NF4".into(),
        }
    }

    /// The file's format, if it is one.
    pub fn ty(&self) -> Option<GgmlType> {
        match self.stored {
            Stored::File(ty, _) => Some(ty),
            Stored::Nf4(_) => None,
        }
    }

    fn kernel(&self) -> Option<Kernel> {
        self.ty().and_then(Kernel::of)
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.o, self.i)
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.o * self.i
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes.
    pub fn size(&self) -> usize {
        match &self.stored {
            Stored::File(_, bytes) => bytes.len(),
            Stored::Nf4(numbers) => numbers.size(),
        }
    }

    /// The bytes of row `r`, if the format is a file's.
    pub fn row(&self, r: usize) -> Option<&[u8]> {
        let Stored::File(_, bytes) = &self.stored else { return None };
        let row = bytes.len() / self.o.max(1);
        bytes.get(r * row..(r + 1) * row)
    }

    /// Numbers `at..at + out.len()` in row order, as f32.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        let (ty, bytes) = match &self.stored {
            Stored::File(ty, bytes) => (*ty, bytes),
            Stored::Nf4(numbers) => return numbers.read(at, out),
        };
        let (n, size) = (ty.block_elements(), ty.block_bytes());
        // Up to the end of a block, whole blocks, and what is left.
        let (head, rest) = out.split_at_mut(to_block(at, n).min(out.len()));
        let first = (at + head.len()) / n;
        let (whole, tail) = rest.split_at_mut(rest.len() / n * n);
        let last = first + whole.len() / n;
        quant::dequantize_serial(ty, &bytes[first * size..last * size], whole);
        for (block, from, part) in [(at / n, at % n, head), (last, 0, tail)] {
            if !part.is_empty() {
                let mut wide = [0f32; 256];
                let block = &bytes[block * size..(block + 1) * size];
                quant::dequantize_serial(ty, block, &mut wide[..n]);
                part.copy_from_slice(&wide[from..from + part.len()]);
            }
        }
    }

    /// As [`Blocks::read`], rounded to bf16.
    pub fn read_bf16(&self, at: usize, out: &mut [bf16]) {
        let n = self.ty().map_or(nf4::BLOCK, GgmlType::block_elements);
        let mut wide = [0f32; 512];
        // The first piece ends with a block, so that all others begin with one.
        let (head, rest) = out.split_at_mut(to_block(at, n).min(out.len()));
        let mut at = at;
        for piece in std::iter::once(head).chain(rest.chunks_mut(wide.len())) {
            let wide = &mut wide[..piece.len()];
            self.read(at, wide);
            narrow(wide, piece);
            at += piece.len();
        }
    }

    /// Numbers `at..at + 32`, and as many `stride`, `2·stride`, … after them: 32 columns of some
    /// rows, without expanding the rest of their blocks where blocks are larger.
    pub fn strip(&self, at: usize, stride: usize, out: &mut [[f32; 32]]) {
        let aligned = at.is_multiple_of(32) && stride.is_multiple_of(32);
        match &self.stored {
            Stored::Nf4(numbers) if aligned => numbers.strip(at, stride, out),
            Stored::File(ty, bytes) if aligned => quant::strip(*ty, bytes, at, stride, out),
            _ => out.iter_mut().enumerate().for_each(|(r, out)| self.read(at + r * stride, out)),
        }
    }
}

/// How many numbers after `at` a block of `n` begins.
fn to_block(at: usize, n: usize) -> usize {
    at.next_multiple_of(n) - at
}

/// `y = x wᵀ` for a few rows `x` `(n, i)`, straight from the blocks.
///
/// With [`Precision::F32`] the weights are expanded a row at a time and everything is f32. With
/// [`Precision::Bf16`] and the needed instructions, weights stay the small integers they are and
/// each 32 activations become 16-bit integers with a scale: a step of 2⁻¹⁵ of the largest of them,
/// finer than bf16's 2⁻⁸ of each. Neither depends on the number of threads.
pub fn few_rows(precision: Precision, blocks: &Blocks, x: &[f32], n: usize, y: &mut [f32]) {
    let kernel = match precision {
        Precision::F32 => None,
        Precision::Bf16 => blocks.kernel().filter(|_| Kernel::here()),
    };
    few_rows_by(kernel, blocks, x, n, y);
}

/// As [`few_rows`], with the integer kernel that is given, or by expanding rows for `None`.
///
/// # Panics
/// When the processor lacks what the kernel needs, or the kernel is that of another format.
pub fn few_rows_by(kernel: Option<Kernel>, blocks: &Blocks, x: &[f32], n: usize, y: &mut [f32]) {
    let (o, i) = blocks.dims();
    assert_eq!(x.len(), n * i, "few_rows: {n} rows of {i}");
    assert_eq!(y.len(), n * o, "few_rows: {n} rows of {o}");
    if y.is_empty() || i == 0 {
        return y.fill(0.0);
    }
    let y = Columns::new(y, o);
    if let Some(kernel) = kernel {
        assert!(Kernel::here() && blocks.kernel() == Some(kernel), "few_rows: wrong kernel");
        let x = Activations::new(kernel.order(), x, n, i);
        return threads::for_each(ranges(o, i * n), |rows| kernel.run(blocks, &x, rows, &y));
    }
    let level = simd::level();
    threads::for_each(ranges(o, i * n), |rows| {
        let mut w = vec![0f32; i];
        for r in rows {
            blocks.read(r * i, &mut w);
            dots(level, &w, x, n, |a, sum| y.set(a, r, sum));
        }
    });
}
