//! Where hooks get their variables from, so that naming, initial values and loading are said once.

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{Error, Result, Seed, SiteInfo, StateDict};

/// The value a variable begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// Uniform between plus and minus this.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
}

/// Collects the variables of one adapter.
pub struct Scope {
    seed: Seed,
    /// Values that were read from a file, in place of initial ones.
    given: Option<StateDict>,
    vars: Vec<(String, Var)>,
}

impl Scope {
    /// Variables begin at initial values drawn from `seed` and their names.
    pub fn new(seed: Seed) -> Self {
        Scope { seed, given: None, vars: Vec::new() }
    }

    /// Variables begin at these values; every one must be asked for, and nothing else.
    pub fn given(values: StateDict) -> Self {
        Scope { seed: Seed(0), given: Some(values), vars: Vec::new() }
    }

    /// The variable `part` of one site.
    pub fn own(&mut self, site: &SiteInfo, part: &str, dims: &[usize], init: Init) -> Result<Var> {
        self.make(format!("{}.{part}", site.name), dims, init)
    }

    /// The variable `key` of the whole adapter: made at the first call, the same one ever after.
    pub fn shared(&mut self, key: &str, dims: &[usize], init: Init) -> Result<Var> {
        if let Some((_, var)) = self.vars.iter().find(|(name, _)| name == key) {
            if var.dims() != dims {
                let what = format!("is shared with shape {:?}, asked for {dims:?}", var.dims());
                return Err(Error::failed(key, what));
            }
            return Ok(var.clone());
        }
        self.make(key.to_string(), dims, init)
    }

    /// Takes over variables that the model made of its own weights.
    pub fn adopt(&mut self, vars: Vec<(String, Var)>) {
        self.vars.extend(vars);
    }

    /// All variables in the order they were asked for.
    pub fn finish(self) -> Result<Vec<(String, Var)>> {
        match self.given.as_ref().and_then(|g| g.iter().next()) {
            Some((name, _)) => Err(Error::input(name, "nothing of that name is learned")),
            None => Ok(self.vars),
        }
    }

    fn make(&mut self, name: String, dims: &[usize], init: Init) -> Result<Var> {
        let tensor = match &mut self.given {
            Some(given) => given.remove(&name).ok_or_else(|| Error::input(&name, "is missing"))?,
            None => init.tensor(self.seed.split(&name), dims)?,
        };
        if tensor.dims() != dims {
            let what = format!("has shape {:?}, expected {dims:?}", tensor.dims());
            return Err(Error::input(name, what));
        }
        // A variable is written in place, so it must not share memory with what it came from.
        let var = Var::from_tensor(&tensor.to_dtype(DType::F32)?.force_contiguous()?)?;
        self.vars.push((name, var.clone()));
        Ok(var)
    }
}

impl Init {
    fn tensor(self, seed: Seed, dims: &[usize]) -> Result<Tensor> {
        let n = dims.iter().product();
        let mut rng = seed.rng();
        let draw: Vec<f32> = match self {
            Init::Zeros => vec![0.0; n],
            Init::Uniform(to) => {
                (0..n).map(|_| ((2.0 * rng.uniform() - 1.0) * to) as f32).collect()
            }
            Init::Normal(std) => (0..n).map(|_| (rng.normal() * std) as f32).collect(),
        };
        Ok(Tensor::from_vec(draw, dims, &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_variable_is_made_once() {
        let mut scope = Scope::new(Seed(1));
        let a = scope.shared("slow", &[2, 2], Init::Normal(1.0)).unwrap();
        let b = scope.shared("slow", &[2, 2], Init::Zeros).unwrap();
        assert_eq!(a.id(), b.id());
        assert!(scope.shared("slow", &[3], Init::Zeros).is_err());
        assert_eq!(scope.finish().unwrap().len(), 1);
    }

    #[test]
    fn a_given_value_must_be_used() {
        let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let mut scope = Scope::given([("a".to_string(), one)].into_iter().collect());
        assert!(
            scope.shared("b", &[2], Init::Zeros).unwrap_err().to_string().contains("b: is miss")
        );
        assert!(scope.finish().unwrap_err().to_string().starts_with("a: nothing"));
    }
}
