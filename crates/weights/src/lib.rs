#![doc = include_str!("../../../docs/seams/weights.md")]

use luthier_core::Result;

pub mod combine;
pub mod config;
pub mod method;
pub mod operands;
mod select;
pub mod setting;

pub use combine::{
    Combine, Cutoffs,
    lines::{Lines, Norms, Outside, Place, Schedule},
};
pub use config::{
    Config, Format, Input, Layout, Model, RowOf, Settings, Slice, TokenRow, TokenSource, Tokens,
};
pub use luthier_core::Method;
pub use method::{Given, SPECS, Spec};
pub use operands::{Draws, Operands, Put, Table, Work};
pub use setting::{Kind, Setting};

/// Every merge that a file can name, by `merge_method`.
pub const METHODS: &[Method] = &[
    Method::usual("linear", "a weighted mean: model soups"),
    Method::usual("slerp", "along the sphere from the base to another model"),
    Method::usual("nuslerp", "along the sphere between two models or two differences"),
    Method::usual("multislerp", "a weighted mean of directions, with the mean length"),
    Method::usual("karcher", "the point of the sphere from which all models are nearest"),
    Method::usual("task_arithmetic", "weighted differences from the base, added up"),
    Method::usual("ties", "the largest differences, of those with the majority's sign the mean"),
    Method::usual("dare_linear", "differences dropped at random, the rest stretched, added up"),
    Method::usual("dare_ties", "differences dropped at random, then as ties"),
    Method::of(74, "breadcrumbs", "differences without the smallest and the very largest"),
    Method::usual("breadcrumbs_ties", "the same, with the majority's sign"),
    Method::usual("della", "differences dropped at random, the small ones sooner, then as ties"),
    Method::usual("della_linear", "the same, added up"),
    Method::usual("sce", "what varies most, weighted by how much each model changed"),
    Method::usual("model_stock", "towards the mean, as far as the angles between models say"),
    Method::usual("nearswap", "the other model where it is near the base"),
    Method::usual("arcee_fusion", "the numbers of the other model that stand out"),
    Method::usual("passthrough", "one model as it is: stacked layers"),
    Method::usual("ram", "what one model changed whole, what several changed averaged"),
    Method::usual("ramplus_tl", "the same, with single changes strengthened"),
    Method::of(48, "wise_ft", "a straight line from the base to a tuned model"),
    Method::of(52, "transfer", "what tuning changed in one version, added to another"),
    Method::usual("fisher", "means number by number, weighted by Fisher values"),
    Method::of(37, "graft", "the tuned numbers of a small region in the base"),
    Method::usual("regmean", "linear maps whose outputs come nearest to those of all models"),
    Method::of(50, "lines", "on top of a merge: its change scaled by depth"),
    Method::of(60, "search.greedy", "a soup of those models that make it better"),
    Method::of(60, "search.learned", "a mean whose weights follow the likelihood of data downhill"),
    Method::of(76, "search.grid", "all values of some settings, of which the best is kept"),
    Method::usual("search.coordinate", "one setting after the other, as long as it gets better"),
    Method::of(4, "antidote", "what matters most on harmful data set to 0 (luthier prune)"),
    Method::of(38, "mend", "facts changed by networks that shape one gradient (luthier edit)"),
];

/// Makes one tensor: every number of it is computed once and given to `put`.
pub fn merge(combine: &dyn Combine, work: &Work<'_>, put: Put<'_>) -> Result<()> {
    if work.is_empty() {
        return Ok(());
    }
    combine.combine(work, put)
}
