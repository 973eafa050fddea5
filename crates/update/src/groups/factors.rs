//! Rates that follow from a variable's kind and depth.
//!
//! - `layer_decay` ξ (Clark et al. 2020; paper 22): block `l` of `L`, from 1, learns at
//!   `lr · ξ^(L − l)`, the embedding at `lr · ξ^L`, everything else (final norm, head) at `lr`. With
//!   `layer_decay_head_offset = 1` blocks and embedding have one ξ more.
//! - `loraplus_lr_ratio` (Hayou et al. 2024, LoRA+): `lora_B`, and as in PEFT every vector, learns
//!   at `lr · ratio`, both factors of an embedding at `loraplus_lr_embedding`. **Departures** from
//!   PEFT: (1) weight decay is the optimizer's, where PEFT has a `loraplus_weight_decay` of its own.
//! - Biases and the weights of norms do not decay, by transformers' rule on their names, nor do
//!   some variables of forms, unless `decay_norms_and_biases`.

use luthier_core::{Error, Param, Result};

use crate::{Plan, Rates, Update, optimizer::check_rate, schedule::check_positive};

/// Ends of names that transformers does not know: Compacter's biases and small matrices, whose
/// entries of 1e-4 would not survive a decay, and SSF's scales, which rest at 1, and shifts.
const OURS: [&str; 4] = [".b", ".phm_rule", ".ssf_scale", ".ssf_shift"];

/// What PEFT takes when nobody says.
const LR_EMBEDDING: f64 = 1e-6;

pub(super) fn rates(update: &Update, plan: &Plan, param: &Param, n_layers: usize) -> Result<Rates> {
    let decays = update.decay_norms_and_biases || !is_norm_or_bias(&param.name);
    let learning_rate = match update.loraplus_lr_ratio {
        Some(_) if param.name.contains("lora_embedding_") => {
            update.loraplus_lr_embedding.unwrap_or(LR_EMBEDDING)
        }
        Some(ratio) if is_b(param) => plan.learning_rate * ratio,
        _ => plan.learning_rate,
    };
    let weight_decay = if decays { plan.weight_decay } else { 0.0 };
    Ok(Rates {
        learning_rate: learning_rate * by_depth(update, &param.name, n_layers)?,
        weight_decay,
    })
}

fn is_b(param: &Param) -> bool {
    param.name.contains("lora_B") || param.var.dims().len() == 1
}

fn by_depth(update: &Update, name: &str, n_layers: usize) -> Result<f64> {
    let Some(decay) = update.layer_decay else { return Ok(1.0) };
    let at = "train.update.layer_decay";
    let above = match layer_of(name) {
        Some(layer) if layer >= n_layers => {
            let what = format!("{name} is in layer {layer} of a model of {n_layers} layers");
            return Err(Error::failed(at, what));
        }
        Some(layer) => n_layers - 1 - layer,
        None if name.split('.').any(|part| part.starts_with("embed")) => n_layers,
        None => return Ok(1.0),
    };
    Ok(decay.powf((above + update.layer_decay_head_offset) as f64))
}

/// The number in `layers.3.…` or `model.layers.3.…`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| ["layers", "blocks", "h"].contains(part))?;
    parts.next()?.parse().ok()
}

/// transformers' `get_decay_parameter_names`, the other way round, and [`OURS`].
fn is_norm_or_bias(name: &str) -> bool {
    let name = name.to_lowercase();
    ["bias", "layernorm", "rmsnorm"].iter().any(|kind| name.contains(kind))
        || name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
        || OURS.iter().any(|end| name.ends_with(end))
}

/// Refuses settings without a meaning.
pub(crate) fn check(update: &Update) -> Result<()> {
    let at = "train.update";
    for (i, group) in update.groups.iter().enumerate() {
        group.check(&super::key(i))?;
    }
    if let Some(decay) = update.layer_decay
        && !(decay > 0.0 && decay <= 1.0)
    {
        let what = format!("expected above 0 and at most 1, got {decay}");
        return Err(Error::input(format!("{at}.layer_decay"), what));
    }
    match (update.layer_decay_head_offset, update.layer_decay) {
        (0, _) | (1, Some(_)) => {}
        (1, None) => return Err(idle("layer_decay_head_offset", "layer_decay")),
        (other, _) => {
            let what = format!("expected 0 or 1, got {other}");
            return Err(Error::input(format!("{at}.layer_decay_head_offset"), what));
        }
    }
    match (update.loraplus_lr_ratio, update.loraplus_lr_embedding) {
        (None, Some(_)) => return Err(idle("loraplus_lr_embedding", "loraplus_lr_ratio")),
        (Some(ratio), _) => check_positive(at, "loraplus_lr_ratio", ratio)?,
        (None, None) => {}
    }
    check_rate(at, "loraplus_lr_embedding", update.loraplus_lr_embedding.unwrap_or(0.0))
}

fn idle(key: &str, without: &str) -> Error {
    Error::input(format!("train.update.{key}"), format!("changes nothing without {without}"))
}

/// Refuses a setting that none of the variables answers to.
pub(super) fn expect_use(update: &Update, params: &[Param]) -> Result<()> {
    if update.loraplus_lr_ratio.is_some() && !params.iter().any(|p| p.name.contains("lora_B")) {
        return Err(Error::input("train.update.loraplus_lr_ratio", "there is no lora_B to learn")
            .hint("LoRA+ goes with [train.params.lora]"));
    }
    Ok(())
}
