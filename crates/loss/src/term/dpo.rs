//! Direct preference optimisation (Rafailov et al. 2023) and its family, by TRL's names: what a better
//! and a worse answer gained over a reference.
//!
//! With `c`, `r` the gains `Σ w·logp − Σ w·logp_ref` of the chosen and the rejected answer, `s = f'` of
//! each under the divergence (`s = gain` under reverse KL) and `δ = s_c − s_r`:
//!
//! | `loss_type` | a pair costs |
//! |---|---|
//! | `sigmoid` | `−(1−ε)·ln σ(βδ) − ε·ln σ(−βδ)`; ε is `label_smoothing` (cDPO) |
//! | `hinge` | `max(0, 1 − βδ)` |
//! | `ipo` | `(s_c/|c| − s_r/|r| − 1/(2β))²`, per token |
//! | `exo_pair` | `KL((σ(βδ), σ(−βδ)) ‖ (1−ε, ε))` |
//! | `nca_pair` | `−ln σ(βc) − ½·ln σ(−βc) − ½·ln σ(−βr)` |
//! | `robust` | `(−(1−ε)·ln σ(βδ) + ε·ln σ(−βδ)) / (1 − 2ε)` |
//! | `bco_pair` | `−ln σ(βc) − ln σ(−βr)` |
//! | `sppo_hard` | `(c − ½/β)² + (r + ½/β)²` |
//! | `apo_zero` | `1 − σ(βc) + σ(βr)` |
//! | `apo_down` | `σ(βc) + 1 − σ(β(c − r))` |
//! | `discopop` | `(1−m)·(−ln σ(βδ)) + m·e^(−βδ)`, `m = σ(βδ/τ)` |
//! | `sigmoid_norm` | `−ln σ(β(s_c/|c| − s_r/|r|))`, per token |
//! | `aot` | as cDPO's `sigmoid`; k-th smallest `logp_c − logp_r` against k-th smallest of the reference |
//! | `aot_unpaired` | the same for the k-th smallest `c` against the k-th smallest `r` |
//! | `sft` | `−logp_c/|c|` |
//!
//! The step's loss is the mean over pairs. `ld_alpha` is what counts the length of an answer beyond the
//! shorter one of its pair (LD-DPO), `use_weighting` multiplies by how likely the policy itself is to
//! say either answer (WPO).
//!
//! **Departures**: (1) the reference is the policy as training began, asked once for every row; (2) TRL's
//! `sigmoid` leaves `label_smoothing` aside; (3) `aot` and `aot_unpaired` sort the pairs of a `group` of
//! neighbours in the file, which no cut of a step parts, where TRL sorts what happens to be on a device;
//! with them `use_weighting` is refused, for a charge is no pair's own; (4) `sft` is a mean over the
//! tokens of an answer and then over pairs; (5) with `ld_alpha`, means per token count tokens as it does.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Objective, Seen, Terms, Unit,
    pair::{Answer, Charge, Charges, charge, charge_groups, dual::Dual, number, on_policy},
};

/// `[train.loss.dpo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpo {
    /// How dear it is to leave the reference.
    pub beta: f64,
    /// What a pair costs: one way, or several that are added.
    pub loss_type: Types,
    /// What each of several counts; 1 where nothing is said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss_weights: Vec<f64>,
    /// Share of pairs that are believed to be the wrong way round.
    pub label_smoothing: f64,
    /// Which divergence from the reference is charged.
    pub f_divergence_type: Divergence,
    /// α of `alpha_divergence`.
    pub f_alpha_divergence_coef: f64,
    /// τ of `discopop`.
    pub discopop_tau: f64,
    /// What tokens beyond the shorter answer of a pair count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// Whether pairs count by how likely the policy is to say them.
    pub use_weighting: bool,
    /// How many neighbouring pairs `aot` and `aot_unpaired` sort.
    pub group: usize,
}

impl Default for Dpo {
    fn default() -> Self {
        Dpo {
            beta: 0.1,
            loss_type: Types(vec![LossType::Sigmoid]),
            loss_weights: Vec::new(),
            label_smoothing: 0.0,
            f_divergence_type: Divergence::ReverseKl,
            f_alpha_divergence_coef: 0.5,
            discopop_tau: 0.05,
            ld_alpha: None,
            use_weighting: false,
            group: 8,
        }
    }
}

/// One way or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrMore", into = "OneOrMore")]
pub struct Types(pub Vec<LossType>);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(LossType),
    More(Vec<LossType>),
}

impl From<OneOrMore> for Types {
    fn from(of: OneOrMore) -> Self {
        match of {
            OneOrMore::One(one) => Types(vec![one]),
            OneOrMore::More(all) => Types(all),
        }
    }
}

impl From<Types> for OneOrMore {
    fn from(Types(mut of): Types) -> Self {
        match of.len() {
            1 => OneOrMore::One(of.remove(0)),
            _ => OneOrMore::More(of),
        }
    }
}

/// What a pair costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module says what each is")]
pub enum LossType {
    Sigmoid,
    Hinge,
    Ipo,
    ExoPair,
    NcaPair,
    Robust,
    BcoPair,
    SppoHard,
    ApoZero,
    ApoDown,
    Discopop,
    SigmoidNorm,
    Aot,
    AotUnpaired,
    Sft,
}

/// A divergence `f` from the reference, of which `f'` of the ratio enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// `f'(t) = ln t`.
    ReverseKl,
    /// `f'(t) = 1 − 1/t`.
    ForwardKl,
    /// `f'(t) = ln(2t / (t + 1))`.
    JsDivergence,
    /// `f'(t) = (t^(α−1) − 1) / (α − 1)`.
    AlphaDivergence,
}

/// Above it `t^(α−1)` is cut, as in TRL.
const MOST: f64 = 80.0;

impl Dpo {
    fn score(&self, log_ratio: Dual) -> Dual {
        match self.f_divergence_type {
            Divergence::ReverseKl => log_ratio,
            Divergence::ForwardKl => -(-log_ratio).exp() + 1.0,
            Divergence::JsDivergence => log_ratio.log_sigmoid() + std::f64::consts::LN_2,
            Divergence::AlphaDivergence => {
                let by = self.f_alpha_divergence_coef - 1.0;
                match by.abs() < 1e-6 {
                    true => log_ratio,
                    false => ((log_ratio * by).at_most(MOST).exp() - 1.0) * (1.0 / by),
                }
            }
        }
    }

    /// What a pair costs in one way.
    fn cost(&self, way: LossType, chosen: &Answer, rejected: &Answer) -> Dual {
        let (beta, eps) = (self.beta, self.label_smoothing);
        let (c, r) = (chosen.log_ratio(), rejected.log_ratio());
        let smooth = |x: Dual| -x.log_sigmoid() * (1.0 - eps) - (-x).log_sigmoid() * eps;
        let (s_c, s_r) = (self.score(c), self.score(r));
        let logits = (s_c - s_r) * beta;
        let per_token = chosen.per_token(s_c) - rejected.per_token(s_r);
        match way {
            // What is sorted comes as a pair of its own.
            LossType::Sigmoid | LossType::Aot | LossType::AotUnpaired => smooth(logits),
            LossType::Hinge => (-logits + 1.0).relu(),
            LossType::Ipo => (per_token - 0.5 / beta).square(),
            LossType::ExoPair => {
                logits.sigmoid() * (logits.log_sigmoid() - (-eps).ln_1p())
                    + (-logits).sigmoid() * ((-logits).log_sigmoid() - eps.ln())
            }
            LossType::NcaPair => {
                let half = (-c * beta).log_sigmoid() + (-r * beta).log_sigmoid();
                -(c * beta).log_sigmoid() - half * 0.5
            }
            LossType::Robust => {
                let clean = -logits.log_sigmoid() * (1.0 - eps);
                (clean + (-logits).log_sigmoid() * eps) * (1.0 / (1.0 - 2.0 * eps))
            }
            LossType::BcoPair => -(c * beta).log_sigmoid() - (-r * beta).log_sigmoid(),
            LossType::SppoHard => (c - 0.5 / beta).square() + (r + 0.5 / beta).square(),
            LossType::ApoZero => (r * beta).sigmoid() - (c * beta).sigmoid() + 1.0,
            LossType::ApoDown => (c * beta).sigmoid() - ((c - r) * beta).sigmoid() + 1.0,
            LossType::Discopop => {
                let mix = (logits * (1.0 / self.discopop_tau)).sigmoid();
                -logits.log_sigmoid() * (-mix + 1.0) + (-logits).exp() * mix
            }
            LossType::SigmoidNorm => -(per_token * beta).log_sigmoid(),
            LossType::Sft => -chosen.per_token(chosen.logp),
        }
    }

    /// Whether pairs are charged together.
    fn sorts(&self) -> bool {
        self.loss_type.0.iter().any(|way| matches!(way, LossType::Aot | LossType::AotUnpaired))
    }

    /// What the pairs of a group cost in one way, and by which pair's chosen and rejected answer.
    fn costs(&self, way: LossType, pairs: &[[Answer; 2]]) -> Vec<([usize; 2], Dual)> {
        let sorted = |of: &dyn Fn(&[Answer; 2]) -> f64| {
            let mut order: Vec<usize> = (0..pairs.len()).collect();
            order.sort_by(|a, b| of(&pairs[*a]).total_cmp(&of(&pairs[*b])));
            order
        };
        match way {
            LossType::Aot => {
                let own = sorted(&|[c, r]| c.logp.v - r.logp.v);
                let reference = sorted(&|[c, r]| c.reference - r.reference);
                let cost = |(own, reference): (usize, usize)| {
                    let [mut c, mut r] = pairs[own];
                    [c.reference, r.reference] = pairs[reference].map(|answer| answer.reference);
                    (c.tokens, r.tokens) = (1.0, 1.0);
                    ([own; 2], self.cost(way, &c, &r))
                };
                own.into_iter().zip(reference).map(cost).collect()
            }
            LossType::AotUnpaired => {
                let chosen = sorted(&|[c, _]| c.log_ratio().v);
                let rejected = sorted(&|[_, r]| r.log_ratio().v);
                let cost =
                    |(c, r): (usize, usize)| ([c, r], self.cost(way, &pairs[c][0], &pairs[r][1]));
                chosen.into_iter().zip(rejected).map(cost).collect()
            }
            _ => {
                let cost = |(i, [c, r]): (usize, &[Answer; 2])| ([i; 2], self.cost(way, c, r));
                pairs.iter().enumerate().map(cost).collect()
            }
        }
    }

    fn rewards(&self, pair: &[Answer; 2]) -> [f64; 2] {
        [0, 1].map(|side| self.beta * pair[side].log_ratio().v)
    }
}

impl Objective for Dpo {
    fn check(&self) -> Result<()> {
        let refuse =
            |key: &str, what: String| Err(Error::input(format!("train.loss.dpo.{key}"), what));
        let (ways, eps) = (&self.loss_type.0, self.label_smoothing);
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return refuse("beta", format!("expected a number above 0, got {}", self.beta));
        }
        if ways.is_empty() {
            return refuse("loss_type", "names nothing".into());
        }
        if !self.loss_weights.is_empty() && self.loss_weights.len() != ways.len() {
            let what = format!("{} weights for {} types", self.loss_weights.len(), ways.len());
            return refuse("loss_weights", what);
        }
        if !(0.0..0.5).contains(&eps) {
            return refuse("label_smoothing", format!("expected from 0 to below 0.5, got {eps}"));
        }
        if ways.contains(&LossType::ExoPair) && eps == 0.0 {
            return refuse("label_smoothing", "exo_pair needs a share above 0, as 1e-3".into());
        }
        let by_difference = |way: &LossType| {
            use LossType::*;
            !matches!(way, NcaPair | BcoPair | SppoHard | ApoZero | ApoDown | Aot | AotUnpaired)
        };
        if self.f_divergence_type != Divergence::ReverseKl && !ways.iter().all(by_difference) {
            let what = "only reverse_kl fits loss types that do not look at a difference";
            return refuse("f_divergence_type", what.into());
        }
        if self.discopop_tau <= 0.0 {
            return refuse("discopop_tau", "expected a number above 0".into());
        }
        if let Some(alpha) = self.ld_alpha
            && !(0.0..=1.0).contains(&alpha)
        {
            return refuse("ld_alpha", format!("expected from 0 to 1, got {alpha}"));
        }
        if self.sorts() && self.group < 2 {
            return refuse("group", "one pair cannot be sorted, expected 2 or more".into());
        }
        if self.sorts() && self.use_weighting {
            let what = "aot charges no pair by itself, so there is none to be weighed";
            return refuse("use_weighting", what.into());
        }
        Ok(())
    }

    fn unit(&self) -> Unit {
        match self.sorts() {
            true => Unit::Pairs { group: self.group },
            false => Unit::Pair { reference: true },
        }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        number(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let weight = |i: usize| self.loss_weights.get(i).copied().unwrap_or(1.0);
        let ways = || self.loss_type.0.iter().enumerate();
        if self.sorts() {
            return charge_groups(out, batch, self.group, &|pairs, _| {
                let of = |(i, way): (usize, &LossType)| {
                    let costs = self.costs(*way, pairs);
                    costs.into_iter().map(move |(of, cost)| (of, cost * weight(i)))
                };
                let told = pairs.iter().map(|pair| (self.rewards(pair), Vec::new())).collect();
                Charges { costs: ways().flat_map(of).collect(), told }
            });
        }
        let cost = |chosen: &Answer, rejected: &Answer| {
            let costs = ways().map(|(i, way)| self.cost(*way, chosen, rejected) * weight(i));
            costs.fold(Dual::constant(0.0), |a, b| a + b)
        };
        if self.use_weighting {
            let weights = on_policy(out, batch)?;
            return charge_groups(out, batch, 1, &|pairs, i| {
                let [chosen, rejected] = &pairs[0];
                let told = vec![(self.rewards(&pairs[0]), vec![("weight", weights[i])])];
                Charges { costs: vec![([0, 0], cost(chosen, rejected) * weights[i])], told }
            });
        }
        charge(out, batch, &|chosen, rejected| Charge {
            cost: cost(chosen, rejected),
            rewards: self.rewards(&[*chosen, *rejected]),
            more: Vec::new(),
        })
    }
}
