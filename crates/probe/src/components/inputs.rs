//! Hooks that take away what goes into a site, and change nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Tensor};
use luthier_core::{At, Hook, Result, SiteId};

/// Keeps the inputs themselves.
pub(super) struct Inputs {
    rows_m: Option<Tensor>,
    seen: Mutex<BTreeMap<SiteId, Tensor>>,
}

/// Keeps 128 bits that tell inputs apart.
pub(super) struct Digests {
    rows_m: Option<Tensor>,
    seen: Mutex<BTreeMap<SiteId, [u64; 2]>>,
}

/// The rows that count, in f32. An input is that of the site itself: what hooks before it made.
fn chosen(x_ni: &Tensor, rows_m: Option<&Tensor>) -> Result<Tensor> {
    let x_ni = x_ni.detach().to_dtype(DType::F32)?;
    Ok(match rows_m {
        Some(rows_m) => x_ni.index_select(rows_m, 0)?,
        None => x_ni,
    })
}

impl Inputs {
    /// Takes the rows `rows_m` of every input, or all.
    pub fn new(rows_m: Option<Tensor>) -> Self {
        Inputs { rows_m, seen: Mutex::default() }
    }

    /// Numbers held.
    pub fn numbers(&self) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().map(Tensor::elem_count).sum()
    }

    /// What was seen since the last time.
    pub fn take(&self) -> BTreeMap<SiteId, Tensor> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hook for Inputs {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let x_mi = chosen(x, self.rows_m.as_ref())?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(at.site.id, x_mi);
        Ok(y)
    }
}

impl Digests {
    /// Looks at the rows `rows_m` of every input, or all.
    pub fn new(rows_m: Option<Tensor>) -> Self {
        Digests { rows_m, seen: Mutex::default() }
    }

    /// What was seen.
    pub fn take(&self) -> BTreeMap<SiteId, [u64; 2]> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hook for Digests {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let x_mi = chosen(x, self.rows_m.as_ref())?;
        let flat: Vec<f32> = x_mi.flatten_all()?.to_vec1()?;
        let digest = digest(&flat);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(at.site.id, digest);
        Ok(y)
    }
}

/// FNV-1a over the bits, from two beginnings and with two odd factors.
fn digest(values: &[f32]) -> [u64; 2] {
    let mut digest = [0xcbf2_9ce4_8422_2325u64, 0x9e37_79b9_7f4a_7c15];
    for value in values {
        let bits = u64::from(value.to_bits());
        digest[0] = (digest[0] ^ bits).wrapping_mul(0x0000_0100_0000_01b3);
        digest[1] = (digest[1].rotate_left(23) ^ bits).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    digest
}
