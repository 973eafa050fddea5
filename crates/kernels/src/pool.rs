//! Buffers that are used again: after its first step, training asks the system for no memory.
//!
//! Each thread keeps the buffers that were dropped on it, as long as all of them together are little
//! more than what the thread once needed at the same time: more, because what is needed at one
//! time has other sizes than what is needed at another.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut, Range},
};

use half::bf16;

use crate::{
    num::{Numbers, Precision, narrow},
    threads,
};

/// Numbers handled by one task of an elementwise operation: four of them as f32 stay in the
/// first-level cache.
pub const CHUNK: usize = 1 << 11;

/// Spare numbers that are never too many.
const FEW: usize = 1 << 20;

/// Dropped buffers of one thread and how many numbers were out at once.
pub struct Free<T> {
    /// From the shortest to the longest, with the time of the drop; the latest among equals first.
    list: Vec<(u64, Vec<T>)>,
    drops: u64,
    idle: usize,
    used: usize,
    most: usize,
}

impl<T: Pooled> Free<T> {
    const fn new() -> Self {
        Free { list: Vec::new(), drops: 0, idle: 0, used: 0, most: 0 }
    }

    fn take(&mut self, n: usize) -> Vec<T> {
        let at = self.list.partition_point(|(_, v)| v.len() < n);
        let data = match self.list.get(at) {
            Some((_, v)) if v.len() <= 2 * n + 64 => self.remove(at),
            _ => vec![T::ZERO; rounded(n)],
        };
        self.used += data.len();
        self.most = self.most.max(self.used);
        data
    }

    fn remove(&mut self, at: usize) -> Vec<T> {
        let (_, data) = self.list.remove(at);
        self.idle -= data.len();
        data
    }

    fn give(&mut self, data: Vec<T>) {
        self.used = self.used.saturating_sub(data.len());
        self.idle += data.len();
        self.drops += 1;
        let at = self.list.partition_point(|(_, v)| v.len() < data.len());
        self.list.insert(at, (self.drops, data));
        let limit = self.most + self.most / T::SPARE + FEW;
        while self.idle + self.used > limit {
            let oldest = (0..self.list.len()).min_by_key(|i| self.list[*i].0);
            match oldest {
                Some(at) => drop(self.remove(at)),
                None => return,
            }
        }
    }
}

/// The size to ask for, so that passes of nearly the same size share their buffers.
fn rounded(n: usize) -> usize {
    n.next_multiple_of((n.next_power_of_two() / 16).max(16))
}

/// Types that buffers hold.
pub trait Pooled: Copy + 'static {
    /// What new buffers hold.
    const ZERO: Self;
    /// A thread may keep one in this many more than it needed at once.
    const SPARE: usize;
    /// Calls `f` with this thread's free buffers; `None` while the thread is ending.
    fn free<R>(f: impl FnOnce(&mut Free<Self>) -> R) -> Option<R>;
}

thread_local! {
    static SINGLES: RefCell<Free<f32>> = const { RefCell::new(Free::new()) };
    static HALVES: RefCell<Free<bf16>> = const { RefCell::new(Free::new()) };
}

impl Pooled for f32 {
    const ZERO: f32 = 0.0;
    // These come and go within a block.
    const SPARE: usize = 2;
    fn free<R>(f: impl FnOnce(&mut Free<f32>) -> R) -> Option<R> {
        SINGLES.try_with(|free| f(&mut free.borrow_mut())).ok()
    }
}

impl Pooled for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    // Nearly all of these are kept from forward to backward.
    const SPARE: usize = 8;
    fn free<R>(f: impl FnOnce(&mut Free<bf16>) -> R) -> Option<R> {
        HALVES.try_with(|free| f(&mut free.borrow_mut())).ok()
    }
}

/// A slice that goes back to its thread's pool when dropped.
pub struct Buffer<T: Pooled = f32> {
    data: Vec<T>,
    len: usize,
}

impl<T: Pooled> Buffer<T> {
    /// `len` numbers left over from earlier use: write before reading.
    pub fn new(len: usize) -> Self {
        let data = T::free(|free| free.take(len)).unwrap_or_else(|| vec![T::ZERO; len]);
        Buffer { data, len }
    }

    /// A copy of `x`.
    pub fn copy(x: &[T]) -> Self {
        let mut buffer = Buffer::new(x.len());
        buffer.copy_from_slice(x);
        buffer
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        T::free(|free| free.give(data));
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.len]
    }
}

impl<'a> From<&'a Buffer> for Numbers<'a> {
    fn from(x: &'a Buffer) -> Self {
        Numbers::F32(x)
    }
}

/// Activations as a precision multiplies them, in a pooled buffer.
pub enum Kept {
    /// Exactly.
    F32(Buffer),
    /// Rounded: half the memory.
    Bf16(Buffer<bf16>),
}

impl Kept {
    /// Room for `len` numbers: write before reading.
    pub fn room(precision: Precision, len: usize) -> Self {
        match precision {
            Precision::F32 => Kept::F32(Buffer::new(len)),
            Precision::Bf16 => Kept::Bf16(Buffer::new(len)),
        }
    }

    /// A copy of `x`, rounded if `precision` is.
    pub fn copy(precision: Precision, x: &[f32]) -> Self {
        let mut kept = Kept::room(precision, x.len());
        let tasks = kept.parts(CHUNK).into_iter().zip(x.chunks(CHUNK)).collect();
        threads::for_each(tasks, |(mut part, x): (Part, &[f32])| part.write(x));
        kept
    }

    /// `x` itself where nothing is rounded, else a rounded copy.
    pub fn take(precision: Precision, x: Buffer) -> Self {
        match precision {
            Precision::F32 => Kept::F32(x),
            Precision::Bf16 => Kept::copy(precision, &x),
        }
    }

    /// To read.
    pub fn numbers(&self) -> Numbers<'_> {
        match self {
            Kept::F32(x) => Numbers::F32(x),
            Kept::Bf16(x) => Numbers::Bf16(x),
        }
    }

    /// As f32.
    pub fn widened(&self) -> Buffer {
        let mut out = Buffer::new(self.numbers().len());
        let chunks = out.chunks_mut(CHUNK).enumerate();
        let numbers = self.numbers();
        threads::for_each(chunks.collect(), |(i, out): (usize, &mut [f32])| {
            numbers.read(i * CHUNK, out);
        });
        out
    }

    /// Pieces of `size` numbers, to write.
    pub fn parts(&mut self, size: usize) -> Vec<Part<'_>> {
        match self {
            Kept::F32(x) => x.chunks_mut(size).map(Part::F32).collect(),
            Kept::Bf16(x) => x.chunks_mut(size).map(Part::Bf16).collect(),
        }
    }
}

/// A piece of something kept.
pub enum Part<'a> {
    /// Exact.
    F32(&'a mut [f32]),
    /// Rounded.
    Bf16(&'a mut [bf16]),
}

impl Part<'_> {
    /// Overwrites the piece with `x`.
    pub fn write(&mut self, x: &[f32]) {
        match self {
            Part::F32(to) => to.copy_from_slice(x),
            Part::Bf16(to) => narrow(x, to),
        }
    }

    /// Lets `f` write the piece.
    pub fn fill(&mut self, f: impl FnOnce(&mut [f32])) {
        match self {
            Part::F32(to) => f(to),
            Part::Bf16(to) => {
                let mut wide = Buffer::new(to.len());
                f(&mut wide);
                narrow(&wide, to);
            }
        }
    }
}

/// Calls `f` with some of `x` as f32.
pub fn read<R>(x: Numbers, range: Range<usize>, f: impl FnOnce(&[f32]) -> R) -> R {
    match x {
        Numbers::F32(x) => f(&x[range]),
        _ => {
            let mut wide = Buffer::new(range.len());
            x.read(range.start, &mut wide);
            f(&wide)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_little_more_is_held_than_was_needed_at_once() {
        let first: Buffer = Buffer::new(1000);
        let at = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::<f32>::new(990).as_ptr(), at);
        // Growing sizes never fit what is there; the old ones must go.
        for n in (1..40).map(|i| 500_000 * i) {
            drop(Buffer::<f32>::new(n));
        }
        let (held, most) = f32::free(|f| (f.idle, f.most)).unwrap();
        assert!(most < 2 * 19_500_000 && held <= most + most / 2 + FEW, "{held} of {most}");
    }

    #[test]
    fn kept_numbers_are_the_same_or_rounded() {
        let x: Vec<f32> = (0..20_000).map(|i| (i as f32 * 0.37).sin()).collect();
        assert_eq!(&Kept::copy(Precision::F32, &x).widened()[..], &x);
        let rounded = Kept::copy(Precision::Bf16, &x).widened();
        assert!(x.iter().zip(&rounded[..]).all(|(a, b)| half::bf16::from_f32(*a).to_f32() == *b));
    }
}
