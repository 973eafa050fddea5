//! Digits with patches of colour: the digit is always right, the colours may lie.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Rng, Seed, StateDict};
use luthier_kernels::tensor;

use crate::zoo::{
    digits::glyph,
    net::{cross_entropy, one_hot},
    train::{adamw, constant, descend},
};

const PIXELS: usize = 35;
const PATCHES: usize = 32;
const CLASSES: usize = 10;
/// Pixels, and a one for the colour of every patch.
const WIDTH: usize = PIXELS + PATCHES * CLASSES;
/// Patches that a net sees.
const SEEN: usize = 10;
const BATCH: usize = 128;

/// Samples laid end to end.
pub struct Samples {
    numbers: Vec<f32>,
    /// The digits.
    pub answers: Vec<u32>,
}

/// `n` samples whose patches show the answer's colour, or with chance `p` any of the ten.
pub fn drawn(n: usize, p: f64, seed: Seed) -> Samples {
    let mut rng = seed.rng();
    let (mut numbers, mut answers) = (vec![0f32; n * WIDTH], Vec::with_capacity(n));
    for row in numbers.chunks_exact_mut(WIDTH) {
        let digit = rng.below(CLASSES);
        for (x, ink) in row.iter_mut().zip(glyph(digit)) {
            *x = ink + (0.8 * rng.normal()) as f32;
        }
        for patch in row[PIXELS..].chunks_exact_mut(CLASSES) {
            let stray = rng.uniform() < p;
            patch[if stray { rng.below(CLASSES) } else { digit }] = 1.0;
        }
        answers.push(digit as u32);
    }
    Samples { numbers, answers }
}

/// A net of one hidden layer, and the patches it sees.
pub struct Net {
    weights: StateDict,
    seen: Vec<bool>,
}

impl Net {
    /// One that sees ten patches: 64 wide, 60 steps at 3e-3.
    pub fn with_patches(train: &Samples, seed: Seed) -> Result<Net> {
        let mut order: Vec<usize> = (0..PATCHES).collect();
        seed.split("patches").rng().shuffle(&mut order);
        let seen = (0..PATCHES).map(|patch| order[..SEEN].contains(&patch)).collect();
        Net::trained(train, seen, (64, 60, 3e-3), seed)
    }

    /// One that sees all of them: 16 wide, 100 steps at 1e-2.
    pub fn with_all(train: &Samples, seed: Seed) -> Result<Net> {
        Net::trained(train, vec![true; PATCHES], (16, 100, 1e-2), seed)
    }

    fn trained(
        train: &Samples,
        seen: Vec<bool>,
        (hidden, steps, rate): (usize, u64, f64),
        seed: Seed,
    ) -> Result<Net> {
        let start = begin(hidden, seed.split("weights"))?;
        let gradient = |step: u64, now: &StateDict| {
            let mut rng = seed.split("order").at(step).rng();
            let chosen: Vec<usize> = (0..BATCH).map(|_| rng.below(train.answers.len())).collect();
            let answers: Vec<u32> = chosen.iter().map(|i| train.answers[*i]).collect();
            let rows = chosen.iter().flat_map(|i| &train.numbers[i * WIDTH..][..WIDTH]).copied();
            let x_ni = masked(rows.collect(), &seen)?;
            Ok(slopes(now, &x_ni, &one_hot(&answers, CLASSES))?.1)
        };
        let update = adamw(rate, 0.0, constant());
        let weights = descend(&update, steps, &start, gradient, |_, _| Ok(()))?;
        Ok(Net { weights, seen })
    }

    /// The logits of all samples.
    pub fn logits(&self, samples: &Samples) -> Result<Vec<f32>> {
        let x_ni = masked(samples.numbers.clone(), &self.seen)?;
        let (_, logits_nc) = forward(&self.weights, &x_ni)?;
        Ok(logits_nc.flatten_all()?.to_vec1()?)
    }
}

/// Rows with the patches that are not seen at zero.
fn masked(mut rows: Vec<f32>, seen: &[bool]) -> Result<Tensor> {
    for row in rows.chunks_exact_mut(WIDTH) {
        let patches = row[PIXELS..].chunks_exact_mut(CLASSES).zip(seen);
        patches.filter(|(_, seen)| !**seen).for_each(|(patch, _)| patch.fill(0.0));
    }
    let n = rows.len() / WIDTH;
    Ok(tensor::from_vec(rows, (n, WIDTH))?)
}

/// Uniform within one over the root of the inputs, as in torch.
fn begin(hidden: usize, seed: Seed) -> Result<StateDict> {
    let uniform = |name: &str, dims: &[usize], inputs: usize| {
        let (mut rng, bound): (Rng, f64) = (seed.split(name).rng(), 1.0 / (inputs as f64).sqrt());
        let n: usize = dims.iter().product();
        let numbers: Vec<f32> =
            (0..n).map(|_| (bound * (2.0 * rng.uniform() - 1.0)) as f32).collect();
        Ok((name.to_string(), Tensor::from_vec(numbers, dims, &Device::Cpu)?))
    };
    let all: [Result<(String, Tensor)>; 4] = [
        uniform("up.weight", &[hidden, WIDTH], WIDTH),
        uniform("up.bias", &[hidden], WIDTH),
        uniform("down.weight", &[CLASSES, hidden], hidden),
        uniform("down.bias", &[CLASSES], hidden),
    ];
    all.into_iter().collect()
}

fn of<'a>(weights: &'a StateDict, name: &str) -> Result<&'a Tensor> {
    weights.get(name).ok_or_else(|| Error::failed(name, "is missing"))
}

/// What the second map reads, and the logits.
fn forward(weights: &StateDict, x_ni: &Tensor) -> Result<(Tensor, Tensor)> {
    let map = |x: &Tensor, name: &str| -> Result<Tensor> {
        let y = x.matmul(&of(weights, &format!("{name}.weight"))?.t()?)?;
        Ok(y.broadcast_add(of(weights, &format!("{name}.bias"))?)?)
    };
    let h_nf = map(x_ni, "up")?.relu()?;
    let logits_nc = map(&h_nf, "down")?;
    Ok((h_nf, logits_nc))
}

/// Loss and gradients.
fn slopes(weights: &StateDict, x_ni: &Tensor, wanted_nc: &[f32]) -> Result<(f64, StateDict)> {
    let (h_nf, logits_nc) = forward(weights, x_ni)?;
    let mut numbers: Vec<f32> = logits_nc.flatten_all()?.to_vec1()?;
    let loss = cross_entropy(&mut numbers, wanted_nc, CLASSES);
    let dlogits_nc = tensor::from_vec(numbers, logits_nc.dims())?;
    let open_nf = h_nf.gt(0.0)?.to_dtype(h_nf.dtype())?;
    let du_nf = (dlogits_nc.matmul(of(weights, "down.weight")?)? * open_nf)?;
    let mut found = StateDict::default();
    found.insert("up.weight", du_nf.t()?.matmul(x_ni)?);
    found.insert("up.bias", du_nf.sum(0)?);
    found.insert("down.weight", dlogits_nc.t()?.matmul(&h_nf)?);
    found.insert("down.bias", dlogits_nc.sum(0)?);
    Ok((loss, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::net::hits;

    #[test]
    fn colors_name_the_answer_as_often_as_they_should() {
        for p in [0.0, 0.8] {
            let samples = drawn(500, p, Seed(1));
            let mut told = 0.0;
            for (row, answer) in samples.numbers.chunks_exact(WIDTH).zip(&samples.answers) {
                for patch in row[PIXELS..].chunks_exact(CLASSES) {
                    assert_eq!(patch.iter().sum::<f32>(), 1.0);
                    told += patch[*answer as usize];
                }
            }
            let share = f64::from(told) / (500 * PATCHES) as f64;
            assert!((share - (1.0 - p + p / 10.0)).abs() < 0.02, "{p}: {share}");
        }
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        let samples = drawn(6, 0.5, Seed(2));
        let weights = begin(7, Seed(3)).unwrap();
        let x_ni = masked(samples.numbers.clone(), &[true; PATCHES]).unwrap();
        let wanted = one_hot(&samples.answers, CLASSES);
        let found = slopes(&weights, &x_ni, &wanted).unwrap().1;
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, tensor) in weights.iter() {
            for i in [0, tensor.elem_count() / 2, tensor.elem_count() - 1] {
                let moved = |by: f32| {
                    let mut values = numbers(tensor);
                    values[i] += by;
                    let mut state = weights.clone();
                    state.insert(
                        name,
                        Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap(),
                    );
                    slopes(&state, &x_ni, &wanted).unwrap().0
                };
                let want = (moved(5e-3) - moved(-5e-3)) / 1e-2;
                let got = f64::from(numbers(found.get(name).unwrap())[i]);
                assert!((got - want).abs() < 1e-3, "{name} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_net_learns_from_what_it_sees_and_from_nothing_else() {
        let train = drawn(1000, 0.0, Seed(4));
        let net = Net::with_patches(&train, Seed(5)).unwrap();
        assert_eq!(net.seen.iter().filter(|seen| **seen).count(), SEEN);
        let right = |samples: &Samples| {
            let hits = hits(&net.logits(samples).unwrap(), &samples.answers);
            hits.iter().filter(|hit| **hit).count()
        };
        assert!(right(&train) > 950);
        // Patches that it does not see may say anything.
        let mut lying = drawn(1000, 0.0, Seed(4));
        for row in lying.numbers.chunks_exact_mut(WIDTH) {
            let patches = row[PIXELS..].chunks_exact_mut(CLASSES).zip(&net.seen);
            patches.filter(|(_, seen)| !**seen).for_each(|(patch, _)| patch.fill(1.0));
        }
        assert_eq!(net.logits(&train).unwrap(), net.logits(&lying).unwrap());
    }
}
