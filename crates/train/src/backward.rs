//! Layer by layer: forward once, then backward block by block with a graph one block deep.
//!
//! Each block starts from a detached input. To pull a gradient `dy` through block `l` we
//! back-propagate the scalar `Σ y·dy`, read the gradient of the block's input, and drop the graph.
//! Whether a block's graph is kept from the forward pass or built again from its input changes
//! memory and time, never a bit of the result. Blocks below the lowest learned parameter get no
//! backward at all.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var, backprop::GradStore};
use luthier_core::{Batch, Ctx, Head, Result, Seed};
use luthier_loss::Log;
use serde::{Deserialize, Serialize};

use crate::step::Step;

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
struct Kept {
    layer: usize,
    input: Tensor,
    /// The input as a graph leaf and the output with its graph, unless recomputed.
    graph: Option<(Leaf, Tensor)>,
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
        let mut kept: Vec<Kept> = Vec::new();
        for layer in 0..model.n_layers() {
            let leaf = Leaf::new(&h_nd, learned_below)?;
            let y_nd = model.block(layer, leaf.0.clone(), &mut ctx)?;
            let input = h_nd;
            h_nd = y_nd.detach();
            if y_nd.track_op() {
                kept.push(Kept { layer, input, graph: self.keep.then_some((leaf, y_nd)) });
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
        while let Some(Kept { layer, input, graph }) = kept.pop() {
            let needs_gradient = !kept.is_empty() || lowest_needs_gradient;
            let (leaf, y_nd) = match graph {
                Some(graph) => graph,
                None => {
                    let leaf = Leaf::new(&input, needs_gradient)?;
                    let y_nd = model.block(layer, leaf.0.clone(), &mut ctx)?;
                    (leaf, y_nd)
                }
            };
            let store = (y_nd * &dy_nd)?.sum_all()?.backward()?;
            collect(self.vars, &store, gradients)?;
            match store.get(&leaf.0) {
                Some(dx_nd) if needs_gradient => dy_nd = dx_nd.clone(),
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
        let Some(new) = store.get(var.as_tensor()) else { continue };
        let sum = match gradients.get(name) {
            Some(old) => (old + new)?,
            None => new.clone(),
        };
        gradients.insert(name.clone(), sum);
    }
    Ok(())
}
