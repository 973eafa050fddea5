#![doc = include_str!("../../../docs/seams/loss.md")]

use candle_core::Tensor;
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

pub mod apart;
pub mod normaliser;
pub mod pair;
/// What is charged for a token, a row, a pair.
pub mod term {
    pub mod align;
    pub mod cpo;
    pub mod dpo;
    pub mod nll;
    pub mod orpo;
}

pub use normaliser::Normaliser;
pub use term::{
    align::{Align, AlignOn},
    cpo::Cpo,
    dpo::Dpo,
    nll::Nll,
    orpo::Orpo,
};

/// What an objective looks at together, and so what data must bring and no pass may part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// A row.
    #[default]
    Row,
    /// Two rows: one answer to the reference phrasing of a prompt, then to the prompt itself.
    Phrasings,
    /// Two rows: the better and the worse answer to one prompt.
    Pair {
        /// Whether each comes with what the policy said of it when training began.
        reference: bool,
    },
}

impl Unit {
    /// How many rows in a row of the batch are one unit.
    pub fn rows(self) -> usize {
        match self {
            Unit::Row => 1,
            Unit::Phrasings | Unit::Pair { .. } => 2,
        }
    }
}

/// What is minimised.
pub trait Objective: Send + Sync {
    /// Refuses settings that cannot be meant.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What is looked at together. Every batch holds whole units.
    fn unit(&self) -> Unit {
        Unit::Row
    }

    /// What the step's sum is divided by, over all micro-batches of the step.
    fn normaliser(&self, step: &[&Batch]) -> f64;

    /// The sum over one micro-batch, with its graph. Never divided: that is for the step.
    fn terms(&self, out: &mut dyn Logits, batch: &Batch) -> Result<Terms>;
}

/// What one micro-batch adds to a step.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The numerator, a scalar with its graph; a plain 0 when nothing is trained.
    pub sum: Tensor,
    /// Numbers for the log.
    pub logs: Vec<Log>,
}

/// A logged mean, kept as its two parts so that it adds up over micro-batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Log {
    /// What it is called in the log.
    pub name: &'static str,
    /// Weighted sum.
    pub sum: f64,
    /// Sum of the weights.
    pub weight: f64,
}

pub use luthier_core::Method;

/// Every objective that a recipe can name.
pub const METHODS: &[Method] = &[
    Method::usual("nll", "negative log-likelihood of the trained tokens (supervised fine-tuning)"),
    Method::of(20, "align", "the same answer to two phrasings of a prompt"),
    Method::usual(
        "dpo",
        "better over worse answers, against a reference: DPO, IPO, cDPO, NCA, APO, …",
    ),
    Method::usual("cpo", "better over worse answers without a reference: CPO, SimPO, AlphaPO"),
    Method::usual("orpo", "the better answer's likelihood, and its odds against the worse one"),
];

/// `[train.loss]`: exactly one objective, `nll` when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Negative log-likelihood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll: Option<Nll>,
    /// The same answer to two phrasings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<Align>,
    /// Better and worse answers, against a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dpo: Option<Dpo>,
    /// Better and worse answers without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpo: Option<Cpo>,
    /// The better answer, and its odds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orpo: Option<Orpo>,
}

impl Loss {
    /// The objective that is named, or the default.
    pub fn objective(&self) -> Result<&dyn Objective> {
        static DEFAULT: Nll = Nll { normaliser: Normaliser::Token };
        match self.named().as_slice() {
            [] => Ok(&DEFAULT),
            [(_, one)] => one.check().map(|()| *one),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                let what = format!("names {} objectives ({})", names.len(), names.join(", "));
                Err(Error::input("train.loss", what).hint("keep one of them"))
            }
        }
    }

    /// The same with the default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.named().is_empty() {
            self.nll = Some(Nll::default());
        }
        self
    }

    fn named(&self) -> Vec<(&'static str, &dyn Objective)> {
        let nll = self.nll.as_ref().map(|o| ("nll", o as &dyn Objective));
        let align = self.align.as_ref().map(|o| ("align", o as &dyn Objective));
        let dpo = self.dpo.as_ref().map(|o| ("dpo", o as &dyn Objective));
        let cpo = self.cpo.as_ref().map(|o| ("cpo", o as &dyn Objective));
        let orpo = self.orpo.as_ref().map(|o| ("orpo", o as &dyn Objective));
        [nll, align, dpo, cpo, orpo].into_iter().flatten().collect()
    }
}
