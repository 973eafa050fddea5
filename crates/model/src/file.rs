//! A weight file read at positions.
//!
//! Positional reads instead of a memory map: they are safe code, a file that shrinks while it is
//! read gives an error instead of a crash, and several threads can read and convert at once.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use half::bf16;
use luthier_core::{Error, Result};
use luthier_kernels::num::narrow;
use rayon::prelude::*;

use crate::quant::{self, GgmlType};

/// Elements converted at a time by one thread; a multiple of every block size.
const CHUNK: usize = 1 << 18;

/// An open weight file whose length is known.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    path: PathBuf,
    size: u64,
}

impl DataFile {
    /// Opens a file for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(Error::input(path.display().to_string(), "expected a file, got a folder"));
        }
        Ok(DataFile { file, path: path.to_path_buf(), size: metadata.len() })
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The handle, for reading a header front to back.
    pub(crate) fn handle(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` from position `offset`.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, bytes, offset).map_err(|e| Error::io(&self.path, e))
    }

    /// Reads the values stored as `ty` at `offset` into `out`, on all threads for large tensors.
    pub fn read_f32(&self, ty: GgmlType, offset: u64, out: &mut [f32]) -> Result<()> {
        self.read_chunks(ty, offset, out, |bytes, out| quant::dequantize_serial(ty, bytes, out))
    }

    /// As [`DataFile::read_f32`], rounded to bf16 a piece at a time: the whole never exists in f32.
    pub fn read_bf16(&self, ty: GgmlType, offset: u64, out: &mut [bf16]) -> Result<()> {
        self.read_chunks(ty, offset, out, |bytes, out| {
            let mut wide = vec![0f32; out.len()];
            quant::dequantize_serial(ty, bytes, &mut wide);
            narrow(&wide, out);
        })
    }

    fn read_chunks<T: Send>(
        &self,
        ty: GgmlType,
        offset: u64,
        out: &mut [T],
        convert: impl Fn(&[u8], &mut [T]) + Sync,
    ) -> Result<()> {
        let at = |what: String| Error::failed(self.path.display().to_string(), what);
        let total = ty
            .bytes_for(out.len())
            .ok_or_else(|| at(format!("{} values do not fill {ty:?} blocks", out.len())))?;
        let end = offset.checked_add(total as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(at(format!("{total} bytes at {offset} reach past the end of the file")));
        }
        let chunk_bytes = CHUNK / ty.block_elements() * ty.block_bytes();
        out.par_chunks_mut(CHUNK).enumerate().try_for_each(|(i, out)| {
            let n = out.len() / ty.block_elements() * ty.block_bytes();
            let mut bytes = vec![0u8; n];
            self.read(offset + (i * chunk_bytes) as u64, &mut bytes)?;
            convert(&bytes, out);
            Ok(())
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
