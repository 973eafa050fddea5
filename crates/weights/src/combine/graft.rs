//! Skill grafting (Panigrahi et al. 2023, paper 37): the tuned numbers of a small region, in a base that
//! is otherwise as it was.
//!
//! `y = γ ∘ tuned + (1 − γ) ∘ base`. `γ` comes from a file (numbers above 0.5 are in), or holds the
//! `top` share of `|tuned − base|` over all tensors that `include` lets count, compared strictly:
//! of equal numbers at the edge none is in. With several models each brings its region, and the later
//! one speaks where they overlap. **Departures**: (1) the search for the best region is training, and
//! belongs to its recipe; this only applies one.

use luthier_core::{Error, Result};

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
    select::by_magnitude,
};

/// The region of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Region {
    /// The next mask among the operands.
    Mask,
    /// What moved by more than this.
    Above(f32),
}

/// `merge_method: graft`.
#[derive(Clone, Debug, PartialEq)]
pub struct Graft {
    /// One for each model besides the base; empty where the tensor does not count.
    pub regions: Vec<Region>,
}

impl Graft {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let (top, edge) = (given.maybe_numbers("top"), given.maybe_numbers("edge"));
        let region = |i: usize| -> Result<Region> {
            match (given.beside[i], top[i]) {
                (true, Some(_)) => {
                    let what = "has a mask too; expected one of them";
                    Err(Error::input(given.at_other("top", i), what))
                }
                (true, None) => Ok(Region::Mask),
                (false, Some(share)) if (0.0..=1.0).contains(&share) => {
                    Ok(Region::Above(edge[i].unwrap_or(f64::INFINITY) as f32))
                }
                (false, Some(share)) => {
                    let what = format!("expected 0 to 1, got {share}");
                    Err(Error::input(given.at_other("top", i), what))
                }
                (false, None) => {
                    let what = "nothing says which numbers are grafted";
                    Err(Error::input(given.at_other("mask", i), what)
                        .hint("add `mask: FILE` to the model, or `top: SHARE` to its parameters"))
                }
            }
        };
        let counts = given.switch("include");
        let n = if counts { given.inputs.len() } else { 0 };
        Ok(Box::new(Graft { regions: (0..n).map(region).collect::<Result<_>>()? }))
    }
}

impl Combine for Graft {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            out.copy_from_slice(base);
            let mut masks = others.iter().skip(self.regions.len());
            for (x, region) in others.iter().zip(&self.regions) {
                let numbers = out.iter_mut().zip(base.iter()).zip(x);
                match region {
                    Region::Above(edge) => {
                        let moved = numbers.filter(|((_, b), x)| (*x - *b).abs() > *edge);
                        moved.for_each(|((y, _), x)| *y = *x);
                    }
                    Region::Mask => {
                        let mask = masks.next().map_or(&[][..], Vec::as_slice);
                        let kept = numbers.zip(mask).filter(|(_, m)| **m > 0.5);
                        kept.for_each(|(((y, _), x), _)| *y = *x);
                    }
                }
            }
            Ok(())
        })
    }
}

const HALF: usize = 1 << 16;

/// Finds, over many tensors that nobody holds at once, the magnitude that a share of all differences
/// exceeds. Two passes: [`Cutoffs::count`] for every tensor, [`Cutoffs::narrow`], and the same again.
pub struct Cutoffs {
    shares: Vec<f64>,
    total: u64,
    /// By input: counts by half of a magnitude's bits.
    counts: Vec<Vec<u64>>,
    /// By input, after the first pass: the upper half sought, and how many are left to find in it.
    found: Vec<Option<(u32, u64)>>,
    second: bool,
}

impl Cutoffs {
    /// One share for each input besides the base.
    pub fn new(shares: &[f64]) -> Self {
        let n = shares.len();
        let counts = vec![vec![0; HALF]; n];
        Cutoffs { shares: shares.to_vec(), total: 0, counts, found: vec![None; n], second: false }
    }

    /// Adds a tensor.
    pub fn count(&mut self, work: &Work<'_>) -> Result<()> {
        let (found, second, n) = (&self.found, self.second, self.shares.len());
        let none = || vec![vec![0u64; HALF]; n];
        let counts = work.tally(
            (Cut::Anywhere, As::Deltas),
            none,
            |counts: &mut Vec<Vec<u64>>, _, loaded: &mut Loaded| {
                for ((counts, delta), found) in counts.iter_mut().zip(&loaded.others).zip(found) {
                    for key in delta.iter().map(|x| by_magnitude(*x)) {
                        match (second, found) {
                            (false, _) => counts[(key >> 16) as usize] += 1,
                            (true, Some((half, _))) if key >> 16 == *half => {
                                counts[key as usize & (HALF - 1)] += 1;
                            }
                            _ => {}
                        }
                    }
                }
                Ok(())
            },
            |mut a, b| {
                a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a += b);
                a
            },
        )?;
        self.counts.iter_mut().flatten().zip(counts.iter().flatten()).for_each(|(a, b)| *a += b);
        self.total += if second { 0 } else { work.len() as u64 };
        Ok(())
    }

    /// Between the passes.
    pub fn narrow(&mut self) {
        for (i, share) in self.shares.iter().enumerate() {
            // The first that is out: `k` numbers, counted from the largest, are in.
            let k = (share * self.total as f64) as u64;
            self.found[i] = (k < self.total).then(|| from_top(&self.counts[i], k));
        }
        self.counts = vec![vec![0; HALF]; self.shares.len()];
        self.second = true;
    }

    /// The edge for each input: what exceeds it is in. Negative where everything is.
    pub fn edges(&self) -> Vec<f32> {
        let edge = |(counts, found): (&Vec<u64>, &Option<(u32, u64)>)| match found {
            None => -1.0,
            Some((half, left)) => {
                let (low, _) = from_top(counts, *left);
                f32::from_bits(half << 16 | low)
            }
        };
        self.counts.iter().zip(&self.found).map(edge).collect()
    }
}

/// From the top: the entry that holds the number with `k` numbers above it, and how many of those lie
/// in the same entry.
fn from_top(counts: &[u64], k: u64) -> (u32, u64) {
    let mut left = k;
    for (i, count) in counts.iter().enumerate().rev() {
        if left < *count {
            return (i as u32, left);
        }
        left -= count;
    }
    // Only with fewer numbers than asked for, which `narrow` has seen to.
    (0, 0)
}
