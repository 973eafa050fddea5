//! A small decoder from scratch: a real model of a few hundred thousand numbers.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Error, Model, Param, Policy, Result, Seed, StateDict};
use luthier_model::{
    Decoder, ModelConfig, Precision,
    config::{Arch, Rope, Scaling},
    names,
};
use luthier_params::Bound;
use luthier_train::Train;
use serde::Serialize;

/// Standard deviation of every matrix at the start, as in most configurations.
pub const INITIALIZER_RANGE: f64 = 0.02;

/// Sizes of a small decoder of the Llama family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Tokens.
    pub vocab: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

impl Sizes {
    /// The same as a model's configuration.
    pub fn config(&self) -> ModelConfig {
        let head_dim = self.width / self.heads.max(1);
        ModelConfig {
            arch: Arch::Llama,
            hidden: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            max_positions: 512,
            rms_eps: 1e-5,
            rope: Rope { theta: 10_000.0, dim: head_dim, scaling: Scaling::None },
            labels: None,
            tied: self.tied,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            bos: None,
            eos: Vec::new(),
            pad: None,
            sliding_window: None,
            sliding_layers: Vec::new(),
            no_rope_layers: Vec::new(),
            raw: Default::default(),
            generation: Default::default(),
        }
    }
}

/// A small decoder: its sizes, and all its weights by their Hugging Face names.
#[derive(Clone, Debug)]
pub struct Small {
    /// Sizes.
    pub sizes: Sizes,
    /// Weights.
    pub weights: StateDict,
}

impl Small {
    /// Matrices from N(0, 0.02²), norms at 1.
    pub fn random(sizes: Sizes, seed: Seed) -> Result<Self> {
        let mut weights = StateDict::default();
        for (name, dims) in names::tensors(&sizes.config()) {
            let tensor = match dims.len() {
                1 => Tensor::ones(dims, DType::F32, &Device::Cpu)?,
                _ => normal(&dims, seed.split(&name))?,
            };
            weights.insert(name, tensor);
        }
        Ok(Small { sizes, weights })
    }

    /// These weights, which must be those of `sizes`.
    pub fn of(sizes: Sizes, weights: StateDict) -> Result<Self> {
        let expected = names::tensors(&sizes.config());
        for (name, dims) in &expected {
            let got = weights.get(name).map(Tensor::dims);
            if got != Some(dims) {
                let what = format!("expected shape {dims:?}, got {got:?}");
                return Err(Error::input(name, what).hint("these are another model's weights"));
            }
        }
        Ok(Small { sizes, weights })
    }

    /// The decoder, in f32: differences between arms should not be differences of rounding.
    pub fn model(&self) -> Result<Arc<dyn Model>> {
        let numbers = |name: &str| self.numbers(name);
        let model = Decoder::from_weights(&self.sizes.config(), &numbers, Precision::F32)?;
        Ok(Arc::new(model))
    }

    /// The decoder as it is.
    pub fn policy(&self) -> Result<Policy> {
        Ok(Policy::plain(self.model()?))
    }

    /// The decoder with what `config` lets learn.
    pub fn bind(&self, config: &Train) -> Result<Bound> {
        config.params.bind(&self.model()?, Seed(config.seed))
    }

    /// The same with the weights as `bound` has learned them.
    pub fn tuned(&self, bound: &Bound) -> Result<Small> {
        let mut weights = self.weights.clone();
        for Param { name, var, .. } in &bound.params {
            if weights.get(name).is_none() {
                return Err(Error::failed(name, "is beside the weights, not one of them"));
            }
            // A copy: the variable may go on learning.
            weights.insert(name, var.as_detached_tensor().copy()?);
        }
        Ok(Small { sizes: self.sizes, weights })
    }

    /// The same with some rows of a table drawn anew, as for tokens that pretraining never met.
    pub fn with_new_rows(&self, table: &str, rows: &[u32], seed: Seed) -> Result<Small> {
        let (_, width) = self.tensor(table)?.dims2()?;
        let mut numbers = self.numbers(table)?;
        for row in rows {
            let mut rng = seed.split(table).at(u64::from(*row)).rng();
            for x in &mut numbers[*row as usize * width..][..width] {
                *x = (INITIALIZER_RANGE * rng.normal()) as f32;
            }
        }
        let mut new = self.clone();
        let dims = self.tensor(table)?.dims();
        new.weights.insert(table, Tensor::from_vec(numbers, dims, &Device::Cpu)?);
        Ok(new)
    }

    /// How many numbers it has.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().map(|(_, tensor)| tensor.elem_count() as u64).sum()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.weights.get(name).ok_or_else(|| Error::failed(name, "the model has no such weight"))
    }

    fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(name)?.flatten_all()?.to_vec1::<f32>()?)
    }
}

fn normal(dims: &[usize], seed: Seed) -> Result<Tensor> {
    let mut rng = seed.rng();
    let n: usize = dims.iter().product();
    let numbers: Vec<f32> = (0..n).map(|_| (INITIALIZER_RANGE * rng.normal()) as f32).collect();
    Ok(Tensor::from_vec(numbers, dims, &Device::Cpu)?)
}
