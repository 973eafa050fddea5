//! Karcher mean: the point of a sphere from which all inputs, as directions, are nearest.
//!
//! From the normalised mean `m` of the directions `uᵢ`, repeat: `τ = Σ αᵢ · (θᵢ / sin θᵢ) · (uᵢ − cos θᵢ · m)`,
//! θᵢ the angle between `m` and `uᵢ`, and follow τ along the sphere, `m ← cos|τ| · m + sin|τ| · τ / |τ|`, until
//! `|τ| < tol`. The result has the mean of the inputs' lengths. All of it happens among coefficients:
//! `m` and `τ` are sums of the `uᵢ`. **Departures**: none; angles come from f64 sums.

use luthier_core::Result;

use crate::{
    combine::{Combine, gram::Gram},
    method::Given,
    operands::{As, Put, Work},
};

/// `merge_method: karcher`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Karcher {
    /// Steps at most.
    pub max_iter: usize,
    /// The length of a step that is none, and of a tensor that has no direction.
    pub tol: f64,
}

impl Karcher {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let max_iter = given.number("max_iter") as usize;
        Ok(Box::new(Karcher { max_iter, tol: given.number("tol") }))
    }

    fn coefficients(&self, gram: &Gram) -> Vec<f64> {
        let n = gram.len();
        let lengths: Vec<f64> = (0..n).map(|i| gram.norm(i)).collect();
        let directed: Vec<bool> = lengths.iter().map(|length| *length > self.tol).collect();
        let share = 1.0 / directed.iter().filter(|d| **d).count().max(1) as f64;
        if !directed.contains(&true) {
            return vec![0.0; n];
        }
        let units = gram.divided(&lengths);
        let mut mean: Vec<f64> = directed.iter().map(|d| if *d { share } else { 0.0 }).collect();
        let length = units.length(&mean);
        if length < self.tol {
            let first = directed.iter().position(|d| *d);
            mean = (0..n).map(|i| if Some(i) == first { 1.0 } else { 0.0 }).collect();
        } else {
            mean.iter_mut().for_each(|m| *m /= length);
        }
        for _ in 0..self.max_iter {
            let tangent = self.tangent(&units, &mean, &directed, share);
            let step = units.length(&tangent);
            if step < self.tol {
                break;
            }
            let along = mean.iter_mut().zip(&tangent);
            along.for_each(|(m, t)| *m = step.cos() * *m + step.sin() * t / step);
            let length = units.length(&mean);
            if length > self.tol {
                mean.iter_mut().for_each(|m| *m /= length);
            }
        }
        let scale = lengths.iter().sum::<f64>() / n as f64;
        let back =
            |(m, length): (&f64, &f64)| if *length == 0.0 { 0.0 } else { scale * m / length };
        mean.iter().zip(&lengths).map(back).collect()
    }

    fn tangent(&self, units: &Gram, mean: &[f64], directed: &[bool], share: f64) -> Vec<f64> {
        let mut tangent = vec![0.0; units.len()];
        for i in (0..units.len()).filter(|i| directed[*i]) {
            let cosine: f64 = (0..units.len()).map(|j| mean[j] * units.dot(i, j)).sum();
            let angle = cosine.clamp(-1.0, 1.0).acos();
            // Opposite directions have no one shortest way.
            if angle < self.tol || angle.sin() == 0.0 {
                continue;
            }
            let factor = share * angle / angle.sin();
            tangent[i] += factor;
            tangent.iter_mut().zip(mean).for_each(|(t, m)| *t -= factor * cosine * m);
        }
        tangent
    }
}

impl Combine for Karcher {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        if work.others() == 1 {
            return work.write_sum(As::Values, &[1.0], put);
        }
        let gram = Gram::of(work, As::Values)?;
        work.write_sum(As::Values, &self.coefficients(&gram), put)
    }
}
