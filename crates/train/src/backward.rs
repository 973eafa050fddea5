//! Layer by layer: forward once, then backward block by block with a graph one block deep.
//!
//! A model that has a backward pass of its own for a block gives a [`Tape`]. Otherwise the block
//! starts from a detached input, and to pull a gradient `dy` through it we back-propagate the scalar
//! `Σ y·dy`, read the gradient of the block's input, and drop the graph. Whether tape or graph is
//! kept from the forward pass or made again from the block's input changes memory and time, never a
//! bit of the result. Blocks below the lowest learned parameter get no backward at all.

use candle_core::{Tensor, Var, backprop::GradStore};
use luthier_core::{
    Batch, Ctx, Gradient, Head, Logits, Model, Param, Piece, Policy, Result, Seed, Tape,
};
use luthier_loss::{Log, Objective, Seen, Terms, Totals};
use serde::{Deserialize, Serialize};

use crate::{beside::Beside, step::Step, sum::Sums};

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

/// The model's head, whose log-probabilities are leaves of the objective's graph wherever the
/// model pulls their gradients back itself.
struct Tail<'a, 'c> {
    head: Head<'a, 'c>,
    /// Whether anything under the head learns.
    below: bool,
    params: &'a [Param],
    taped: Vec<Taped>,
    summed: Vec<Summed>,
}

/// Log-probabilities, the tokens they belong to, and the way back from them.
struct Taped {
    logp_m: Var,
    index_m: Vec<u32>,
    tape: Box<dyn Tape>,
}

/// A sum that was pulled back piece by piece as it was made: what remains is to scale the gradients.
struct Summed {
    sum: Var,
    dh_nd: Option<Tensor>,
    /// By variable.
    learned: Vec<(Tensor, Tensor)>,
}

impl Logits for Tail<'_, '_> {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        let h_md = self.head.pick(index_m)?.detach();
        let Head { model, ctx, .. } = &mut self.head;
        match model.logp_tape(&h_md, targets_m, self.below, ctx)? {
            None => self.head.logp(index_m, targets_m),
            Some((logp_m, None)) => Ok(logp_m),
            Some((logp_m, Some(tape))) => {
                let logp_m = Var::from_tensor(&logp_m)?;
                let leaf = logp_m.as_tensor().clone();
                self.taped.push(Taped { logp_m, index_m: index_m.to_vec(), tape });
                Ok(leaf)
            }
        }
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.head.logits(index_m)
    }

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.head.hidden(index_m)
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        let leaf = Leaf::new(&self.head.h_nd.detach(), self.below)?;
        let (mut total, mut dh_nd) = (0.0, None);
        let mut learned: Vec<(Tensor, Tensor)> = Vec::new();
        for i in 0..pieces {
            let ctx = &mut *self.head.ctx;
            let one = piece(&mut Head { model: self.head.model, h_nd: &leaf.0, ctx }, i)?;
            total += f64::from(one.to_scalar::<f32>()?);
            if !one.track_op() {
                continue;
            }
            let mut store = one.backward()?;
            dh_nd = plus(dh_nd, store.remove(&leaf.0))?;
            for Param { var, .. } in self.params {
                let Some(new) = store.remove(var.as_tensor()) else { continue };
                match learned.iter_mut().find(|(known, _)| known.id() == var.as_tensor().id()) {
                    Some((_, so_far)) => *so_far = (&*so_far + new)?,
                    None => learned.push((var.as_tensor().clone(), new)),
                }
            }
        }
        let total = Tensor::new(total as f32, self.head.h_nd.device())?;
        if dh_nd.is_none() && learned.is_empty() {
            return Ok(total);
        }
        let sum = Var::from_tensor(&total)?;
        let leaf = sum.as_tensor().clone();
        self.summed.push(Summed { sum, dh_nd, learned });
        Ok(leaf)
    }
}

/// The sum of two gradients, either of which may not be there.
fn plus(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Some((a + b)?),
        (a, b) => a.or(b),
    })
}

/// What an objective says of a pass whose end is `out`, with a teacher who reads the same rows.
pub(crate) fn terms(
    objective: &dyn Objective,
    out: &mut dyn Logits,
    teacher: Option<&Policy>,
    batch: &Batch,
    step: &Totals,
) -> Result<Terms> {
    let Some(teacher) = teacher else {
        return objective.terms(Seen { out, teacher: None, batch, step });
    };
    let mut ctx = Ctx::new(&teacher.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = teacher.hidden(&mut ctx)?.detach();
    let mut head = Head { model: teacher.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
    objective.terms(Seen { out, teacher: Some(&mut head), batch, step })
}

impl Step<'_> {
    /// One batch forward and backward; adds `scale · ∂sum/∂var` to `sums`.
    pub fn forward_backward(
        &self,
        batch: &Batch,
        whole: &Totals,
        noise: Option<Seed>,
        scale: f64,
        sums: &mut Sums,
    ) -> Result<Share> {
        self.pass(batch, whole, noise, (scale, sums), None)
    }

    /// The same, shown to `beside`.
    pub(crate) fn pass(
        &self,
        batch: &Batch,
        whole: &Totals,
        noise: Option<Seed>,
        (scale, sums): (f64, &mut Sums),
        mut beside: Option<&mut dyn Beside>,
    ) -> Result<Share> {
        let model = self.policy.model.as_ref();
        let mut ctx = Ctx::new(&self.policy.hooks, batch.rows.clone(), &batch.ids_n);
        ctx.noise = noise;
        ctx.weights_n = Some(&batch.weights_n);

        let embedded = model.embed(&batch.ids_n, &mut ctx)?;
        // Whether anything learned has been met on the way up.
        let mut learned_below = embedded.track_op();
        let mut h_nd = embedded.detach();
        beside.as_mut().map_or(Ok(()), |beside| beside.stream(&h_nd))?;
        let mut kept: Vec<(usize, Kept)> = Vec::new();
        for layer in 0..model.n_layers() {
            let (y_nd, new) = block(model, layer, &h_nd, learned_below, &mut ctx)?;
            let input = std::mem::replace(&mut h_nd, y_nd);
            beside.as_mut().map_or(Ok(()), |beside| beside.stream(&h_nd))?;
            if let Some(new) = new {
                kept.push((layer, if self.keep { new } else { Kept::Input(input) }));
                learned_below = true;
            }
        }

        if let Some(beside) = beside {
            beside.end(batch, &mut Head { model, h_nd: &h_nd, ctx: &mut ctx })?;
        }
        let leaf = Leaf::new(&h_nd, learned_below)?;
        let head = Head { model, h_nd: &leaf.0, ctx: &mut ctx };
        let mut tail = Tail {
            head,
            below: learned_below,
            params: self.params,
            taped: Vec::new(),
            summed: Vec::new(),
        };
        let terms = terms(self.objective, &mut tail, self.teacher, batch, whole)?;
        let Tail { taped, summed, .. } = tail;
        let share = Share { sum: f64::from(terms.sum.to_scalar::<f32>()?), logs: terms.logs };
        if !terms.sum.track_op() {
            return Ok(share);
        }
        let store = (terms.sum * scale)?.backward()?;
        collect(&store, sums)?;
        let mut dy_nd = store.get(&leaf.0).cloned();
        for Taped { logp_m, index_m, tape } in taped {
            let Some(dlogp_m) = store.get(logp_m.as_tensor()) else { continue };
            let mut found = |var: &Tensor, new| sums.found(var, new);
            if let Some(dh_md) = tape.backward(dlogp_m, learned_below, &mut found)? {
                let index = Tensor::from_slice(&index_m, index_m.len(), h_nd.device())?;
                let so_far = match dy_nd {
                    Some(dy_nd) => dy_nd,
                    None => h_nd.zeros_like()?,
                };
                dy_nd = Some(so_far.index_add(&index, &dh_md, 0)?);
            }
        }
        for Summed { sum, dh_nd, learned } in summed {
            let Some(by) = store.get(sum.as_tensor()) else { continue };
            let by = f64::from(by.to_scalar::<f32>()?);
            for (var, gradient) in learned {
                sums.found(&var, Gradient::Dense((gradient * by)?))?;
            }
            dy_nd = plus(dy_nd, dh_nd.map(|dh_nd| dh_nd * by).transpose()?)?;
        }
        drop(store);
        let Some(mut dy_nd) = dy_nd else { return Ok(share) };

        let lowest_needs_gradient = embedded.track_op();
        while let Some((layer, mut it)) = kept.pop() {
            let needs_gradient = !kept.is_empty() || lowest_needs_gradient;
            if let Kept::Input(input) = &it {
                let (_, again) = block(model, layer, input, needs_gradient, &mut ctx)?;
                let Some(again) = again else { return Ok(share) };
                it = again;
            }
            let mut found = |var: &Tensor, new| sums.found(var, new);
            let dx_nd = match it {
                Kept::Tape(tape) => tape.backward(&dy_nd, needs_gradient, &mut found)?,
                Kept::Graph(leaf, y_nd) => {
                    let store = (y_nd * &dy_nd)?.sum_all()?.backward()?;
                    collect(&store, sums)?;
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
            let mut found = |var: &Tensor, new| sums.found(var, new);
            if !model.embed_backward(&batch.ids_n, &dy_nd, &mut ctx, &mut found)? {
                let store = (embedded * &dy_nd)?.sum_all()?.backward()?;
                collect(&store, sums)?;
            }
        }
        Ok(share)
    }
}

impl Step<'_> {
    /// What hooks charge for the pass that has just been made, with its gradients in `sums`.
    pub(crate) fn penalties(&self, batch: &Batch, scale: f64, sums: &mut Sums) -> Result<f64> {
        let mut charged = 0.0;
        for site in self.policy.hooks.sites() {
            for hook in self.policy.hooks.get(site) {
                let Some(penalty) = hook.penalty(batch)? else { continue };
                charged += f64::from(penalty.to_scalar::<f32>()?) * scale;
                collect(&(penalty * scale)?.backward()?, sums)?;
            }
        }
        Ok(charged)
    }
}

/// Adds what a graph found; it knows of a block's variables and of few other tensors.
fn collect(store: &GradStore, sums: &mut Sums) -> Result<()> {
    for id in store.get_ids() {
        if let Some(new) = store.get_id(*id) {
            sums.found_by_id(*id, Gradient::Dense(new.clone()))?;
        }
    }
    Ok(())
}
