//! LiNeS (Wang et al. 2025, paper 50): what a merge changed, scaled by depth.
//!
//! `y = base + λ(l) · (merged − base)` with `λ(l) = α + β · l / (L − 1)` for block `l` of `L`, on top of
//! any merge that works from a base. Tables and norms outside of the blocks get `α`, or what `outside`
//! says of those behind the blocks. `alpha: auto` is the paper's rule for merges of T models,
//! `α = ‖Σ τᵢ‖₁ / (T · ‖τ_merged‖₁)` over all tensors. **Departures**: (1) a model of one block is all
//! depth: `λ = α + β`.

use std::sync::Mutex;

use luthier_core::Result;

use crate::{
    combine::Combine,
    operands::{As, Cut, Put, Work, l1},
};

/// What the tensors behind the blocks get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// α, as everything outside of the blocks.
    #[default]
    Alpha,
    /// 1.
    One,
    /// α + β, as the last block.
    Deep,
}

/// Where in the model a tensor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before the blocks.
    Before,
    /// In a block, of so many.
    Block(usize, usize),
    /// Behind the blocks.
    Behind,
}

/// The table `lines` of a merge's file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The factor of the first block; `None` follows from the norms of what is merged.
    pub alpha: Option<f64>,
    /// What the last block has more; `1 − α` where nothing is said.
    pub beta: Option<f64>,
    /// The factor behind the blocks.
    pub outside: Outside,
}

impl Schedule {
    /// The factor of a tensor, where `alpha` is given or found.
    pub fn factor(&self, alpha: f64, place: Place) -> f64 {
        let beta = self.beta.unwrap_or(1.0 - alpha);
        match (place, self.outside) {
            (Place::Block(_, 0 | 1), _) => alpha + beta,
            (Place::Block(l, n), _) => alpha + beta * l as f64 / (n - 1) as f64,
            (Place::Behind, Outside::One) => 1.0,
            (Place::Behind, Outside::Deep) => alpha + beta,
            (Place::Before | Place::Behind, _) => alpha,
        }
    }
}

/// A merge whose change is scaled.
pub struct Lines {
    /// The merge.
    pub inner: Box<dyn Combine>,
    /// The factor for this tensor.
    pub factor: f64,
}

impl Combine for Lines {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        if self.factor == 1.0 {
            return self.inner.combine(work, put);
        }
        let factor = self.factor as f32;
        self.inner.combine(work, &|from, merged| {
            let mut scaled = work.base(from, merged.len())?;
            scaled.iter_mut().zip(merged).for_each(|(b, y)| *b += factor * (*y - *b));
            put(from, &scaled)
        })
    }
}

/// Sums of absolute values over many tensors: of all differences added up, and of what a merge made of
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// `‖Σ τᵢ‖₁`.
    pub sum: f64,
    /// `‖τ_merged‖₁`.
    pub merged: f64,
}

impl Norms {
    /// Adds a tensor.
    pub fn count(&mut self, work: &Work<'_>, combine: &dyn Combine) -> Result<()> {
        let sums = work.gather(Cut::Anywhere, As::Deltas, |_, loaded| {
            let (sum, others) = (&mut loaded.out, &loaded.others);
            others.iter().for_each(|delta| crate::operands::add(sum, 1.0, delta));
            Ok(l1(sum))
        })?;
        let pieces = Mutex::new(Vec::new());
        combine.combine(work, &|from, merged| {
            let mut moved = work.base(from, merged.len())?;
            moved.iter_mut().zip(merged).for_each(|(b, y)| *b = *y - *b);
            // Nobody panics while holding the lock.
            pieces.lock().unwrap_or_else(|e| e.into_inner()).push((from, l1(&moved)));
            Ok(())
        })?;
        let mut pieces = pieces.into_inner().unwrap_or_else(|e| e.into_inner());
        // In the order of the tensor, whichever thread was first.
        pieces.sort_unstable_by_key(|(from, _)| *from);
        self.sum += sums.iter().sum::<f64>();
        self.merged += pieces.iter().map(|(_, norm)| norm).sum::<f64>();
        Ok(())
    }

    /// The factor of the first block for a merge of so many models; 1 where nothing changed.
    pub fn alpha(&self, models: usize) -> f64 {
        if self.merged == 0.0 { 1.0 } else { self.sum / self.merged / models as f64 }
    }
}
