//! Saving and loading between two steps.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Error, Result, StateDict};

use super::{
    Stepper,
    counters::{PROGRESS, pack, unpack},
    slot::Slot,
};
use crate::optimizer::Data;

/// What records of the beginning are saved as.
const ORIGIN: &str = "origin";

const CHANGED: &str = "the recipe has changed since the checkpoint; to go on from its weights alone, \
                       start a new run from them";

impl Stepper {
    /// A copy of everything that the next step depends on, apart from the variables themselves.
    pub fn state(&self) -> Result<StateDict> {
        self.expect_training("saving the optimizer")?;
        let mut state = StateDict::default();
        for slot in &self.slots {
            for ((buffer, _), data) in self.plan.state.iter().zip(&slot.state) {
                if !data.is_empty() {
                    state.insert(format!("{}.{buffer}", slot.name), tensor(slot, data)?);
                }
            }
            for (record, numbers) in self.named_records(slot) {
                if !numbers.is_empty() {
                    let tensor = Tensor::from_slice(numbers, slot.dims(), &Device::Cpu)?;
                    state.insert(format!("{}.{record}", slot.name), tensor);
                }
            }
        }
        state.insert(PROGRESS, pack(&self.counters())?);
        Ok(state)
    }

    /// Takes over a saved state; the next step is then bit-equal to the one that would have followed.
    /// On an error nothing has changed.
    pub fn load(&mut self, mut state: StateDict) -> Result<()> {
        self.expect_training("loading the optimizer")?;
        let progress = take(&mut state, PROGRESS)?;
        let counters = unpack(&progress)?;
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mut buffers = Vec::with_capacity(slot.state.len());
            for ((buffer, _), like) in self.plan.state.iter().zip(&slot.state) {
                buffers.push(match like.is_empty() {
                    true => like.clone(),
                    false => read(&mut state, format!("{}.{buffer}", slot.name), slot, like)?,
                });
            }
            let mut records = Vec::with_capacity(2);
            for (record, like) in self.named_records(slot) {
                records.push(match like.is_empty() {
                    true => Vec::new(),
                    false => {
                        take_shape(&mut state, format!("{}.{record}", slot.name), &slot.dims())?
                    }
                });
            }
            loaded.push((buffers, records));
        }
        if let Some((name, _)) = state.iter().next() {
            return Err(
                Error::input(name, "saved, but nothing of that name is learned").hint(CHANGED)
            );
        }
        self.set_counters(&counters)?;
        for (slot, (buffers, mut records)) in self.slots.iter_mut().zip(loaded) {
            slot.state = buffers;
            slot.average = records.pop().unwrap_or_default();
            slot.origin = records.pop().unwrap_or_default();
        }
        Ok(())
    }

    /// Origin and average of a variable by the names they are saved under.
    fn named_records<'a>(&self, slot: &'a Slot) -> [(&'static str, &'a [f32]); 2] {
        [
            (ORIGIN, slot.origin.as_slice()),
            (self.average.unwrap_or("average"), slot.average.as_slice()),
        ]
    }
}

/// A buffer with one number per element has the variable's shape, any other is a vector.
fn dims(slot: &Slot, data: &Data) -> Vec<usize> {
    if data.len() == slot.count() { slot.dims() } else { vec![data.len()] }
}

fn tensor(slot: &Slot, data: &Data) -> Result<Tensor> {
    let dims = dims(slot, data);
    Ok(match data {
        Data::F32(numbers) => Tensor::from_slice(numbers, dims, &Device::Cpu)?,
        Data::U8(codes) => Tensor::from_slice(codes, dims, &Device::Cpu)?,
    })
}

/// A buffer like the one that is there.
fn read(state: &mut StateDict, name: String, slot: &Slot, like: &Data) -> Result<Data> {
    let dims = dims(slot, like);
    let at = name.clone();
    let numbers = take_shape(state, name, &dims)?;
    match like {
        Data::F32(_) => Ok(Data::F32(numbers)),
        // A state file holds f32, which is exact for a byte.
        Data::U8(_) => {
            match numbers.iter().find(|x| !(0.0..256.0).contains(*x) || x.fract() != 0.0) {
                None => Ok(Data::U8(numbers.into_iter().map(|x| x as u8).collect())),
                Some(x) => Err(Error::input(at, format!("expected codes from 0 to 255, got {x}"))),
            }
        }
    }
}

fn take(state: &mut StateDict, name: &str) -> Result<Tensor> {
    state.remove(name).ok_or_else(|| Error::input(name, "missing in the saved state").hint(CHANGED))
}

fn take_shape(state: &mut StateDict, name: String, dims: &[usize]) -> Result<Vec<f32>> {
    let tensor = take(state, &name)?;
    if tensor.dims() != dims {
        let what = format!("saved with shape {:?}, expected {dims:?}", tensor.dims());
        return Err(Error::input(name, what).hint(CHANGED));
    }
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
