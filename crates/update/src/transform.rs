//! What happens to gradients before they are clipped: pulls on the parameters, and noise.
//!
//! Transforms see what the optimizer sees: of a variable of which chosen entries learn, those
//! entries. They add to the gradient of the whole step, once, however many passes it had.

use std::{borrow::Cow, ops::Range};

use luthier_core::{Mask, Result, Seed};
use rayon::prelude::*;

pub mod ewc;
pub mod l1;
pub mod l2_sp;
pub mod noise;
pub mod nuclear;

pub use ewc::Ewc;
pub use l1::L1;
pub use l2_sp::L2Sp;
pub use noise::Noise;
pub use nuclear::{Nuclear, Sample};

/// Changes gradients, knowing the parameters.
pub trait Transform: Send + Sync {
    /// Refuses settings without a meaning, and says what is needed; `at` is its recipe key.
    fn check(&self, at: &str) -> Result<Need>;

    /// Which variables it changes in this step; all of them unless it says otherwise.
    fn chosen(&self, _now: &Turn, shapes: &[Shape]) -> Vec<bool> {
        vec![true; shapes.len()]
    }

    /// Changes the gradient of one variable, in place. Threads must not show in the result.
    fn apply(&self, now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()>;
}

/// What a transform needs to be kept or handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The values that the learned entries began at.
    pub origin: bool,
    /// Fisher values by variable name.
    pub fisher: bool,
    /// The number of the model's parameters.
    pub size: bool,
}

/// When a transform is asked.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// 1 for the first step.
    pub step: u64,
    /// For this transform alone.
    pub seed: Seed,
    /// All parameters of the model, learned or not.
    pub model_params: u64,
}

/// A variable from far away.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Of the whole variable.
    pub dims: &'a [usize],
    /// How many of its numbers learn.
    pub learned: usize,
}

/// A variable from close by.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name.
    pub name: &'a str,
    /// Of the whole variable.
    pub dims: &'a [usize],
    /// All its numbers, learned or not.
    pub values: &'a [f32],
    /// Which of them learn.
    pub mask: Option<&'a Mask>,
    /// Where the learned ones began; empty if no transform asked for it.
    pub origin: &'a [f32],
    /// The Fisher values of all its numbers; empty if no transform asked for them.
    pub fisher: &'a [f32],
}

impl<'a> Place<'a> {
    /// Those of `all` that learn.
    pub fn learned(&self, all: &'a [f32]) -> Cow<'a, [f32]> {
        match self.mask {
            None => Cow::Borrowed(all),
            Some(mask) => Cow::Owned(mask.gather(all)),
        }
    }
}

impl Need {
    /// What either of two needs.
    pub(crate) fn and(self, other: Need) -> Need {
        Need {
            origin: self.origin || other.origin,
            fisher: self.fisher || other.fisher,
            size: self.size || other.size,
        }
    }
}

/// Numbers per task: enough to outweigh one. Noise is drawn by the piece, so this is part of what
/// makes a run reproducible.
const PIECE: usize = 1 << 14;

/// Calls `f` with every piece of `grad` and where it lies.
pub(crate) fn pieces(grad: &mut [f32], f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    if grad.len() <= PIECE {
        return f(0..grad.len(), grad);
    }
    grad.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
        let from = i * PIECE;
        f(from..from + piece.len(), piece);
    });
}
