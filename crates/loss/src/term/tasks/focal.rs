//! Focal losses: what is known already counts less.
//!
//! Both are functions of log-probabilities alone. Their slopes are taken here in f64, so that the graph is
//! one product per token and nothing is lost where a probability is near 1.

use luthier_core::{Batch, Result};

use super::Tasks;
use crate::Totals;

/// `(1 − p)^γ · −log p` and its slope by `log p`.
pub(super) fn focal(logp: f64, gamma: f64) -> (f64, f64) {
    let rest = -logp.exp_m1();
    if gamma == 0.0 {
        return (-logp, -1.0);
    }
    // The limit at p = 1, where a power below 1 has no slope.
    if rest <= 0.0 {
        return (0.0, 0.0);
    }
    let power = rest.powf(gamma);
    (-power * logp, -power + gamma * logp.exp() * power / rest * logp)
}

/// Slopes by each token's logp, and the constant that is left.
pub(super) fn tokens(tasks: &Tasks, coefficients_m: &[f64], logp_m: &[f32]) -> (Vec<f32>, f64) {
    let mut constant = 0.0;
    let slope = |(coefficient, logp): (&f64, &f32)| {
        let logp = f64::from(*logp);
        let (value, slope) = focal(logp, tasks.focal_gamma);
        let by = coefficient * tasks.focal_alpha;
        let slope = (by * slope) as f32;
        constant += by * value - f64::from(slope) * logp;
        slope
    };
    let slopes_m = coefficients_m.iter().zip(logp_m).map(slope).collect();
    (slopes_m, constant)
}

/// The same where the mean probability of a task is looked at. `coefficients_m` are those of a mean over the
/// task's rows, times the task's share and the step's weight.
pub(super) fn tasks(
    tasks: &Tasks,
    coefficients_m: &[f64],
    logp_m: &[f32],
    index_m: &[u32],
    batch: &Batch,
    step: &Totals,
) -> Result<(Vec<f32>, f64)> {
    let shares = tasks.shares(step)?;
    let row_of = |i: u32| batch.rows.offsets.partition_point(|offset| *offset <= i as usize) - 1;
    let task_m: Vec<usize> = index_m.iter().map(|i| batch.tasks_b[row_of(*i)]).collect();
    let here = Totals::of([batch]);
    let mut slopes_m = vec![0.0; logp_m.len()];
    let mut constant = 0.0;
    for (task, own) in &here.tasks {
        // What a sum of coefficients is where every probability is 1: that of the rows in this pass.
        let whole = shares[task] * step.all.weight;
        let part = whole * own.rows as f64 / step.tasks[task].rows as f64;
        if part == 0.0 {
            continue;
        }
        let of_task: Vec<usize> = (0..logp_m.len()).filter(|m| task_m[*m] == *task).collect();
        let p = |m: usize| f64::from(logp_m[m]).exp();
        let mean = of_task.iter().map(|m| coefficients_m[*m] * p(*m)).sum::<f64>() / part;
        let log_mean = mean.clamp(f64::MIN_POSITIVE, 1.0).ln();
        let (value, slope) = focal(log_mean, tasks.focal_gamma);
        constant += part * tasks.focal_alpha * value;
        for m in of_task {
            // d log P / d logp = c·p / (part·P).
            let by = tasks.focal_alpha * slope * coefficients_m[m] * p(m) / log_mean.exp();
            slopes_m[m] = by as f32;
            constant -= f64::from(by as f32) * f64::from(logp_m[m]);
        }
    }
    Ok((slopes_m, constant))
}
