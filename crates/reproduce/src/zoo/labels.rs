//! Inputs of normal numbers whose labels are drawn by what some rule makes of them, and the beginning of
//! nets that read them.

use candle_core::{Device, Tensor};
use luthier_core::{Result, Rng};

/// Inputs row by row, and what was drawn for each.
pub struct Labelled {
    /// Numbers of a row.
    pub inputs: usize,
    /// All rows.
    pub x: Vec<f32>,
    /// The class of each.
    pub labels: Vec<u32>,
}

impl Labelled {
    /// `n` rows with a label drawn by `softmax(logits(x))`.
    pub fn draw(
        n: usize,
        inputs: usize,
        logits: impl Fn(&[f64]) -> Vec<f64>,
        rng: &mut Rng,
    ) -> Self {
        let (mut all, mut labels) = (Vec::with_capacity(n * inputs), Vec::with_capacity(n));
        for _ in 0..n {
            let x: Vec<f64> = (0..inputs).map(|_| rng.normal()).collect();
            labels.push(drawn(&softmax(&logits(&x)), rng) as u32);
            all.extend(x.iter().map(|x| *x as f32));
        }
        Labelled { inputs, x: all, labels }
    }

    /// The chosen rows, `(n, inputs)`.
    pub fn rows(&self, chosen: &[usize]) -> Result<Tensor> {
        let of = |i: &usize| &self.x[i * self.inputs..][..self.inputs];
        let x: Vec<f32> = chosen.iter().flat_map(of).copied().collect();
        Ok(Tensor::from_vec(x, (chosen.len(), self.inputs), &Device::Cpu)?)
    }
}

/// Likelihoods.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = logits.iter().map(|logit| (logit - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// A draw from likelihoods.
pub fn drawn(likelihoods: &[f64], rng: &mut Rng) -> usize {
    let mut left = rng.uniform();
    for (one, likelihood) in likelihoods.iter().enumerate() {
        left -= likelihood;
        if left < 0.0 {
            return one;
        }
    }
    likelihoods.len() - 1
}

/// Weights `(inputs, outputs)` and biases of a linear layer as torch begins it: all between `±1/√inputs`.
pub fn linear(inputs: usize, outputs: usize, rng: &mut Rng) -> Result<[Tensor; 2]> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let mut draw = |n: usize| -> Vec<f32> {
        (0..n).map(|_| (bound * (2.0 * rng.uniform() - 1.0)) as f32).collect()
    };
    let w_io = Tensor::from_vec(draw(inputs * outputs), (inputs, outputs), &Device::Cpu)?;
    let b_o = Tensor::from_vec(draw(outputs), outputs, &Device::Cpu)?;
    Ok([w_io, b_o])
}
