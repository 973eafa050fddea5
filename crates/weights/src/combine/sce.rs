//! SCE (Wan et al. 2024): select what varies, weigh by what changed, erase the minority's sign.
//!
//! Kept are the `select_topk` largest of the numbers whose variance across the inputs is not 0. Weights
//! are the mean squares of what is kept, over their sum; of each number, the inputs with the sign of the
//! sum speak, and their weighted mean is added to the base. **Departures**: none.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Piece, Put, Work, add, dot},
    select::{Ask, Edge, by_magnitude, edges},
};

/// `merge_method: sce`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sce {
    /// The share of varying numbers that is kept.
    pub select_topk: f64,
}

impl Sce {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let select_topk = given.number_within("select_topk", 0.0..=1.0)?;
        Ok(Box::new(Sce { select_topk }))
    }

    /// The set of numbers that is kept.
    fn edge(&self, work: &Work<'_>) -> Result<Edge> {
        if self.select_topk >= 1.0 {
            return Ok(Edge::ALL);
        }
        let counts = work.gather(Cut::Anywhere, As::Deltas, |_, loaded| {
            Ok(variances(loaded).iter().filter(|v| **v != 0.0).count())
        })?;
        let k = (counts.into_iter().sum::<usize>() as f64 * self.select_topk) as usize;
        let found = edges(
            work,
            (Cut::Anywhere, As::Deltas),
            &[Ask { column: 0, k }],
            |_, loaded, keys| {
                keys[0].clear();
                keys[0].extend(variances(loaded).iter().map(|v| by_magnitude(*v)));
                Ok(())
            },
        )?;
        Ok(found[0])
    }
}

/// The variance of each number across the inputs.
fn variances(loaded: &mut Loaded) -> &[f32] {
    let Loaded { others, out, spare, .. } = loaded;
    let n = others.len() as f32;
    out.fill(0.0);
    others.iter().for_each(|x| add(out, 1.0, x));
    spare.clear();
    spare.resize(out.len(), 0.0);
    for x in others.iter() {
        for ((v, sum), x) in spare.iter_mut().zip(out.iter()).zip(x) {
            let off = x - sum / n;
            *v += off * off;
        }
    }
    spare.iter_mut().for_each(|v| *v /= n);
    out.fill(0.0);
    spare
}

/// Sets to 0 what is not kept.
fn keep(edge: &Edge, piece: Piece, loaded: &mut Loaded) {
    if *edge == Edge::ALL {
        return;
    }
    let kept: Vec<bool> = variances(loaded)
        .iter()
        .enumerate()
        .map(|(i, v)| edge.holds(by_magnitude(*v), piece.from + i))
        .collect();
    for x in &mut loaded.others {
        x.iter_mut().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(x, _)| *x = 0.0);
    }
}

impl Combine for Sce {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let edge = self.edge(work)?;
        let n = work.others();
        let squares = work.gather(Cut::Anywhere, As::Deltas, |piece, loaded| {
            keep(&edge, piece, loaded);
            Ok(loaded.others.iter().map(|x| dot(x, x)).collect::<Vec<_>>())
        })?;
        let mean = |i: usize| squares.iter().map(|s| s[i]).sum::<f64>() / work.len() as f64;
        let means: Vec<f64> = (0..n).map(mean).collect();
        let total: f64 = means.iter().sum();
        // Where nothing changed, no input has more to say than another; mergekit's limit.
        let share = |m: &f64| if total < 1e-6 { 1.0 / n as f64 } else { m / total };
        let weights: Vec<f32> = means.iter().map(|m| share(m) as f32).collect();
        work.write(Cut::Anywhere, As::Deltas, put, |piece, loaded| {
            keep(&edge, piece, loaded);
            let Loaded { base, others, out, spare, .. } = loaded;
            spare.clear();
            spare.resize(out.len(), 0.0);
            others.iter().for_each(|x| add(spare, 1.0, x));
            for (i, (y, total)) in out.iter_mut().zip(spare.iter()).enumerate() {
                let (mut sum, mut speaking) = (0.0, 0.0);
                for (x, weight) in others.iter().zip(&weights) {
                    let speaks = if *total >= 0.0 { x[i] > 0.0 } else { x[i] < 0.0 };
                    if speaks {
                        sum += x[i] * weight;
                        speaking += weight;
                    }
                }
                *y = base[i] + sum / speaking.max(1e-6);
            }
            Ok(())
        })
    }
}
