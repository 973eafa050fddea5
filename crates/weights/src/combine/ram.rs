//! Reinforced agent merging: what only one input changed is kept whole, what several changed is averaged.
//!
//! A number counts as changed by an input where `|δᵢ| > epsilon`; with `c` inputs that changed it, the
//! result is `base + Σ δᵢ / c` over these. `ramplus_tl` strengthens what one input alone changed by
//! `1 + r · clamp(ρᵢ, 0, alpha)`, `ρᵢ` its shared changes over its own. **Departures**: none.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
};

/// `merge_method: ram`, and with `plus` `ramplus_tl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ram {
    /// What is no change.
    pub epsilon: f64,
    /// `r` and `alpha`.
    pub plus: Option<(f64, f64)>,
}

impl Ram {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let plus = given.maybe("r").zip(given.maybe("alpha"));
        Ok(Box::new(Ram { epsilon: given.number("epsilon"), plus }))
    }

    /// How much each input's own changes are strengthened.
    fn strengths(&self, work: &Work<'_>) -> Result<Vec<f32>> {
        let n = work.others();
        let Some((r, alpha)) = self.plus else { return Ok(vec![1.0; n]) };
        let epsilon = self.epsilon as f32;
        let pieces = work.gather(Cut::Anywhere, As::Deltas, |piece, loaded| {
            let mut counts = vec![(0u64, 0u64); n];
            for i in 0..piece.len {
                let changed = |x: &Vec<f32>| x[i].abs() > epsilon;
                let shared = loaded.others.iter().filter(|x| changed(x)).count() > 1;
                for (count, _) in counts.iter_mut().zip(&loaded.others).filter(|(_, x)| changed(x))
                {
                    if shared { count.0 += 1 } else { count.1 += 1 }
                }
            }
            Ok(counts)
        })?;
        let strength = |i: usize| {
            let shared: u64 = pieces.iter().map(|p| p[i].0).sum();
            let own: u64 = pieces.iter().map(|p| p[i].1).sum();
            let share = shared as f64 / (own as f64).max(self.epsilon);
            (1.0 + r * share.clamp(0.0, alpha)) as f32
        };
        Ok((0..n).map(strength).collect())
    }
}

impl Combine for Ram {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let strengths = self.strengths(work)?;
        let epsilon = self.epsilon as f32;
        work.write(Cut::Anywhere, As::Deltas, put, |piece, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            for i in 0..piece.len {
                let changed =
                    || others.iter().zip(&strengths).filter(|(x, _)| x[i].abs() > epsilon);
                let change = match changed().count() {
                    0 => 0.0,
                    1 => changed().map(|(x, strength)| x[i] * strength).sum(),
                    n => changed().map(|(x, _)| x[i] / n as f32).sum::<f32>(),
                };
                out[i] = base[i] + change;
            }
            Ok(())
        })
    }
}
