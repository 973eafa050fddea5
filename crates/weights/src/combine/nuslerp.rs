//! NuSLERP: spherical interpolation between two inputs, or between what they differ by from a base.
//!
//! `t = w₂ / (w₁ + w₂)`, ½ where the weights add up to 0. The angle is that of the whole tensors, or
//! with `nuslerp_flatten: false` that of each row, with `nuslerp_row_wise` too of each column. The
//! names say it the other way round; they are mergekit's, and so is the meaning. **Departures**: (1)
//! parallel is what has `1 − cos² ≤ 1e-12` in f64; mergekit's threshold of 1e-16 in f32 means the same.

use luthier_core::Result;

use crate::{
    combine::{Combine, gram::Gram, slerp::arc},
    method::Given,
    operands::{As, Cut, Loaded, Put, Work, add},
};

/// `merge_method: nuslerp`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NuSlerp {
    /// How far to go from the first to the second.
    pub t: f64,
    /// What has one angle.
    pub along: Along,
}

/// What has one angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// The whole tensor.
    Whole,
    /// Every row.
    Rows,
    /// Every column.
    Columns,
}

/// Shorter vectors are not stretched to length 1; mergekit's threshold.
const NO_LENGTH: f64 = 1e-7;

impl NuSlerp {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let weight = given.numbers("weight");
        let total: f64 = weight.iter().sum();
        let t = if total.abs() < 1e-6 { 0.5 } else { weight[1] / total };
        let along = match (given.switch("nuslerp_flatten"), given.switch("nuslerp_row_wise")) {
            (true, _) => Along::Whole,
            (false, false) => Along::Rows,
            (false, true) => Along::Columns,
        };
        Ok(Box::new(NuSlerp { t, along }))
    }

    fn weights(&self, (aa, ab, bb): (f64, f64, f64)) -> (f64, f64) {
        let cosine = ab / (aa.sqrt().max(NO_LENGTH) * bb.sqrt().max(NO_LENGTH));
        let cosine = cosine.clamp(-1.0, 1.0);
        arc(self.t, cosine, 1.0 - cosine * cosine <= 1e-12)
    }

    fn whole(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let gram = Gram::of(work, As::Deltas)?;
        let (a, b) = self.weights((gram.dot(0, 0), gram.dot(0, 1), gram.dot(1, 1)));
        work.write_sum(As::Deltas, &[a, b], put)
    }

    fn rows(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        work.write(Cut::Rows, As::Deltas, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            let row = work.row();
            for (i, out) in out.chunks_mut(row).enumerate() {
                let of = |x: &'_ Vec<f32>| x[i * row..i * row + out.len()].to_vec();
                let pair = [of(&others[0]), of(&others[1])];
                let gram = Gram::among(&pair);
                let (a, b) = self.weights((gram.dot(0, 0), gram.dot(0, 1), gram.dot(1, 1)));
                add(out, a as f32, &pair[0]);
                add(out, b as f32, &pair[1]);
            }
            with_base(work, out, base);
            Ok(())
        })
    }

    fn columns(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let row = work.row();
        let pieces = work.gather(Cut::Rows, As::Deltas, |_, loaded| {
            let mut sums = vec![(0f64, 0f64, 0f64); row];
            let (first, second) = (&loaded.others[0], &loaded.others[1]);
            for (first, second) in first.chunks(row).zip(second.chunks(row)) {
                for ((sum, x), y) in sums.iter_mut().zip(first).zip(second) {
                    let (x, y) = (f64::from(*x), f64::from(*y));
                    *sum = (sum.0 + x * x, sum.1 + x * y, sum.2 + y * y);
                }
            }
            Ok(sums)
        })?;
        let mut sums = vec![(0.0, 0.0, 0.0); row];
        for piece in pieces {
            for (sum, more) in sums.iter_mut().zip(piece) {
                *sum = (sum.0 + more.0, sum.1 + more.1, sum.2 + more.2);
            }
        }
        let weights: Vec<(f64, f64)> = sums.into_iter().map(|sums| self.weights(sums)).collect();
        work.write(Cut::Rows, As::Deltas, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            let pairs = others[0].chunks(row).zip(others[1].chunks(row));
            for (out, (first, second)) in out.chunks_mut(row).zip(pairs) {
                for (((y, (a, b)), x0), x1) in out.iter_mut().zip(&weights).zip(first).zip(second) {
                    *y = *a as f32 * x0 + *b as f32 * x1;
                }
            }
            with_base(work, out, base);
            Ok(())
        })
    }
}

fn with_base(work: &Work<'_>, out: &mut [f32], base: &[f32]) {
    if work.has_base() {
        add(out, 1.0, base);
    }
}

impl Combine for NuSlerp {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        match self.along {
            Along::Whole => self.whole(work, put),
            Along::Columns if !work.is_vector() => self.columns(work, put),
            Along::Rows | Along::Columns => self.rows(work, put),
        }
    }
}
