//! Weights judged by what the data's likelihood loses without them, to first order: `|w · dL/dw|`.

use candle_core::Tensor;
use luthier_core::{Batch, Param, Policy, Result, Row, Seed, batch::pack};
use luthier_loss::Nll;
use luthier_train::{Step, step::Data, sum::Gradients};

/// Tokens of a pass with its gradients.
const PASS: usize = 2048;

/// `dL/dw` by the name of each variable, `L` the mean over the answers' tokens of all rows.
pub(super) fn slopes(policy: &Policy, params: &[Param], rows: &[Row]) -> Result<Gradients> {
    let all: Vec<usize> = (0..rows.len()).collect();
    let passes = pack(&all, |row| rows[row].len(), PASS);
    let passes = passes.iter().map(|pass| Batch::from_rows(pass.iter().map(|row| &rows[*row])));
    let passes: Vec<Batch> = passes.collect();
    let objective = Nll::default();
    let step = Step { policy, params, objective: &objective, teacher: None, keep: true };
    let describe = &|row| format!("row {}", row + 1);
    let data = Data { number: 1, passes: &passes, noise: Seed(0), describe };
    Ok(step.gradients(&data, Gradients::new())?.gradients)
}

/// The scores of a matrix; without a slope nothing depends on it.
pub(super) fn scores(w_oi: &Tensor, slope_oi: Option<&Tensor>) -> Result<Vec<f32>> {
    let slope_oi = match slope_oi {
        Some(slope_oi) => slope_oi.clone(),
        None => w_oi.zeros_like()?,
    };
    Ok((w_oi * slope_oi)?.abs()?.flatten_all()?.to_vec1()?)
}
