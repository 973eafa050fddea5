//! LT-SFT (Ansell et al. 2022, paper 07): the entries that move most when all of them learn.
//!
//! Round 1 trains everything; the `k` entries with the largest `|θ₁ − θ₀|` in all tensors together
//! are chosen, everything is put back, and round 2 trains the chosen entries with a new optimizer and
//! a new schedule. With more iterations each adds `k / iterations` entries to those already chosen,
//! starting from the weights at its beginning. What is saved is the difference, so that differences
//! of several tasks can be added. The pull to the base is `[train.update.l1]`.
//! **Departures**: (1) the tensors that learn without being chosen from (a task head) are those of
//! another form, `[train.params.full]`; (2) round 1 is as long as round 2.

use candle_core::Tensor;
use luthier_core::{Error, Mask, Param, Result, Seed, StateDict};
use serde::{Deserialize, Serialize};

use super::{Rule, check_density, masked, share};
use crate::{Choice, Chosen, Handover, Moment, form::weights, own};

/// `[train.params.sparse.lottery]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lottery {
    /// Share of the entries that learn in the end (`ft_params_proportion`).
    pub density: f64,
    /// How many times entries are chosen (`n_ft_iterations`).
    pub iterations: usize,
}

impl Default for Lottery {
    fn default() -> Self {
        Lottery { density: 0.01, iterations: 1 }
    }
}

impl Rule for Lottery {
    fn check(&self, at: &str) -> Result<()> {
        if self.iterations == 0 {
            return Err(Error::input(format!("{at}.iterations"), "expected at least 1, got 0"));
        }
        check_density(at, self.density)
    }

    fn masks(&self, _params: &[Param], _seed: Seed) -> Result<Option<Vec<Mask>>> {
        Ok(None)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        let (base, begun) = (StateDict::default(), StateDict::default());
        Some(Box::new(Tickets { rule: self.clone(), base, begun, chosen: Vec::new() }))
    }

    fn rounds(&self) -> usize {
        2 * self.iterations
    }
}

/// Odd rounds train everything, even ones the winners.
struct Tickets {
    rule: Lottery,
    /// θ₀ of everything that learns.
    base: StateDict,
    /// The values at the beginning of this iteration, where they are not θ₀.
    begun: StateDict,
    /// Entries chosen so far.
    chosen: Vec<Mask>,
}

fn snapshot(params: &[Param]) -> Result<StateDict> {
    params.iter().map(|p| Ok((p.name.clone(), p.var.as_detached_tensor().copy()?))).collect()
}

fn numbers(state: &StateDict, name: &str) -> Result<Vec<f32>> {
    let missing = || Error::failed(name, "its value at the beginning was not kept");
    Ok(state.get(name).ok_or_else(missing)?.flatten_all()?.to_vec1::<f32>()?)
}

impl Tickets {
    fn all_learn(&mut self, now: &Moment) -> Result<Option<Chosen>> {
        if now.round == 0 {
            self.base = snapshot(&now.all.params)?;
            return Ok(None);
        }
        self.begun = snapshot(&now.all.params)?;
        let params = now.own.to_vec();
        let note = format!("round {}: everything learns again", now.round + 1);
        Ok(Some(Chosen { params, handover: Handover::Fresh, note }))
    }

    fn winners_learn(&mut self, now: &Moment) -> Result<Option<Chosen>> {
        let mut scores = Vec::with_capacity(now.own.len());
        for (i, Param { name, var, .. }) in now.own.iter().enumerate() {
            let (mut moved, base) = (weights::values(var)?, numbers(&self.base, name)?);
            moved.iter_mut().zip(&base).for_each(|(now, base)| *now = (*now - base).abs());
            // What is chosen already stays so and does not compete.
            if let Some(mask) = self.chosen.get(i) {
                mask.scatter(&vec![f32::INFINITY; mask.len()], &mut moved);
            }
            scores.push(moved);
        }
        let begun = if self.begun.is_empty() { &self.base } else { &self.begun };
        for Param { name, var, .. } in &now.all.params {
            own::set(var, numbers(begun, name)?)?;
        }
        let (share, iteration) = (share(now.own, self.rule.density), now.round / 2 + 1);
        let count = share * iteration / self.rule.iterations;
        self.chosen = weights::largest(&scores, count)?;
        let params = masked(now.own, self.chosen.clone())?;
        let note = format!("round {}: back to the start, {count} entries learn", now.round + 1);
        Ok(Some(Chosen { params, handover: Handover::Fresh, note }))
    }
}

impl Choice for Tickets {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>> {
        match (now.step, now.round % 2) {
            (0, 0) => self.all_learn(now),
            (0, _) => self.winners_learn(now),
            _ => Ok(None),
        }
    }

    fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for (kind, values) in [("base", &self.base), ("begun", &self.begun)] {
            values.iter().for_each(|(name, t)| state.insert(format!("{kind}.{name}"), t.clone()));
        }
        for (i, mask) in self.chosen.iter().enumerate() {
            let positions = Tensor::new(mask.positions(), &candle_core::Device::Cpu)?;
            state.insert(format!("chosen.{i:06}"), positions);
        }
        Ok(state)
    }

    fn load(&mut self, state: StateDict) -> Result<()> {
        for (name, tensor) in state.iter() {
            match name.split_once('.') {
                Some(("base", name)) => self.base.insert(name, tensor.clone()),
                Some(("begun", name)) => self.begun.insert(name, tensor.clone()),
                _ => self.chosen.push(Mask::new(tensor.to_vec1::<u32>()?)?),
            }
        }
        Ok(())
    }
}
