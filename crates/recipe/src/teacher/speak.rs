//! What a teacher says of rows: its likeliest tokens at every target, a few tokens' logits at a time.

use luthier_core::{
    Batch, Ctx, Error, Head, Logits, Policy, Result, Row,
    batch::{Told, pack},
};
use luthier_kernels::{
    math::{exp_sum, max},
    threads,
};

use crate::evaluate::OnDone;

/// Tokens that are read in one pass.
const PASS_TOKENS: usize = 512;
/// Tokens whose logits exist at a time.
const PIECE: usize = 64;

/// What was said of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spoken {
    /// The likeliest tokens at every target of non-zero weight.
    pub told: Told,
    /// The log-probability of these targets themselves.
    pub targets: Vec<f32>,
}

/// Asks for the `k` likeliest tokens; `on_done` hears of rows.
pub fn speak(policy: &Policy, rows: &[Row], k: usize, on_done: OnDone) -> Result<Vec<Spoken>> {
    let vocab = policy.model.vocab();
    if k == 0 || k > vocab {
        let what = format!("expected 1 to {vocab}, the teacher's tokens, got {k}");
        return Err(Error::input("--top-k", what));
    }
    let behind = policy.hooks.virtual_tokens;
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut spoken = Vec::with_capacity(rows.len());
    for pass in pack(&all, |row| rows[row].len() + behind, PASS_TOKENS) {
        let placed: Vec<Row> = pass.iter().map(|i| rows[*i].clone().behind(behind)).collect();
        let batch = Batch::from_rows(&placed);
        batch.check_vocab(vocab)?;
        spoken.extend(threads::together(|| of_batch(policy, &batch, k))?);
        on_done(spoken.len(), rows.len());
    }
    Ok(spoken)
}

fn of_batch(policy: &Policy, batch: &Batch, k: usize) -> Result<Vec<Spoken>> {
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
    let index_m = batch.trained_m();
    let mut said: Vec<(Vec<(f32, u32)>, f32)> = Vec::with_capacity(index_m.len());
    for index in index_m.chunks(PIECE) {
        let logits_mv = head.logits(index)?.to_vec2::<f32>()?;
        let mut found = vec![(Vec::new(), 0.0); index.len()];
        let tasks = found.iter_mut().zip(logits_mv).zip(index).collect();
        threads::for_each(tasks, |((found, logits), i)| {
            *found = likeliest(logits, batch.targets_n[*i as usize], k);
        });
        said.extend(found);
    }
    let mut said = index_m.iter().zip(said).peekable();
    let mut rows = Vec::with_capacity(batch.rows.b());
    for (row, example) in batch.examples_b.iter().enumerate() {
        let mut one = Spoken { told: Told { k, ..Told::default() }, targets: Vec::new() };
        let end = batch.rows.offsets[row + 1];
        while let Some((_, (likeliest, target))) = said.next_if(|(i, _)| (**i as usize) < end) {
            if !target.is_finite() {
                let what = format!("the teacher gives a target the log-probability {target}");
                return Err(Error::failed(format!("example {}", example + 1), what));
            }
            one.told.ids.extend(likeliest.iter().map(|(_, id)| id));
            one.told.logps.extend(likeliest.iter().map(|(logp, _)| logp));
            one.targets.push(target);
        }
        rows.push(one);
    }
    Ok(rows)
}

/// The `k` largest of a row of logits as log-probabilities, of equals the first, and the target's.
pub fn likeliest(mut logits: Vec<f32>, target: u32, k: usize) -> (Vec<(f32, u32)>, f32) {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
    for (id, logit) in logits.iter().enumerate() {
        if best.len() < k || *logit > best[best.len() - 1].0 {
            let at = best.partition_point(|(known, _)| known >= logit);
            best.insert(at, (*logit, id as u32));
            best.truncate(k);
        }
    }
    let of_target = logits[target as usize];
    let top = max(&logits);
    let log_z = top + exp_sum(&mut logits, 1.0, top).ln();
    best.iter_mut().for_each(|(logit, _)| *logit -= log_z);
    (best, of_target - log_z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_first() {
        let logits = vec![0.0, 2.0, 1.0, 2.0, -1.0, 1.0];
        let z: f32 = logits.iter().map(|x: &f32| x.exp()).sum();
        let (best, target) = likeliest(logits.clone(), 4, 4);
        assert_eq!(best.iter().map(|(_, id)| *id).collect::<Vec<u32>>(), [1, 3, 2, 5]);
        for (logp, id) in best {
            assert!((logp - (logits[id as usize] - z.ln())).abs() < 1e-6);
        }
        assert!((target - (-1.0 - z.ln())).abs() < 1e-6);
    }
}
