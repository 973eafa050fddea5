//! A residual MLP: `Linear`, blocks `h + W₂ gelu(W₁ LN(h))`, `LN`, one linear head per question.
//!
//! Weights are a `StateDict`; gradients are written by hand over the products of `luthier_kernels`,
//! because a net this small spends most of its time in the bookkeeping of a graph. candle's own
//! gradients of the same formula are the oracle in the tests.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed, StateDict};
use luthier_kernels::{math::softmax, tensor};

use super::digits::Images;

mod pass;

/// Images of one forward pass where nothing is learned: what is kept stays in the caches.
const PASS: usize = 256;

/// Sizes of a net.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shape {
    /// Numbers of an image.
    pub input: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width within a block.
    pub hidden: usize,
    /// Blocks.
    pub blocks: usize,
    /// Answers of every head.
    pub heads: Vec<usize>,
}

/// A question to a batch and what should be answered.
pub struct Asked {
    /// Which head.
    pub head: usize,
    /// How likely each answer should be, image by image.
    pub wanted_nc: Vec<f32>,
}

/// Numbers by the place of their tensor in [`Shape::tensors`].
struct Weights(Vec<Vec<f32>>);

/// Tensors of the part before the blocks.
const FRONT: usize = 2;
/// Tensors of a block.
const BLOCK: usize = 6;

/// Whether a tensor belongs to a head.
pub fn is_head(name: &str) -> bool {
    name.starts_with("heads.")
}

/// The block that a tensor belongs to.
pub fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

impl Shape {
    /// Names and sizes of all tensors, in the order in which the forward pass meets them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.width, self.hidden);
        let mut all = vec![
            ("input.weight".to_string(), vec![d, self.input]),
            ("input.bias".to_string(), vec![d]),
        ];
        for block in 0..self.blocks {
            let of_block = [
                ("norm.weight", vec![d]),
                ("norm.bias", vec![d]),
                ("up.weight", vec![f, d]),
                ("up.bias", vec![f]),
                ("down.weight", vec![d, f]),
                ("down.bias", vec![d]),
            ];
            all.extend(of_block.map(|(name, dims)| (format!("blocks.{block}.{name}"), dims)));
        }
        all.push(("norm.weight".to_string(), vec![d]));
        all.push(("norm.bias".to_string(), vec![d]));
        for (head, classes) in self.heads.iter().enumerate() {
            all.push((format!("heads.{head}.weight"), vec![*classes, d]));
            all.push((format!("heads.{head}.bias"), vec![*classes]));
        }
        all
    }

    /// Norms at 1 and 0; all else uniform within one over the root of the inputs, as in torch.
    pub fn random(&self, seed: Seed) -> Result<StateDict> {
        let mut fan_in = 1;
        let mut make = |(name, dims): (String, Vec<usize>)| {
            let n: usize = dims.iter().product();
            // A bias follows its weight.
            fan_in = dims.get(1).copied().unwrap_or(fan_in);
            let bound = 1.0 / (fan_in as f64).sqrt();
            let mut rng = seed.split(&name).rng();
            let numbers: Vec<f32> = match name.rsplit('.').nth(1) {
                Some("norm") => vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; n],
                _ => (0..n).map(|_| (bound * (2.0 * rng.uniform() - 1.0)) as f32).collect(),
            };
            Ok((name, Tensor::from_vec(numbers, dims, &Device::Cpu)?))
        };
        self.tensors().into_iter().map(&mut make).collect()
    }

    /// The loss of a batch (cross-entropy, a mean over images, added over the questions), and its
    /// gradient with respect to the tensors that `learns` names.
    pub fn gradient(
        &self,
        weights: &StateDict,
        pixels_nd: &[f32],
        asked: &[Asked],
        learns: &dyn Fn(&str) -> bool,
    ) -> Result<(f64, StateDict)> {
        let names = self.tensors();
        let weights = self.read(weights)?;
        let (d, n) = (self.width, pixels_nd.len() / self.input);
        let body = names.len() - 2 * self.heads.len();
        let deep = names[..body].iter().any(|(name, _)| learns(name));
        let mut tape = pass::Tape::default();
        let z_nd = pass::forward(self, &weights, pixels_nd, deep.then_some(&mut tape));
        let mut found = Weights(vec![Vec::new(); names.len()]);
        let (mut loss, mut dz_nd) = (0.0, vec![0f32; n * d]);
        for Asked { head, wanted_nc } in asked {
            let at = self.head_at(*head)?;
            let classes = self.heads[*head];
            let mut logits_nc = pass::linear(&z_nd, &weights.0[at], &weights.0[at + 1], d);
            if wanted_nc.len() != logits_nc.len() {
                let what = format!("expected {} wishes, got {}", logits_nc.len(), wanted_nc.len());
                return Err(Error::failed(format!("heads.{head}"), what));
            }
            loss += cross_entropy(&mut logits_nc, wanted_nc, classes);
            let dlogits_nc = logits_nc;
            pass::add_input_gradient(&dlogits_nc, &weights.0[at], d, &mut dz_nd);
            if learns(&names[at].0) || learns(&names[at + 1].0) {
                let (dw, db) = pass::weight_gradient(&dlogits_nc, &z_nd, classes, d);
                found.0[at] = dw;
                found.0[at + 1] = db;
            }
        }
        if deep {
            pass::backward(self, &weights, pixels_nd, &tape, &dz_nd, &mut found);
        }
        let mut gradients = StateDict::default();
        for ((name, dims), numbers) in names.into_iter().zip(found.0) {
            if learns(&name) {
                if numbers.is_empty() {
                    return Err(Error::failed(name, "is to learn, but no question asks its head"));
                }
                gradients.insert(name, Tensor::from_vec(numbers, dims, &Device::Cpu)?);
            }
        }
        Ok((loss, gradients))
    }

    /// The logits of some heads for all images, head by head.
    pub fn logits(
        &self,
        weights: &StateDict,
        images: &Images,
        heads: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let weights = self.read(weights)?;
        let mut all = vec![Vec::new(); heads.len()];
        for pixels_nd in images.pixels_nd.chunks(PASS * self.input) {
            let z_nd = pass::forward(self, &weights, pixels_nd, None);
            for (head, logits) in heads.iter().zip(&mut all) {
                let at = self.head_at(*head)?;
                let of_pass = pass::linear(&z_nd, &weights.0[at], &weights.0[at + 1], self.width);
                logits.extend(of_pass);
            }
        }
        Ok(all)
    }

    /// For every one of some heads, the share of images whose question of the same number it answers
    /// right.
    pub fn accuracies(
        &self,
        weights: &StateDict,
        images: &Images,
        heads: &[usize],
    ) -> Result<Vec<f64>> {
        let logits = self.logits(weights, images, heads)?;
        let share = |(head, logits): (&usize, &Vec<f32>)| {
            let right = hits(logits, &images.answers[*head]);
            right.iter().filter(|hit| **hit).count() as f64 / right.len() as f64
        };
        Ok(heads.iter().zip(&logits).map(share).collect())
    }

    /// The mean cross-entropy of a head's answers to its question.
    pub fn loss(&self, weights: &StateDict, images: &Images, head: usize) -> Result<f64> {
        let mut logits = self.logits(weights, images, &[head])?.remove(0);
        let wanted = one_hot(&images.answers[head], self.heads[head]);
        Ok(cross_entropy(&mut logits, &wanted, self.heads[head]))
    }

    fn head_at(&self, head: usize) -> Result<usize> {
        if head >= self.heads.len() {
            let what = format!("there are {} heads", self.heads.len());
            return Err(Error::failed(format!("heads.{head}"), what));
        }
        Ok(FRONT + BLOCK * self.blocks + 2 + 2 * head)
    }

    fn read(&self, weights: &StateDict) -> Result<Weights> {
        let one = |(name, dims): (String, Vec<usize>)| {
            let found = weights.get(&name);
            let got = found.map(Tensor::dims);
            match found.filter(|tensor| tensor.dims() == dims) {
                Some(numbers) => Ok(tensor::with(numbers, <[f32]>::to_vec)?),
                None => Err(Error::failed(name, format!("expected shape {dims:?}, got {got:?}"))),
            }
        };
        Ok(Weights(self.tensors().into_iter().map(one).collect::<Result<_>>()?))
    }
}

/// Of every image, whether the largest logit is the answer's; of equals the first counts.
pub fn hits(logits_nc: &[f32], answers: &[u32]) -> Vec<bool> {
    let classes = logits_nc.len() / answers.len().max(1);
    let best =
        |row: &[f32]| (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
    let rows = logits_nc.chunks_exact(classes.max(1)).zip(answers);
    rows.map(|(row, answer)| best(row) == *answer as usize).collect()
}

/// The answers as likelihoods: 1 for each, 0 for all others.
pub fn one_hot(answers: &[u32], classes: usize) -> Vec<f32> {
    let mut wanted = vec![0f32; answers.len() * classes];
    for (row, answer) in wanted.chunks_exact_mut(classes).zip(answers) {
        row[*answer as usize] = 1.0;
    }
    wanted
}

/// Replaces logits by likelihoods.
pub fn likelihoods(logits_nc: &mut [f32], classes: usize) {
    logits_nc.chunks_exact_mut(classes).for_each(softmax);
}

/// The mean of `−Σ wanted · ln likelihood`; logits are replaced by the gradient of that.
pub fn cross_entropy(logits_nc: &mut [f32], wanted_nc: &[f32], classes: usize) -> f64 {
    let n = (logits_nc.len() / classes) as f64;
    let mut sum = 0.0;
    for (row, wanted) in logits_nc.chunks_exact_mut(classes).zip(wanted_nc.chunks_exact(classes)) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let all: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        let (total, log) = (wanted.iter().sum::<f32>(), f64::from(top) + all.ln());
        for (x, wanted) in row.iter_mut().zip(wanted) {
            let logp = f64::from(*x) - log;
            sum -= f64::from(*wanted) * logp;
            *x = ((f64::from(total) * logp.exp() - f64::from(*wanted)) / n) as f32;
        }
    }
    sum / n
}

#[cfg(test)]
mod tests;
