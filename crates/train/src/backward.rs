//! Layer by layer: forward once, then backward block by block with a graph one block deep.
//!
//! A model that has a backward pass of its own for a block gives a [`Tape`]. Otherwise the block
//! starts from a detached input, and to pull a gradient `dy` through it we back-propagate the scalar
//! `Σ y·dy`, read the gradient of the block's input, and drop the graph. Whether tape or graph is
//! kept from the forward pass or made again from the block's input changes memory and time, never a
//! bit of the result. Blocks below the lowest learned parameter get no backward at all.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Tensor, TensorId, Var, backprop::GradStore};
use luthier_core::{Batch, Ctx, Head, Model, Result, Seed, Tape};
use luthier_loss::Log;
use serde::{Deserialize, Serialize};

use crate::{step::Step, sum::AddTo};

/// What happens to the values inside a block between forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Kept when they fit comfortably, else recomputed.
    #[default]
    Auto,
    /// Kept: fastest.
    Keep,
    /// Computed again in the backward pass: a third more work, a fraction of the memory.
    Recompute,
}

/// Gradients by variable name.
pub type Gradients = BTreeMap<String, Tensor>;

/// What one micro-batch gave.
#[derive(Debug)]
pub struct Share {
    /// The objective's numerator.
    pub sum: f64,
    /// Numbers for the log.
    pub logs: Vec<Log>,
}

/// What is kept of a block that the backward pass will visit.
enum Kept {
    /// What the model's own backward pass needs.
    Tape(Box<dyn Tape>),
    /// The input as a graph leaf and the output with its graph.
    Graph(Leaf, Tensor),
    /// The input: the rest is computed again.
    Input(Tensor),
}

/// One block forward. There is nothing to pull back when nothing in it learns and, by `below`,
/// nothing under it.
fn block(
    model: &dyn Model,
    layer: usize,
    h_nd: &Tensor,
    below: bool,
    ctx: &mut Ctx,
) -> Result<(Tensor, Option<Kept>)> {
    if let Some((y_nd, tape)) = model.tape(layer, h_nd, below, ctx)? {
        return Ok((y_nd, tape.map(Kept::Tape)));
    }
    let leaf = Leaf::new(h_nd, below)?;
    let y_nd = model.block(layer, leaf.0.clone(), ctx)?;
    let kept = y_nd.track_op().then(|| Kept::Graph(leaf, y_nd.clone()));
    Ok((y_nd.detach(), kept))
}

/// A block's input: a variable where a gradient must flow further down, else a plain tensor.
struct Leaf(Tensor);

impl Leaf {
    fn new(h_nd: &Tensor, needs_gradient: bool) -> Result<Self> {
        Ok(Leaf(match needs_gradient {
            true => Var::from_tensor(h_nd)?.into_inner(),
            false => h_nd.clone(),
        }))
    }
}

impl Step<'_> {
    /// One batch forward and backward; adds `scale · ∂sum/∂var` to `gradients`.
    pub fn forward_backward(
        &self,
        batch: &Batch,
        noise: Option<Seed>,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<Share> {
        let model = self.policy.model.as_ref();
        let mut ctx = Ctx::new(&self.policy.hooks, batch.rows.clone(), &batch.ids_n);
        ctx.noise = noise;

        let embedded = model.embed(&batch.ids_n, &mut ctx)?;
        // Whether anything learned has been met on the way up.
        let mut learned_below = embedded.track_op();
        let mut h_nd = embedded.detach();
        let mut kept: Vec<(usize, Kept)> = Vec::new();
        for layer in 0..model.n_layers() {
            let (y_nd, new) = block(model, layer, &h_nd, learned_below, &mut ctx)?;
            let input = std::mem::replace(&mut h_nd, y_nd);
            if let Some(new) = new {
                kept.push((layer, if self.keep { new } else { Kept::Input(input) }));
                learned_below = true;
            }
        }

        let leaf = Leaf::new(&h_nd, learned_below)?;
        let mut head = Head { model, h_nd: &leaf.0, ctx: &mut ctx };
        let terms = self.objective.terms(&mut head, batch)?;
        let share = Share { sum: f64::from(terms.sum.to_scalar::<f32>()?), logs: terms.logs };
        if !terms.sum.track_op() {
            return Ok(share);
        }
        let store = (terms.sum * scale)?.backward()?;
        collect(self.vars, &store, gradients)?;
        let Some(mut dy_nd) = store.get(&leaf.0).cloned() else { return Ok(share) };

        let lowest_needs_gradient = embedded.track_op();
        let names: HashMap<TensorId, &str> =
            self.vars.iter().map(|(name, var)| (var.as_tensor().id(), name.as_str())).collect();
        while let Some((layer, mut it)) = kept.pop() {
            let needs_gradient = !kept.is_empty() || lowest_needs_gradient;
            if let Kept::Input(input) = &it {
                let (_, again) = block(model, layer, input, needs_gradient, &mut ctx)?;
                let Some(again) = again else { return Ok(share) };
                it = again;
            }
            let mut found = |var: &Tensor, new: Tensor| match names.get(&var.id()) {
                Some(name) => grow(gradients, name, new),
                None => Ok(()),
            };
            let dx_nd = match it {
                Kept::Tape(tape) => tape.backward(&dy_nd, needs_gradient, &mut found)?,
                Kept::Graph(leaf, y_nd) => {
                    let store = (y_nd * &dy_nd)?.sum_all()?.backward()?;
                    collect(self.vars, &store, gradients)?;
                    store.get(&leaf.0).cloned()
                }
                Kept::Input(_) => None,
            };
            match dx_nd {
                Some(dx_nd) if needs_gradient => dy_nd = dx_nd,
                _ => return Ok(share),
            }
        }
        if lowest_needs_gradient {
            let store = (embedded * &dy_nd)?.sum_all()?.backward()?;
            collect(self.vars, &store, gradients)?;
        }
        Ok(share)
    }
}

fn collect(vars: &[(String, Var)], store: &GradStore, gradients: &mut Gradients) -> Result<()> {
    for (name, var) in vars {
        if let Some(new) = store.get(var.as_tensor()) {
            add(gradients, name, new.clone())?;
        }
    }
    Ok(())
}

/// As [`add`] for a gradient that nothing else looks at: the sum is made where it lies.
fn grow(gradients: &mut Gradients, name: &str, new: Tensor) -> Result<()> {
    if let Some(old) = gradients.get(name) {
        new.inplace_op2(&old.contiguous()?, &AddTo)?;
    }
    gradients.insert(name.to_string(), new);
    Ok(())
}

fn add(gradients: &mut Gradients, name: &str, new: Tensor) -> Result<()> {
    let sum = match gradients.get(name) {
        Some(old) => (old + new)?,
        None => new,
    };
    gradients.insert(name.to_string(), sum);
    Ok(())
}
