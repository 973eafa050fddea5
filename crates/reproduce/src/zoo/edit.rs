//! Arithmetic on the weights of a zoo, all of it done by `luthier_weights`: the code of `luthier merge`.

use std::sync::Mutex;

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed, StateDict};
use luthier_kernels::tensor;
use luthier_weights::{
    Combine, Given, Lines, Norms, Operands, Place, Schedule, Spec, Work,
    method::{Base, Fallback, Of},
};

use super::net::block_of;

/// What a setting of one model is for one tensor: asked with the tensor's name, the model's place and
/// the setting's name. Where it has nothing to say, the method's default counts.
pub type Each<'a> = &'a dyn Fn(&str, usize, &str) -> Option<f64>;

/// A merge, as a file of `luthier merge` would name it.
#[derive(Clone, Copy)]
pub struct Merge<'a> {
    /// `merge_method`.
    pub method: &'a str,
    /// `base_model`.
    pub base: Option<&'a StateDict>,
    /// The models, without the base.
    pub models: &'a [&'a StateDict],
    /// What a method reads beside the models, one for each of them or none.
    pub beside: &'a [&'a StateDict],
    /// Settings of the merge.
    pub all: &'a [(&'a str, f64)],
    /// Settings of every model, tensor by tensor.
    pub each: Each<'a>,
    /// `lines`.
    pub lines: Option<Depth>,
    /// Of random masks.
    pub seed: Seed,
}

/// The schedule of `lines` for a net of so many blocks.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// `alpha` and `beta`.
    pub schedule: Schedule,
    /// Blocks of the net.
    pub blocks: usize,
    /// Whether the last block counts as the first.
    pub reversed: bool,
}

fn nothing(_: &str, _: usize, _: &str) -> Option<f64> {
    None
}

impl<'a> Merge<'a> {
    /// A merge with all settings as they are by themselves.
    pub fn new(method: &'a str, base: Option<&'a StateDict>, models: &'a [&'a StateDict]) -> Self {
        let (each, seed) = (&nothing, Seed(0));
        Merge { method, base, models, beside: &[], all: &[], each, lines: None, seed }
    }

    /// The merged weights; they have the tensors of the base, or of the first model without one.
    pub fn run(&self) -> Result<StateDict> {
        let spec = Spec::find(self.method)
            .ok_or_else(|| Error::failed(self.method, "there is no such merge_method"))?;
        let Some(first) = self.base.or_else(|| self.models.first().copied()) else {
            return Err(Error::failed(self.method, "there is nothing to merge"));
        };
        let alpha = match self.lines {
            Some(Depth { schedule: Schedule { alpha: None, .. }, .. }) => {
                Some(self.alpha(spec, first)?)
            }
            Some(Depth { schedule, .. }) => schedule.alpha,
            None => None,
        };
        let one = |name: &str| {
            let (held, combine) = (self.held(name)?, spec.combine(&self.given(spec, name)?)?);
            match (self.lines, alpha) {
                (Some(lines), Some(alpha)) => {
                    let factor = lines.schedule.factor(alpha, lines.place(name));
                    self.tensor(name, held, &Lines { inner: combine, factor })
                }
                _ => self.tensor(name, held, combine.as_ref()),
            }
        };
        first.iter().map(|(name, _)| Ok((name.to_string(), one(name)?))).collect()
    }

    /// The factor of the first block that follows from the norms of what is merged.
    fn alpha(&self, spec: &Spec, first: &StateDict) -> Result<f64> {
        let mut norms = Norms::default();
        for (name, _) in first.iter() {
            let (held, combine) = (self.held(name)?, spec.combine(&self.given(spec, name)?)?);
            norms.count(&Work::new(&held, self.seed.split(name)), combine.as_ref())?;
        }
        Ok(norms.alpha(self.models.len()))
    }

    fn held(&self, name: &str) -> Result<Held> {
        let numbers = |state: &StateDict| match state.get(name) {
            Some(found) => Ok((found.dims().to_vec(), tensor::with(found, <[f32]>::to_vec)?)),
            None => Err(Error::failed(name, "one of the models lacks it")),
        };
        let models = self.base.into_iter().chain(self.models.iter().copied());
        let beside = self.beside.iter().copied().filter(|state| state.get(name).is_some());
        let read: Vec<_> = models.chain(beside).map(numbers).collect::<Result<_>>()?;
        let dims = read[0].0.clone();
        if let Some((other, _)) = read.iter().find(|(other, _)| *other != dims) {
            return Err(Error::failed(name, format!("has the shapes {dims:?} and {other:?}")));
        }
        let inputs = read.into_iter().map(|(_, numbers)| numbers).collect();
        Ok(Held { dims, inputs, based: self.base.is_some() })
    }

    fn tensor(&self, name: &str, held: Held, combine: &dyn Combine) -> Result<Tensor> {
        let out = Mutex::new(vec![0f32; held.inputs[0].len()]);
        let put = |from: usize, values: &[f32]| {
            // Nobody panics while holding the lock.
            let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
            out[from..from + values.len()].copy_from_slice(values);
            Ok(())
        };
        luthier_weights::merge(combine, &Work::new(&held, self.seed.split(name)), &put)?;
        let out = out.into_inner().unwrap_or_else(|e| e.into_inner());
        Ok(Tensor::from_vec(out, held.dims, &Device::Cpu)?)
    }

    /// The settings for one tensor, with the method's defaults.
    fn given(&self, spec: &Spec, tensor: &str) -> Result<Given> {
        let known = |said: &str| spec.keys.iter().any(|key| key.name == said);
        if let Some((unknown, _)) = self.all.iter().find(|(said, _)| !known(said)) {
            return Err(Error::failed(*unknown, format!("is no setting of {}", spec.name)));
        }
        if (spec.base == Base::Needed) != self.base.is_some() {
            return Err(Error::failed(
                spec.name,
                "takes a base where it needs one, and only there",
            ));
        }
        let (mut merge, mut each) = (Vec::new(), Vec::new());
        for key in spec.keys {
            let default = match key.default {
                Fallback::Number(value) => Some(value),
                Fallback::Nothing | Fallback::Needed => None,
            };
            let said = |value: Option<f64>| match (value.or(default), key.default) {
                (None, Fallback::Needed) => {
                    Err(Error::failed(spec.name, format!("{} is not said", key.name)))
                }
                (value, _) => Ok(value),
            };
            if key.of == Of::Merge {
                let value = self.all.iter().find(|(name, _)| *name == key.name);
                merge.push((key.name, said(value.map(|(_, value)| *value))?));
            } else {
                let of = |i: usize| said((self.each)(tensor, i, key.name));
                each.push((key.name, (0..self.models.len()).map(of).collect::<Result<_>>()?));
            }
        }
        let inputs: Vec<String> = (0..self.models.len()).map(|i| format!("model {i}")).collect();
        let knows = |i: usize| self.beside.get(i).is_some_and(|state| state.get(tensor).is_some());
        let beside = (0..self.models.len()).map(knows).collect();
        Ok(Given { file: "zoo".to_string(), inputs, merge, each, beside })
    }
}

impl Depth {
    /// `alpha` in the first block and outside of the blocks, `alpha + beta` in the last; `None` for an
    /// `alpha` that follows from the norms.
    pub fn new(alpha: Option<f64>, beta: f64, blocks: usize) -> Self {
        let schedule = Schedule { alpha, beta: Some(beta), outside: Default::default() };
        Depth { schedule, blocks, reversed: false }
    }

    fn place(&self, tensor: &str) -> Place {
        match block_of(tensor) {
            Some(block) if self.reversed => Place::Block(self.blocks - 1 - block, self.blocks),
            Some(block) => Place::Block(block, self.blocks),
            None => Place::Before,
        }
    }
}

/// The inputs of one tensor; the base comes first if there is one.
struct Held {
    dims: Vec<usize>,
    inputs: Vec<Vec<f32>>,
    based: bool,
}

impl Operands for Held {
    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn inputs(&self) -> (usize, Option<usize>) {
        (self.inputs.len(), self.based.then_some(0))
    }

    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.inputs[input][from..from + out.len()]);
        Ok(())
    }
}

/// `base + weight · Σ (model − base)`: `task_arithmetic`.
pub fn arithmetic(base: &StateDict, models: &[&StateDict], weight: f64) -> Result<StateDict> {
    let each = |_: &str, _: usize, key: &str| (key == "weight").then_some(weight);
    Merge { each: &each, ..Merge::new("task_arithmetic", Some(base), models) }.run()
}

/// The mean of several models: a uniform soup.
pub fn soup(models: &[&StateDict]) -> Result<StateDict> {
    let each = |_: &str, _: usize, key: &str| (key == "weight").then_some(1.0);
    Merge { each: &each, ..Merge::new("linear", None, models) }.run()
}

/// `(1 − alpha) · base + alpha · tuned`: `wise_ft`.
pub fn between(base: &StateDict, tuned: &StateDict, alpha: f64) -> Result<StateDict> {
    Merge { all: &[("alpha", alpha)], ..Merge::new("wise_ft", Some(base), &[tuned]) }.run()
}

/// The difference of `model` from `base` scaled by depth: LiNeS on top of a single model.
pub fn by_depth(base: &StateDict, model: &StateDict, depth: Depth) -> Result<StateDict> {
    let each = |_: &str, _: usize, key: &str| (key == "weight").then_some(1.0);
    let merge = Merge::new("task_arithmetic", Some(base), std::slice::from_ref(&model));
    Merge { each: &each, lines: Some(depth), ..merge }.run()
}

/// A state with the tensors of `of`: those that `known` has, and the number `else_` for all others.
pub fn like<'a>(
    of: &StateDict,
    known: impl Fn(&str) -> Option<&'a Tensor>,
    else_: f64,
) -> Result<StateDict> {
    let one = |(name, tensor): (&str, &Tensor)| match known(name) {
        Some(known) => Ok((name.to_string(), known.clone())),
        None => Ok((name.to_string(), tensor.affine(0.0, else_)?)),
    };
    of.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(numbers: &[(&str, &[f32])]) -> StateDict {
        let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
        numbers.iter().map(|(name, x)| (name.to_string(), tensor(x))).collect()
    }

    fn numbers(state: &StateDict, name: &str) -> Vec<f32> {
        state.get(name).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn merges_are_those_of_the_formulas() {
        let base = state(&[("a", &[1.0, 2.0]), ("b", &[0.0])]);
        let one = state(&[("a", &[2.0, 0.0]), ("b", &[4.0])]);
        let two = state(&[("a", &[1.0, 3.0]), ("b", &[-2.0])]);
        let sum = arithmetic(&base, &[&one, &two], 0.5).unwrap();
        assert_eq!((numbers(&sum, "a"), numbers(&sum, "b")), (vec![1.5, 1.5], vec![1.0]));
        assert_eq!(numbers(&soup(&[&one, &two]).unwrap(), "a"), [1.5, 1.5]);
        assert_eq!(numbers(&between(&base, &one, 0.25).unwrap(), "a"), [1.25, 1.5]);
        for (alpha, end) in [(0.0, &base), (1.0, &one)] {
            assert_eq!(numbers(&between(&base, &one, alpha).unwrap(), "b"), numbers(end, "b"));
        }
        // Only the tensor that the mask knows changes, and there only what it marks.
        let mask = state(&[("a", &[0.0, 1.0])]);
        let (models, beside) = ([&one], [&mask]);
        let merge = Merge::new("graft", Some(&base), &models);
        let only = |name: &str| merge_part(&Merge { beside: &beside, ..merge }, name);
        assert_eq!(only("a"), [1.0, 0.0]);
    }

    /// One tensor of a merge of inputs that have only this one.
    fn merge_part(merge: &Merge<'_>, name: &str) -> Vec<f32> {
        let cut = |state: &StateDict| {
            [(name.to_string(), state.get(name).unwrap().clone())].into_iter().collect()
        };
        let (base, model): (StateDict, StateDict) =
            (cut(merge.base.unwrap()), cut(merge.models[0]));
        numbers(&Merge { base: Some(&base), models: &[&model], ..*merge }.run().unwrap(), name)
    }

    #[test]
    fn what_a_method_does_not_know_is_refused() {
        let base = state(&[("a", &[1.0])]);
        let refused = |method: &str, all: &[(&str, f64)]| {
            let models = [&base];
            let merge = Merge { all, ..Merge::new(method, Some(&base), &models) };
            merge.run().unwrap_err().to_string()
        };
        assert!(refused("tais", &[]).starts_with("tais: there is no such"));
        assert!(refused("ties", &[("densty", 0.2)]).starts_with("densty: is no setting of ties"));
        assert!(refused("ties", &[]).starts_with("ties: weight is not said"));
        assert!(refused("linear", &[]).starts_with("linear: takes a base"));
    }

    #[test]
    fn depth_scales_as_the_paper_says() {
        // L = 4, α = 0.3, β = 0.7: the third block by 0.76667; outside of the blocks by α.
        let names =
            ["blocks.0.up.weight", "blocks.2.up.weight", "blocks.3.up.bias", "input.weight"];
        let of = |x: f32| {
            let numbers = [x];
            state(&names.map(|name| (name, &numbers[..])))
        };
        let depth = Depth::new(Some(0.3), 0.7, 4);
        let scaled = by_depth(&of(0.0), &of(1.0), depth).unwrap();
        let want = [0.3, 0.766_67, 1.0, 0.3];
        for (name, want) in names.iter().zip(want) {
            assert!((numbers(&scaled, name)[0] - want).abs() < 1e-5, "{name}");
        }
        let reversed = by_depth(&of(0.0), &of(1.0), Depth { reversed: true, ..depth }).unwrap();
        for (name, want) in names.iter().zip([1.0, 0.533_33, 0.3, 0.3]) {
            assert!((numbers(&reversed, name)[0] - want).abs() < 1e-5, "{name}");
        }
    }

    #[test]
    fn the_factor_of_the_first_block_follows_from_the_norms() {
        // Of a sum of eight it is 1/8, of their mean 1; the last block has β more.
        let names = ["blocks.0.up.weight", "blocks.1.up.weight"];
        let of = |x: f32| {
            let numbers = [x, -2.0 * x];
            state(&names.map(|name| (name, &numbers[..])))
        };
        let (base, models): (_, Vec<StateDict>) =
            (of(0.0), (1..=8).map(|i| of(i as f32)).collect());
        let models: Vec<&StateDict> = models.iter().collect();
        for (weight, alpha) in [(1.0, 0.125), (0.125, 1.0)] {
            let each = |_: &str, _: usize, key: &str| (key == "weight").then_some(weight);
            let merge = Merge::new("task_arithmetic", Some(&base), &models);
            let lines = Some(Depth::new(None, 0.4, 2));
            let merged = Merge { each: &each, lines, ..merge }.run().unwrap();
            let total = 36.0 * weight;
            let of = |name: &str| f64::from(numbers(&merged, name)[0]) / total;
            assert!((of(names[0]) - alpha).abs() < 1e-6, "{}", of(names[0]));
            assert!((of(names[1]) - alpha - 0.4).abs() < 1e-6, "{}", of(names[1]));
        }
    }
}
