//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024) and APO-zero (D'Oosterlinck et al. 2024) for
//! answers that are wanted or not, without pairs; by TRL's names.
//!
//! With `g = Σ w·logp − Σ w·logp_ref` of a row:
//!
//! | `loss_type` | a wanted row costs | an unwanted one |
//! |---|---|---|
//! | `kto` | `λ_D · (1 − σ(β(g − z)))` | `λ_U · (1 − σ(β(z − g)))` |
//! | `apo_zero_unpaired` | `λ_D · (1 − σ(βg))` | `λ_U · σ(βg)` |
//!
//! `z = max(0, mean g′)` over rows that pair each prompt of a group with the answer of the row before it:
//! how far the policy is from the reference on answers that nobody asked for. It is a constant. The
//! step's loss is the mean over rows; λ are `desirable_weight` and `undesirable_weight`.
//!
//! **Departures**: (1) TRL makes these rows within `per_device_train_batch_size` neighbours of the file
//! and takes the mean on each device; here a `group` of neighbours is a unit that no cut of a step parts,
//! so steps may be shuffled and cut, and groups of the size of TRL's batch have TRL's values. (2) What
//! the file leaves over is a smaller group. (3) The reference is the policy as training began.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Objective, Seen, Terms, Unit,
    pair::{
        Answer, Told,
        answers::{Answers, counts, nothing, tell, torn},
        dual::Dual,
    },
    told::sure_of,
};

/// `[train.loss.kto]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kto {
    /// How dear it is to leave the reference.
    pub beta: f64,
    /// What a row costs.
    pub loss_type: KtoType,
    /// What wanted rows count.
    pub desirable_weight: f64,
    /// What unwanted rows count.
    pub undesirable_weight: f64,
    /// How many neighbouring rows share an estimate of `z`, with `kto`.
    pub group: usize,
}

/// What a row costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module says what each is")]
pub enum KtoType {
    #[default]
    Kto,
    ApoZeroUnpaired,
}

impl Default for Kto {
    fn default() -> Self {
        Kto {
            beta: 0.1,
            loss_type: KtoType::Kto,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            group: 8,
        }
    }
}

/// The rows of a group with their answers: their places in the batch, and whether each is wanted.
pub(super) struct Group<'a> {
    /// Of each row, what is said of it and whether it is wanted.
    pub(super) own: &'a [(Answer, bool)],
    /// What is said of the mismatched rows.
    pub(super) mismatched: &'a [Answer],
}

/// How many rows of a step there are to learn from, of groups of `group` rows.
pub(super) fn number(step: &[&Batch], group: usize, mismatched: bool) -> f64 {
    let all = group << usize::from(mismatched);
    let live = |batch: &&Batch| {
        (0..batch.rows.b()).filter(|row| row % all < group && counts(batch, *row..row + 1)).count()
            as f64
    };
    step.iter().map(live).sum()
}

/// What a row costs, what it earns, and by how much that is more than where wanted and unwanted rows part.
pub(super) type Cost = (Dual, f64, f64);

/// The same for each row of a group, and what the log says of the group.
pub(super) type Costs = (Vec<Cost>, Told);

/// The sum of what the rows of a batch cost. `of` says of a group what each row costs, as a function of
/// its own log-probability, and what it earns; `told` are numbers for the log, one for every group.
pub(super) fn charge(
    seen: Seen,
    group: usize,
    mismatched: bool,
    of: &dyn Fn(&Group) -> Costs,
) -> Result<Terms> {
    let Seen { out, batch, .. } = seen;
    let all = group << usize::from(mismatched);
    torn(batch, all)?;
    // A row that fills up the last group has no trained token; of mismatched rows it has a partner.
    let live = |row: &usize| {
        let own = row - (row % all) + row % group;
        counts(batch, own..own + 1)
    };
    let rows: Vec<usize> = (0..batch.rows.b()).filter(live).collect();
    if rows.is_empty() {
        return nothing();
    }
    let answers = Answers::ask(out, batch, &rows)?;
    let (mut total, mut slopes, mut logs, mut first) = (0.0, vec![0.0; rows.len()], Vec::new(), 0);
    for members in rows.chunk_by(|a, b| a / all == b / all) {
        let at = |i: usize| answers.answer(first + i, 0);
        let of_own = members.iter().take_while(|row| *row % all < group).count();
        let wanted = |i: usize| batch.labels_b[members[i]] > 0.5;
        let own: Vec<(Answer, bool)> = (0..of_own).map(|i| (at(i), wanted(i))).collect();
        let mismatched: Vec<Answer> = (of_own..members.len()).map(at).collect();
        let (costs, told) = of(&Group { own: &own, mismatched: &mismatched });
        for (i, ((answer, wanted), (cost, reward, lead))) in own.iter().zip(costs).enumerate() {
            total += cost.v;
            slopes[first + i] = cost.d[0];
            let (rewards, logps) = match wanted {
                true => ("rewards/chosen", "logps/chosen"),
                false => ("rewards/rejected", "logps/rejected"),
            };
            tell(&mut logs, rewards, reward);
            tell(&mut logs, logps, answer.logp.v);
            let right = lead != 0.0 && (lead > 0.0) == *wanted;
            tell(&mut logs, "rewards/accuracies", f64::from(u8::from(right)));
            sure_of(&mut logs, lead, *wanted, 1.0);
        }
        told.into_iter().for_each(|(name, value)| tell(&mut logs, name, value));
        first += members.len();
    }
    Ok(Terms { sum: answers.charge(total, &slopes)?, logs })
}

/// Refuses settings that objectives of single answers have in common.
pub(super) fn check(key: &str, beta: f64, weights: [f64; 2], group: usize) -> Result<()> {
    let refuse = |of: &str, what: String| Err(Error::input(format!("train.loss.{key}.{of}"), what));
    if !(beta > 0.0 && beta.is_finite()) {
        return refuse("beta", format!("expected a number above 0, got {beta}"));
    }
    for (name, weight) in ["desirable_weight", "undesirable_weight"].into_iter().zip(weights) {
        if !(weight >= 0.0 && weight.is_finite()) {
            return refuse(name, format!("expected a number from 0, got {weight}"));
        }
    }
    match group {
        0 | 1 => refuse("group", format!("expected 2 rows or more, got {group}")),
        _ => Ok(()),
    }
}

impl Kto {
    /// How many rows are charged together, and whether each has a mismatched one.
    fn shape(&self) -> (usize, bool) {
        match self.loss_type {
            KtoType::Kto => (self.group, true),
            KtoType::ApoZeroUnpaired => (1, false),
        }
    }
}

impl Objective for Kto {
    fn check(&self) -> Result<()> {
        let weights = [self.desirable_weight, self.undesirable_weight];
        check("kto", self.beta, weights, self.group)
    }

    fn unit(&self) -> Unit {
        let (group, mismatched) = self.shape();
        Unit::Unpaired { group, mismatched }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        let (group, mismatched) = self.shape();
        number(step, group, mismatched)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let (group, mismatched) = self.shape();
        charge(seen, group, mismatched, &|group| {
            let gains = group.mismatched.iter().map(|answer| answer.log_ratio().v);
            let z = (gains.sum::<f64>() / group.mismatched.len().max(1) as f64).max(0.0);
            let cost = |(answer, wanted): &(Answer, bool)| {
                let gain = answer.log_ratio();
                let cost = match wanted {
                    // 1 − σ(x) is σ(−x).
                    true => (-(gain - z) * self.beta).sigmoid() * self.desirable_weight,
                    false => ((gain - z) * self.beta).sigmoid() * self.undesirable_weight,
                };
                (cost, self.beta * gain.v, self.beta * (gain.v - z))
            };
            let told = if mismatched { vec![("kl", z)] } else { Vec::new() };
            (group.own.iter().map(cost).collect(), told)
        })
    }
}
