//! LoRA on the blocks of a small net: `W + s · B · A`, factors trained as plain variables.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed, StateDict};

use crate::zoo::{
    edit::soup,
    net::Shape,
    pairs::Base,
    train::{Course, adamw, constant, descend, with},
};

const RANK: usize = 8;
/// As published: `lora_alpha / r = 46 / 32`.
const SCALE: f64 = 46.0 / 32.0;

/// The factors of an adapter.
#[derive(Clone, Debug)]
pub struct Adapter(StateDict);

/// The matrices that have factors.
fn targets(shape: &Shape) -> impl Iterator<Item = (String, Vec<usize>)> {
    let all = shape.tensors().into_iter();
    all.filter(|(name, _)| name.ends_with("up.weight") || name.ends_with("down.weight"))
}

fn factor(weight: &str, which: char) -> String {
    weight.replace(".weight", &format!(".lora_{which}"))
}

fn of<'a>(state: &'a StateDict, name: &str) -> Result<&'a Tensor> {
    state.get(name).ok_or_else(|| Error::failed(name, "is missing"))
}

impl Adapter {
    /// An adapter that changes nothing yet: A uniform within one over the root of its inputs, B zero.
    pub fn begin(shape: &Shape, seed: Seed) -> Result<Adapter> {
        let mut factors = StateDict::default();
        for (name, dims) in targets(shape) {
            let (o, i) = (dims[0], dims[1]);
            let (mut rng, bound) = (seed.split(&name).rng(), 1.0 / (i as f64).sqrt());
            let drawn = (0..RANK * i).map(|_| (bound * (2.0 * rng.uniform() - 1.0)) as f32);
            let a_ri = Tensor::from_vec(drawn.collect::<Vec<f32>>(), (RANK, i), &Device::Cpu)?;
            factors.insert(factor(&name, 'A'), a_ri);
            let b_or = Tensor::from_vec(vec![0f32; o * RANK], (o, RANK), &Device::Cpu)?;
            factors.insert(factor(&name, 'B'), b_or);
        }
        Ok(Adapter(factors))
    }

    /// One that has learned some questions, of which each batch asks one.
    pub fn trained(base: &Base, questions: &[usize], steps: u64, seed: Seed) -> Result<Adapter> {
        let start = Adapter::begin(&base.shape, seed.split("adapter"))?;
        let order = seed.split("questions");
        let gradient = |step: u64, now: &StateDict| {
            let question = questions[order.at(step).rng().below(questions.len())];
            let course = Course {
                shape: &base.shape,
                images: &base.train,
                questions: &[question],
                steps,
                batch: 64,
                smoothing: 0.0,
                mixup: 0.0,
                seed: seed.split("images"),
            };
            let (pixels, asked) = course.draw(step);
            let weights = Adapter(now.clone()).folded(&base.weights)?;
            let learns = |name: &str| name.contains("blocks.");
            let found = base.shape.gradient(&weights, &pixels, &asked, &learns)?.1;
            Adapter::slopes(now, &found, &base.shape)
        };
        let update = adamw(2e-3, 0.01, constant());
        Ok(Adapter(descend(&update, steps, &start.0, gradient, |_, _| Ok(()))?))
    }

    /// The weights with the products added.
    pub fn folded(&self, weights: &StateDict) -> Result<StateDict> {
        let mut folded = StateDict::default();
        for (name, b_or) in self.0.iter().filter(|(name, _)| name.ends_with("lora_B")) {
            let weight = name.replace(".lora_B", ".weight");
            let product = b_or.matmul(of(&self.0, &factor(&weight, 'A'))?)?;
            folded.insert(&weight, (of(weights, &weight)? + (product * SCALE)?)?);
        }
        Ok(with(weights, &folded))
    }

    /// `dA = s · Bᵀ · dW`, `dB = s · dW · Aᵀ`.
    fn slopes(factors: &StateDict, found: &StateDict, shape: &Shape) -> Result<StateDict> {
        let mut slopes = StateDict::default();
        for (name, _) in targets(shape) {
            let dw_oi = (of(found, &name)? * SCALE)?;
            let (a, b) = (factor(&name, 'A'), factor(&name, 'B'));
            let da_ri = of(factors, &b)?.t()?.matmul(&dw_oi)?;
            let db_or = dw_oi.matmul(&of(factors, &a)?.t()?)?;
            slopes.insert(a, da_ri);
            slopes.insert(b, db_or);
        }
        Ok(slopes)
    }

    /// The mean of the factors, which is not that of the products.
    pub fn mean(adapters: &[Adapter]) -> Result<Adapter> {
        Ok(Adapter(soup(&adapters.iter().map(|a| &a.0).collect::<Vec<_>>())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::{
        digits::pairs,
        net::{Asked, one_hot},
        pairs::shape,
    };

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn slopes_of_the_factors_are_those_of_the_loss() {
        let shape = Shape { width: 12, hidden: 16, ..shape(2) };
        let weights = shape.random(Seed(1)).unwrap();
        let start = Adapter::begin(&shape, Seed(2)).unwrap();
        // At the start nothing is changed.
        let folded = start.folded(&weights).unwrap();
        for (name, tensor) in weights.iter() {
            assert_eq!(numbers(tensor), numbers(folded.get(name).unwrap()), "{name}");
        }
        // B away from zero, so that A has a slope.
        let draw = |name: &str, t: &Tensor| {
            let mut rng = Seed(3).split(name).rng();
            let drawn: Vec<f32> =
                numbers(t).iter().map(|x| x + 0.3 * rng.normal() as f32).collect();
            Tensor::from_vec(drawn, t.dims(), &Device::Cpu).unwrap()
        };
        let factors: StateDict =
            start.0.iter().map(|(name, t)| (name.to_string(), draw(name, t))).collect();
        let images = pairs(9, Seed(4));
        let asked = [Asked { head: 3, wanted_nc: one_hot(&images.answers[3], 10) }];
        let learns = |name: &str| name.contains("blocks.");
        let at = |factors: &StateDict| {
            let folded = Adapter(factors.clone()).folded(&weights).unwrap();
            shape.gradient(&folded, &images.pixels_nd, &asked, &learns).unwrap()
        };
        let slopes = Adapter::slopes(&factors, &at(&factors).1, &shape).unwrap();
        for name in ["blocks.0.up.lora_A", "blocks.1.down.lora_A", "blocks.0.down.lora_B"] {
            let tensor = factors.get(name).unwrap();
            for i in [0, 17, 40] {
                let moved = |by: f32| {
                    let mut values = numbers(tensor);
                    values[i] += by;
                    let mut state = factors.clone();
                    state.insert(
                        name,
                        Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap(),
                    );
                    at(&state).0
                };
                let want = (moved(0.01) - moved(-0.01)) / 0.02;
                let got = f64::from(numbers(slopes.get(name).unwrap())[i]);
                assert!((got - want).abs() < 2e-3 * (1.0 + want.abs()), "{name} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn factors_must_not_be_averaged() {
        // A = B = 1 and A = B = −1: both products are 1, and so is their mean; that of the factors is 0.
        let adapter = |x: f32| {
            let one =
                |which| (factor("w.weight", which), Tensor::new(&[[x]], &Device::Cpu).unwrap());
            Adapter(['A', 'B'].map(one).into_iter().collect())
        };
        let weights: StateDict =
            [("w.weight".to_string(), Tensor::new(&[[5f32]], &Device::Cpu).unwrap())]
                .into_iter()
                .collect();
        let folded = |adapter: &Adapter| {
            numbers(adapter.folded(&weights).unwrap().get("w.weight").unwrap())[0]
        };
        let both = [adapter(1.0), adapter(-1.0)];
        assert_eq!(both.each_ref().map(folded), [6.4375, 6.4375]);
        assert_eq!(folded(&Adapter::mean(&both).unwrap()), 5.0);
    }
}
