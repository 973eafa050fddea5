//! Steps checked against numbers worked out by hand.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Mask, Param, StateDict};
use luthier_update::{Start, StepInfo, Stepper, Update};

mod averages;
mod lifted;
mod masks;
mod penalties;
mod rates;
mod rebinding;
mod refusals;

/// A step takes the gradient away from the weights, and nothing else happens.
const PLAIN: &str = "max_grad_norm = 0\n[schedule.constant]\n[sgd]\nlearning_rate = 1\n";

fn param(name: &str, values: &[f32], dims: &[usize]) -> Param {
    Param::whole(name, Var::from_slice(values, dims, &Device::Cpu).unwrap())
}

fn mask(positions: &[u32]) -> Mask {
    Mask::new(positions.to_vec()).unwrap()
}

fn update(text: &str) -> Update {
    toml::from_str(text).unwrap()
}

fn stepper(text: &str, params: &[Param], start: &Start) -> Stepper {
    Stepper::new(&update(text), params, start).unwrap()
}

fn row(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Steps with these gradients; what is not named has none.
fn step(stepper: &mut Stepper, grads: &[(&str, Tensor)]) -> StepInfo {
    let of = |name: &str| grads.iter().find(|(n, _)| *n == name).map(|(_, g)| g.copy().unwrap());
    stepper.step(&|name, _| of(name)).unwrap()
}

fn values(param: &Param) -> Vec<f32> {
    param.var.flatten_all().unwrap().to_vec1().unwrap()
}

fn saved(stepper: &Stepper, name: &str) -> Vec<f32> {
    let state: StateDict = stepper.state().unwrap();
    let tensor = state.get(name).unwrap_or_else(|| panic!("{name} is not saved"));
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(got: &[f32], want: &[f64]) {
    let apart = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && apart < 2e-6, "{got:?}, not {want:?}");
}
