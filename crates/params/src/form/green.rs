//! GreenTrainer (Huang et al. 2024, paper 10): the tensors that are worth their backward pass.
//!
//! With `t_dy` the cost of passing a gradient through a tensor's operation and `t_dw` that of its own
//! gradient, forward plus `Σ σ_k t_dy + m_k t_dw` must stay within `rho` of full fine-tuning, where
//! `σ_k = 1` from the output down to the deepest chosen tensor. Among such choices `Σ m_k I_k` is
//! largest, with the importance `I_k = −Σ g₁ Δw` of a trial step `Δw` and the gradient `g₁` after it.
//! **Departures**: (1) the head is charged for trained tokens, for others it is not computed; (2) the
//! choice is the exact optimum at the resolution `t_q`, where the published search is not always.

use luthier_core::{Error, Param, Policy, Result, StateDict};
use serde::{Deserialize, Serialize};

use super::weights;
use crate::{Choice, Chosen, Form, Globs, Handover, Moment, Scope, own};

pub mod cost;
pub mod select;

use cost::Costs;
pub use select::Convention;

const KEY: &str = "train.params.green";

/// `[train.params.green]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Green {
    /// Sites whose weights may learn.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Work of a step, as a share of full fine-tuning's, forward pass included.
    pub rho: f64,
    /// Epochs between two choices.
    pub interval: u64,
    /// Into how many parts the cost of a backward pass is divided.
    pub t_q: usize,
    /// Whether the deepest chosen tensor is charged for passing a gradient on.
    pub dy_convention: Convention,
    /// Smallest share of the backward pass.
    pub min_rho_bp: f64,
}

impl Default for Green {
    fn default() -> Self {
        Green {
            at: "**".into(),
            exclude: Globs::default(),
            rho: 0.5,
            interval: 1,
            t_q: 1000,
            dy_convention: Convention::Inclusive,
            min_rho_bp: 0.05,
        }
    }
}

impl Form for Green {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let share = |key: &str, value: f64| match value > 0.0 && value <= 1.0 {
            true => Ok(()),
            false => {
                let what = format!("expected a share above 0 and up to 1, got {value}");
                Err(Error::input(format!("{KEY}.{key}"), what))
            }
        };
        share("rho", self.rho)?;
        share("min_rho_bp", self.min_rho_bp)?;
        if self.interval == 0 || self.t_q == 0 {
            let key = if self.t_q == 0 { "t_q" } else { "interval" };
            return Err(Error::input(format!("{KEY}.{key}"), "expected at least 1, got 0"));
        }
        let model = policy.model.clone();
        let sites = self.at.sites(model.sites(), KEY, &self.exclude, weights::has_weight)?;
        weights::learn(policy, &sites, |_, _| true, scope)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        Some(Box::new(Budget { form: self.clone(), epochs: 0 }))
    }
}

/// Chooses at the start of epochs.
struct Budget {
    form: Green,
    /// Epochs begun so far.
    epochs: u64,
}

impl Choice for Budget {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>> {
        if !now.epoch_begins {
            return Ok(None);
        }
        self.epochs += 1;
        if !(self.epochs - 1).is_multiple_of(self.form.interval) {
            return Ok(None);
        }
        let all = &now.all.params;
        let costs = Costs::of(now.all.policy.model.sites(), all, &now.trial.rows());
        let share = costs.backward_share(self.form.rho, self.form.min_rho_bp);
        let reached = costs.reached(share);
        let probed = &all[all.len() - reached..];
        let mut importance = vec![0.0; all.len() - reached];
        importance.extend(self::importance(probed, now)?);
        let chosen =
            select::select(&costs, &importance, share, self.form.t_q, self.form.dy_convention);
        let params: Vec<Param> =
            all.iter().zip(&chosen).filter(|(_, m)| **m).map(|(p, _)| p.clone()).collect();
        if params.is_empty() {
            let what = "no tensor is worth training within this budget";
            return Err(Error::input(format!("{KEY}.rho"), what).hint("raise it"));
        }
        let note = format!(
            "{} of {} tensors learn, at {:.1} % of the work of full fine-tuning",
            params.len(),
            all.len(),
            100.0 * costs.share(&chosen, self.form.dy_convention),
        );
        Ok(Some(Chosen { params, handover: Handover::Keep, note }))
    }

    fn state(&self) -> Result<StateDict> {
        let epochs = candle_core::Tensor::new(&[self.epochs as u32], &candle_core::Device::Cpu)?;
        Ok([("epochs".to_string(), epochs)].into_iter().collect())
    }

    fn load(&mut self, state: StateDict) -> Result<()> {
        if let Some(epochs) = state.get("epochs") {
            self.epochs = u64::from(epochs.to_vec1::<u32>()?[0]);
        }
        Ok(())
    }
}

/// How much a trial step of each tensor lowers the loss, to first order, over the largest of them.
fn importance(params: &[Param], now: &mut Moment) -> Result<Vec<f64>> {
    let before: Vec<Vec<f32>> =
        params.iter().map(|p| weights::values(&p.var)).collect::<Result<_>>()?;
    let (_, gradients) = now.trial.gradients(params)?;
    now.trial.step(params, &gradients)?;
    drop(gradients);
    let (_, after) = now.trial.gradients(params)?;
    let mut found = Vec::with_capacity(params.len());
    for (Param { name, var, .. }, before) in params.iter().zip(before) {
        let Some(gradient) = after.get(name) else {
            return Err(Error::failed(name, "no gradient reached it"));
        };
        let (moved, g) = (weights::values(var)?, gradient.flatten_all()?.to_vec1::<f32>()?);
        let drop = moved.iter().zip(&before).zip(&g);
        found.push(
            -drop.map(|((now, before), g)| f64::from(now - before) * f64::from(*g)).sum::<f64>(),
        );
        own::set(var, before)?;
    }
    let largest = found.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    if largest > 0.0 {
        found.iter_mut().for_each(|x| *x /= largest);
    }
    Ok(found)
}
