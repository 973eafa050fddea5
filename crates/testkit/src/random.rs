//! Random tensors.

use candle_core::{Device, Shape, Tensor};
use luthier_core::Seed;

/// Normal numbers around 0 of this standard deviation, always the same for a seed.
pub fn random(dims: impl Into<Shape>, std: f64, seed: Seed) -> Tensor {
    around(0.0, dims, std, seed)
}

/// The same around another number.
pub fn around(mean: f64, dims: impl Into<Shape>, std: f64, seed: Seed) -> Tensor {
    let (mut rng, shape) = (seed.rng(), dims.into());
    let values: Vec<f32> =
        (0..shape.elem_count()).map(|_| (mean + std * rng.normal()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has places")
}
