//! Other numbers in the variables for a while: of a second pass, or to evaluate and to keep.

use candle_core::{Tensor, Var};
use luthier_core::{Error, Result};
use rayon::prelude::*;

use super::{Stepper, Weights, slot::Slot, slot::change};
use crate::pass::with_slice;

impl Stepper {
    /// Whether a step has two passes: the gradients of the first go to [`Stepper::ascend`], then,
    /// after [`Stepper::descend`], those of the second to [`Stepper::step`].
    pub fn two_passes(&self) -> bool {
        self.update.sam.is_some()
    }

    /// Lifts the weights to where the second pass of a step takes its gradient.
    pub fn ascend(&mut self, grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>) -> Result<()> {
        let step = self.step + 1;
        self.expect_training(&format!("step {step}"))?;
        let Some(sam) = &self.update.sam else {
            return Err(Error::failed("train.update.sam", "is not named: a step has one pass"));
        };
        let grads = self.gradients(&self.slots, step, grad_of)?;
        let squares = |(slot, grad): (&Slot, &Tensor)| {
            with_slice(grad, |grad| slot.read(|weights| sam.sum_of_squares(weights, grad)))?
        };
        let sums: Vec<f64> =
            self.slots.par_iter().zip(&grads).map(squares).collect::<Result<_>>()?;
        // The small constant is that of the usual implementations; it keeps 0 / 0 at bay.
        let scale = (sam.rho / (self.norm(step, &sums)? + 1e-12)) as f32;
        self.slots.par_iter_mut().zip(&grads).try_for_each(|(slot, grad)| {
            slot.aside = slot.read(<[f32]>::to_vec)?;
            change(&slot.var, slot.mask.as_ref(), |weights| {
                with_slice(grad, |grad| sam.lift(weights, grad, scale))
            })
        })?;
        self.weights = Weights::Lifted;
        Ok(())
    }

    /// Puts the weights back to the bit where [`Stepper::ascend`] took them from.
    pub fn descend(&mut self) -> Result<()> {
        if self.weights != Weights::Lifted {
            return Err(Error::failed(format!("step {}", self.step + 1), "no weights are lifted"));
        }
        self.slots.par_iter_mut().try_for_each(|slot| {
            let back = std::mem::take(&mut slot.aside);
            change(&slot.var, slot.mask.as_ref(), |weights| {
                weights.copy_from_slice(&back);
                Ok(())
            })
        })?;
        self.weights = Weights::Training;
        Ok(())
    }

    /// Exchanges the weights to train with and those to evaluate and to keep, where the two differ:
    /// running averages, schedule-free rules. A second call puts the first ones back to the bit.
    pub fn exchange(&mut self) -> Result<()> {
        let back = match self.weights {
            Weights::Training => false,
            Weights::Exchanged => true,
            Weights::Lifted => return self.expect_training("exchanging the weights"),
        };
        let (_, optimizer) = self.update.optimizer()?;
        let differs = |slot: &&mut Slot| optimizer.exchanges() || !slot.average.is_empty();
        self.slots.par_iter_mut().filter(differs).try_for_each(|slot| {
            let Slot { var, mask, state, average, aside, .. } = slot;
            change(var, mask.as_ref(), |weights| {
                if !average.is_empty() {
                    weights.swap_with_slice(average);
                } else if back {
                    // Without a copy they were the same.
                    let training = match aside.is_empty() {
                        true => weights.to_vec(),
                        false => std::mem::take(aside),
                    };
                    optimizer.exchange(weights, state);
                    weights.copy_from_slice(&training);
                } else {
                    let training = weights.to_vec();
                    optimizer.exchange(weights, state);
                    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
                    if training.iter().zip(&*weights).any(differ) {
                        *aside = training;
                    }
                }
                Ok(())
            })
        })?;
        self.weights = if back { Weights::Training } else { Weights::Exchanged };
        Ok(())
    }
}
