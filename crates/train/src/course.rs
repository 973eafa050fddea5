//! What learns as a run goes on: its rounds, and the choice between variables.

use candle_core::Tensor;
use luthier_core::{Batch, Error, Mask, Param, Policy, Result, Seed, StateDict};
use luthier_params::{Bound, Choice, Chosen, Handover, Moment, Trial};
use luthier_update::Stepper;

use crate::{
    step::{Data, Step},
    sum::Gradients,
};

/// Before the name of a variable that learns whole or in chosen entries, and of what a choice
/// remembers.
const WHOLE: &str = "whole.";
const MASK: &str = "mask.";
const CHOICE: &str = "choice.";

/// What learns now.
pub struct Course<'a> {
    all: &'a Bound,
    seed: Seed,
    choice: Option<Box<dyn Choice>>,
    /// The key of the form that chooses.
    key: Option<&'static str>,
    /// Of everything, what belongs to it.
    own: Vec<Param>,
    /// Of that, what learns.
    now: Vec<Param>,
    /// The policy in which only the chosen variables learn.
    pub policy: Policy,
    /// The chosen variables.
    pub params: Vec<Param>,
}

/// Where a run stands: round, steps made in it, steps of it, and whether its data begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which run of the schedule, from 0.
    pub round: usize,
    /// Steps made in this round.
    pub step: u64,
    /// Steps of this round.
    pub steps: u64,
    /// Whether the coming step is the first of an epoch.
    pub epoch_begins: bool,
}

impl<'a> Course<'a> {
    /// Everything that was bound learns, until a choice says otherwise.
    pub fn new(all: &'a Bound, seed: Seed) -> Result<Self> {
        let (key, choice) = all.form.choice()?.unzip();
        let own = all.params.iter().zip(&all.forms).filter(|(_, form)| key == Some(**form));
        let own: Vec<Param> = own.map(|(param, _)| param.clone()).collect();
        let (policy, params) = (all.policy.clone(), all.params.clone());
        Ok(Course { all, seed, choice, key, now: own.clone(), own, policy, params })
    }

    /// Lets the form choose again before a step; `rate` is the step's learning rate. Says what
    /// becomes of the optimizer's memory if the choice changed.
    pub fn choose(
        &mut self,
        place: Place,
        step: &Step,
        data: &Data,
        rate: f64,
        stepper: &Stepper,
    ) -> Result<Option<Handover>> {
        let Some(choice) = &mut self.choice else { return Ok(None) };
        let Place { round, step: made, steps, epoch_begins } = place;
        let mut trial = Passes { all: self.all, step, data, stepper, rate };
        let mut moment = Moment {
            round,
            step: made,
            steps,
            epoch_begins,
            seed: self.seed,
            all: self.all,
            own: &self.own,
            now: &self.now,
            trial: &mut trial,
        };
        let Some(Chosen { params, handover, note }) = choice.choose(&mut moment)? else {
            return Ok(None);
        };
        tracing::info!("{note}");
        self.set(params)?;
        Ok(Some(handover))
    }

    /// Lets `now` of the form's own variables learn, with all of the others, in the order in which
    /// they were bound.
    fn set(&mut self, now: Vec<Param>) -> Result<()> {
        let mut params = Vec::with_capacity(self.all.params.len());
        for (param, form) in self.all.params.iter().zip(&self.all.forms) {
            match self.key == Some(*form) {
                true => params.extend(now.iter().find(|p| p.name == param.name).cloned()),
                false => params.push(param.clone()),
            }
        }
        self.policy = only(self.all, &params)?;
        (self.params, self.now) = (params, now);
        Ok(())
    }

    /// What a checkpoint must know; `None` where nothing is ever chosen.
    pub fn state(&self) -> Result<Option<StateDict>> {
        let Some(choice) = &self.choice else { return Ok(None) };
        let mut state = StateDict::default();
        for Param { name, var, mask, .. } in &self.now {
            match mask {
                None => state.insert(format!("{WHOLE}{name}"), Tensor::new(&[0u32], var.device())?),
                Some(mask) => {
                    let positions = Tensor::new(mask.positions(), var.device())?;
                    state.insert(format!("{MASK}{name}"), positions);
                }
            }
        }
        for (name, tensor) in choice.state()?.iter() {
            state.insert(format!("{CHOICE}{name}"), tensor.clone());
        }
        Ok(Some(state))
    }

    /// Takes over what [`Course::state`] gave.
    pub fn load(&mut self, state: &StateDict) -> Result<()> {
        let Some(choice) = &mut self.choice else { return Ok(()) };
        let own =
            state.iter().filter_map(|(k, t)| Some((k.strip_prefix(CHOICE)?.into(), t.clone())));
        choice.load(own.collect())?;
        let mut params = Vec::new();
        for param in &self.own {
            let (whole, mask) = (format!("{WHOLE}{}", param.name), format!("{MASK}{}", param.name));
            let whole_var = Param { mask: None, ..param.clone() };
            if let Some(positions) = state.get(&mask) {
                params.push(whole_var.masked(Mask::new(positions.to_vec1::<u32>()?)?)?);
            } else if state.get(&whole).is_some() {
                params.push(whole_var);
            }
        }
        if params.is_empty() {
            return Err(Error::input("checkpoint", "names nothing that learns"));
        }
        self.set(params)
    }
}

/// The policy in which `params` learn and other bound variables rest.
fn only(all: &Bound, params: &[Param]) -> Result<Policy> {
    let ids: Vec<_> = params.iter().map(|p| p.var.as_tensor().id()).collect();
    if all.params.iter().all(|p| ids.contains(&p.var.as_tensor().id())) {
        return Ok(all.policy.clone());
    }
    let bound: Vec<_> = all.params.iter().map(|p| p.var.as_tensor().id()).collect();
    // Hooks keep their variables; a gradient that nobody asked for is dropped where it is found.
    let model = all.policy.model.resting(&|w| ids.contains(&w.id()) || !bound.contains(&w.id()))?;
    Ok(Policy { model, hooks: all.policy.hooks.clone() })
}

/// Trial passes over the data of the coming step.
struct Passes<'a> {
    all: &'a Bound,
    step: &'a Step<'a>,
    data: &'a Data<'a>,
    stepper: &'a Stepper,
    rate: f64,
}

impl Trial for Passes<'_> {
    fn rows(&self) -> Vec<(usize, usize)> {
        let row = |batch: &Batch, i| {
            let range = batch.rows.range(i);
            let trained = batch.weights_n[range.clone()].iter().filter(|w| **w != 0.0).count();
            (range.len(), trained)
        };
        let of = |batch: &Batch| -> Vec<_> { (0..batch.rows.b()).map(|i| row(batch, i)).collect() };
        self.data.passes.iter().flat_map(of).collect()
    }

    fn gradients(&mut self, params: &[Param]) -> Result<(f64, StateDict)> {
        let policy = only(self.all, params)?;
        let step = Step { policy: &policy, params, ..*self.step };
        let found = step.gradients(self.data, Gradients::new())?;
        Ok((found.loss, found.gradients.into_iter().collect()))
    }

    fn step(&mut self, params: &[Param], gradients: &StateDict) -> Result<()> {
        self.stepper.first_step(params, self.rate, &|name, _| gradients.get(name).cloned())
    }
}
