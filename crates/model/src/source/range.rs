//! Reading a part of a tensor: for work on models that are larger than memory.

use luthier_core::{Error, Result};

use super::{Source, Weights};
use crate::{file::DataFile, quant::GgmlType};

impl Source {
    /// Numbers `from..from + out.len()` of a tensor, in row order, in f32.
    pub fn read_f32(&self, name: &str, from: usize, out: &mut [f32]) -> Result<()> {
        let place = self.place(name)?;
        let ty = place.ty.ok_or_else(|| {
            let what = format!("tensor {name}: stored as {}, expected a float", place.dtype);
            Error::input(self.at(), what).hint("F32, F16 and BF16 weights can be read")
        })?;
        let total: usize = place.shape.iter().product();
        if from.checked_add(out.len()).is_none_or(|end| end > total) {
            let what = format!("tensor {name}: {} numbers at {from} of {total}", out.len());
            return Err(Error::failed(self.at(), what));
        }
        let file = match &self.weights {
            Weights::Folder(files) => &files[place.file],
            Weights::Gguf(gguf) => gguf.file(),
        };
        let Some(heads) = place.interleaved else {
            return read_run(file, (ty, place.offset), from, out);
        };
        let rows = place.shape[0];
        let width = total / rows.max(1);
        let mut at = from;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (at / width, at % width);
            let (now, later) = rest.split_at_mut(rest.len().min(width - column));
            let stored = super::stored_row(row, rows, heads);
            read_run(file, (ty, place.offset), stored * width + column, now)?;
            at += now.len();
            rest = later;
        }
        Ok(())
    }
}

/// Numbers read at a time, a multiple of every block: their bytes stay in the nearest caches.
const RUN: usize = 1 << 14;

/// Numbers in the order of the file; blocks that are only partly asked for are read whole.
fn read_run(
    file: &DataFile,
    (ty, offset): (GgmlType, u64),
    from: usize,
    out: &mut [f32],
) -> Result<()> {
    let block = ty.block_elements();
    let (first, end) = (from / block, (from + out.len()).div_ceil(block));
    let offset = offset + (first * ty.block_bytes()) as u64;
    if from.is_multiple_of(block) && end * block == from + out.len() {
        for (i, out) in out.chunks_mut(RUN).enumerate() {
            file.read_f32(ty, offset + (i * RUN / block * ty.block_bytes()) as u64, out)?;
        }
        return Ok(());
    }
    let mut whole = vec![0f32; (end - first) * block];
    file.read_f32(ty, offset, &mut whole)?;
    out.copy_from_slice(&whole[from - first * block..][..out.len()]);
    Ok(())
}
