//! What forms must know before they begin: measured on the training data, or read from the file.

use std::{collections::BTreeMap, sync::Arc};

use luthier_core::{Batch, Error, Model, Policy, Result, Row, StateDict};
use luthier_data::Plan;
use luthier_kernels::tensor;
use luthier_params::{Lora, Target};
use luthier_probe::{Components, components::Found};
use luthier_train::Train;

use crate::open::Opened;

/// What the forms of `config` ask for; empty for most of them.
pub fn measured(config: &Train, opened: &Opened, rows: &[Row], plan: &Plan) -> Result<StateDict> {
    match &config.params.lora {
        Some(lora) if lora.needs_activations() => {
            let found = directions(lora, &opened.model, rows, plan)?;
            tracing::info!(
                "measured the inputs of {} sites on {} batches; {} had not settled",
                found.ranks.len(),
                found.batches,
                found.unconverged.len()
            );
            Ok(found.state)
        }
        Some(lora) if lora.needs_weights() => weights(lora, opened),
        _ => Ok(StateDict::default()),
    }
}

/// Tokens in a batch of the probe, for each component that is sought. With twice as many the
/// directions found in SmolLM2-135M are the same to 0.4 % of their squared cosines.
const TOKENS: usize = 8;

/// The main directions of the inputs of every adapted site, on rows in the order of the first epoch.
pub fn directions(lora: &Lora, model: &Arc<dyn Model>, rows: &[Row], plan: &Plan) -> Result<Found> {
    let eva = &lora.eva;
    let targets = lora.targets(model.sites())?;
    let linear = targets.iter().filter(|t| t.site.linear().is_some());
    let components = |t: &Target| eva.components(t.r).min(t.widths().0);
    let wanted: BTreeMap<String, usize> =
        linear.map(|t| (t.site.name.clone(), components(t))).collect();
    let Some(most) = wanted.values().max() else {
        return Err(Error::input("train.params.lora.init", "\"eva\" needs a linear site")
            .hint("the embedding has no inputs to measure"));
    };
    let (tau, center, use_label_mask) = (eva.tau, eva.center, eva.use_label_mask);
    let probe = Components { tau, center, use_label_mask, ..Components::default() };
    let counted = |row: &Row| if use_label_mask { row.trained() } else { row.len() };
    let order = plan.epoch(0).concat();
    let in_order = order.iter().map(|i| &rows[*i]);
    let batches = batches(in_order, counted, TOKENS * most, probe.svd_batches_max);
    let allot = |ratios: &BTreeMap<String, Vec<f64>>| eva.ranks(&targets, ratios);
    probe.find(&Policy::plain(model.clone()), &batches, &wanted, &allot)
}

/// At most `limit` batches of rows in their order, each with `enough` tokens that count; what is left
/// at the end goes with the last one.
fn batches<'r>(
    rows: impl Iterator<Item = &'r Row>,
    counted: impl Fn(&Row) -> usize,
    enough: usize,
    limit: usize,
) -> Vec<Batch> {
    let (mut all, mut open, mut tokens) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        open.push(row);
        tokens += counted(row);
        if tokens >= enough {
            all.push(std::mem::take(&mut open));
            tokens = 0;
            if all.len() == limit {
                break;
            }
        }
    }
    match all.last_mut() {
        Some(last) => last.extend(open),
        None => all.push(open),
    }
    all.into_iter().map(Batch::from_rows).collect()
}

/// The weights of every adapted site as the file has them.
fn weights(lora: &Lora, opened: &Opened) -> Result<StateDict> {
    let mut state = StateDict::default();
    for target in lora.targets(opened.model.sites())? {
        if let (Some((i, o)), Some(module)) = (target.site.linear(), &target.site.module) {
            let weight = opened.exact(&format!("{module}.weight"))?;
            state
                .insert(format!("{}.weight", target.site.name), tensor::from_vec(weight, &[o, i])?);
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_enough_tokens_and_leave_no_row_out() {
        let row = |i: usize, trained: usize| {
            let weights: Vec<f32> = (0..=9).map(|t| f32::from(u8::from(t <= trained))).collect();
            Row::from_tokens(&[0; 10], &weights, i)
        };
        let rows: Vec<Row> = (0..8).map(|i| row(i, 1 + i % 3)).collect();
        let cut = |enough, limit| -> Vec<Vec<usize>> {
            let batches = batches(rows.iter(), Row::trained, enough, limit);
            batches.into_iter().map(|batch| batch.examples_b).collect()
        };
        // Trained tokens: 1 2 3 1 2 3 1 2.
        assert_eq!(cut(3, 64), [vec![0, 1], vec![2], vec![3, 4], vec![5], vec![6, 7]]);
        assert_eq!(cut(5, 64), [vec![0, 1, 2], vec![3, 4, 5, 6, 7]]);
        assert_eq!(cut(5, 1), [vec![0, 1, 2]]);
        assert_eq!(cut(100, 64), [(0..8).collect::<Vec<usize>>()]);
        let all = batches(rows.iter(), Row::len, 20, 64);
        assert_eq!(all.iter().map(Batch::n).collect::<Vec<usize>>(), [27, 45]);
    }
}
