//! Skill localisation by grafting (Panigrahi et al. 2023, paper 37): which few numbers of a tuned model
//! carry what tuning taught?
//!
//! A mask `γ` of zeros and ones is sought for which `θ̄ = base + γ ∘ Δ`, `Δ = tuned − base`, still does
//! the task. It begins as a patch `b`, the share `sparsity_level` of the largest `|Δ|` of all candidates
//! together, and is softened to `γ = b + (1 − 2b) ∘ σ(S − sigmoid_bias)`, with `S` uniform in [0, 1). A
//! step takes the gradient `g` of the loss at `θ̄` and moves
//! `S ← S − learning_rate · (1 − 2b) ∘ g ∘ Δ ∘ σ(S − B) ∘ (1 − σ(S − B))`; where an entry crosses `B`, its
//! bit of `b` is turned. The best of the rounded masks is kept.
//!
//! **Departures**: (1) which mask is best is for the caller's score to say; of equals the first is; (2)
//! `most` stops the search when the rounded mask holds a larger share, which the paper leaves to the
//! settings; (3) entries that tuning did not move stay out for good: their gradient is zero.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed, StateDict};
use serde::{Deserialize, Serialize};

/// How a mask is sought.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Graft {
    /// The share of candidates in the patch to begin with.
    pub sparsity_level: f64,
    /// How far an entry is from turning its bit.
    pub sigmoid_bias: f64,
    /// Of plain gradient descent; large, since the slope of `σ` is about 1e-4 at the start.
    pub learning_rate: f64,
    /// Updates of the soft mask.
    pub steps: u64,
    /// After so many steps the rounded mask is judged.
    pub every: u64,
    /// The largest share that the mask may come to hold.
    pub most: Option<f64>,
}

impl Default for Graft {
    fn default() -> Self {
        Graft {
            sparsity_level: 1e-5,
            sigmoid_bias: 10.0,
            learning_rate: 1e7,
            steps: 10,
            every: 1,
            most: None,
        }
    }
}

/// A mask that was found.
#[derive(Clone, Debug)]
pub struct Region {
    /// Zeros and ones by the names of the candidates.
    pub mask: StateDict,
    /// The share of candidates that are in.
    pub share: f64,
    /// What the judge said of it.
    pub score: f64,
    /// After how many steps it was found.
    pub step: u64,
}

/// What a search works on.
pub struct Search<'a> {
    /// The weights before tuning.
    pub base: &'a StateDict,
    /// And after it.
    pub tuned: &'a StateDict,
    /// Which tensors are candidates.
    pub candidates: &'a dyn Fn(&str) -> bool,
    /// The gradient of the task's loss at given weights, on the data of a step (from 0).
    pub gradient: &'a mut dyn FnMut(u64, &StateDict) -> Result<StateDict>,
    /// How good given weights are; larger is better, and 0 is the worst.
    pub score: &'a mut dyn FnMut(&StateDict) -> Result<f64>,
    /// Of the soft mask's beginning.
    pub seed: Seed,
}

/// One candidate tensor on its way.
struct Soft {
    name: String,
    dims: Vec<usize>,
    base: Vec<f32>,
    delta: Vec<f32>,
    /// 0 or 1.
    patch: Vec<f32>,
    s: Vec<f32>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Soft {
    /// The soft mask.
    fn gamma(&self, i: usize, bias: f64) -> f64 {
        soft(f64::from(self.patch[i]), f64::from(self.s[i]), bias)
    }

    fn with(&self, gamma: impl Fn(usize) -> f32) -> Result<Tensor> {
        let one = |i: usize| self.base[i] + gamma(i) * self.delta[i];
        let numbers: Vec<f32> = (0..self.base.len()).map(one).collect();
        Ok(Tensor::from_vec(numbers, &self.dims[..], &Device::Cpu)?)
    }

    fn step(&mut self, gradient: &[f32], rule: &Graft) {
        for (i, g) in gradient.iter().enumerate() {
            let sigma = sigmoid(f64::from(self.s[i]) - rule.sigmoid_bias);
            let sign = 1.0 - 2.0 * f64::from(self.patch[i]);
            let slope = sign * f64::from(*g) * f64::from(self.delta[i]) * sigma * (1.0 - sigma);
            self.s[i] = (f64::from(self.s[i]) - rule.learning_rate * slope) as f32;
        }
    }
}

/// `b + (1 − 2b) σ(s − bias)`.
pub fn soft(b: f64, s: f64, bias: f64) -> f64 {
    b + (1.0 - 2.0 * b) * sigmoid(s - bias)
}

impl Graft {
    /// Seeks the mask whose graft is judged best.
    pub fn search(&self, on: &mut Search<'_>) -> Result<Region> {
        let patch = largest(on.base, on.tuned, self.sparsity_level, on.candidates)?;
        self.search_from(on, &patch)
    }

    /// The same from a patch of the caller's.
    pub fn search_from(&self, on: &mut Search<'_>, patch: &StateDict) -> Result<Region> {
        if self.every == 0 || self.steps == 0 {
            return Err(Error::input("graft.steps", "expected at least one step, judged at times"));
        }
        let mut soft = begin(on, patch)?;
        let mut best: Option<Region> = None;
        for step in 0..self.steps {
            let bias = self.sigmoid_bias;
            let now = grafted(on.base, &soft, |one, i| one.gamma(i, bias) as f32)?;
            let gradients = (on.gradient)(step, &now)?;
            for one in &mut soft {
                let Some(gradient) = gradients.get(&one.name) else {
                    return Err(Error::failed(&one.name, "has no gradient, but may be grafted"));
                };
                one.step(&numbers(gradient)?, self);
            }
            if (step + 1) % self.every != 0 && step + 1 != self.steps {
                continue;
            }
            let region = hard(&soft, bias)?;
            if self.most.is_some_and(|most| region.share > most) {
                break;
            }
            // The rounded mask is what will be used; the soft one looks better than it.
            let score = (on.score)(&apply(on.base, on.tuned, &region.mask)?)?;
            if score > best.as_ref().map_or(0.0, |best| best.score) {
                best = Some(Region { score, step: step + 1, ..region });
            }
        }
        best.ok_or_else(|| {
            Error::failed("graft", "no mask was judged better than 0").hint(
                "raise most or steps, lower sparsity_level or learning_rate, or look at the score",
            )
        })
    }
}

fn begin(on: &Search<'_>, patch: &StateDict) -> Result<Vec<Soft>> {
    let mut all = Vec::new();
    for (name, base) in on.base.iter().filter(|(name, _)| (on.candidates)(name)) {
        let tuned = partner(on.tuned, name, base, "the tuned weights")?;
        let patch = partner(patch, name, base, "the patch")?;
        let (before, after) = (numbers(base)?, numbers(tuned)?);
        let mut rng = on.seed.split(name).rng();
        all.push(Soft {
            name: name.to_string(),
            dims: base.dims().to_vec(),
            delta: after.iter().zip(&before).map(|(after, before)| after - before).collect(),
            patch: numbers(patch)?.iter().map(|x| x.clamp(0.0, 1.0).round()).collect(),
            s: before.iter().map(|_| rng.uniform() as f32).collect(),
            base: before,
        });
    }
    if all.is_empty() {
        return Err(Error::input("graft", "none of the tensors is a candidate"));
    }
    Ok(all)
}

/// The base with the soft mask's share of the difference.
fn grafted(
    base: &StateDict,
    soft: &[Soft],
    gamma: impl Fn(&Soft, usize) -> f32,
) -> Result<StateDict> {
    let mut state = base.clone();
    for one in soft {
        state.insert(&one.name, one.with(|i| gamma(one, i))?);
    }
    Ok(state)
}

/// The rounded mask.
fn hard(soft: &[Soft], bias: f64) -> Result<Region> {
    let (mut mask, mut counted) = (StateDict::default(), (0.0, 0.0));
    for one in soft {
        let bits: Vec<f32> = (0..one.s.len()).map(|i| one.gamma(i, bias).round() as f32).collect();
        counted.0 += bits.iter().map(|x| f64::from(*x)).sum::<f64>();
        counted.1 += bits.len() as f64;
        mask.insert(&one.name, Tensor::from_vec(bits, &one.dims[..], &Device::Cpu)?);
    }
    Ok(Region { mask, share: counted.0 / counted.1, score: 0.0, step: 0 })
}

/// `base + mask ∘ (tuned − base)`, exactly one or the other of both where the mask says so; tensors
/// without a mask stay the base's.
pub fn apply(base: &StateDict, tuned: &StateDict, mask: &StateDict) -> Result<StateDict> {
    let mut state = base.clone();
    for (name, bits) in mask.iter() {
        let before = partner(base, name, bits, "the base")?;
        let after = partner(tuned, name, bits, "the tuned weights")?;
        let pairs = numbers(before)?.into_iter().zip(numbers(after)?);
        let chosen = pairs.zip(numbers(bits)?).map(|((b, a), bit)| if bit > 0.5 { a } else { b });
        let chosen: Vec<f32> = chosen.collect();
        state.insert(name, Tensor::from_vec(chosen, bits.dims(), &Device::Cpu)?);
    }
    Ok(state)
}

/// The mask of the share of all candidates that moved most: what exceeds the first number that is left
/// out, so that of equals at the edge none is in.
pub fn largest(
    base: &StateDict,
    tuned: &StateDict,
    share: f64,
    candidates: &dyn Fn(&str) -> bool,
) -> Result<StateDict> {
    let moved = moved(base, tuned, share, candidates)?;
    let mut all: Vec<f32> = moved.iter().flat_map(|(_, _, moved)| moved.iter().copied()).collect();
    let kept = (share * all.len() as f64) as usize;
    let edge = match all.len() {
        n if kept >= n => -1.0,
        _ => *all.select_nth_unstable_by(kept, |a, b| b.total_cmp(a)).1,
    };
    bits(&moved, |_, _, moved| moved > edge)
}

/// A mask of a share of all candidates that is drawn: exactly `share · N` of them, rounded down.
pub fn random(
    base: &StateDict,
    tuned: &StateDict,
    share: f64,
    candidates: &dyn Fn(&str) -> bool,
    seed: Seed,
) -> Result<StateDict> {
    let moved = moved(base, tuned, share, candidates)?;
    let n: usize = moved.iter().map(|(_, _, moved)| moved.len()).sum();
    let mut all: Vec<u32> = (0..n as u32).collect();
    seed.rng().shuffle(&mut all);
    let mut chosen = vec![false; n];
    all[..(share * n as f64) as usize].iter().for_each(|i| chosen[*i as usize] = true);
    bits(&moved, |from, i, _| chosen[from + i])
}

/// Name, sizes and `|Δ|` of a candidate.
type Moved<'a> = (&'a str, &'a [usize], Vec<f32>);

/// The same of all.
fn moved<'a>(
    base: &'a StateDict,
    tuned: &StateDict,
    share: f64,
    candidates: &dyn Fn(&str) -> bool,
) -> Result<Vec<Moved<'a>>> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::input("graft", format!("expected a share of 0 to 1, got {share}")));
    }
    let mut all = Vec::new();
    for (name, before) in base.iter().filter(|(name, _)| candidates(name)) {
        let after = partner(tuned, name, before, "the tuned weights")?;
        let pairs = numbers(before)?.into_iter().zip(numbers(after)?);
        all.push((name, before.dims(), pairs.map(|(b, a)| (a - b).abs()).collect()));
    }
    Ok(all)
}

/// The mask of what `chosen` says of a tensor's first place among all, a place in it, and `|Δ|` there.
fn bits(moved: &[Moved<'_>], chosen: impl Fn(usize, usize, f32) -> bool) -> Result<StateDict> {
    let (mut mask, mut from) = (StateDict::default(), 0);
    for (name, dims, moved) in moved {
        let bit = |(i, x): (usize, &f32)| f32::from(u8::from(chosen(from, i, *x)));
        let bits: Vec<f32> = moved.iter().enumerate().map(bit).collect();
        mask.insert(*name, Tensor::from_vec(bits, *dims, &Device::Cpu)?);
        from += moved.len();
    }
    Ok(mask)
}

/// The share of ones.
pub fn share(mask: &StateDict) -> Result<f64> {
    let (mut ones, mut all) = (0.0, 0.0);
    for (_, bits) in mask.iter() {
        let bits = numbers(bits)?;
        ones += bits.iter().map(|x| f64::from(*x)).sum::<f64>();
        all += bits.len() as f64;
    }
    Ok(ones / all)
}

/// The share of the ones of `of` that are ones of `other` too: not the same the other way round.
pub fn overlap(of: &StateDict, other: &StateDict) -> Result<f64> {
    let (mut both, mut ones) = (0.0, 0.0);
    for (name, bits) in of.iter() {
        let theirs = numbers(partner(other, name, bits, "the other mask")?)?;
        for (x, y) in numbers(bits)?.iter().zip(&theirs) {
            both += f64::from(x * y);
            ones += f64::from(*x);
        }
    }
    Ok(both / ones)
}

fn partner<'a>(state: &'a StateDict, name: &str, like: &Tensor, whose: &str) -> Result<&'a Tensor> {
    let got = state.get(name).map(Tensor::dims);
    state.get(name).filter(|tensor| tensor.dims() == like.dims()).ok_or_else(|| {
        let what = format!("expected shape {:?} in {whose}, got {got:?}", like.dims());
        Error::input(name, what)
    })
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
