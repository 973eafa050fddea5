//! SaRA (Hu et al. 2025, paper 29): the weights that do nothing are put to use.
//!
//! `M = 1[|θ₀| < t]` with one threshold for all tensors; after a share of the steps
//! `M ← M ∧ 1[|θ| < t]`: entries that have grown past the threshold keep their value and rest, and
//! the optimizer begins anew. The nuclear norm that keeps the change of low rank is
//! `[train.update.nuclear]`. **Departures**: (1) a density may stand in for the threshold, which is
//! then its quantile over all tensors; (2) the published optimizer's first forward pass with |θ| in
//! place of θ is not copied.

use luthier_core::{Error, Mask, Param, Result, Seed, StateDict};
use serde::{Deserialize, Serialize};

use super::{Rule, check_density, masked, share};
use crate::{Choice, Chosen, Handover, Moment, form::weights};

/// `[train.params.sparse.sara]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sara {
    /// Entries below this learn, in absolute value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Share of the entries that learn, where no threshold is given.
    pub density: f64,
    /// Share of the steps after which entries are chosen again; 0 never.
    pub progressive: f64,
    /// Whether the optimizer keeps its memory of entries that go on.
    pub keep_state: bool,
}

impl Default for Sara {
    fn default() -> Self {
        Sara { threshold: None, density: 0.1, progressive: 0.5, keep_state: false }
    }
}

/// The published learning rate for a threshold.
pub fn learning_rate(threshold: f64) -> f64 {
    1e-3 * (-350.0 * threshold).exp()
}

fn sizes(params: &[Param]) -> Result<Vec<Vec<f32>>> {
    let size = |p: &Param| Ok(weights::values(&p.var)?.iter().map(|x| x.abs()).collect());
    params.iter().map(size).collect()
}

impl Sara {
    /// Where entries stop being idle.
    fn threshold(&self, sizes: &[Vec<f32>], params: &[Param]) -> f32 {
        if let Some(threshold) = self.threshold {
            return threshold as f32;
        }
        let count = share(params, self.density);
        let mut all: Vec<f32> = sizes.iter().flatten().copied().collect();
        if count >= all.len() {
            return f32::INFINITY;
        }
        *all.select_nth_unstable_by(count, f32::total_cmp).1
    }
}

/// The entries of `among`, or of all, that are below the threshold.
fn idle(sizes: &[f32], threshold: f32, among: Option<&Mask>) -> Result<Mask> {
    let below = |i: &u32| sizes[*i as usize] < threshold;
    Mask::new(match among {
        Some(mask) => mask.positions().iter().copied().filter(below).collect(),
        None => (0..sizes.len() as u32).filter(below).collect(),
    })
}

impl Rule for Sara {
    fn check(&self, at: &str) -> Result<()> {
        check_density(at, self.density)?;
        if let Some(t) = self.threshold.filter(|t| t.is_nan() || *t <= 0.0) {
            let what = format!("expected a number above 0, got {t}");
            return Err(Error::input(format!("{at}.threshold"), what));
        }
        if !(0.0..1.0).contains(&self.progressive) {
            let what = format!("expected at least 0 and below 1, got {}", self.progressive);
            return Err(Error::input(format!("{at}.progressive"), what));
        }
        Ok(())
    }

    fn masks(&self, params: &[Param], _seed: Seed) -> Result<Option<Vec<Mask>>> {
        let sizes = sizes(params)?;
        let threshold = self.threshold(&sizes, params);
        sizes.iter().map(|s| idle(s, threshold, None)).collect::<Result<_>>().map(Some)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        (self.progressive > 0.0)
            .then(|| Box::new(Again { rule: self.clone(), threshold: None }) as _)
    }
}

/// Chooses again once.
struct Again {
    rule: Sara,
    threshold: Option<f32>,
}

impl Choice for Again {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>> {
        if now.step == 0 && now.round == 0 {
            // The weights still are those that the first masks were taken from.
            self.threshold = Some(self.rule.threshold(&sizes(now.own)?, now.own));
            return Ok(None);
        }
        let due = (self.rule.progressive * now.steps as f64).round() as u64;
        let Some(threshold) = self.threshold.filter(|_| now.step == due && now.round == 0) else {
            return Ok(None);
        };
        let again = sizes(now.now)?
            .iter()
            .zip(now.now)
            .map(|(sizes, p)| idle(sizes, threshold, p.mask.as_ref()))
            .collect::<Result<Vec<Mask>>>()?;
        let (before, after) = (
            now.now.iter().map(Param::count).sum::<usize>(),
            again.iter().map(Mask::len).sum::<usize>(),
        );
        let handover = if self.rule.keep_state { Handover::Keep } else { Handover::Fresh };
        let note = format!("{after} of {before} entries are still below {threshold:e} and go on");
        Ok(Some(Chosen { params: masked(now.now, again)?, handover, note }))
    }

    fn state(&self) -> Result<StateDict> {
        let one = |t: f32| -> Result<_> {
            Ok(("threshold".into(), candle_core::Tensor::new(&[t], &candle_core::Device::Cpu)?))
        };
        self.threshold.map(one).into_iter().collect()
    }

    fn load(&mut self, state: StateDict) -> Result<()> {
        let read = |t: &candle_core::Tensor| -> Result<f32> { Ok(t.to_vec1::<f32>()?[0]) };
        self.threshold = state.get("threshold").map(read).transpose()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_learning_rates() {
        for (threshold, want) in [(2e-3, 4.966e-4), (8e-4, 7.558e-4), (2e-4, 9.324e-4)] {
            assert!((learning_rate(threshold) - want).abs() < 1e-7, "{threshold}");
        }
    }

    #[test]
    fn idle_entries_are_chosen_and_those_that_grew_are_left() {
        let start = [0.001f32, 0.0015, 0.5, 0.003];
        let first = idle(&start, 2e-3, None).unwrap();
        assert_eq!(first.positions(), [0, 1]);
        let grown = [0.004f32, 0.001, 0.5, 0.003];
        assert_eq!(idle(&grown, 2e-3, Some(&first)).unwrap().positions(), [1]);
        assert_eq!(idle(&start, f32::INFINITY, None).unwrap().len(), 4);
        assert!(idle(&start, 0.0, None).unwrap().is_empty());
    }
}
