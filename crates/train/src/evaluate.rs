//! The objective on held-out rows, without gradients.

use luthier_core::{Batch, Ctx, Error, Head, Policy, Result, Row};
use luthier_kernels::threads;
use luthier_loss::{Objective, pair};

use crate::{
    order::micro_batches,
    step::{add_logs, means},
};

/// The objective's mean over `rows`, in whole units, and its logged numbers.
pub fn evaluate(
    policy: &Policy,
    objective: &dyn Objective,
    rows: &[Row],
    micro_tokens: usize,
) -> Result<(f64, Vec<(&'static str, f64)>)> {
    let all: Vec<usize> = (0..rows.len()).collect();
    let (mut sum, mut normaliser, mut logs) = (0.0, 0.0, Vec::new());
    for micro in micro_batches(&all, rows, micro_tokens, objective.unit().rows()) {
        let batch = Batch::from_rows(micro.iter().map(|i| &rows[*i]));
        normaliser += objective.normaliser(&[&batch]);
        let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
        ctx.weights_n = Some(&batch.weights_n);
        let h_nd = policy.hidden(&mut ctx)?;
        let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
        let terms = objective.terms(&mut head, &batch)?;
        sum += f64::from(terms.sum.to_scalar::<f32>()?);
        add_logs(&mut logs, &terms.logs);
    }
    Ok((sum / normaliser, means(&logs)))
}

/// Keeps with every row what `policy` says of it, as the reference of objectives that have one.
pub fn refer(policy: &Policy, rows: &mut [Row], micro_tokens: usize) -> Result<()> {
    let all: Vec<usize> = (0..rows.len()).collect();
    for micro in micro_batches(&all, rows, micro_tokens, 1) {
        let batch = Batch::from_rows(micro.iter().map(|i| &rows[*i]));
        let logps = threads::together(|| -> Result<Vec<f64>> {
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            ctx.weights_n = Some(&batch.weights_n);
            let h_nd = policy.hidden(&mut ctx)?;
            let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
            pair::log_probabilities(&mut head, &batch)
        })?;
        for (i, logp) in micro.into_iter().zip(logps) {
            if !logp.is_finite() {
                let at = format!("example {}", rows[i].example);
                return Err(Error::failed(at, format!("the reference gives it {logp}")));
            }
            rows[i].reference = logp;
        }
    }
    Ok(())
}
