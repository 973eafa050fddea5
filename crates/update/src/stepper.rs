//! The running state of an update: step count, schedule memory, optimizer buffers.

use std::{cell::RefCell, collections::HashSet};

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{Error, Result, StateDict};
use rayon::prelude::*;

use crate::{
    Memory, Move, Now, Update,
    groups::{self, Rates},
    pass::{self, Pass},
};

/// The tensor that holds every counter.
const PROGRESS: &str = "luthier.progress";

/// Turns gradients into steps, and can be saved and loaded between any two of them.
pub struct Stepper {
    update: Update,
    schedule: &'static str,
    learning_rate: f64,
    buffers: &'static [&'static str],
    slots: Vec<Slot>,
    total: u64,
    step: u64,
    memory: Memory,
}

/// One variable with what belongs to it.
struct Slot {
    name: String,
    var: Var,
    rates: Rates,
    state: Vec<Vec<f32>>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepInfo {
    /// 1 for the first step.
    pub step: u64,
    /// The optimizer's learning rate times the schedule's factor.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Whether the norm was above `max_grad_norm`.
    pub clipped: bool,
}

impl Stepper {
    /// Binds an update to variables for a run of `total_steps`; all state begins at zero.
    pub fn new(update: &Update, vars: &[(String, Var)], total_steps: u64) -> Result<Self> {
        let update = update.clone().with_defaults();
        let plan = update.check()?;
        let (schedule, _) = update.schedule.chosen()?;
        if vars.is_empty() {
            return Err(Error::input("train.params", "nothing is learned: there is no variable"));
        }
        let mut seen = HashSet::new();
        for (name, var) in vars {
            if !seen.insert(name.as_str()) {
                return Err(Error::failed(name, "is the name of two variables"));
            }
            if var.dtype() != DType::F32 || !var.is_contiguous() {
                let what = format!("expected a contiguous f32 variable, got {:?}", var.dtype());
                return Err(Error::failed(name, what));
            }
        }
        let names: Vec<&str> = vars.iter().map(|(name, _)| name.as_str()).collect();
        let rates = groups::resolve(&update.groups, &plan, &names)?;
        let slot = |((name, var), rates): (&(String, Var), Rates)| {
            let state = plan.state.iter().map(|_| vec![0f32; var.elem_count()]).collect();
            Slot { name: name.clone(), var: var.clone(), rates, state }
        };
        let slots = vars.iter().zip(rates).map(slot).collect();
        Ok(Stepper {
            schedule,
            learning_rate: plan.learning_rate,
            buffers: plan.state,
            slots,
            total: total_steps,
            step: 0,
            memory: Memory::default(),
            update,
        })
    }

    /// Steps made so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The learning rate of the step that comes next.
    pub fn learning_rate(&self) -> Result<f64> {
        Ok(self.learning_rate * self.scale()?)
    }

    /// Makes one step. `grad_of` gives the gradient of a variable by its name or by itself (a
    /// candle `GradStore` knows variables, a map knows names). On an error nothing has changed.
    pub fn step(&mut self, grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>) -> Result<StepInfo> {
        let step = self.step + 1;
        let grads = self.gradients(step, grad_of)?;
        let sums: Vec<f64> = grads.par_iter().map(pass::sum_of_squares).collect::<Result<_>>()?;
        let grad_norm = sums.iter().sum::<f64>().sqrt();
        if let Some(bad) = sums.iter().position(|s| !s.is_finite()) {
            let what = format!("the gradient of {} is not finite", self.slots[bad].name);
            return Err(Error::failed(format!("step {step}"), what)
                .hint("lower the learning rate, or set train.update.max_grad_norm"));
        }
        let limit = self.update.max_grad_norm;
        let clipped = limit > 0.0 && grad_norm > limit;
        // The same small constant as torch's clip_grad_norm_.
        let grad_scale =
            if limit > 0.0 { (limit / (grad_norm + 1e-6)).min(1.0) as f32 } else { 1.0 };
        let scale = self.scale()?;
        let (_, optimizer) = self.update.optimizer()?;
        self.slots.par_iter_mut().zip(&grads).try_for_each(|(slot, grad)| {
            let now = Move {
                t: step,
                learning_rate: slot.rates.learning_rate * scale,
                weight_decay: slot.rates.weight_decay,
                grad_scale,
            };
            let state = RefCell::new(slot.state.as_mut_slice());
            slot.var.inplace_op1(&Pass { optimizer, now, grad, state })
        })?;
        self.step = step;
        Ok(StepInfo { step, learning_rate: self.learning_rate * scale, grad_norm, clipped })
    }

    /// Tells the schedule a metric, usually the evaluation loss. Most schedules do not listen.
    pub fn observe(&mut self, metric: f64) -> Result<()> {
        let (_, schedule) = self.update.schedule.chosen()?;
        schedule.observe(&mut self.memory, metric, self.learning_rate);
        Ok(())
    }

    /// A copy of everything that the next step depends on, apart from the variables themselves.
    pub fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for slot in &self.slots {
            for (buffer, data) in self.buffers.iter().zip(&slot.state) {
                let tensor = Tensor::from_slice(data, slot.var.shape(), &Device::Cpu)?;
                state.insert(format!("{}.{buffer}", slot.name), tensor);
            }
        }
        state.insert(PROGRESS, pack(&self.counters())?);
        Ok(state)
    }

    /// Takes over a saved state; the next step is then bit-equal to the one that would have followed.
    pub fn load(&mut self, mut state: StateDict) -> Result<()> {
        let changed = "the recipe has changed since the checkpoint; to go on from its weights alone, \
                       start a new run from them";
        let missing = |name: &str| Error::input(name, "missing in the saved state").hint(changed);
        let progress = state.remove(PROGRESS).ok_or_else(|| missing(PROGRESS))?;
        let counters = unpack(&progress)?;
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mut buffers = Vec::with_capacity(self.buffers.len());
            for buffer in self.buffers {
                let name = format!("{}.{buffer}", slot.name);
                let tensor = state.remove(&name).ok_or_else(|| missing(&name))?;
                if tensor.dims() != slot.var.dims() {
                    let (got, want) = (tensor.dims(), slot.var.dims());
                    let what = format!("saved with shape {got:?}, expected {want:?}");
                    return Err(Error::input(name, what).hint(changed));
                }
                buffers.push(tensor.flatten_all()?.to_vec1::<f32>()?);
            }
            loaded.push(buffers);
        }
        if let Some((name, _)) = state.iter().next() {
            return Err(
                Error::input(name, "saved, but nothing of that name is learned").hint(changed)
            );
        }
        self.set_counters(&counters)?;
        self.slots.iter_mut().zip(loaded).for_each(|(slot, buffers)| slot.state = buffers);
        Ok(())
    }

    fn scale(&self) -> Result<f64> {
        let (step, total) = (self.step, self.total);
        let now = Now { step, total, learning_rate: self.learning_rate, memory: &self.memory };
        let (name, schedule) = self.update.schedule.chosen()?;
        let scale = schedule.scale(&now);
        if scale.is_finite() && scale >= 0.0 {
            return Ok(scale);
        }
        let at = format!("train.update.schedule.{name}");
        Err(Error::failed(at, format!("gives the factor {scale} at step {}", step + 1)))
    }

    fn gradients(
        &self,
        step: u64,
        grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let of = |slot: &Slot| match grad_of(&slot.name, &slot.var) {
            Some(grad) => pass::readable(&slot.name, &slot.var, grad),
            None => Err(Error::failed(
                format!("step {step}"),
                format!("no gradient reached {}", slot.name),
            )
            .hint("the loss does not depend on it; leave its site out of train.params")),
        };
        self.slots.iter().map(of).collect()
    }

    fn counters(&self) -> Vec<u64> {
        let Memory { scale, best, bad, good, pause, at_floor, window } = &self.memory;
        let best = [u64::from(best.is_some()), best.unwrap_or(0.0).to_bits()];
        let fixed = [self.step, scale.to_bits(), *bad, *good, *pause, *at_floor];
        fixed.into_iter().chain(best).chain(window.iter().map(|x| x.to_bits())).collect()
    }

    fn set_counters(&mut self, counters: &[u64]) -> Result<()> {
        let [step, scale, bad, good, pause, at_floor, known, best, window @ ..] = counters else {
            return Err(Error::input(PROGRESS, "the saved counters are cut short"));
        };
        self.step = *step;
        self.memory = Memory {
            scale: f64::from_bits(*scale),
            best: (*known == 1).then(|| f64::from_bits(*best)),
            bad: *bad,
            good: *good,
            pause: *pause,
            at_floor: *at_floor,
            window: window.iter().map(|x| f64::from_bits(*x)).collect(),
        };
        Ok(())
    }

    /// The name of the schedule in use.
    pub fn schedule(&self) -> &'static str {
        self.schedule
    }
}

/// Each counter as four 16-bit limbs, lowest first: a state file holds f32, which is exact for those
/// and for nothing larger than 2²⁴.
fn pack(counters: &[u64]) -> Result<Tensor> {
    let limbs =
        counters.iter().flat_map(|c| (0..4).map(move |i| ((c >> (16 * i)) & 0xffff) as f32));
    Ok(Tensor::from_vec(limbs.collect(), (counters.len(), 4), &Device::Cpu)?)
}

fn unpack(tensor: &Tensor) -> Result<Vec<u64>> {
    let wrong = || Error::input(PROGRESS, format!("expected limbs, got {:?}", tensor.dims()));
    let (_, 4) = tensor.dims2().map_err(|_| wrong())? else { return Err(wrong()) };
    let join = |limbs: Vec<f32>| limbs.iter().rev().fold(0u64, |c, x| (c << 16) | *x as u64);
    Ok(tensor.to_vec2::<f32>()?.into_iter().map(join).collect())
}
