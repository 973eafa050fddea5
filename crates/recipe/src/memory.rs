//! How much memory a training run will need, and whether activations can be kept in it.

use luthier_core::Row;
use luthier_data::Plan;
use luthier_kernels::num::Precision;
use luthier_params::{Bound, Kind};
use luthier_train::{
    Activation, Train,
    estimate::{self, Block, Memory, Sizes},
    order::micro_batches,
};

use crate::open::Opened;

/// Activations are kept while the estimate stays below this share of the memory at hand: the rest is
/// for what else the system does.
const COMFORTABLE: f64 = 0.6;

fn trainable(bound: &Bound) -> u64 {
    bound.vars.iter().map(|(_, v)| v.elem_count() as u64).sum()
}

/// Decides whether activations are kept, and estimates the peak.
pub fn plan(
    config: &Train,
    opened: &Opened,
    bound: &Bound,
    rows: &[Row],
    plan: &Plan,
) -> (bool, Memory) {
    // Tokens and trained tokens of the largest pass.
    let mut largest = (0, 0);
    for step in plan.epoch(0) {
        for pass in micro_batches(&step, rows, config.micro_tokens()) {
            let tokens = pass.iter().map(|i| rows[*i].len() as u64).sum();
            let trained = pass.iter().map(|i| rows[*i].trained() as u64).sum();
            largest = largest.max((tokens, trained));
        }
    }
    let (live_tokens, live_trained) = largest;
    let trainable = trainable(bound);
    let sizes = |keep| Sizes {
        // Weights that learn take the place of frozen ones, unless a run goes on from others.
        frozen: match bound.kind {
            Kind::Full(_) if config.continue_from.is_none() => {
                opened.parameters.saturating_sub(trainable)
            }
            _ => opened.parameters,
        },
        trainable,
        live_tokens,
        live_trained,
        buffers: config.update.check().map_or(2, |plan| plan.state.len() as u64),
        halves: opened.precision == Precision::Bf16,
        block: block(opened, bound),
        keep,
    };
    let of = |keep| estimate::memory(opened.model.as_ref(), sizes(keep));
    let keep = match config.activation {
        Activation::Keep => true,
        Activation::Recompute => false,
        Activation::Auto => {
            let needed = of(true).total() as f64;
            available().is_none_or(|room| needed < room as f64 * COMFORTABLE)
        }
    };
    (keep, of(keep))
}

/// How blocks are computed: by hand where every hook in them is a low-rank addition that sees all of
/// its inputs, else operation by operation.
fn block(opened: &Opened, bound: &Bound) -> Block {
    let (sites, layers) = (opened.model.sites(), opened.model.n_layers().max(1) as u64);
    let (mut ranks, mut added, mut by_hand) = (0, 0, true);
    for id in bound.policy.hooks.sites() {
        let info = sites.info(id);
        if info.layer.is_none() {
            continue;
        }
        let outputs = info.linear().map_or(0, |(_, o)| o as u64);
        for hook in bound.policy.hooks.get(id) {
            // What is added, and the sum.
            added += 2 * outputs;
            match hook.low_rank().filter(|low_rank| low_rank.dropout == 0.0) {
                Some(low_rank) => ranks += low_rank.a_ri.dims().first().map_or(0, |r| *r as u64),
                None => by_hand = false,
            }
        }
    }
    match by_hand {
        true => Block::ByHand { ranks: ranks / layers },
        false => Block::ByOperation { added: added / layers },
    }
}

/// Memory the system could give, where it tells.
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
