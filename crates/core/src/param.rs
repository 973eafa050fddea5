//! What learns: a variable, whole or in chosen entries.

use std::sync::Arc;

use candle_core::Var;

use crate::{Error, Result};

/// A learned variable under its name.
#[derive(Clone, Debug)]
pub struct Param {
    /// `layers.0.attn.q.lora_A`, or a Hugging Face name when the model's own weights learn.
    pub name: String,
    /// Its numbers, in place.
    pub var: Var,
    /// The entries that learn; all of them without a mask.
    pub mask: Option<Mask>,
    /// Whether a step may do without a gradient of it: it is then left alone.
    pub optional: bool,
}

/// A 0/1 mask over a variable, as the flat positions of its ones in ascending order. Cloning shares
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Arc<[u32]>);

impl Param {
    /// A variable all of whose entries learn.
    pub fn whole(name: impl Into<String>, var: Var) -> Self {
        Param { name: name.into(), var, mask: None, optional: false }
    }

    /// How many numbers learn.
    pub fn count(&self) -> usize {
        self.mask.as_ref().map_or(self.var.elem_count(), Mask::len)
    }

    /// The same variable, learning in `mask` alone.
    pub fn masked(mut self, mask: Mask) -> Result<Self> {
        let (entries, last) = (self.var.elem_count(), mask.positions().last());
        if let Some(last) = last.filter(|last| **last as usize >= entries) {
            let what = format!("its mask has entry {last}, the variable {entries} entries");
            return Err(Error::input(&self.name, what).hint("the mask is for another shape"));
        }
        self.mask = Some(mask);
        Ok(self)
    }
}

impl Mask {
    /// A mask with ones at `positions`, which must ascend.
    pub fn new(positions: Vec<u32>) -> Result<Self> {
        match positions.windows(2).find(|pair| pair[0] >= pair[1]) {
            None => Ok(Mask(positions.into())),
            Some(pair) => {
                let what = format!("positions must ascend, got {} before {}", pair[0], pair[1]);
                Err(Error::input("mask", what))
            }
        }
    }

    /// The flat positions of the ones.
    pub fn positions(&self) -> &[u32] {
        &self.0
    }

    /// How many ones there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The chosen entries of `all`.
    pub fn gather(&self, all: &[f32]) -> Vec<f32> {
        self.0.iter().map(|i| all[*i as usize]).collect()
    }

    /// Puts `values` at the chosen entries of `all`.
    pub fn scatter(&self, values: &[f32], all: &mut [f32]) {
        self.0.iter().zip(values).for_each(|(i, value)| all[*i as usize] = *value);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_mask_gathers_and_scatters_and_must_fit() {
        let mask = Mask::new(vec![0, 3]).unwrap();
        assert_eq!(mask.gather(&[1.0, 2.0, 3.0, 4.0]), [1.0, 4.0]);
        let mut all = [0.0; 4];
        mask.scatter(&[7.0, 8.0], &mut all);
        assert_eq!(all, [7.0, 0.0, 0.0, 8.0]);
        assert!(Mask::new(vec![3, 3]).is_err());
        let param = |n: usize| Param::whole("w", Var::zeros(n, DType::F32, &Device::Cpu).unwrap());
        assert_eq!(param(4).masked(mask.clone()).unwrap().count(), 2);
        let error = param(3).masked(mask).unwrap_err().to_string();
        assert!(error.starts_with("w: its mask has entry 3, the variable 3 entries"), "{error}");
    }
}
