//! Weights at the size their file has: rows of quantised blocks.

mod activations;
#[cfg(target_arch = "x86_64")]
mod expand;
mod integer;

use candle_core::{Result, bail};
use half::bf16;

use crate::{
    few::{Columns, dots, ranges},
    num::{Precision, narrow},
    quant::{self, GgmlType},
    simd, threads,
};
use activations::Activations;
pub use integer::Kernel;

/// A `(o, i)` matrix in a stored format whose blocks do not cross rows.
#[derive(Clone, Debug)]
pub struct Blocks {
    ty: GgmlType,
    bytes: Vec<u8>,
    o: usize,
    i: usize,
}

impl Blocks {
    /// From the bytes of `o` rows.
    pub fn new(ty: GgmlType, bytes: Vec<u8>, o: usize, i: usize) -> Result<Self> {
        match ty.bytes_for(i) {
            Some(row) if row.checked_mul(o) == Some(bytes.len()) => Ok(Blocks { ty, bytes, o, i }),
            Some(row) => bail!("{o} rows of {row} bytes expected, got {} bytes", bytes.len()),
            None => bail!("rows of {i} numbers do not fill blocks of {}", ty.name()),
        }
    }

    /// How the numbers are stored.
    pub fn ty(&self) -> GgmlType {
        self.ty
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
        self.bytes.len()
    }

    /// The bytes of row `r`.
    pub fn row(&self, r: usize) -> &[u8] {
        let row = self.bytes.len() / self.o.max(1);
        &self.bytes[r * row..(r + 1) * row]
    }

    /// Numbers `at..at + out.len()` in row order, as f32.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        let (n, size) = (self.ty.block_elements(), self.ty.block_bytes());
        let (first, last) = (at / n, (at + out.len()).div_ceil(n));
        if at.is_multiple_of(n) && out.len().is_multiple_of(n) {
            let bytes = &self.bytes[first * size..last * size];
            return quant::dequantize_serial(self.ty, bytes, out);
        }
        // A range that begins or ends within a block: a block at a time through a buffer.
        let mut block = [0f32; 256];
        for b in first..last {
            let bytes = &self.bytes[b * size..(b + 1) * size];
            quant::dequantize_serial(self.ty, bytes, &mut block[..n]);
            let (from, to) = (at.max(b * n), (at + out.len()).min((b + 1) * n));
            out[from - at..to - at].copy_from_slice(&block[from - b * n..to - b * n]);
        }
    }

    /// As [`Blocks::read`], rounded to bf16.
    pub fn read_bf16(&self, at: usize, out: &mut [bf16]) {
        let n = self.ty.block_elements();
        let mut wide = [0f32; 512];
        // The first piece ends with a block, so that all others begin with one.
        let (head, rest) = out.split_at_mut(((n - at % n) % n).min(out.len()));
        let mut at = at;
        for piece in std::iter::once(head).chain(rest.chunks_mut(wide.len())) {
            let wide = &mut wide[..piece.len()];
            self.read(at, wide);
            narrow(wide, piece);
            at += piece.len();
        }
    }
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
        Precision::Bf16 => Kernel::of(blocks.ty).filter(|_| Kernel::here()),
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
        assert!(Kernel::here() && Kernel::of(blocks.ty) == Some(kernel), "few_rows: wrong kernel");
        let x = Activations::new(kernel.order(), x, n, i);
        return threads::for_each(ranges(o, i * n), |rows| kernel.run(blocks, &x, rows, &y));
    }
    let level = simd::level();
    threads::for_each(ranges(o, i * n), |rows| {
        let mut w = vec![0f32; i];
        for r in rows {
            quant::dequantize_serial(blocks.ty, blocks.row(r), &mut w);
            dots(level, &w, x, n, |a, sum| y.set(a, r, sum));
        }
    });
}
