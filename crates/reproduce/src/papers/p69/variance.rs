//! The share of the variance of a site's inputs that lies in the rows of A.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use luthier_core::{At, Batch, Ctx, Hook, Policy, Result, Row};
use luthier_params::Bound;

use crate::Small;

/// Orthonormal rows that span the same, one after another (Gram and Schmidt).
pub fn orthonormal(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for k in 0..rows.len() {
        let (known, rest) = rows.split_at_mut(k);
        let row = &mut rest[0];
        // Twice: the first time leaves what rounding put there.
        for known in known.iter().chain(known.iter()) {
            let along = dot(known, row);
            row.iter_mut().zip(known).for_each(|(x, q)| *x -= along * q);
        }
        let length = dot(row, row).sqrt();
        row.iter_mut().for_each(|x| *x /= length);
    }
    rows
}

/// Takes away what goes into sites at chosen tokens.
struct Inputs {
    tokens_m: Tensor,
    seen: Mutex<BTreeMap<String, Tensor>>,
}

impl Hook for Inputs {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let x_mi = x.detach().index_select(&self.tokens_m, 0)?.to_dtype(DType::F64)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(at.site.name.clone(), x_mi.broadcast_sub(&x_mi.mean_keepdim(0)?)?);
        Ok(y)
    }
}

/// The inputs, around their mean, of the linear sites of all blocks at the trained tokens of `rows`.
pub fn inputs(base: &Small, rows: &[Row]) -> Result<BTreeMap<String, Tensor>> {
    let batch = Batch::from_rows(rows);
    let tokens_m = Tensor::new(batch.trained_m(), &Device::Cpu)?;
    let inputs = Arc::new(Inputs { tokens_m, seen: Mutex::default() });
    let Policy { model, mut hooks } = base.policy()?;
    for site in model.sites().iter().filter(|s| s.layer.is_some() && s.linear().is_some()) {
        hooks.bind(site.id, inputs.clone());
    }
    let policy = Policy { model, hooks };
    policy.hidden(&mut Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n))?;
    let seen = std::mem::take(&mut *inputs.seen.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(seen)
}

/// Of every site, the share of its inputs' variance that lies in what A's rows span.
pub fn captured(bound: &Bound, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<f64>> {
    let of = |(site, x_mi): (&String, &Tensor)| match bound.var(&format!("{site}.lora_A")) {
        Some(a_ri) => share(a_ri.to_dtype(DType::F64)?.to_vec2()?, x_mi),
        None => Ok(0.0),
    };
    inputs.iter().map(of).collect()
}

fn share(rows: Vec<Vec<f64>>, x_mi: &Tensor) -> Result<f64> {
    let q_ri = Tensor::new(orthonormal(rows), &Device::Cpu)?;
    let square = |x: &Tensor| -> Result<f64> { Ok(x.sqr()?.sum_all()?.to_scalar::<f64>()?) };
    Ok(square(&x_mi.matmul(&q_ri.t()?)?)? / square(x_mi)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_variance_is_that_of_the_published_example() {
        let x = Tensor::new(&[[1.0f64, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]], &Device::Cpu);
        let x = x.unwrap();
        let close = |rows: Vec<Vec<f64>>, want: f64| {
            let got = share(rows, &x).unwrap();
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        };
        close(vec![vec![3.0, 0.0]], 0.8);
        close(vec![vec![0.0, -0.1]], 0.2);
        close(vec![vec![1.0, 1.0]], 0.5);
        close(vec![vec![5.0, 1.0], vec![5.0, 1.001]], 1.0);
    }
}
