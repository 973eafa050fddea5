//! The gradients of a step, added up where they lie.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Storage, Tensor, TensorId, Var, bail,
};
use luthier_core::{AddTo, Error, Gradient, Mask, Param, Result};
use luthier_kernels::{tensor, threads};

/// Numbers that one task adds: enough to outweigh a task.
const CHUNK: usize = 1 << 16;

/// Gradients by variable name.
pub type Gradients = BTreeMap<String, Tensor>;

/// One sum for each variable that was met: as large as what learns of it.
pub struct Sums<'a> {
    params: &'a [Param],
    names: HashMap<TensorId, usize>,
    sums: Gradients,
    /// Memory for sums.
    used: Gradients,
}

impl<'a> Sums<'a> {
    /// Sums of the gradients of `params`, in the memory of `used` ones.
    pub fn new(params: &'a [Param], used: Gradients) -> Self {
        let names = params.iter().enumerate().map(|(i, p)| (p.var.as_tensor().id(), i));
        Sums { params, names: names.collect(), sums: Gradients::new(), used }
    }

    /// Adds the gradient of a variable from one place; other tensors are passed over.
    pub fn found(&mut self, var: &Tensor, gradient: Gradient) -> Result<()> {
        self.found_by_id(var.id(), gradient)
    }

    /// The same of a variable that is known by its id.
    pub fn found_by_id(&mut self, id: TensorId, gradient: Gradient) -> Result<()> {
        let Some(param) = self.names.get(&id) else { return Ok(()) };
        let Param { name, var, mask, .. } = &self.params[*param];
        let gradient = match mask {
            None => gradient,
            Some(mask) => Gradient::Dense(chosen(var, mask, gradient)?),
        };
        if !self.sums.contains_key(name) {
            let zeros = zeros(&self.params[*param], self.used.remove(name))?;
            self.sums.insert(name.clone(), zeros);
        }
        add(&self.sums[name], gradient)
    }

    /// The sums.
    pub fn gradients(self) -> Gradients {
        self.sums
    }
}

/// The chosen entries of a gradient. All of it exists for this moment alone.
fn chosen(var: &Var, mask: &Mask, gradient: Gradient) -> Result<Tensor> {
    let whole = match gradient {
        Gradient::Dense(whole) => whole.contiguous()?,
        Gradient::Into(_) => {
            let whole = var.zeros_like()?;
            add(&whole, gradient)?;
            whole
        }
    };
    let (storage, layout) = whole.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else {
        return Err(Error::failed("gradient", "expected memory of the CPU"));
    };
    let picked = mask.gather(tensor::slice(cpu, layout)?);
    Ok(Tensor::from_vec(picked, mask.len(), var.device())?)
}

fn zeros(param: &Param, used: Option<Tensor>) -> Result<Tensor> {
    let dims = match &param.mask {
        None => param.var.dims().to_vec(),
        Some(mask) => vec![mask.len()],
    };
    let Some(used) = used.filter(|used| used.dims() == dims) else {
        return Ok(Tensor::zeros(dims, DType::F32, param.var.device())?);
    };
    let fill = |sum: &mut [f32]| {
        sum.fill(0.0);
        Ok(())
    };
    add(&used, Gradient::Into(Box::new(fill)))?;
    Ok(used)
}

fn add(sum: &Tensor, gradient: Gradient) -> Result<()> {
    match gradient {
        Gradient::Dense(new) => sum.inplace_op2(&new.contiguous()?, &Add)?,
        Gradient::Into(add) => sum.inplace_op1(&Into(Mutex::new(Some(add))))?,
    }
    Ok(())
}

/// The numbers of a contiguous sum.
fn numbers<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(sum), Some((start, end))) => Ok(&mut sum[start..end]),
        _ => bail!("expected a contiguous f32 sum"),
    }
}

/// A gradient that adds itself.
struct Into(Mutex<Option<AddTo>>);

impl InplaceOp1 for Into {
    fn name(&self) -> &'static str {
        "add into"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(add) => add(numbers(sum, layout)?)
                .map_err(|error| candle_core::Error::Msg(error.to_string())),
            None => bail!("a gradient adds itself once"),
        }
    }
}

/// `sum ← sum + new`, element by element.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add to"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        new: &CpuStorage,
        new_layout: &Layout,
    ) -> candle_core::Result<()> {
        if sum_layout.shape() != new_layout.shape() {
            bail!("expected {:?}, got {:?}", sum_layout.shape(), new_layout.shape());
        }
        let (sum, new) = (numbers(sum, sum_layout)?, tensor::slice(new, new_layout)?);
        let add = |(sum, new): (&mut [f32], &[f32])| {
            sum.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
        };
        match sum.len() <= CHUNK {
            true => add((sum, new)),
            false => threads::for_each(sum.chunks_mut(CHUNK).zip(new.chunks(CHUNK)).collect(), add),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn var(name: &str, dims: impl std::convert::Into<candle_core::Shape>) -> Param {
        Param::whole(name, Var::zeros(dims, DType::F32, &Device::Cpu).unwrap())
    }

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn values(gradients: &Gradients, name: &str) -> Vec<f32> {
        gradients[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_place_adds_to_one_sum_and_no_gradient_changes() {
        let vars = [var("a", (2, 2)), var("unused", 2)];
        let shared = row(&[1.0, 2.0, 3.0, 4.0]).reshape((2, 2)).unwrap();
        let used: Gradients = [("a".to_string(), row(&[7.0; 4]).reshape((2, 2)).unwrap())].into();
        for used in [Gradients::new(), used] {
            let mut sums = Sums::new(&vars, used);
            let own = |sum: &mut [f32]| {
                sum[0] += 16.0;
                Ok(())
            };
            sums.found(&vars[0].var, Gradient::Into(Box::new(own))).unwrap();
            sums.found(&vars[0].var, Gradient::Dense(shared.clone())).unwrap();
            sums.found(&vars[0].var, Gradient::Dense(shared.t().unwrap())).unwrap();
            sums.found(&shared, Gradient::Dense(shared.clone())).unwrap();
            let gradients = sums.gradients();
            assert_eq!(values(&gradients, "a"), [18.0, 5.0, 5.0, 8.0]);
            assert_eq!(gradients.len(), 1);
        }
        assert_eq!(shared.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_long_sum_is_that_of_its_pieces() {
        let n = 2 * CHUNK + 3;
        let long = |by: f32| -> Tensor {
            row(&(0..n).map(|i| by * (i % 101) as f32).collect::<Vec<f32>>())
        };
        let vars = [var("a", n)];
        let mut sums = Sums::new(&vars, Gradients::new());
        for by in [1.0, 2.0, 0.5] {
            sums.found(&vars[0].var, Gradient::Dense(long(by))).unwrap();
        }
        let want: Vec<f32> = long(3.5).to_vec1().unwrap();
        assert_eq!(values(&sums.gradients(), "a"), want);
    }

    #[test]
    fn of_a_masked_variable_the_chosen_entries_are_summed() {
        let mask = Mask::new(vec![1, 2]).unwrap();
        let vars = [var("a", (2, 2)).masked(mask).unwrap()];
        let mut sums = Sums::new(&vars, Gradients::new());
        let own = |sum: &mut [f32]| {
            sum.copy_from_slice(&[10.0, 20.0, 30.0, 40.0]);
            Ok(())
        };
        sums.found(&vars[0].var, Gradient::Into(Box::new(own))).unwrap();
        let dense = row(&[1.0, 2.0, 3.0, 4.0]).reshape((2, 2)).unwrap();
        sums.found(&vars[0].var, Gradient::Dense(dense.t().unwrap())).unwrap();
        assert_eq!(values(&sums.gradients(), "a"), [23.0, 32.0]);
    }

    #[test]
    fn another_shape_is_refused() {
        let vars = [var("a", 3)];
        let mut sums = Sums::new(&vars, Gradients::new());
        assert!(sums.found(&vars[0].var, Gradient::Dense(row(&[1.0]))).is_err());
    }
}
