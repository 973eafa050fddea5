//! One variable with everything that belongs to it.

use candle_core::{Tensor, Var};
use luthier_core::{Mask, Param, Result};

use crate::{
    Plan, Rates,
    optimizer::Data,
    pass,
    transform::{Place, Shape},
};

/// One learned variable.
pub(super) struct Slot {
    pub name: String,
    pub var: Var,
    pub mask: Option<Mask>,
    /// Whether a step may do without its gradient.
    pub optional: bool,
    pub rates: Rates,
    /// Variables with the same number are clipped together.
    pub cluster: usize,
    /// The optimizer's buffers.
    pub state: Vec<Data>,
    /// Where the learned entries began; empty if nobody asks.
    pub origin: Vec<f32>,
    /// Their running average; empty if there is none.
    pub average: Vec<f32>,
    /// The weights to train with, while others are in their place.
    pub aside: Vec<f32>,
    /// Fisher values of the whole variable, if somebody asks.
    pub fisher: Option<Tensor>,
}

/// What is kept of every learned entry beside the optimizer's buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Records {
    pub origin: bool,
    pub average: bool,
}

impl Slot {
    pub fn new(param: &Param, (rates, cluster): (Rates, usize), fisher: Option<Tensor>) -> Self {
        Slot {
            name: param.name.clone(),
            var: param.var.clone(),
            mask: param.mask.clone(),
            optional: param.optional,
            rates,
            cluster,
            state: Vec::new(),
            origin: Vec::new(),
            average: Vec::new(),
            aside: Vec::new(),
            fisher,
        }
    }

    /// How many numbers learn.
    pub fn count(&self) -> usize {
        self.mask.as_ref().map_or(self.var.elem_count(), Mask::len)
    }

    /// The shape that gradients and buffers have.
    pub fn dims(&self) -> Vec<usize> {
        self.mask.as_ref().map_or(self.var.dims().to_vec(), |mask| vec![mask.len()])
    }

    pub fn shape(&self) -> Shape<'_> {
        Shape { dims: self.var.dims(), learned: self.count() }
    }

    /// Shows what learns.
    pub fn read<T>(&self, show: impl FnOnce(&[f32]) -> T) -> Result<T> {
        pass::with_slice(&self.var, |all| match &self.mask {
            None => show(all),
            Some(mask) => show(&mask.gather(all)),
        })
    }

    /// Sets the optimizer's buffers to what they are before the first step.
    pub fn begin_state(&mut self, plan: &Plan) -> Result<()> {
        let dims = self.dims();
        let begin = |learned: &[f32]| -> Vec<Data> {
            plan.state.iter().map(|(_, of)| of.begin(&dims, learned)).collect()
        };
        self.state = self.read(begin)?;
        Ok(())
    }

    /// Sets the records to what they are before the first step: the weights as they are.
    pub fn begin_records(&mut self, records: Records) -> Result<()> {
        if records.origin {
            self.origin = self.read(<[f32]>::to_vec)?;
        }
        if records.average {
            self.average = self.read(<[f32]>::to_vec)?;
        }
        Ok(())
    }

    /// Shows the variable to a transform.
    pub fn place<T>(&self, show: impl FnOnce(&Place) -> T) -> Result<T> {
        let with = |fisher: &[f32]| {
            pass::with_slice(&self.var, |values| {
                show(&Place {
                    name: &self.name,
                    dims: self.var.dims(),
                    values,
                    mask: self.mask.as_ref(),
                    origin: &self.origin,
                    fisher,
                })
            })
        };
        match &self.fisher {
            None => with(&[]),
            Some(fisher) => pass::with_slice(fisher, with)?,
        }
    }
}

/// Hands what learns of a variable to `change`, and puts it back.
pub(super) fn change<T>(
    var: &Var,
    mask: Option<&Mask>,
    change: impl FnOnce(&mut [f32]) -> Result<T>,
) -> Result<T> {
    pass::in_place(var, |all| match mask {
        None => change(all),
        Some(mask) => {
            let mut learned = mask.gather(all);
            let outcome = change(&mut learned)?;
            mask.scatter(&learned, all);
            Ok(outcome)
        }
    })
}
