//! How much memory a training run will need, and whether activations can be kept in it.

use luthier_core::{Param, Row};
use luthier_data::Plan;
use luthier_kernels::num::Precision;
use luthier_params::{Bound, Kept};
use luthier_train::{
    Activation, Train,
    estimate::{self, Block, Memory, Sizes},
    order::micro_batches,
};
use luthier_update::optimizer::Of;

use crate::open::Opened;

/// Activations are kept while the estimate stays below this share of the memory at hand: the rest is
/// for what else the system does.
const COMFORTABLE: f64 = 0.6;

/// Bytes of weights that do not learn, as they are held: at their quantised size where they are
/// quantised. Weights that learn take the place of frozen ones, unless a run goes on from others.
fn frozen_bytes(config: &Train, opened: &Opened, bound: &Bound) -> u64 {
    let learned = match bound.form.kept() {
        Kept::Model if config.continue_from.is_none() => bound.count().min(opened.parameters),
        _ => 0,
    };
    let share = (opened.parameters - learned) as f64 / opened.parameters.max(1) as f64;
    (opened.bytes as f64 * share) as u64
}

/// Bytes of what learns: the variables, the sums of their gradients, the optimizer's buffers.
fn learned_bytes(config: &Train, bound: &Bound) -> u64 {
    let state = config.update.check().map_or(Vec::new(), |plan| plan.state);
    let bytes = |p: &Param| {
        let (all, n) = (p.var.elem_count(), p.count());
        // Chosen entries learn as one row.
        let dims = if p.mask.is_some() { vec![n] } else { p.var.dims().to_vec() };
        let buffers = state.iter().map(|(_, of)| buffer_bytes(*of, &dims, n)).sum::<usize>();
        (4 * (all + n) + buffers) as u64
    };
    bound.params.iter().map(bytes).sum()
}

/// Bytes of an optimizer's buffer of a variable of which `n` numbers learn.
fn buffer_bytes(of: Of, dims: &[usize], n: usize) -> usize {
    let columns = dims.last().copied().unwrap_or(1).max(1);
    match of {
        Of::Codes(least) if n >= least => n,
        Of::Elements | Of::Parameters | Of::Codes(_) => 4 * n,
        Of::Blocks(size) => 4 * n.div_ceil(size),
        Of::Rows if dims.len() < 2 => 4 * n,
        Of::Rows => 4 * n / columns,
        Of::Columns if dims.len() < 2 => 0,
        Of::Columns => 4 * columns,
        Of::One => 4,
    }
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
        for pass in micro_batches(&step, rows, config.micro_tokens(), plan.unit) {
            let tokens = pass.iter().map(|i| rows[*i].len() as u64).sum();
            let trained = pass.iter().map(|i| rows[*i].trained() as u64).sum();
            largest = largest.max((tokens, trained));
        }
    }
    let (live_tokens, live_trained) = largest;
    let (weights, learned) = (frozen_bytes(config, opened, bound), learned_bytes(config, bound));
    let sizes = |keep| Sizes {
        frozen: opened.parameters,
        trainable: bound.count(),
        live_tokens,
        live_trained,
        buffers: 0,
        halves: opened.precision == Precision::Bf16,
        block: block(opened, bound),
        keep,
    };
    let of = |keep| {
        let memory = estimate::memory(opened.model.as_ref(), sizes(keep));
        Memory { weights, learned, ..memory }
    };
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
