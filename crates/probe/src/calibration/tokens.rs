//! How sure a model is of every token that it finds likeliest, and whether that is the one that stands
//! there: of the whole distribution, not of a few tokens.

use luthier_core::{Batch, Ctx, Head, Logits, Policy, Result};
use luthier_kernels::{
    math::{exp_sum, max},
    threads,
};

/// Tokens whose logits exist at a time.
const PIECE: usize = 128;

/// Confidence and outcome at every trained token of a batch, in order.
pub fn tokens(policy: &Policy, batch: &Batch) -> Result<Vec<(f64, bool)>> {
    batch.check_vocab(policy.model.vocab())?;
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
    let mut answers = Vec::new();
    for index in batch.trained_m().chunks(PIECE) {
        let logits_mv = head.logits(index)?.to_vec2::<f32>()?;
        let mut found = vec![(0.0, false); index.len()];
        let rows = found.iter_mut().zip(logits_mv).zip(index).collect();
        threads::for_each(rows, |((found, mut logits), i)| {
            let top = max(&logits);
            let right = logits.iter().position(|x| *x == top)
                == Some(batch.targets_n[*i as usize] as usize);
            *found = (1.0 / f64::from(exp_sum(&mut logits, 1.0, top)), right);
        });
        answers.extend(found);
    }
    Ok(answers)
}
