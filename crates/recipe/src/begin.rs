//! What forms must know before they begin: measured on the training data, or read from the file.

use std::{collections::BTreeMap, sync::Arc};

use luthier_core::{Batch, Error, Model, Policy, Result, Row, StateDict};
use luthier_data::Plan;
use luthier_kernels::tensor;
use luthier_params::Lora;
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

/// The main directions of the inputs of every adapted site, on the steps of the first epoch.
pub fn directions(
    lora: &Lora,
    model: &Arc<dyn Model>,
    rows: &[Row],
    plan: &Plan,
) -> Result<Found> {
    let eva = &lora.eva;
    let targets = lora.targets(model.sites())?;
    let linear = targets.iter().filter(|t| t.site.linear().is_some());
    let wanted: BTreeMap<String, usize> =
        linear.map(|t| (t.site.name.clone(), eva.components(t.r))).collect();
    if wanted.is_empty() {
        return Err(Error::input("train.params.lora.init", "\"eva\" needs a linear site")
            .hint("the embedding has no inputs to measure"));
    }
    let (tau, center, use_label_mask) = (eva.tau, eva.center, eva.use_label_mask);
    let probe = Components { tau, center, use_label_mask, ..Components::default() };
    let step = |step: &Vec<usize>| Batch::from_rows(step.iter().map(|row| &rows[*row]));
    let batches: Vec<Batch> = plan.epoch(0).iter().take(probe.svd_batches_max).map(step).collect();
    let allot = |ratios: &BTreeMap<String, Vec<f64>>| eva.ranks(&targets, ratios);
    probe.find(&Policy::plain(model.clone()), &batches, &wanted, &allot)
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
