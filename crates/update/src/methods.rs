//! What a recipe can name.

use luthier_core::Method;

/// Every optimizer, schedule, transform, average and rule that a recipe can name, by its key below
/// `train.update`.
pub const METHODS: &[Method] = &[
    Method::usual("adamw", "Adam with decoupled weight decay"),
    Method::usual("adam", "Adam with the decay in the gradient, with or without bias correction"),
    Method::usual("sgd", "gradient descent with momentum, dampening, Nesterov"),
    Method::usual("adafactor", "mean squares by row and column: memory for the edges of a matrix"),
    Method::usual("lion", "the sign of a mean: half of Adam's memory"),
    Method::usual("muon", "orthogonal steps for matrices"),
    Method::usual("schedule_free_adamw", "AdamW with a running average in place of a schedule"),
    Method::usual("adamw_8bit", "AdamW with a byte per number of its memory"),
    of_paper(7, "l1", "a pull of constant strength to where a weight began"),
    Method::usual("l2_sp", "a spring to where a weight began"),
    Method::usual("ewc", "a spring to where a weight began, as stiff as it mattered there"),
    of_paper(29, "nuclear", "the nuclear norm of what learns, so that it stays of low rank"),
    Method::usual("noise", "gradient noise that fades"),
    Method::usual("clip", "max_grad_norm for all, by group, by layer; or a limit for each number"),
    of_paper(22, "layer_decay", "lower layers learn more slowly"),
    Method::usual("loraplus_lr_ratio", "LoRA+: the second factor learns faster"),
    Method::usual("sam", "two passes a step, away from sharp valleys (SAM, ASAM)"),
    Method::usual("ema", "the exponential moving average of the weights is kept"),
    Method::usual("swa", "the mean of the weights along the end of the run is kept"),
    Method::usual("schedule.linear", "straight down to 0"),
    Method::usual("schedule.cosine", "a cosine wave down to 0"),
    Method::usual("schedule.cosine_with_restarts", "several cosine falls, each from the top"),
    Method::usual("schedule.polynomial", "a power of the remaining share, down to lr_end"),
    Method::usual("schedule.constant", "no change"),
    Method::usual("schedule.constant_with_warmup", "warm-up, then no change"),
    Method::usual("schedule.inverse_sqrt", "one over the square root of the step"),
    Method::usual("schedule.reduce_lr_on_plateau", "down when a metric stops improving"),
    Method::usual("schedule.cosine_with_min_lr", "a cosine wave down to a floor"),
    Method::usual(
        "schedule.cosine_warmup_with_min_lr",
        "the same, with a warm-up that begins above 0",
    ),
    Method::usual("schedule.warmup_stable_decay", "up, level, down"),
    Method::usual("schedule.greedy", "up while a metric improves, down while it does not"),
];

const fn of_paper(paper: u32, name: &'static str, about: &'static str) -> Method {
    Method { paper: Some(paper), name, about }
}
