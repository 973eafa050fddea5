//! How much memory a training run will need, and whether activations can be kept in it.

use luthier_core::{Param, Row};
use luthier_data::Plan;
use luthier_kernels::num::Precision;
use luthier_loss::{AlignOn, Loss};
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

/// Tokens whose logits exist at a time where an objective looks at whole distributions.
const PIECE: u64 = 64;
/// Tables for each such distribution: the logits, and what becomes of them.
const TABLES: u64 = 2;

/// How many models' distributions an objective looks at as a whole.
fn distributions(loss: &Loss) -> u64 {
    let of_two = loss
        .align
        .as_ref()
        .is_some_and(|align| align.lambda_kl > 0.0 && align.align_on == AlignOn::Logits);
    let asked = loss.distil.as_ref().is_some_and(|distil| distil.cache.is_none());
    let penalty = loss.penalty.as_ref();
    let of_one = loss.nll.as_ref().is_some_and(|nll| {
        nll.label_smoothing > 0.0 || nll.unlikelihood != 0.0 || nll.z_loss > 0.0
    });
    let weighed = loss.dpo.as_ref().is_some_and(|dpo| dpo.use_weighting);
    let stored = loss.distil.is_some() || penalty.is_some_and(|penalty| penalty.entropy != 0.0);
    match (of_two || asked || penalty.is_some_and(|penalty| penalty.kl > 0.0), of_one) {
        (true, _) => 2,
        (false, true) => 1,
        (false, false) => u64::from(weighed || stored),
    }
}

/// Decides whether activations are kept, and estimates the peak. `beside`: bytes of the weights of another
/// model that the objective asks.
pub fn plan(
    config: &Train,
    opened: &Opened,
    bound: &Bound,
    beside: u64,
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
    let weights = frozen_bytes(config, opened, bound) + beside;
    let learned = learned_bytes(config, bound);
    let width = opened.model.vocab() as u64 * size_of::<f32>() as u64;
    let logits = distributions(&config.loss) * TABLES * PIECE.min(live_trained) * width;
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
        Memory { weights, learned, activations: memory.activations + logits, ..memory }
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
