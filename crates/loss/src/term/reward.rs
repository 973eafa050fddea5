//! Reward models: a number for an answer, by a head with one label.
//!
//! | `loss_type` | data | costs |
//! |---|---|---|
//! | `bradley_terry` | pairs, perhaps with a column `margin` m | `−ln σ(r_c − r_r − m) + κ·(r_c + r_r)²` |
//! | `bce` | rows with a `label` y from 0 to 1 | `−y·ln σ(r) − (1 − y)·ln σ(−r)` |
//! | `mse` | rows with a `label` y | `(r − y)²` |
//!
//! `r` is the score at the last token of prompt and answer, κ is `center_rewards_coefficient`. The step's
//! loss is the mean over pairs, or over rows by their weights. Settings and values are those of TRL's
//! `RewardTrainer`. **Departures**: (1) pointwise rewards are an addition.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use super::judged::Judged;
use crate::{
    Objective, Seen, Terms, Unit,
    pair::{
        answers::{nothing, tell, tell_weighted, torn},
        dual::Dual,
        number,
    },
    told::sure_of,
};

/// `[train.loss.reward]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reward {
    /// What is learned from.
    pub loss_type: RewardType,
    /// How dear it is that the rewards of a pair do not add up to 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub center_rewards_coefficient: Option<f64>,
}

/// What a reward is learned from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module says what each is")]
pub enum RewardType {
    #[default]
    BradleyTerry,
    Bce,
    Mse,
}

impl Reward {
    fn pairs(&self) -> bool {
        self.loss_type == RewardType::BradleyTerry
    }

    fn of_pairs(&self, judged: &Judged, batch: &Batch) -> Result<Terms> {
        torn(batch, 2)?;
        let (mut total, mut slopes, mut logs) = (0.0, Vec::new(), Vec::new());
        for pair in judged.rows.chunks(2) {
            let [(row, _, chosen), (other, _, rejected)] = pair else {
                return Err(half(batch, pair[0].0));
            };
            if row % 2 != 0 || *other != row + 1 {
                return Err(half(batch, *row));
            }
            let (c, r) = (Dual::logp(chosen[0], 0), Dual::logp(rejected[0], 1));
            let mut cost = -(c - r - batch.labels_b[*row]).log_sigmoid();
            if let Some(center) = self.center_rewards_coefficient {
                cost = cost + (c + r).square() * center;
            }
            total += cost.v;
            slopes.extend(cost.d);
            tell(&mut logs, "accuracy", f64::from(u8::from(c.v > r.v)));
            tell(&mut logs, "margin", c.v - r.v);
            sure_of(&mut logs, c.v - r.v, true, 1.0);
            tell(&mut logs, "mean_reward", (c.v + r.v) / 2.0);
        }
        Ok(Terms { sum: judged.charge(total, slopes)?, logs })
    }

    fn of_rows(&self, judged: &Judged, batch: &Batch) -> Result<Terms> {
        let (mut total, mut slopes, mut logs) = (0.0, Vec::new(), Vec::new());
        for (row, weight, scores) in &judged.rows {
            let (r, label) = (Dual::logp(scores[0], 0), batch.labels_b[*row]);
            let cost = match self.loss_type {
                RewardType::Mse => (r - label).square(),
                _ if !(0.0..=1.0).contains(&label) => {
                    let at = format!("example {}", batch.examples_b[*row]);
                    let what = format!("expected a label from 0 to 1, got {label}");
                    return Err(
                        Error::input(at, what).hint("loss_type = \"mse\" learns any number")
                    );
                }
                _ => -r.log_sigmoid() * label - (-r).log_sigmoid() * (1.0 - label),
            };
            total += weight * cost.v;
            slopes.push(weight * cost.d[0]);
            tell_weighted(&mut logs, "mean_reward", r.v, *weight);
            match self.loss_type {
                RewardType::Mse => {
                    tell_weighted(&mut logs, "mae", (r.v - label).abs(), *weight);
                }
                _ => {
                    let right = f64::from(u8::from((r.v > 0.0) == (label > 0.5)));
                    tell_weighted(&mut logs, "accuracy", right, *weight);
                    sure_of(&mut logs, r.v, label > 0.5, *weight);
                }
            }
        }
        Ok(Terms { sum: judged.charge(total, slopes)?, logs })
    }
}

fn half(batch: &Batch, row: usize) -> Error {
    let at = format!("example {}", batch.examples_b[row]);
    Error::failed(at, "one of its two answers is not read")
}

impl Objective for Reward {
    fn check(&self) -> Result<()> {
        let at = "train.loss.reward.center_rewards_coefficient";
        match self.center_rewards_coefficient {
            Some(center) if !(center >= 0.0 && center.is_finite()) => {
                Err(Error::input(at, format!("expected a number from 0, got {center}")))
            }
            Some(_) if !self.pairs() => Err(Error::input(at, "centres the rewards of pairs")
                .hint("loss_type = \"bradley_terry\" learns from pairs")),
            _ => Ok(()),
        }
    }

    fn unit(&self) -> Unit {
        Unit::Judged { pair: self.pairs() }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        match self.pairs() {
            true => number(step),
            false => step.iter().map(|batch| batch.weight()).sum(),
        }
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let Some(judged) = Judged::ask(out, batch)? else { return nothing() };
        judged.single("reward")?;
        match self.pairs() {
            true => self.of_pairs(&judged, batch),
            false => self.of_rows(&judged, batch),
        }
    }
}
