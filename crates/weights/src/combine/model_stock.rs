//! Model Stock (Jang et al. 2024): how far to go from the base to the mean follows from the angle
//! between the inputs.
//!
//! `t = k · cos θ / (1 + (k − 1) · cos θ)`, `base + t · (mean − base)`; cos θ the mean cosine over all
//! pairs of the `k` differences from the base, of the whole tensor or, with `filter_wise`, of each row.
//! Where the denominator vanishes, the base. **Departures**: none.

use luthier_core::Result;

use crate::{
    combine::{Combine, gram::Gram},
    method::Given,
    operands::{As, Cut, Loaded, Put, Work, add},
};

/// `merge_method: model_stock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelStock {
    /// An angle for each row.
    pub filter_wise: bool,
}

impl ModelStock {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(ModelStock { filter_wise: given.switch("filter_wise") }))
    }
}

/// The weight of each difference.
fn share(gram: &Gram) -> f64 {
    let k = gram.len();
    let mut cosines = Vec::new();
    for i in 0..k {
        for j in 0..i {
            let lengths = (gram.norm(i) * gram.norm(j)).max(1e-6);
            cosines.push((gram.dot(i, j) / lengths).clamp(-1.0, 1.0));
        }
    }
    let cosine = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    let below = 1.0 + (k as f64 - 1.0) * cosine;
    // Differences that cancel each other say nothing about the way to go.
    if below.abs() < 1e-6 { 0.0 } else { cosine / below }
}

impl Combine for ModelStock {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        if !self.filter_wise {
            let share = share(&Gram::of(work, As::Deltas)?);
            return work.write_sum(As::Deltas, &vec![share; work.others()], put);
        }
        let row = work.row();
        work.write(Cut::Rows, As::Deltas, put, |_, loaded| {
            let Loaded { base, others, out, .. } = loaded;
            for (i, out) in out.chunks_mut(row).enumerate() {
                let at = i * row..i * row + out.len();
                let rows: Vec<&[f32]> = others.iter().map(|x| &x[at.clone()]).collect();
                let share = share(&Gram::among(&rows)) as f32;
                rows.iter().for_each(|x| add(out, share, x));
                add(out, 1.0, &base[at]);
            }
            Ok(())
        })
    }
}
