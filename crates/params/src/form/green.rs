//! GreenTrainer (Huang et al. 2024, paper 10): the tensors that are worth their backward pass.
//!
//! With `t_dy` the cost of passing a gradient through a tensor's operation and `t_dw` that of its own
//! gradient, forward plus `Σ σ_k t_dy + m_k t_dw` must stay within `rho` of full fine-tuning, where
//! `σ_k = 1` from the output down to the deepest chosen tensor. Among such choices `Σ m_k I_k` is
//! largest, with the importance `I_k = −Σ g₁ Δw` of a trial step `Δw` and the gradient `g₁` after it.
//! **Departures**: (1) the head is charged for trained tokens, for others it is not computed; (2) the
//! choice is the exact optimum at the resolution `t_q`, where the published search is not always; (3)
//! where costs rounded down would let it exceed the budget, the next smaller budget is tried.

use luthier_core::{Error, Param, Policy, Result, StateDict};
use serde::{Deserialize, Serialize};

use super::weights;
use crate::{Choice, Chosen, Form, Globs, Handover, Moment, Scope, Trial, own};

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
        let all = now.own;
        let costs = Costs::of(now.all.policy.model.sites(), all, &now.trial.rows());
        let share = costs.backward_share(self.form.rho, self.form.min_rho_bp);
        let reached = costs.reached(share);
        let probed = &all[all.len() - reached..];
        let mut importance = vec![0.0; all.len() - reached];
        importance.extend(self::importance(probed, &mut *now.trial)?);
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
pub fn importance(params: &[Param], trial: &mut dyn Trial) -> Result<Vec<f64>> {
    let mut found = drops(params, trial)?;
    let largest = found.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    if largest > 0.0 {
        found.iter_mut().for_each(|x| *x /= largest);
    }
    Ok(found)
}

/// The same as the loss itself; the variables are left as they were.
fn drops(params: &[Param], trial: &mut dyn Trial) -> Result<Vec<f64>> {
    let before: Vec<Vec<f32>> =
        params.iter().map(|p| weights::values(&p.var)).collect::<Result<_>>()?;
    let (_, gradients) = trial.gradients(params)?;
    trial.step(params, &gradients)?;
    drop(gradients);
    let (_, after) = trial.gradients(params)?;
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
    Ok(found)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    /// `½ Σ a (w − t)²` in two tensors, and plain gradient steps.
    struct Bowl {
        curvature: [Vec<f32>; 2],
        target: [Vec<f32>; 2],
        rate: f32,
    }

    impl Bowl {
        fn part(&self, param: &Param) -> (&[f32], &[f32]) {
            let i = usize::from(param.name == "b");
            (&self.curvature[i], &self.target[i])
        }
    }

    impl Trial for Bowl {
        fn rows(&self) -> Vec<(usize, usize)> {
            Vec::new()
        }

        fn gradients(&mut self, params: &[Param]) -> Result<(f64, StateDict)> {
            let (mut loss, mut gradients) = (0.0, StateDict::default());
            for param in params {
                let (a, t) = self.part(param);
                let away: Vec<f32> =
                    weights::values(&param.var)?.iter().zip(t).map(|(w, t)| w - t).collect();
                loss += away.iter().zip(a).map(|(x, a)| f64::from(a * x * x) / 2.0).sum::<f64>();
                let g: Vec<f32> = away.iter().zip(a).map(|(x, a)| a * x).collect();
                gradients
                    .insert(&param.name, Tensor::from_vec(g, param.var.shape(), &Device::Cpu)?);
            }
            Ok((loss, gradients))
        }

        fn step(&mut self, params: &[Param], gradients: &StateDict) -> Result<()> {
            for Param { name, var, .. } in params {
                let g = gradients.get(name).expect("made above").to_vec1::<f32>()?;
                let before = weights::values(var)?;
                let moved = before.iter().zip(g).map(|(w, g)| w - self.rate * g).collect();
                own::set(var, moved)?;
            }
            Ok(())
        }
    }

    const START: [[f32; 2]; 2] = [[1.0, -0.5], [0.25, 2.0]];

    fn params() -> Vec<Param> {
        let var = |w: [f32; 2]| Var::new(&w, &Device::Cpu).unwrap();
        ["a", "b"].into_iter().zip(START).map(|(name, w)| Param::whole(name, var(w))).collect()
    }

    fn bowl(rate: f32) -> Bowl {
        let curvature = [vec![1.0, 2.0], vec![4.0, 0.5]];
        Bowl { curvature, target: [vec![0.5, 0.5], vec![-0.25, 1.0]], rate }
    }

    #[test]
    fn the_importance_of_all_tensors_is_what_a_small_step_wins() {
        // Of a bowl it is exact but for ½ Δwᵀ A Δw, which falls with the square of the step.
        for rate in [0.02, 0.01] {
            let (params, mut trial) = (params(), bowl(rate));
            let all: f64 = drops(&params, &mut trial).unwrap().iter().sum();
            for (param, start) in params.iter().zip(START) {
                assert_eq!(weights::values(&param.var).unwrap(), start, "{}", param.name);
            }
            let (before, g) = trial.gradients(&params).unwrap();
            let squares: f64 = params
                .iter()
                .map(|p| {
                    let g = g.get(&p.name).unwrap().to_vec1::<f32>().unwrap();
                    let bends = g.iter().zip(trial.part(p).0).map(|(g, a)| f64::from(a * g * g));
                    bends.sum::<f64>()
                })
                .sum();
            trial.step(&params, &g).unwrap();
            let (after, _) = trial.gradients(&params).unwrap();
            let left = f64::from(rate * rate) * squares / 2.0;
            let won = before - after;
            assert!(left > 1e-4 && (won - all - left).abs() < 1e-6, "{won} {all} {left}");
        }
    }

    #[test]
    fn a_step_that_goes_too_far_counts_against_its_tensor() {
        // At 0.4 the first entry of b lands beyond its valley, those of a do not.
        let (params, mut trial) = (params(), bowl(0.4));
        let found = importance(&params, &mut trial).unwrap();
        assert!(found[0] > 0.0 && found[1] < 0.0, "{found:?}");
        assert_eq!(found.iter().fold(0.0, |most: f64, x| most.max(x.abs())), 1.0);
    }
}
