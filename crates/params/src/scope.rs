//! Where hooks get their variables from, so that naming, initial values and loading are said once.

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{Error, Mask, Param, Result, Seed, SiteInfo, StateDict};

use crate::own;

/// The value a variable begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform between plus and minus this.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Normal about 1 with this standard deviation.
    NearOne(f64),
}

/// A weight of the base by its name as its file has it, whatever the model holds; `None` for names
/// it does not have.
pub type Exact<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<f32>>>;

/// Collects the variables of one adapter.
pub struct Scope<'a> {
    seed: Seed,
    /// Values that were read from a file, in place of initial ones.
    given: Option<StateDict>,
    /// What a probe measured for initial values to follow.
    measured: StateDict,
    /// Where a model's own weights begin: it may hold them rounded.
    exact: Option<Exact<'a>>,
    params: Vec<Param>,
}

impl<'a> Scope<'a> {
    /// Variables begin at initial values drawn from `seed` and their names.
    pub fn new(seed: Seed) -> Self {
        let (given, measured, exact) = (None, StateDict::default(), None);
        Scope { seed, given, measured, exact, params: Vec::new() }
    }

    /// Variables begin at these values; every one must be asked for, and nothing else.
    pub fn given(values: StateDict) -> Self {
        Scope { given: Some(values), ..Scope::new(Seed(0)) }
    }

    /// The same with what a probe measured, for forms that begin there.
    pub fn with_measured(mut self, measured: StateDict) -> Self {
        self.measured = measured;
        self
    }

    /// The same with weights of the model as its file has them.
    pub fn with_exact(mut self, exact: Exact<'a>) -> Self {
        self.exact = Some(exact);
        self
    }

    /// What a probe measured under `name`.
    pub fn found(&self, name: &str) -> Option<Tensor> {
        self.measured.get(name).cloned()
    }

    /// Whether values come from a file, so that initial ones need not be computed.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// The seed of what is drawn for `name`.
    pub fn seed(&self, name: &str) -> Seed {
        self.seed.split(name)
    }

    /// The variable `part` of one site.
    pub fn own(&mut self, site: &SiteInfo, part: &str, dims: &[usize], init: Init) -> Result<Var> {
        self.make(format!("{}.{part}", site.name), dims, init)
    }

    /// The same, beginning at the values of `start`.
    pub fn own_at(&mut self, site: &SiteInfo, part: &str, start: &Tensor) -> Result<Var> {
        let name = format!("{}.{part}", site.name);
        let value = self.take(&name, start.dims())?.unwrap_or_else(|| start.detach());
        self.keep(name, &value)
    }

    /// The variable `key` of the whole adapter: made at the first call, the same one ever after.
    pub fn shared(&mut self, key: &str, dims: &[usize], init: Init) -> Result<Var> {
        if let Some(Param { var, .. }) = self.params.iter().find(|p| p.name == key) {
            if var.dims() != dims {
                let what = format!("is shared with shape {:?}, asked for {dims:?}", var.dims());
                return Err(Error::failed(key, what));
            }
            return Ok(var.clone());
        }
        self.make(key.to_string(), dims, init)
    }

    /// Takes over variables that the model made of its own weights; they begin at its values, or
    /// at the given ones.
    pub fn adopt(&mut self, vars: Vec<(String, Var)>) -> Result<()> {
        for (name, var) in vars {
            if let Some(exact) = self.exact.map(|exact| exact(&name)).transpose()?.flatten() {
                own::set(&var, exact)?;
            }
            let mut param = Param::whole(name, var);
            let chosen = self.given.as_mut().and_then(|g| g.remove(&own::positions(&param.name)));
            if let Some(positions) = chosen {
                let by = self.take(&own::differences(&param.name), positions.dims())?;
                param = own::move_entries(param, &positions, by.as_ref())?;
            } else if let Some(value) = self.take(&param.name, param.var.dims())? {
                param.var.set(&value)?;
            }
            self.params.push(param);
        }
        Ok(())
    }

    /// Lets only the entries of `mask` learn of a variable that was adopted.
    pub fn mask(&mut self, name: &str, mask: Mask) -> Result<()> {
        let missing = || Error::failed(name, "is not among the variables");
        let param = self.params.iter_mut().find(|p| p.name == name).ok_or_else(missing)?;
        *param = param.clone().masked(mask)?;
        Ok(())
    }

    /// Lets steps do without a gradient of the variables that `which` names.
    pub fn optional(&mut self, which: impl Fn(&str) -> bool) {
        self.params.iter_mut().filter(|p| which(&p.name)).for_each(|p| p.optional = true);
    }

    /// Lets go of the variables that `which` names: nothing reads them any more.
    pub fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.params.retain(|p| !which(&p.name));
    }

    /// What was asked for so far.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// All variables in the order they were asked for.
    pub fn finish(self) -> Result<Vec<Param>> {
        match self.given.as_ref().and_then(|g| g.iter().next()) {
            Some((name, _)) => Err(Error::input(name, "nothing of that name is learned")),
            None => Ok(self.params),
        }
    }

    /// The given value of that name and shape; `None` when none are given.
    fn take(&mut self, name: &str, dims: &[usize]) -> Result<Option<Tensor>> {
        let Some(given) = &mut self.given else { return Ok(None) };
        let value = given.remove(name).ok_or_else(|| Error::input(name, "is missing"))?;
        if value.dims() != dims {
            let what = format!("has shape {:?}, expected {dims:?}", value.dims());
            return Err(Error::input(name, what));
        }
        Ok(Some(value.to_dtype(DType::F32)?))
    }

    fn make(&mut self, name: String, dims: &[usize], init: Init) -> Result<Var> {
        let tensor = match self.take(&name, dims)? {
            Some(given) => given,
            None => init.tensor(self.seed.split(&name), dims)?,
        };
        self.keep(name, &tensor)
    }

    fn keep(&mut self, name: String, tensor: &Tensor) -> Result<Var> {
        // A variable is written in place, so it must not share memory with what it came from.
        let var = Var::from_tensor(&tensor.to_dtype(DType::F32)?.force_contiguous()?)?;
        self.params.push(Param::whole(name, var.clone()));
        Ok(var)
    }
}

impl Init {
    fn tensor(self, seed: Seed, dims: &[usize]) -> Result<Tensor> {
        let n = dims.iter().product();
        let mut rng = seed.rng();
        let draw: Vec<f32> = match self {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::NearOne(std) => (0..n).map(|_| (1.0 + rng.normal() * std) as f32).collect(),
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
