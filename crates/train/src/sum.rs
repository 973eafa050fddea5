//! Gradients of several shards, added up side by side and yet in the order of the shards.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor, TensorId, Var, bail};
use luthier_core::{AddTo, Gradient, Result};
use luthier_kernels::{tensor, threads};

/// Numbers that one task adds: enough to outweigh a task.
const CHUNK: usize = 1 << 16;

/// Gradients by variable name.
pub type Gradients = BTreeMap<String, Tensor>;

/// The sums of one step.
///
/// A variable that several places of the model read has one sum per place, so that no shard waits
/// for the end of another. What comes before its turn is kept until the shards before it have given
/// theirs or are done; hence the sums follow from the shards alone, whoever is first.
pub struct Sums<'a> {
    vars: &'a [(String, Var)],
    names: HashMap<TensorId, usize>,
    /// By variable and place.
    slots: Mutex<BTreeMap<(usize, usize), Arc<Mutex<Slot>>>>,
    /// Which shards have given all they have.
    done: Vec<AtomicBool>,
}

#[derive(Default)]
struct Slot {
    sum: Option<Tensor>,
    /// The shard whose turn it is.
    next: usize,
    waiting: BTreeMap<usize, Addend>,
}

enum Addend {
    Of(Gradient),
    /// In memory that others may look at.
    Shared(Tensor),
}

/// What one shard adds.
pub struct Shard<'a> {
    sums: &'a Sums<'a>,
    number: usize,
    /// Places met so far, by variable.
    places: HashMap<usize, usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Sums<'a> {
    /// Sums of the gradients of `vars` over `shards` shards.
    pub fn new(vars: &'a [(String, Var)], shards: usize) -> Self {
        let names = vars.iter().enumerate().map(|(i, (_, var))| (var.as_tensor().id(), i));
        let done = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Sums { vars, names: names.collect(), slots: Mutex::default(), done }
    }

    /// Where shard `number` adds its gradients; dropping it says that these were all.
    pub fn shard(&self, number: usize) -> Shard<'_> {
        Shard { sums: self, number, places: HashMap::new() }
    }

    /// The sums, once all shards are done.
    pub fn gradients(self) -> Result<Gradients> {
        let mut gradients = Gradients::new();
        let slots = self.slots.into_inner().unwrap_or_else(PoisonError::into_inner);
        for ((var, _), slot) in slots {
            let Some(sum) = lock(&slot).sum.take() else { continue };
            let name = &self.vars[var].0;
            match gradients.get(name) {
                Some(first) => first.inplace_op2(&sum, &Add)?,
                None => drop(gradients.insert(name.clone(), sum)),
            }
        }
        Ok(gradients)
    }

    fn add(&self, shard: usize, key: (usize, usize), addend: Addend) -> Result<()> {
        let slot = lock(&self.slots).entry(key).or_default().clone();
        let mut slot = lock(&slot);
        slot.waiting.insert(shard, addend);
        self.advance(&mut slot, &self.vars[key.0].1)
    }

    /// Adds whatever has its turn.
    fn advance(&self, slot: &mut Slot, var: &Var) -> Result<()> {
        loop {
            if let Some(addend) = slot.waiting.remove(&slot.next) {
                slot.add(addend, var)?;
            } else if !self.done.get(slot.next).is_some_and(|done| done.load(Ordering::Acquire)) {
                return Ok(());
            }
            slot.next += 1;
        }
    }

    fn finish(&self, shard: usize) -> Result<()> {
        self.done[shard].store(true, Ordering::Release);
        let slots: Vec<_> =
            lock(&self.slots).iter().map(|((var, _), slot)| (*var, slot.clone())).collect();
        slots.iter().try_for_each(|(var, slot)| self.advance(&mut lock(slot), &self.vars[*var].1))
    }
}

impl Slot {
    fn add(&mut self, addend: Addend, var: &Var) -> Result<()> {
        let sum = match (self.sum.take(), addend) {
            (None, Addend::Of(Gradient::Dense(new))) => new.contiguous()?,
            (None, Addend::Shared(new)) => new.contiguous()?.copy()?,
            (Some(sum), Addend::Of(Gradient::Dense(new)) | Addend::Shared(new)) => {
                sum.inplace_op2(&new.contiguous()?, &Add)?;
                sum
            }
            (sum, Addend::Of(Gradient::Into(add))) => {
                let sum = match sum {
                    Some(sum) => sum,
                    None => var.zeros_like()?,
                };
                sum.inplace_op1(&Into(Mutex::new(Some(add))))?;
                sum
            }
        };
        self.sum = Some(sum);
        Ok(())
    }
}

impl Shard<'_> {
    fn key(&mut self, var: usize) -> (usize, usize) {
        let place = self.places.entry(var).or_insert(0);
        *place += 1;
        (var, *place - 1)
    }

    /// Adds the gradient of a variable from one place; other tensors are passed over.
    pub fn found(&mut self, var: &Tensor, gradient: Gradient) -> Result<()> {
        let Some(var) = self.sums.names.get(&var.id()).copied() else { return Ok(()) };
        let key = self.key(var);
        self.sums.add(self.number, key, Addend::Of(gradient))
    }

    /// Adds a gradient from a graph.
    pub fn shared(&mut self, var: usize, gradient: Tensor) -> Result<()> {
        let key = self.key(var);
        self.sums.add(self.number, key, Addend::Shared(gradient))
    }

    /// Says that this shard has given all it has.
    pub fn finish(self) -> Result<()> {
        self.sums.finish(self.number)
    }
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
        match lock(&self.0).take() {
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
    use candle_core::{DType, Device};

    use super::*;

    fn var(name: &str, n: usize) -> (String, Var) {
        (name.into(), Var::zeros(n, DType::F32, &Device::Cpu).unwrap())
    }

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn values(gradients: &Gradients, name: &str) -> Vec<f32> {
        gradients[name].to_vec1().unwrap()
    }

    #[test]
    fn sums_follow_the_order_of_the_shards_whoever_is_first() {
        // Numbers whose sum depends on the order.
        let (vars, numbers) = ([var("a", 1), var("b", 1)], [1e8f32, 1.0, -1e8, 1.0]);
        let run = |order: [usize; 4]| {
            let sums = Sums::new(&vars, 4);
            for i in order {
                let mut shard = sums.shard(i);
                // One shard has nothing for the first variable, one adds to it in place.
                match i {
                    3 => {}
                    1 => {
                        let add = move |sum: &mut [f32]| {
                            sum[0] += numbers[1];
                            Ok(())
                        };
                        shard.found(&vars[0].1, Gradient::Into(Box::new(add))).unwrap();
                    }
                    _ => shard.shared(0, row(&[numbers[i]])).unwrap(),
                }
                shard.found(&vars[1].1, Gradient::Dense(row(&[numbers[i]]))).unwrap();
                shard.finish().unwrap();
            }
            let gradients = sums.gradients().unwrap();
            (values(&gradients, "a"), values(&gradients, "b"))
        };
        let first: f32 = numbers[..3].iter().sum();
        let want = (vec![first], vec![numbers.iter().sum()]);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            assert_eq!(run(order), want);
        }
    }

    #[test]
    fn places_of_one_variable_are_added_and_no_shared_gradient_changes() {
        let vars = [var("a", 2), var("unused", 2)];
        let shared = row(&[1.0, 2.0]);
        let sums = Sums::new(&vars, 2);
        for i in 0..2 {
            let mut shard = sums.shard(i);
            shard.shared(0, shared.clone()).unwrap();
            shard.shared(0, shared.clone()).unwrap();
            shard.found(&shared, Gradient::Dense(shared.clone())).unwrap();
            shard.finish().unwrap();
        }
        let gradients = sums.gradients().unwrap();
        assert_eq!(values(&gradients, "a"), [4.0, 8.0]);
        assert_eq!(gradients.len(), 1);
        assert_eq!(shared.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn a_long_sum_is_that_of_its_pieces() {
        let n = 2 * CHUNK + 3;
        let long = |by: f32| -> Tensor {
            row(&(0..n).map(|i| by * (i % 101) as f32).collect::<Vec<f32>>())
        };
        let vars = [var("a", n)];
        let sums = Sums::new(&vars, 3);
        for (i, by) in [1.0, 2.0, 0.5].into_iter().enumerate() {
            let mut shard = sums.shard(i);
            shard.shared(0, long(by)).unwrap();
            shard.finish().unwrap();
        }
        let want: Vec<f32> = long(3.5).to_vec1().unwrap();
        assert_eq!(values(&sums.gradients().unwrap(), "a"), want);
    }
}
