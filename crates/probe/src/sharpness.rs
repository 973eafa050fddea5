//! How sharp the loss is around a model, and where along its layers tuning went astray
//! (Abdollahpoorrostam 2024, paper 77; the measure of Andriushchenko et al. 2023).
//!
//! `S_worst = max_{|δᵢ| ≤ ρ cᵢ} L(θ + δ) − L(θ)`, `S_average = E_{δᵢ ~ N(0, ρ² cᵢ²)} L(θ + δ) − L(θ)`, with
//! `c = |θ|` (adaptive) or 1, and `δ` zero outside of a chosen layer. The maximum is sought by `n_steps`
//! steps of `2 ρ c / n_steps` along the sign of the gradient, clipped to the box; the best value on the
//! way counts, `δ = 0` among them. [`stragglers`] finds the layers whose tuned weights alone cost the base
//! most.
//!
//! **Departures** from the paper, whose definitions were not published: all of the above is as the works
//! it builds on have it.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed, StateDict};
use serde::{Deserialize, Serialize};

pub mod rank;
mod swap;

pub use rank::{kendall, kendall_interval};
pub use swap::{Layer, Swap, barrier, stragglers, swaps};

/// The worst case or the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// The largest loss within the box.
    #[default]
    Worst,
    /// The mean loss around.
    Average,
}

/// How sharpness is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sharpness {
    /// How far to go, as a share of each weight where adaptive.
    pub rho: f64,
    /// Whether each weight moves in proportion to its size.
    pub adaptive: bool,
    /// The worst case or the mean.
    pub kind: Case,
    /// Steps of the worst case.
    pub n_steps: u64,
    /// Draws of the mean.
    pub n_draws: u64,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Sharpness {
    fn default() -> Self {
        let (kind, n_steps, n_draws) = (Case::Worst, 20, 20);
        Sharpness { rho: 0.05, adaptive: true, kind, n_steps, n_draws, seed: 0 }
    }
}

/// A loss over weights. Both must be of the network as it is used: no dropout, nothing that moves.
pub struct Landscape<'a> {
    /// The loss.
    pub loss: &'a dyn Fn(&StateDict) -> Result<f64>,
    /// The loss, and its gradient with respect to the tensors that may move.
    pub gradient: &'a dyn Fn(&StateDict) -> Result<(f64, StateDict)>,
}

/// A tensor that moves.
struct Moving {
    name: String,
    dims: Vec<usize>,
    center: Vec<f32>,
    /// How far each number may go.
    reach: Vec<f32>,
    delta: Vec<f32>,
}

impl Moving {
    fn tensor(&self) -> Result<Tensor> {
        let sum = self.center.iter().zip(&self.delta).map(|(x, d)| x + d);
        Ok(Tensor::from_vec(sum.collect::<Vec<f32>>(), &self.dims[..], &Device::Cpu)?)
    }
}

impl Sharpness {
    /// The sharpness at `weights` within the tensors that `layer` names.
    pub fn measure(
        &self,
        weights: &StateDict,
        layer: &dyn Fn(&str) -> bool,
        on: &Landscape<'_>,
    ) -> Result<f64> {
        if !(self.rho.is_finite() && self.rho >= 0.0) {
            let what = format!("expected a number of at least 0, got {}", self.rho);
            return Err(Error::input("sharpness.rho", what));
        }
        let mut moving = self.moving(weights, layer)?;
        match self.kind {
            Case::Worst => self.worst(weights, &mut moving, on),
            Case::Average => self.average(weights, &mut moving, on),
        }
    }

    fn moving(&self, weights: &StateDict, layer: &dyn Fn(&str) -> bool) -> Result<Vec<Moving>> {
        let mut all = Vec::new();
        for (name, tensor) in weights.iter().filter(|(name, _)| layer(name)) {
            let center: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
            let rho = self.rho as f32;
            let reach = |x: &f32| if self.adaptive { rho * x.abs() } else { rho };
            all.push(Moving {
                name: name.to_string(),
                dims: tensor.dims().to_vec(),
                reach: center.iter().map(reach).collect(),
                delta: vec![0.0; center.len()],
                center,
            });
        }
        match all.is_empty() {
            true => Err(Error::input("sharpness", "the layer names none of the tensors")),
            false => Ok(all),
        }
    }

    fn worst(&self, weights: &StateDict, moving: &mut [Moving], on: &Landscape<'_>) -> Result<f64> {
        if self.n_steps == 0 {
            return Err(Error::input("sharpness.n_steps", "expected at least 1, got 0"));
        }
        let share = 2.0 / self.n_steps as f32;
        let (mut start, mut best) = (None, 0f64);
        for _ in 0..self.n_steps {
            let (loss, gradients) = (on.gradient)(&moved(weights, moving)?)?;
            best = best.max(loss - *start.get_or_insert(loss));
            for Moving { name, reach, delta, .. } in moving.iter_mut() {
                let Some(gradient) = gradients.get(name) else {
                    return Err(Error::failed(&*name, "has no gradient, but is to move"));
                };
                let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
                for ((d, reach), g) in delta.iter_mut().zip(&*reach).zip(&gradient) {
                    // The sign of nothing is nothing, where `signum` says 1.
                    let sign = if *g == 0.0 { 0.0 } else { g.signum() };
                    *d = (*d + share * reach * sign).clamp(-reach, *reach);
                }
            }
        }
        let last = (on.loss)(&moved(weights, moving)?)?;
        Ok(start.map_or(best, |start| best.max(last - start)))
    }

    fn average(
        &self,
        weights: &StateDict,
        moving: &mut [Moving],
        on: &Landscape<'_>,
    ) -> Result<f64> {
        if self.n_draws == 0 {
            return Err(Error::input("sharpness.n_draws", "expected at least 1, got 0"));
        }
        let (start, seed) = ((on.loss)(weights)?, Seed(self.seed).split("sharpness"));
        let mut sum = 0.0;
        for draw in 0..self.n_draws {
            for Moving { name, reach, delta, .. } in moving.iter_mut() {
                let mut rng = seed.at(draw).split(name).rng();
                let drawn = delta.iter_mut().zip(&*reach);
                drawn.for_each(|(d, reach)| *d = reach * rng.normal() as f32);
            }
            sum += (on.loss)(&moved(weights, moving)?)? - start;
        }
        Ok(sum / self.n_draws as f64)
    }
}

fn moved(weights: &StateDict, moving: &[Moving]) -> Result<StateDict> {
    let mut state = weights.clone();
    for one in moving {
        state.insert(&one.name, one.tensor()?);
    }
    Ok(state)
}

/// Logits over their length, example by example, times `scale`: a loss of these does not fall with
/// confidence alone.
pub fn normalised(logits_nc: &[f32], classes: usize, scale: f32) -> Vec<f32> {
    let row = |row: &[f32]| {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        let factor = if length > 0.0 { scale / length } else { 0.0 };
        row.iter().map(move |x| x * factor).collect::<Vec<f32>>()
    };
    logits_nc.chunks_exact(classes).flat_map(row).collect()
}
