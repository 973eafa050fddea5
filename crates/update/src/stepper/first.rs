//! A step that leaves no trace but in the weights.

use candle_core::{Tensor, Var};
use luthier_core::{Param, Result};
use rayon::prelude::*;

use super::{Stepper, slot::change};
use crate::{Move, optimizer::Data, pass};

impl Stepper {
    /// Moves variables as a new optimizer's first step without weight decay and clipping would, at
    /// the learning rate `rate` and in the proportions of the groups. The optimizer does not notice.
    pub fn first_step(
        &self,
        params: &[Param],
        rate: f64,
        grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>,
    ) -> Result<()> {
        self.expect_training("a trial step")?;
        let slots = self.bind(params, false)?;
        let grads = self.gradients(&slots, self.step + 1, grad_of)?;
        let (_, optimizer) = self.update.optimizer()?;
        let usual = self.plan.learning_rate;
        slots.par_iter().zip(&grads).filter(|(_, grad)| grad.elem_count() > 0).try_for_each(
            |(slot, grad)| {
                let share = if usual > 0.0 { slot.rates.learning_rate / usual } else { 1.0 };
                let learning_rate = rate * share;
                let now = Move { t: 1, learning_rate, weight_decay: 0.0, grad_scale: 1.0 };
                let dims = slot.dims();
                change(&slot.var, slot.mask.as_ref(), |param| {
                    let begin = self.plan.state.iter().map(|(_, of)| of.begin(&dims, param));
                    let mut state: Vec<Data> = begin.collect();
                    pass::with_slice(grad, |grad| {
                        optimizer.apply(&now, &dims, param, grad, &mut state);
                    })
                })
            },
        )
    }
}
