//! NEFTune (Jain et al. 2023): noise on what training embeds.
//!
//! For a row of `L` tokens in a model of width `d`, `embed ← embed + u`, every number of `u` uniform in
//! `±neftune_noise_alpha / √(L·d)`. The setting has TRL's name and meaning. The noise of a step is a
//! hook of that step's policy, so that nothing else, evaluation above all, ever meets it. What a row gets
//! follows from seed, step and the row's tokens, not from the pass it is in. **Departures**: `L` is the
//! row's own length, for there is no padding; learned virtual tokens neither count nor get noise.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{At, Error, Hook, Policy, Result, Seed};
use luthier_kernels::threads;

/// The policy with noise on its embedding.
pub fn with(policy: &Policy, alpha: f64, seed: Seed) -> Result<Policy> {
    let mut noisy = policy.clone();
    let embed = policy.model.sites().get("embed").map(|site| site.id);
    let missing = || Error::failed("train.neftune_noise_alpha", "this model has no site embed");
    let noise = Noise { alpha, seed, skipped: policy.hooks.virtual_tokens };
    noisy.hooks.bind(embed.ok_or_else(missing)?, Arc::new(noise));
    Ok(noisy)
}

struct Noise {
    alpha: f64,
    seed: Seed,
    /// Virtual tokens at the beginning of every row.
    skipped: usize,
}

impl Noise {
    /// Fills `to`, of `d` numbers a token, for a row of these tokens.
    fn fill(&self, ids: &[u32], d: usize, to: &mut [f32]) {
        let Some(ids) = ids.get(self.skipped..).filter(|ids| !ids.is_empty()) else { return };
        let most = (self.alpha / ((ids.len() * d) as f64).sqrt()) as f32;
        let seed = ids.iter().fold(self.seed, |seed, id| seed.at(u64::from(*id)));
        // 32 uniform bits a number, two numbers a hash.
        for (i, pair) in to[self.skipped * d..].chunks_mut(2).enumerate() {
            let mut bits = seed.at(i as u64).0;
            for x in pair {
                *x = most * ((bits & 0xffff_ffff) as f32 / 2f32.powi(31) - 1.0);
                bits >>= 32;
            }
        }
    }
}

impl Hook for Noise {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        // Whoever looks for the place where numbers went wrong makes the pass without noise.
        if at.noise.is_none() {
            return Ok(y);
        }
        let (n, d) = y.dims2()?;
        let mut noise = vec![0f32; n * d];
        let (mut rows, mut left) = (Vec::with_capacity(at.rows.b()), noise.as_mut_slice());
        for row in 0..at.rows.b() {
            let range = at.rows.range(row);
            let (own, rest) = left.split_at_mut(range.len() * d);
            rows.push((&at.ids_n[range], own));
            left = rest;
        }
        threads::for_each(rows, |(ids, to)| self.fill(ids, d, to));
        let noise_nd = Tensor::from_vec(noise, (n, d), y.device())?.to_dtype(y.dtype())?;
        Ok((y + noise_nd)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(alpha: f64, seed: u64, ids: &[u32], d: usize, skipped: usize) -> Vec<f32> {
        let mut to = vec![0f32; ids.len() * d];
        Noise { alpha, seed: Seed(seed), skipped }.fill(ids, d, &mut to);
        to
    }

    #[test]
    fn numbers_are_uniform_within_the_papers_bound() {
        let ids: Vec<u32> = (0..100).collect();
        let found = noise(5.0, 1, &ids, 4096, 0);
        // 5 / √(100 · 4096).
        let most = 0.007_812_5f32;
        assert!(found.iter().all(|x| x.abs() <= most));
        let count = found.len() as f64;
        let mean = found.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let square = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / count;
        let bound = f64::from(most);
        assert!(mean.abs() < 0.005 * bound, "{mean}");
        assert!((square - bound * bound / 3.0).abs() < 0.01 * bound * bound, "{square}");
        assert!(
            found.iter().any(|x| *x > 0.999 * most) && found.iter().any(|x| *x < -0.999 * most)
        );
    }

    #[test]
    fn a_row_has_its_own_noise_and_virtual_tokens_have_none() {
        let of = |seed, ids: &[u32]| noise(5.0, seed, ids, 8, 0);
        assert_eq!(of(1, &[1, 2, 3]), of(1, &[1, 2, 3]));
        assert_ne!(of(1, &[1, 2, 3]), of(2, &[1, 2, 3]));
        assert_ne!(of(1, &[1, 2, 3]), of(1, &[1, 2, 4]));
        let behind = noise(5.0, 1, &[0, 0, 1, 2, 3], 8, 2);
        assert_eq!(behind[..16], [0.0; 16]);
        assert_eq!(behind[16..], of(1, &[1, 2, 3]));
        assert_eq!(noise(5.0, 1, &[0, 0], 8, 2), [0.0; 16]);
    }
}
