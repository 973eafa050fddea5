//! Arcee Fusion: takes from the other input only the numbers that stand out.
//!
//! A number's importance is `|x − base|` times the Kullback–Leibler divergence between the softmaxes of
//! its row in both. Numbers whose importance reaches `median + 1.5 · (q₃ − q₁)` over the tensor are taken
//! from the other input, the rest from the base. **Departures**: (1) quartiles are exact, where mergekit
//! draws a million numbers of a larger tensor.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work},
    select::{Ask, by_value, edges, value_of},
};

/// `merge_method: arcee_fusion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArceeFusion;

impl ArceeFusion {
    pub(crate) fn of(_: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(ArceeFusion))
    }
}

/// Added to every probability, so that none is 0.
const EPS: f64 = 1e-8;

/// The largest, and the sum of exponentials over it.
fn normaliser(row: &[f32]) -> (f64, f64) {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    (most, row.iter().map(|x| (f64::from(*x) - most).exp()).sum())
}

/// How far the softmax of a row is from that of the base's row.
fn divergence(row: &[f32], base: &[f32]) -> f64 {
    let ((p_most, p_sum), (q_most, q_sum)) = (normaliser(row), normaliser(base));
    let term = |(p, q): (&f32, &f32)| {
        let p = (f64::from(*p) - p_most).exp() / p_sum + EPS;
        let q = (f64::from(*q) - q_most).exp() / q_sum + EPS;
        p * (p / q).ln()
    };
    row.iter().zip(base).map(term).sum()
}

/// The importance of every number of a piece of whole rows, into `spare`.
fn importances(row: usize, loaded: &mut Loaded) {
    let Loaded { base, others, spare, .. } = loaded;
    spare.clear();
    for (x, base) in others[0].chunks(row).zip(base.chunks(row)) {
        let far = divergence(x, base) as f32;
        spare.extend(x.iter().zip(base).map(|(x, b)| (x - b).abs() * far));
    }
}

impl Combine for ArceeFusion {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let (n, row) = (work.len(), work.row());
        let place = |share: f64| (share * (n - 1) as f64) as usize;
        let asks = [0.25, 0.5, 0.75].map(|share| Ask { column: 0, k: n - place(share) });
        let found = edges(work, (Cut::Rows, As::Values), &asks, |_, loaded, keys| {
            importances(row, loaded);
            keys[0].clear();
            keys[0].extend(loaded.spare.iter().map(|x| by_value(*x)));
            Ok(())
        })?;
        let quartile = |i: usize| value_of(found[i].key());
        let threshold = quartile(1) + 1.5 * (quartile(2) - quartile(0));
        work.write(Cut::Rows, As::Values, put, |_, loaded| {
            importances(row, loaded);
            let Loaded { base, others, out, spare, .. } = loaded;
            for (i, y) in out.iter_mut().enumerate() {
                let taken = spare[i] >= threshold;
                *y = if taken { base[i] + (others[0][i] - base[i]) } else { base[i] };
            }
            Ok(())
        })
    }
}
