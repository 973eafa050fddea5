#![doc = include_str!("../../../docs/seams/loss.md")]

use candle_core::Tensor;
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

pub mod apart;
pub mod categorical;
pub mod copilot;
pub mod distribution;
pub mod given;
pub mod normaliser;
pub mod pair;
pub mod penalty;
mod rows;
pub mod told;
pub mod totals;
/// What is charged for a token, a row, a pair.
pub mod term {
    pub mod advantage;
    pub mod align;
    pub mod bco;
    pub mod classify;
    pub mod cpo;
    pub mod distil;
    pub mod dpo;
    pub mod fait;
    mod judged;
    pub mod kto;
    pub mod nll;
    pub mod orpo;
    pub mod rationale;
    pub mod regress;
    pub mod reward;
    pub mod tasks;
}

pub use given::Given;
pub use normaliser::Normaliser;
pub use penalty::{Penalised, Penalty};
pub use term::{
    advantage::Advantage,
    align::{Align, AlignOn},
    bco::Bco,
    classify::Classify,
    cpo::Cpo,
    distil::Distil,
    dpo::Dpo,
    fait::Fait,
    kto::Kto,
    nll::Nll,
    orpo::Orpo,
    rationale::{Place, Rationale},
    regress::Regress,
    reward::Reward,
    tasks::{Mode, Tasks},
};
pub use totals::{Total, Totals};

/// What an objective looks at together, and so what data must bring and no pass may part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// Twice so many rows: neighbouring pairs that are charged together, with what the policy said.
    Pairs {
        /// How many pairs.
        group: usize,
    },
    /// Rows that are wanted or not, charged together, with what the policy said when training began.
    Unpaired {
        /// How many rows.
        group: usize,
        /// Whether as many follow, each with its prompt and the answer to the one before.
        mismatched: bool,
    },
    /// A row of which a head says what its label is, or a better and a worse one to compare.
    Judged {
        /// Whether there are two.
        pair: bool,
    },
    /// Two rows: the right answer and a similar wrong one, with marks where they differ.
    Variants {
        /// How similar they must be.
        min_similarity: f64,
    },
    /// One or two rows: the answer, and the answer with the reason for it.
    Rationale {
        /// Where the reason stands.
        place: Place,
        /// Whether there is a row of the answer alone.
        answer: bool,
        /// Whether there is one with the reason.
        rationale: bool,
    },
}

impl Unit {
    /// How many rows in a row of the batch are one unit.
    pub fn rows(self) -> usize {
        match self {
            Unit::Row => 1,
            Unit::Phrasings | Unit::Pair { .. } | Unit::Variants { .. } => 2,
            Unit::Pairs { group } => 2 * group,
            Unit::Unpaired { group, mismatched } => group << usize::from(mismatched),
            Unit::Judged { pair } => 1 + usize::from(pair),
            Unit::Rationale { answer, rationale, .. } => {
                usize::from(answer) + usize::from(rationale)
            }
        }
    }

    /// Whether every row comes with what the policy said of it when training began.
    pub fn reference(self) -> bool {
        match self {
            Unit::Pair { reference } => reference,
            Unit::Pairs { .. } | Unit::Unpaired { .. } => true,
            Unit::Row | Unit::Phrasings | Unit::Variants { .. } => false,
            Unit::Judged { .. } | Unit::Rationale { .. } => false,
        }
    }
}

/// Whose whole distributions an objective compares with, at the tokens of the same rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Teacher {
    /// Nobody's.
    #[default]
    Nobody,
    /// The model's as it was, without what is tuned.
    Base,
    /// Another model's: `models.teacher`.
    Model,
}

/// What an objective sees of one micro-batch.
pub struct Seen<'a> {
    /// The end of the policy's forward pass.
    pub out: &'a mut dyn Logits,
    /// The end of the teacher's, where [`Objective::teacher`] asks for one; nothing of it learns.
    pub teacher: Option<&'a mut dyn Logits>,
    /// The rows of both.
    pub batch: &'a Batch,
    /// What the whole step holds.
    pub step: &'a Totals,
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

    /// Whose distributions it compares with.
    fn teacher(&self) -> Teacher {
        Teacher::Nobody
    }

    /// What the step's sum is divided by, over all micro-batches of the step.
    fn normaliser(&self, step: &[&Batch]) -> f64;

    /// The sum over one micro-batch, with its graph. Never divided: that is for the step.
    fn terms(&self, seen: Seen) -> Result<Terms>;
}

impl<T: Objective + ?Sized> Objective for &T {
    fn check(&self) -> Result<()> {
        (**self).check()
    }

    fn unit(&self) -> Unit {
        (**self).unit()
    }

    fn teacher(&self) -> Teacher {
        (**self).teacher()
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        (**self).normaliser(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        (**self).terms(seen)
    }
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
    Method::usual("nll.label_smoothing", "with a share for all tokens alike"),
    Method::usual("nll.focal_gamma", "with less for tokens that are likely already"),
    Method::usual("nll.unlikelihood", "against what stood in the answer before"),
    Method::usual("nll.z_loss", "with logits that stay near their normalised ones"),
    Method::usual("penalty.entropy", "beside any objective: distributions that stay open"),
    Method::usual("penalty.kl", "beside any objective: distributions near the model's as it was"),
    Method::usual("neftune_noise_alpha", "noise on what training embeds (NEFTune)"),
    Method::of(40, "copilot", "a small decoder learns the errors of the policy as they come"),
    Method::of(11, "corrupt", "answers of which the model reads a part (Masked Thought)"),
    Method::of(25, "fait", "more for the tokens that tell a right answer from a wrong one"),
    Method::of(20, "align", "the same answer to two phrasings of a prompt"),
    Method::usual(
        "dpo",
        "better over worse answers, against a reference: DPO, IPO, cDPO, NCA, APO, …",
    ),
    Method::usual("kto", "wanted and unwanted answers, each by itself: KTO, APO-zero"),
    Method::usual("bco", "wanted and unwanted answers told apart by what they gain"),
    Method::usual("reward", "a reward for answers: Bradley-Terry on pairs, or by numbers"),
    Method::usual("classify", "the label of a row, by a head"),
    Method::usual("regress", "the number known of a row, by a head"),
    Method::usual("cpo", "better over worse answers without a reference: CPO, SimPO, AlphaPO"),
    Method::of(36, "distil", "what a teacher finds likely, asked now or stored; recalibrated"),
    Method::usual("orpo", "the better answer's likelihood, and its odds against the worse one"),
    Method::of(55, "advantage", "steps by their signed advantages, against the model as it was"),
    Method::of(30, "tasks", "several tasks: weighed by task, by difficulty, or as they converge"),
    Method::of(30, "balance.coba", "weights of tasks by how they converge on held-out rows (CoBa)"),
    Method::of(30, "balance.famo", "weights of tasks for the same progress of all (FAMO)"),
    Method::of(
        41,
        "rationale",
        "an answer, and the answer with the reason for it, as two objectives",
    ),
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
    /// Wanted and unwanted answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kto: Option<Kto>,
    /// Wanted and unwanted answers, told apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bco: Option<Bco>,
    /// A reward for answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<Reward>,
    /// The label of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classify: Option<Classify>,
    /// The number known of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regress: Option<Regress>,
    /// Better and worse answers without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpo: Option<Cpo>,
    /// What a teacher finds likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distil: Option<Distil>,
    /// Steps by what they add to the chance of a right end, or take from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage: Option<Advantage>,
    /// The better answer, and its odds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orpo: Option<Orpo>,
    /// Several tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Tasks>,
    /// An answer, and the answer with the reason for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<Rationale>,
    /// Right answers, and wrong ones that are similar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fait: Option<Fait>,
    /// What is added to any of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty: Option<Penalty>,
}

impl Loss {
    /// The objective that is named, or the default.
    pub fn objective(&self) -> Result<Box<dyn Objective + '_>> {
        static DEFAULT: Nll = Nll::PLAIN;
        let mut one: Box<dyn Objective + '_> = match self.named().as_slice() {
            [] => Box::new(&DEFAULT),
            [(_, one)] => Box::new(*one),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                let what = format!("names {} objectives ({})", names.len(), names.join(", "));
                return Err(Error::input("train.loss", what).hint("keep one of them"));
            }
        };
        if let Some(penalty) = &self.penalty {
            one = Box::new(Penalised { objective: one, penalty });
        }
        one.check()?;
        Ok(one)
    }

    /// Whether a head learns to tell numbers, of which one is neither right nor wrong.
    pub fn tells_numbers(&self) -> bool {
        let reward = self.reward.as_ref();
        self.regress.is_some()
            || reward.is_some_and(|r| r.loss_type == term::reward::RewardType::Mse)
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
        let kto = self.kto.as_ref().map(|o| ("kto", o as &dyn Objective));
        let bco = self.bco.as_ref().map(|o| ("bco", o as &dyn Objective));
        let reward = self.reward.as_ref().map(|o| ("reward", o as &dyn Objective));
        let classify = self.classify.as_ref().map(|o| ("classify", o as &dyn Objective));
        let regress = self.regress.as_ref().map(|o| ("regress", o as &dyn Objective));
        let cpo = self.cpo.as_ref().map(|o| ("cpo", o as &dyn Objective));
        let distil = self.distil.as_ref().map(|o| ("distil", o as &dyn Objective));
        let orpo = self.orpo.as_ref().map(|o| ("orpo", o as &dyn Objective));
        let tasks = self.tasks.as_ref().map(|o| ("tasks", o as &dyn Objective));
        let rationale = self.rationale.as_ref().map(|o| ("rationale", o as &dyn Objective));
        let advantage = self.advantage.as_ref().map(|o| ("advantage", o as &dyn Objective));
        let fait = self.fait.as_ref().map(|o| ("fait", o as &dyn Objective));
        [
            nll, align, dpo, kto, bco, reward, classify, regress, cpo, distil, orpo, tasks,
            rationale, fait, advantage,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
