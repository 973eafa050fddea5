//! Right answers weighed against similar wrong ones by the policy as it is before a step (paper 25; see
//! [`luthier_loss::Fait`]).

use luthier_core::{Batch, Ctx, Head, Logits, Policy, Result, Row};
use luthier_kernels::threads;
use luthier_loss::Fait;

use crate::order::micro_batches;

/// The rows, right and wrong in turn, with what the pair needs in the label of the right one. Wrong ones
/// have done their work: what remains of each is one token that nobody asks for.
pub fn judged(
    fait: &Fait,
    policy: &Policy,
    mut rows: Vec<Row>,
    micro_tokens: usize,
) -> Result<Vec<Row>> {
    let all: Vec<usize> = (0..rows.len()).collect();
    for pass in micro_batches(&all, &rows, micro_tokens, 2) {
        let batch = Batch::from_rows(pass.iter().map(|i| &rows[*i]));
        let ask = &mut |index_m: &[u32], targets_m: &[u32]| {
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            ctx.weights_n = Some(&batch.weights_n);
            let h_nd = policy.hidden(&mut ctx)?.detach();
            let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
            Ok(head.logp(index_m, targets_m)?.to_vec1::<f32>()?)
        };
        let rho = threads::together(|| fait.judge(ask, &batch))?;
        for (pair, rho) in pass.chunks_exact(2).zip(rho) {
            rows[pair[0]].label = rho;
        }
    }
    let placeholders = policy.hooks.virtual_tokens;
    for wrong in rows.iter_mut().skip(1).step_by(2) {
        *wrong = spent(wrong, placeholders);
    }
    Ok(rows)
}

/// A row's first token, behind the placeholders that every row has.
fn spent(row: &Row, placeholders: usize) -> Row {
    let n = row.len().min(placeholders + 1);
    Row {
        ids: row.ids[..n].to_vec(),
        targets: row.targets[..n].to_vec(),
        weights: vec![0.0; n],
        tags: Vec::new(),
        teacher: None,
        ..row.clone()
    }
}
