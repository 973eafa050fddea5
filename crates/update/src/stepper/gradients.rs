//! From gradients as they come to gradients to step with.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, Var};
use luthier_core::{Error, Result};
use rayon::prelude::*;

use super::{Stepper, slot::Slot};
use crate::{
    Clip, clip,
    pass::{self, with_slice},
    transform::{Shape, pieces},
};

impl Stepper {
    /// The gradient of every variable, of the shape of what learns of it. A missing one is an error,
    /// unless nothing learns there.
    pub(super) fn gradients(
        &self,
        slots: &[Slot],
        step: u64,
        grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let of = |slot: &Slot| {
            if slot.count() == 0 {
                return Ok(Tensor::zeros(0usize, DType::F32, &Device::Cpu)?);
            }
            match grad_of(&slot.name, &slot.var) {
                Some(grad) => pass::readable(&slot.name, &slot.dims(), grad),
                None if slot.optional => Ok(Tensor::zeros(0usize, DType::F32, &Device::Cpu)?),
                None => Err(Error::failed(
                    format!("step {step}"),
                    format!("no gradient reached {}", slot.name),
                )
                .hint("the loss does not depend on it; leave its site out of train.params")),
            }
        };
        slots.iter().map(of).collect()
    }

    /// Penalties, then noise, in place. Variable after variable: gradients may share memory, and
    /// the work on each is shared by all threads.
    pub(super) fn transform(&self, step: u64, grads: &[Tensor]) -> Result<()> {
        for (key, transform) in self.update.transforms() {
            let now = self.turn(key, step);
            let shapes: Vec<Shape> = self.slots.iter().map(Slot::shape).collect();
            let chosen = transform.chosen(&now, &shapes);
            for ((slot, grad), chosen) in self.slots.iter().zip(grads).zip(chosen) {
                if chosen && grad.elem_count() > 0 {
                    rewrite(grad, |grad| {
                        slot.place(|place| transform.apply(&now, place, grad))?
                    })?;
                }
            }
        }
        Ok(())
    }

    /// What every gradient is to be multiplied by, and whether anything was too large. `sums` are
    /// the sums of their squares.
    pub(super) fn clip(&self, grads: &[Tensor], sums: &[f64]) -> Result<(Vec<f32>, bool)> {
        if let (Clip::Value, Some(limit)) = (self.update.clip, self.update.max_grad_value) {
            let limit = limit as f32;
            let mut clipped = false;
            for grad in grads {
                if with_slice(grad, |grad| grad.par_iter().any(|g| g.abs() > limit))? {
                    clipped = true;
                    rewrite(grad, |grad| {
                        pieces(grad, |_, grad| {
                            grad.iter_mut().for_each(|g| *g = g.clamp(-limit, limit));
                        });
                        Ok(())
                    })?;
                }
            }
            return Ok((vec![1.0; grads.len()], clipped));
        }
        let clusters: Vec<usize> = self.slots.iter().map(|slot| slot.cluster).collect();
        let (norms, limit) = (clip::norms(&clusters, sums), self.update.max_grad_norm);
        let scales = clusters.iter().map(|cluster| clip::scale(norms[cluster], limit)).collect();
        Ok((scales, limit > 0.0 && norms.values().any(|norm| *norm > limit)))
    }

    /// The norm of everything; an error that names the variable if it is not finite.
    pub(super) fn norm(&self, step: u64, sums: &[f64]) -> Result<f64> {
        match sums.iter().position(|s| !s.is_finite()) {
            None => Ok(sums.iter().sum::<f64>().sqrt()),
            Some(bad) => {
                let what = format!("the gradient of {} is not finite", self.slots[bad].name);
                Err(Error::failed(format!("step {step}"), what)
                    .hint("lower the learning rate, or set train.update.max_grad_norm"))
            }
        }
    }
}

/// Hands the numbers of a gradient to `change`, where they lie: what was handed to a step is the
/// step's own.
fn rewrite(grad: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let visit = Visit(RefCell::new((Some(change), Ok(()))));
    grad.inplace_op1(&visit)?;
    visit.0.into_inner().1
}

/// A closure on its way through candle, and what came of it.
struct Visit<F>(RefCell<(Option<F>, Result<()>)>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Visit<F> {
    fn name(&self) -> &'static str {
        "gradient in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("expected a contiguous f32 gradient")
        };
        let mut visit = self.0.borrow_mut();
        if let Some(change) = visit.0.take() {
            visit.1 = change(&mut data[start..end]);
        }
        Ok(())
    }
}
