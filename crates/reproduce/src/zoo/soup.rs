//! Soups of nets that began as the same one (Wortsman et al. 2022, paper 60): greedy and learned.
//!
//! Greedy: in the order of their scores, a net stays in the mean if this does not make it worse.
//! Learned: `θ = Σᵢ αᵢ θᵢ`, `α = softmax(raw)` for the whole net or for each tensor, logits times `β`;
//! `raw` and `β` are what minimises the cross-entropy of images to choose by. **Departures**: (1) batches
//! are drawn with replacement, so that an epoch is as many steps, not as many images.

use candle_core::{Device, Tensor};
use luthier_core::{Result, Seed, StateDict};
use luthier_kernels::tensor;
use luthier_weights::operands::dot;

use super::{
    digits::Images,
    edit::{Merge, soup},
    net::{Asked, Shape, is_head},
    train::{Course, adamw, constant, descend},
};

/// What came of a greedy soup.
pub struct Greedy {
    /// The mean of its members.
    pub weights: StateDict,
    /// Places of the members, in the order in which they were taken.
    pub members: Vec<usize>,
    /// Its score.
    pub score: f64,
}

/// A greedy soup of nets with these scores. With `as_good`, what leaves the score as it is stays too.
pub fn greedy(
    nets: &[&StateDict],
    scores: &[f64],
    as_good: bool,
    mut score: impl FnMut(&StateDict) -> Result<f64>,
) -> Result<Greedy> {
    let order = ranked(scores);
    let first = order[0];
    let mut best =
        Greedy { weights: nets[first].clone(), members: vec![first], score: scores[first] };
    for next in &order[1..] {
        let members = [&best.members[..], &[*next]].concat();
        let of: Vec<&StateDict> = members.iter().map(|i| nets[*i]).collect();
        let weights = soup(&of)?;
        let reached = score(&weights)?;
        if reached > best.score || (as_good && reached == best.score) {
            best = Greedy { weights, members, score: reached };
        }
    }
    Ok(best)
}

/// Places by falling score; equals stay in their order.
pub fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

/// How a soup is learned.
pub struct Learned<'a> {
    /// Sizes of the nets.
    pub shape: &'a Shape,
    /// What goes in.
    pub nets: &'a [&'a StateDict],
    /// Whether each tensor has weights of its own.
    pub by_tensor: bool,
    /// Of the draws.
    pub seed: Seed,
}

/// The name of `β` among what learns.
const BETA: &str = "beta";
/// The name of the weights of the whole net.
const WHOLE: &str = "mix";

impl Learned<'_> {
    /// The soup for images to choose by: so many epochs of 256 images, AdamW at 0.05.
    pub fn run(&self, images: &Images, epochs: u64) -> Result<StateDict> {
        let (batch, update) = (256, adamw(0.05, 0.0, constant()));
        let course = Course {
            shape: self.shape,
            images,
            questions: &[0],
            steps: epochs * (images.len() as u64).div_ceil(batch as u64),
            batch,
            smoothing: 0.0,
            mixup: 0.0,
            seed: self.seed,
        };
        let gradient = |step: u64, now: &StateDict| {
            let (pixels, asked) = course.draw(step);
            Ok(self.gradient(now, &pixels, &asked)?.1)
        };
        let learned = descend(&update, course.steps, &self.begin()?, gradient, |_, _| Ok(()))?;
        self.mixed(&learned)
    }

    /// Equal weights and a `β` of 1.
    fn begin(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for (name, _) in self.shape.tensors() {
            let zeros = vec![0f32; self.nets.len()];
            state.insert(self.key(&name), tensor::from_vec(zeros, self.nets.len())?);
        }
        state.insert(BETA, Tensor::new(&[1f32], &Device::Cpu)?);
        Ok(state)
    }

    fn key(&self, tensor: &str) -> String {
        if self.by_tensor { format!("{WHOLE}.{tensor}") } else { WHOLE.to_string() }
    }

    /// The weights of the nets in a tensor, which add up to 1.
    fn alphas(&self, now: &StateDict, tensor: &str) -> Result<Vec<f64>> {
        let raw = read(now, &self.key(tensor))?;
        let top = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = raw.iter().map(|x| f64::from(x - top).exp()).collect();
        let total: f64 = powers.iter().sum();
        Ok(powers.into_iter().map(|x| x / total).collect())
    }

    fn mixed(&self, now: &StateDict) -> Result<StateDict> {
        let tensors = self.shape.tensors();
        let all = tensors.iter().map(|(name, _)| Ok((name.as_str(), self.alphas(now, name)?)));
        let alphas: Vec<(&str, Vec<f64>)> = all.collect::<Result<_>>()?;
        let each = |tensor: &str, net: usize, key: &str| {
            let of = alphas.iter().find(|(name, _)| *name == tensor);
            of.filter(|_| key == "weight").map(|(_, alphas)| alphas[net])
        };
        let merge = Merge::new("linear", None, self.nets);
        Merge { each: &each, all: &[("normalize", 0.0)], ..merge }.run()
    }

    /// Loss and gradient with respect to what learns.
    fn gradient(
        &self,
        now: &StateDict,
        pixels_nd: &[f32],
        asked: &[Asked],
    ) -> Result<(f64, StateDict)> {
        let (mut weights, beta) = (self.mixed(now)?, read(now, BETA)?[0]);
        let heads: Vec<(String, Tensor)> = weights
            .iter()
            .filter(|(name, _)| is_head(name))
            .map(|(name, head)| (name.to_string(), head.clone()))
            .collect();
        // Logits are linear in the head: β times its weights is β times the logits.
        for (name, head) in &heads {
            weights.insert(name, (head * f64::from(beta))?);
        }
        let (loss, found) = self.shape.gradient(&weights, pixels_nd, asked, &|_| true)?;
        let mut slope_of_beta = 0.0;
        for (name, head) in &heads {
            slope_of_beta += inner(&found, name, head)?;
        }
        let mut slopes = StateDict::default();
        slopes.insert(BETA, Tensor::new(&[slope_of_beta as f32], &Device::Cpu)?);
        for (name, _) in self.shape.tensors() {
            let scale = if is_head(&name) { f64::from(beta) } else { 1.0 };
            let along: Vec<f64> = self
                .nets
                .iter()
                .map(|net| Ok(scale * inner(&found, &name, of(net, &name)?)?))
                .collect::<Result<_>>()?;
            let alphas = self.alphas(now, &name)?;
            let mean: f64 = alphas.iter().zip(&along).map(|(a, d)| a * d).sum();
            let slope = alphas.iter().zip(&along).map(|(a, d)| (a * (d - mean)) as f32);
            let slope = tensor::from_vec(slope.collect(), self.nets.len())?;
            let key = self.key(&name);
            let sum = match slopes.get(&key) {
                Some(before) => (before + slope)?,
                None => slope,
            };
            slopes.insert(key, sum);
        }
        Ok((loss, slopes))
    }
}

fn of<'a>(state: &'a StateDict, name: &str) -> Result<&'a Tensor> {
    state.get(name).ok_or_else(|| luthier_core::Error::failed(name, "is missing"))
}

fn read(state: &StateDict, name: &str) -> Result<Vec<f32>> {
    Ok(tensor::with(of(state, name)?, <[f32]>::to_vec)?)
}

/// The inner product of a tensor of `state` with `other`.
fn inner(state: &StateDict, name: &str, other: &Tensor) -> Result<f64> {
    let own = of(state, name)?;
    Ok(tensor::with(own, |own| tensor::with(other, |other| dot(own, other)))??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::digits::domain;

    fn shape() -> Shape {
        Shape { input: 144, width: 12, hidden: 16, blocks: 1, heads: vec![10] }
    }

    fn numbers(state: &StateDict, name: &str) -> Vec<f32> {
        state.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn single(x: f32) -> StateDict {
        [("w".to_string(), Tensor::new(&[x], &Device::Cpu).unwrap())].into_iter().collect()
    }

    #[test]
    fn a_greedy_soup_takes_what_does_no_harm() {
        // The score is how near the mean comes to 2: 1 and 3 make 2, 9 spoils it.
        let nets = [9.0, 3.0, 1.0].map(single);
        let nets: Vec<&StateDict> = nets.iter().collect();
        let score = |state: &StateDict| Ok(-f64::from((numbers(state, "w")[0] - 2.0).abs()));
        let scores: Vec<f64> = nets.iter().map(|net| score(net).unwrap()).collect();
        let soup = greedy(&nets, &scores, true, score).unwrap();
        assert_eq!((soup.members, soup.score), (vec![1, 2], 0.0));
        // The mean of 2, 2, 2 and 6 is the plain one: 3.
        let nets = [2.0, 2.0, 2.0, 6.0].map(single);
        let nets: Vec<&StateDict> = nets.iter().collect();
        let soup = greedy(&nets, &[4.0, 3.0, 2.0, 1.0], true, |_| Ok(4.0)).unwrap();
        assert_eq!(numbers(&soup.weights, "w"), [3.0]);
        // Copies change nothing: taken where as good is good enough, else not.
        let copies = vec![nets[0]; 3];
        for (as_good, want) in [(true, 3), (false, 1)] {
            let soup = greedy(&copies, &[0.5; 3], as_good, |_| Ok(0.5)).unwrap();
            assert_eq!((soup.members.len(), soup.score), (want, 0.5));
        }
    }

    #[test]
    fn of_what_is_linear_a_soup_is_the_ensemble() {
        // Logits are linear in the head: nets that differ there alone.
        let (shape, images) = (shape(), domain(0, 8, Seed(1)));
        let (one, other) = (shape.random(Seed(1)).unwrap(), shape.random(Seed(2)).unwrap());
        let two = crate::zoo::train::with(&one, &crate::zoo::train::part(&other, &is_head));
        let logits = |net: &StateDict| shape.logits(net, &images, &[0]).unwrap().remove(0);
        let mean = logits(&one).into_iter().zip(logits(&two)).map(|(a, b)| (a + b) / 2.0);
        let of_soup = logits(&soup(&[&one, &two]).unwrap());
        assert!(of_soup.into_iter().zip(mean).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn slopes_of_a_learned_soup_are_those_of_its_loss() {
        let (shape, images) = (shape(), domain(0, 20, Seed(1)));
        let nets: Vec<StateDict> = (0..3).map(|i| shape.random(Seed(i)).unwrap()).collect();
        let nets: Vec<&StateDict> = nets.iter().collect();
        for by_tensor in [false, true] {
            let learned = Learned { shape: &shape, nets: &nets, by_tensor, seed: Seed(2) };
            let mut now = learned.begin().unwrap();
            // At the start all nets count the same, and the logits are as they are.
            let uniform = soup(&nets).unwrap();
            let start = learned.mixed(&now).unwrap();
            for (name, _) in shape.tensors() {
                let pairs = numbers(&start, &name).into_iter().zip(numbers(&uniform, &name));
                assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
            }
            let key = learned.key("blocks.0.up.weight");
            now.insert(key.as_str(), Tensor::new(&[0.4f32, -0.2, 0.1], &Device::Cpu).unwrap());
            now.insert(BETA, Tensor::new(&[1.3f32], &Device::Cpu).unwrap());
            let total: f64 = learned.alphas(&now, "blocks.0.up.weight").unwrap().iter().sum();
            assert!((total - 1.0).abs() < 1e-12);
            let wanted_nc = crate::zoo::net::one_hot(&images.answers[0], 10);
            let asked = [Asked { head: 0, wanted_nc }];
            let at = |now: &StateDict| learned.gradient(now, &images.pixels_nd, &asked).unwrap();
            let slopes = at(&now).1;
            let heads = learned.key("heads.0.weight");
            for name in [key.as_str(), heads.as_str(), BETA] {
                for i in 0..numbers(&now, name).len() {
                    let moved = |by: f32| {
                        let mut values = numbers(&now, name);
                        values[i] += by;
                        let mut state = now.clone();
                        state.insert(name, Tensor::new(&values[..], &Device::Cpu).unwrap());
                        at(&state).0
                    };
                    let want = (moved(0.05) - moved(-0.05)) / 0.1;
                    let got = f64::from(numbers(&slopes, name)[i]);
                    assert!((got - want).abs() < 2e-3 * (1.0 + want.abs()), "{name} {got} {want}");
                }
            }
        }
    }
}
