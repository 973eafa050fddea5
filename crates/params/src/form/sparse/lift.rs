//! LIFT (Liu et al. 2025, paper 16): the entries that are large once the rank is reduced.
//!
//! Per matrix `W_r = U_r S_r V_rᵀ` keeps the `filter_rank` largest singular values; the
//! `k = min(budget_rank · (out + in), out · in)` entries with the largest `|W_r|` learn, with the
//! values of `W`. Every `update_interval` steps the choice is made again from the weights as they
//! are; entries that stay keep their place in the optimizer, and the count of steps goes on.
//! **Departures**: (1) `W_r` is taken through the eigenvectors of the smaller Gram matrix in f64
//! instead of a singular value decomposition in f32; (2) AdamW's eps is added after the bias
//! correction, as torch does it today.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Mask, Param, Result, Seed};
use luthier_kernels::svd::Svd;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Rule, masked};
use crate::{Choice, Chosen, Handover, Moment, form::weights};

/// `[train.params.sparse.lift]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lift {
    /// As many entries of a matrix learn as a LoRA of this rank has numbers.
    pub budget_rank: usize,
    /// Singular values that are kept for the score.
    pub filter_rank: usize,
    /// Steps between two choices; 0 chooses once.
    pub update_interval: u64,
    /// What makes an entry worth learning.
    pub score: Score,
}

/// What makes an entry worth learning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Its size after rank reduction.
    #[default]
    LraMagnitude,
    /// Its size.
    Magnitude,
    /// Chance.
    Random,
}

impl Default for Lift {
    fn default() -> Self {
        let score = Score::LraMagnitude;
        Lift { budget_rank: 128, filter_rank: 64, update_interval: 400, score }
    }
}

impl Lift {
    /// Entries of an `(o, i)` matrix that learn.
    pub fn budget(&self, o: usize, i: usize) -> usize {
        (self.budget_rank * (o + i)).min(o * i)
    }

    fn mask(&self, param: &Param, seed: Seed) -> Result<Mask> {
        let (o, i) = param.var.dims2()?;
        let w = weights::values(&param.var)?;
        let mut scores = match self.score {
            Score::LraMagnitude => reduced(&param.name, &w, o, i, self.filter_rank)?,
            Score::Magnitude => w,
            Score::Random => {
                let mut rng = seed.split(&param.name).rng();
                w.iter().map(|_| rng.uniform() as f32).collect()
            }
        };
        scores.iter_mut().for_each(|s| *s = s.abs());
        let mut masks = weights::largest(&[scores], self.budget(o, i))?;
        Ok(masks.remove(0))
    }

    fn choose(&self, params: &[Param], seed: Seed) -> Result<Vec<Mask>> {
        params.par_iter().map(|p| self.mask(p, seed)).collect()
    }
}

/// `W` with nothing but its `rank` largest singular values.
pub fn reduced(name: &str, w: &[f32], o: usize, i: usize, rank: usize) -> Result<Vec<f32>> {
    if rank >= o.min(i) {
        return Ok(w.to_vec());
    }
    let w_oi = Tensor::from_slice(w, (o, i), &Device::Cpu)?;
    Ok(Svd::dense(name, &w_oi, rank)?.matrix(rank))
}

impl Rule for Lift {
    fn check(&self, at: &str) -> Result<()> {
        for (key, rank) in [("budget_rank", self.budget_rank), ("filter_rank", self.filter_rank)] {
            if rank == 0 {
                return Err(Error::input(format!("{at}.{key}"), "expected a rank above 0, got 0"));
            }
        }
        Ok(())
    }

    fn masks(&self, params: &[Param], seed: Seed) -> Result<Option<Vec<Mask>>> {
        self.choose(params, seed).map(Some)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        (self.update_interval > 0).then(|| Box::new(Refresh(self.clone())) as _)
    }
}

/// Chooses again every so many steps.
struct Refresh(Lift);

impl Choice for Refresh {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>> {
        if now.step == 0 || !now.step.is_multiple_of(self.0.update_interval) {
            return Ok(None);
        }
        let masks = self.0.choose(now.own, now.seed.split("lift").at(now.step))?;
        let params = masked(now.own, masks)?;
        let stay = |(old, new): (&Param, &Param)| overlap(old.mask.as_ref(), new.mask.as_ref());
        let stayed: usize = now.now.iter().zip(&params).map(stay).sum();
        let of: usize = params.iter().map(Param::count).sum();
        let note = format!("{stayed} of {of} chosen entries stay chosen");
        Ok(Some(Chosen { params, handover: Handover::Keep, note }))
    }
}

/// Entries in both masks.
fn overlap(one: Option<&Mask>, other: Option<&Mask>) -> usize {
    let (Some(one), Some(other)) = (one, other) else { return 0 };
    let among = |i: &&u32| other.positions().binary_search(i).is_ok();
    one.positions().iter().filter(among).count()
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const W: [f32; 9] = [4.0, 0.0, 0.0, 0.0, 2.2, 1.1, 0.0, 0.9, 1.8];

    #[test]
    fn the_rank_is_reduced_as_published() {
        let got = reduced("w", &W, 3, 3, 2).unwrap();
        let want = [4.0, 0.0, 0.0, 0.0, 1.8056, 1.5573, 0.0, 1.4063, 1.2129];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
        assert_eq!(reduced("w", &W, 3, 3, 3).unwrap(), W);
        // A tall matrix goes through the other Gram matrix.
        let tall = [1.0f32, 2.0, 2.0, 4.0, 3.0, 6.0];
        for (got, want) in reduced("w", &tall, 3, 2, 1).unwrap().iter().zip(tall) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn the_choice_differs_from_plain_magnitude() {
        let var = Var::from_slice(&W, (3, 3), &Device::Cpu).unwrap();
        let param = Param::whole("w", var);
        // Three entries: half a rank, so the budget is set by hand.
        let pick = |w: Vec<f32>| {
            let sizes = w.iter().map(|x| x.abs()).collect();
            weights::largest(&[sizes], 3).unwrap().remove(0).positions().to_vec()
        };
        assert_eq!(pick(W.to_vec()), [0, 4, 8]);
        assert_eq!(pick(reduced("w", &W, 3, 3, 2).unwrap()), [0, 4, 5]);
        let lift = Lift { budget_rank: 9, filter_rank: 2, ..Lift::default() };
        assert_eq!(lift.mask(&param, Seed(0)).unwrap().len(), 9);
    }

    #[test]
    fn the_budget_is_that_of_a_low_rank_addition() {
        let at = |budget_rank, o, i| Lift { budget_rank, ..Lift::default() }.budget(o, i);
        assert_eq!(at(128, 4096, 4096), 1_048_576);
        assert_eq!(at(128, 14336, 4096), 2_359_296);
        assert_eq!(at(128, 1024, 4096), 655_360);
        assert_eq!([at(16, 576, 576), at(16, 192, 576), at(16, 1536, 576)], [18432, 12288, 33792]);
        assert_eq!(at(4096, 576, 576), 576 * 576);
    }
}
