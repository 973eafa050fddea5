//! The objective on held-out rows, without gradients.

use candle_core::{D, Tensor};
use luthier_core::{Batch, Ctx, Error, Head, Logits, Policy, Result, Row, model::gather_logp};
use luthier_kernels::threads;
use luthier_loss::{Objective, Totals, pair, told};

use crate::{backward::terms, order::micro_batches, step::add_logs};

/// The objective's mean over `rows`, in whole units, and its logged numbers.
pub fn evaluate(
    policy: &Policy,
    objective: &dyn Objective,
    teacher: Option<&Policy>,
    rows: &[Row],
    micro_tokens: usize,
) -> Result<(f64, Vec<(&'static str, f64)>)> {
    let all: Vec<usize> = (0..rows.len()).collect();
    let (mut sum, mut logs) = (0.0, Vec::new());
    let passes = micro_batches(&all, rows, micro_tokens, objective.unit().rows());
    let batch = |pass: &Vec<usize>| Batch::from_rows(pass.iter().map(|i| &rows[*i]));
    let passes: Vec<Batch> = passes.iter().map(batch).collect();
    let normaliser = objective.normaliser(&passes.iter().collect::<Vec<_>>());
    let whole = Totals { by: normaliser, ..Totals::of(&passes) };
    for batch in &passes {
        let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
        ctx.weights_n = Some(&batch.weights_n);
        let h_nd = policy.hidden(&mut ctx)?;
        let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
        let terms = terms(objective, &mut head, teacher, batch, &whole)?;
        sum += f64::from(terms.sum.to_scalar::<f32>()?);
        add_logs(&mut logs, &terms.logs);
    }
    Ok((sum / normaliser, told::numbers(&logs)))
}

/// Bins of confidence of equal width.
const BINS: usize = 10;
/// Tokens whose logits exist at a time.
const PIECE: usize = 128;

/// Of the next token over the trained targets of `rows`: the expected calibration error, `ece` (how far the
/// likeliest token's probability is from how often it is the one that stands there); how often it is,
/// `token_accuracy`; and the distributions' mean `entropy` in nats.
pub fn next_token(
    policy: &Policy,
    rows: &[Row],
    micro_tokens: usize,
) -> Result<[(&'static str, f64); 3]> {
    let all: Vec<usize> = (0..rows.len()).collect();
    let (mut answers, mut entropy) = (Vec::new(), 0.0);
    for pass in micro_batches(&all, rows, micro_tokens, 1) {
        let batch = Batch::from_rows(pass.iter().map(|i| &rows[*i]));
        threads::together(|| -> Result<()> {
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            ctx.weights_n = Some(&batch.weights_n);
            let h_nd = policy.hidden(&mut ctx)?;
            let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
            for index in batch.trained_m().chunks(PIECE) {
                let logits_mv = head.logits(index)?;
                let targets: Vec<u32> =
                    index.iter().map(|i| batch.targets_n[*i as usize]).collect();
                let top_m = logits_mv.argmax(D::Minus1)?.to_vec1::<u32>()?;
                let logp_m = gather_logp(&logits_mv, &top_m)?.to_vec1::<f32>()?;
                let told = logp_m.iter().zip(top_m.iter().zip(targets));
                answers.extend(told.map(|(l, (top, t))| (f64::from(*l).exp(), *top == t)));
                entropy += nats(&logits_mv)?;
            }
            Ok(())
        })?;
    }
    let n = answers.len().max(1) as f64;
    let right = answers.iter().filter(|(_, right)| *right).count() as f64;
    let ece = ("ece", calibration_error(&answers));
    Ok([ece, ("token_accuracy", right / n), ("entropy", entropy / n)])
}

/// The sum of the entropies of some tokens' distributions: `ln Σ e − Σ e·x / Σ e` with `x` the logits less the
/// largest and `e` their exponentials.
fn nats(logits_mv: &Tensor) -> Result<f64> {
    let x_mv = logits_mv.broadcast_sub(&logits_mv.max_keepdim(D::Minus1)?)?;
    let e_mv = x_mv.exp()?;
    let total_m = e_mv.sum(D::Minus1)?;
    let mean_m = ((e_mv * x_mv)?.sum(D::Minus1)? / &total_m)?;
    Ok(f64::from((total_m.log()? - mean_m)?.sum_all()?.to_scalar::<f32>()?))
}

/// `Σ_bins |bin|/n · |accuracy − confidence|` of confidences and outcomes.
fn calibration_error(answers: &[(f64, bool)]) -> f64 {
    let mut gaps = [0.0; BINS];
    for (confidence, right) in answers {
        let bin = ((confidence * BINS as f64) as usize).min(BINS - 1);
        gaps[bin] += f64::from(u8::from(*right)) - confidence;
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / answers.len().max(1) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_shares() {
        // Shares of 1/2, 1/4, 1/4 and of 1, 0, 0.
        let logits: [f32; 6] = [3.0 + 2f32.ln(), 3.0, 3.0, 90.0, -20.0, -40.0];
        let logits_mv = Tensor::from_slice(&logits, (2, 3), &candle_core::Device::Cpu).unwrap();
        assert!((nats(&logits_mv).unwrap() - 1.5 * 2f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_calibration_error_is_the_papers() {
        let answers = [(0.95, true), (0.85, true), (0.85, false), (0.65, true)];
        assert!((calibration_error(&answers) - 0.275).abs() < 1e-12);
        assert_eq!(calibration_error(&[(1.0, true)]), 0.0);
    }
}
