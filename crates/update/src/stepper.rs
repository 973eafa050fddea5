//! The running state of an update: step count, schedule memory, optimizer buffers.

use std::collections::HashSet;

use candle_core::{DType, Tensor, Var};
use luthier_core::{Error, Param, Result, Seed, StateDict};
use rayon::prelude::*;

use crate::{
    Memory, Move, Now, Plan, Rates, Update, average, groups,
    pass::{self, with_slice},
    transform::{Need, Shape, Turn},
};

mod counters;
mod exchange;
mod first;
mod gradients;
mod rebind;
mod slot;
mod state;

use slot::{Records, Slot, change};

/// What a run is, apart from its variables.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Where noise and draws come from.
    pub seed: Seed,
    /// All parameters of the model, learned or not, for `l1`.
    pub model_params: u64,
    /// Blocks of the model, for `layer_decay`.
    pub n_layers: usize,
    /// Fisher values by variable name, for `ewc`.
    pub fisher: Option<&'a StateDict>,
}

/// Turns gradients into steps, and can be saved and loaded between any two of them.
pub struct Stepper {
    update: Update,
    total: u64,
    seed: Seed,
    model_params: u64,
    n_layers: usize,
    /// Fisher values by variable name, for whatever may come to learn.
    fisher: Option<StateDict>,
    schedule: &'static str,
    plan: Plan,
    need: Need,
    /// The key of the running average, if there is one.
    average: Option<&'static str>,
    slots: Vec<Slot>,
    step: u64,
    /// The step after which the optimizer's memory began.
    begun: u64,
    memory: Memory,
    weights: Weights,
}

/// Which numbers the variables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    /// Those to train.
    Training,
    /// Those of a two-pass step's second pass.
    Lifted,
    /// Those to evaluate and to keep.
    Exchanged,
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
    /// Whether anything was above the limit.
    pub clipped: bool,
}

impl Start<'_> {
    /// A run of so many steps of which nothing else is known.
    pub fn steps(total_steps: u64) -> Self {
        Start { total_steps, seed: Seed(0), model_params: 0, n_layers: 0, fisher: None }
    }
}

impl Update {
    /// The rates of every variable before the schedule, in the order of `params`.
    pub fn rates(&self, params: &[Param], start: &Start) -> Result<Vec<Rates>> {
        let rates = groups::resolve(self, &self.check()?, params, start.n_layers, true)?;
        Ok(rates.into_iter().map(|(rates, _)| rates).collect())
    }
}

impl Stepper {
    /// Binds an update to variables; all state begins, and where the variables are now is where
    /// penalties pull to.
    pub fn new(update: &Update, params: &[Param], start: &Start) -> Result<Self> {
        let update = update.clone().with_defaults();
        let plan = update.check()?;
        let (schedule, _) = update.schedule.chosen()?;
        let mut stepper = Stepper {
            schedule,
            plan,
            need: update.need()?,
            average: update.average()?.map(|(key, _)| key),
            slots: Vec::new(),
            step: 0,
            begun: 0,
            memory: Memory::default(),
            weights: Weights::Training,
            total: start.total_steps,
            seed: start.seed.split("update"),
            model_params: start.model_params,
            n_layers: start.n_layers,
            fisher: start.fisher.cloned(),
            update,
        };
        if stepper.need.size && stepper.model_params == 0 {
            return Err(Error::failed("train.update", "the size of the model is not known"));
        }
        stepper.slots = stepper.bind(params, true)?;
        let (plan, records) = (&stepper.plan, stepper.records());
        for slot in &mut stepper.slots {
            slot.begin_state(plan)?;
            slot.begin_records(records)?;
        }
        stepper.expect_use()?;
        Ok(stepper)
    }

    /// Steps made so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The name of the schedule in use.
    pub fn schedule(&self) -> &'static str {
        self.schedule
    }

    /// The learning rate of the step that comes next.
    pub fn learning_rate(&self) -> Result<f64> {
        Ok(self.plan.learning_rate * self.scale()?)
    }

    /// Makes one step. `grad_of` gives the gradient of a variable by its name or by itself (a
    /// candle `GradStore` knows variables, a map knows names): of its shape, or, when chosen entries
    /// learn, as the vector of theirs. Penalties and noise are written into what it gives. On an
    /// error no variable and no state has changed.
    pub fn step(&mut self, grad_of: &dyn Fn(&str, &Var) -> Option<Tensor>) -> Result<StepInfo> {
        let step = self.step + 1;
        self.expect_training(&format!("step {step}"))?;
        let grads = self.gradients(&self.slots, step, grad_of)?;
        self.transform(step, &grads)?;
        let sums: Vec<f64> = grads.par_iter().map(pass::sum_of_squares).collect::<Result<_>>()?;
        let grad_norm = self.norm(step, &sums)?;
        let (grad_scales, clipped) = self.clip(&grads, &sums)?;
        let scale = self.scale()?;
        let (_, optimizer) = self.update.optimizer()?;
        let share = match self.update.average()? {
            Some((_, average)) => average.share(step, self.total),
            None => 0.0,
        };
        let t = step - self.begun;
        let moves = self.slots.par_iter_mut().zip(&grads).zip(grad_scales);
        moves.filter(|((_, grad), _)| grad.elem_count() > 0).try_for_each(
            |((slot, grad), grad_scale)| {
                let now = Move {
                    t,
                    learning_rate: slot.rates.learning_rate * scale,
                    weight_decay: slot.rates.weight_decay,
                    grad_scale,
                };
                let dims = slot.dims();
                let Slot { var, mask, state, average, .. } = slot;
                change(var, mask.as_ref(), |param| {
                    with_slice(grad, |grad| optimizer.apply(&now, &dims, param, grad, state))?;
                    if !average.is_empty() {
                        average::take(average, param, share);
                    }
                    Ok(())
                })
            },
        )?;
        self.step = step;
        Ok(StepInfo { step, learning_rate: self.plan.learning_rate * scale, grad_norm, clipped })
    }

    /// Tells the schedule a metric, usually the evaluation loss. Most schedules do not listen.
    pub fn observe(&mut self, metric: f64) -> Result<()> {
        let (_, schedule) = self.update.schedule.chosen()?;
        schedule.observe(&mut self.memory, metric, self.plan.learning_rate);
        Ok(())
    }

    fn scale(&self) -> Result<f64> {
        let (step, total, learning_rate) = (self.step, self.total, self.plan.learning_rate);
        let now = Now { step, total, learning_rate, memory: &self.memory };
        let (name, schedule) = self.update.schedule.chosen()?;
        let scale = schedule.scale(&now);
        if scale.is_finite() && scale >= 0.0 {
            return Ok(scale);
        }
        let at = format!("train.update.schedule.{name}");
        Err(Error::failed(at, format!("gives the factor {scale} at step {}", step + 1)))
    }

    /// What is kept of every learned entry.
    fn records(&self) -> Records {
        Records { origin: self.need.origin, average: self.average.is_some() }
    }

    /// The moment as a transform is told.
    fn turn(&self, key: &str, step: u64) -> Turn {
        Turn { step, seed: self.seed.split(key), model_params: self.model_params }
    }

    /// Variables with their rates, without buffers or records.
    fn bind(&self, params: &[Param], strict: bool) -> Result<Vec<Slot>> {
        if params.is_empty() {
            return Err(Error::input("train.params", "nothing is learned: there is no variable"));
        }
        let mut seen = HashSet::new();
        for Param { name, var, mask, .. } in params {
            if !seen.insert(name.as_str()) {
                return Err(Error::failed(name, "is the name of two variables"));
            }
            if var.dtype() != DType::F32 || !var.is_contiguous() {
                let what = format!("expected a contiguous f32 variable, got {:?}", var.dtype());
                return Err(Error::failed(name, what));
            }
            let last = mask.as_ref().and_then(|mask| mask.positions().last());
            if let Some(last) = last.filter(|last| **last as usize >= var.elem_count()) {
                let what = format!("its mask has entry {last}, its shape is {:?}", var.dims());
                return Err(Error::failed(name, what));
            }
        }
        let rates = self.rates(params, strict)?;
        let slot = |(param, (rates, group)): (&Param, (Rates, usize))| {
            let cluster = self.update.clip.cluster(&param.name, group);
            Ok(Slot::new(param, (rates, cluster), self.fisher_of(param)?))
        };
        params.iter().zip(rates).map(slot).collect()
    }

    fn rates(&self, params: &[Param], strict: bool) -> Result<Vec<(Rates, usize)>> {
        groups::resolve(&self.update, &self.plan, params, self.n_layers, strict)
    }

    /// The Fisher values of a variable, if somebody asks for them.
    fn fisher_of(&self, Param { name, var, .. }: &Param) -> Result<Option<Tensor>> {
        if !self.need.fisher {
            return Ok(None);
        }
        let at = "train.update.ewc.fisher";
        let Some(state) = &self.fisher else {
            return Err(Error::failed(at, "the file was not read"));
        };
        let Some(values) = state.get(name) else {
            return Err(Error::input(at, format!("has no values for {name}"))
                .hint("the Fisher probe must see every variable that learns"));
        };
        let values =
            pass::readable(name, var.dims(), values.clone()).map_err(|e| Error::within(at, e))?;
        if with_slice(&values, |f| f.iter().any(|f| !(f.is_finite() && *f >= 0.0)))? {
            let what = format!("{name} has a value below 0 or not finite");
            return Err(Error::input(at, what));
        }
        Ok(Some(values))
    }

    /// Refuses a transform that none of the variables answers to.
    fn expect_use(&self) -> Result<()> {
        let shapes: Vec<Shape> = self.slots.iter().map(Slot::shape).collect();
        for (key, transform) in self.update.transforms() {
            if !transform.chosen(&self.turn(key, 1), &shapes).contains(&true) {
                let at = format!("train.update.{key}");
                return Err(Error::input(at, "applies to none of the learned variables")
                    .hint("their sizes are outside of its limits"));
            }
        }
        Ok(())
    }

    /// Refuses what would not do with other numbers in the variables.
    fn expect_training(&self, at: &str) -> Result<()> {
        match self.weights {
            Weights::Training => Ok(()),
            Weights::Lifted => Err(Error::failed(at, "the weights are lifted")
                .hint("every Stepper::ascend wants a Stepper::descend")),
            Weights::Exchanged => {
                Err(Error::failed(at, "the weights are exchanged for evaluation")
                    .hint("every Stepper::exchange wants a second one"))
            }
        }
    }
}
