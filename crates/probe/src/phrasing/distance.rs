//! How far a phrasing takes the model from the phrasings that it was tuned on.

use luthier_core::{Batch, Ctx, Error, Policy, Result, batch::pack};
use luthier_kernels::threads;

use super::{Item, PASS, ask, check};

/// The last residual stream of every item where the first token of its answer is predicted.
pub fn states(policy: &Policy, items: &[Item]) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        check(i, item)?;
        rows.push(ask(policy, item, i, 0, 1));
    }
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut states = Vec::with_capacity(rows.len());
    for pass in pack(&all, |row| rows[row].row.len(), PASS) {
        let batch = Batch::from_rows(pass.iter().map(|row| &rows[*row].row));
        let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
        ctx.weights_n = Some(&batch.weights_n);
        let h_nd = threads::together(|| policy.hidden(&mut ctx))?;
        let (_, d) = h_nd.dims2()?;
        let flat = h_nd.flatten_all()?.to_vec1::<f32>()?;
        for (b, row) in pass.iter().enumerate() {
            let at = batch.rows.offsets[b] + rows[*row].from;
            states.push(flat[at * d..(at + 1) * d].to_vec());
        }
    }
    Ok(states)
}

/// The mean distance over items to the closest of several templates, whose states are those of the
/// same items.
pub fn closest(templates: &[Vec<Vec<f32>>], of: &[Vec<f32>]) -> Result<f64> {
    if of.is_empty() || templates.iter().any(|states| states.len() != of.len()) {
        let what = format!("expected states of the same items, of which there are {}", of.len());
        return Err(Error::input("phrasing.closest", what));
    }
    let squared = |a: &f32, b: &f32| (f64::from(*a) - f64::from(*b)).powi(2);
    let distance = |(a, b): (&Vec<f32>, &Vec<f32>)| -> f64 {
        a.iter().zip(b).map(|(a, b)| squared(a, b)).sum::<f64>().sqrt()
    };
    let mean = |states: &Vec<Vec<f32>>| -> f64 {
        states.iter().zip(of).map(distance).sum::<f64>() / of.len() as f64
    };
    Ok(templates.iter().map(mean).fold(f64::INFINITY, f64::min))
}

/// Spearman's rank correlation; values that are equal share the mean of their ranks. Not a number
/// where one of the two never changes.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "pairs of values");
    let (a, b) = (ranks(a), ranks(b));
    let centre = (a.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - centre) * (y - centre)).sum()
    };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let rank = first as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|i| ranks[*i] = rank);
        first += equal.len();
    }
    ranks
}
