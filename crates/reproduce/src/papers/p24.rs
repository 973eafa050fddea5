//! On-policy samples and negative gradients (Tajwar et al. 2024, paper 24): which of the two a preference
//! method needs depends on where the reward's peak lies.
//!
//! The paper's didactic bandit: a hundred actions, contexts from U[0, 1]^100, a small MLP that begins at
//! the distribution of a data set (a histogram of tanh of Cauchy draws), and a bell of reward either far
//! from it (action 70) or under it (action 20). All arms take 200 steps of Adam.
//!
//! - freshness: best of ten with 2000 draws, all at first or in 4 or 20 rounds from the policy of then;
//! - negative gradient: ten draws from the beginning, once, and best-of-ten likelihood, DPO (β 0.1) or IPO
//!   (β 0.05, a margin of 10) on all pairs of them. The losses are those of `luthier_loss`.
//!
//! What is measured is the expected reward in 100 contexts that were not trained on.
//!
//! **Departures**: (1) each arm takes the learning rate of three (1e-3, 3e-3, 1e-2) with the most reward in
//! the ten contexts it trains on; (2) the beginning is learned on 64 new contexts a step; (3) every step
//! reads all samples of its round; Adam's moments go on from round to round.

use candle_core::{Device, Tensor};
use luthier_core::{Result, Row, Seed, StateDict};
use luthier_loss::{
    Dpo, Loss,
    categorical::reverse_kl,
    term::dpo::{LossType, Types},
};

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, rates,
    zoo::{
        labels::drawn,
        train::{adamw, constant, descend},
    },
};

mod bandit;

use bandit::{ACTIONS, choice, contexts, gradient, likelihoods, logps, net, objective_gradient};

/// The check.
pub const PAPER: Paper = Paper {
    number: 24,
    title: "On-policy samples and negative gradients",
    claim: "where the reward's peak is far from the reference, fresh samples and losses that push \
        answers down reach it and likelihood on old samples does not; where it is near, all do",
    recipes: &["recipes/preference/dpo.toml"],
    seeds: 3,
    run,
};

/// Contexts trained on, and contexts to measure in.
const TRAINED: usize = 10;
const FRESH: usize = 100;
/// Draws of a group, of which the best is learned.
const N: usize = 10;
/// Groups of an arm that is asked about freshness.
const GROUPS: usize = 20;
const STEPS: u64 = 200;
const RATES: [&str; 3] = ["1e-3", "3e-3", "1e-2"];

const PEAKS: [(&str, f64); 2] = [("far", 70.0), ("near", 20.0)];
const WIDTH: f64 = 10.0;

const REFERENCE: &str = "reference";
const ROUNDS: [(&str, usize); 3] =
    [("BoN, 1 round", 1), ("BoN, 4 rounds", 4), ("BoN, 20 rounds", 20)];
/// An arm and what it minimises.
type Arm = (&'static str, fn() -> Loss);

const OFFLINE: [Arm; 3] =
    [("BoN, ten draws", likelihood), ("DPO, ten draws", dpo), ("IPO, ten draws", ipo)];

/// The histogram of tanh(Cauchy(−0.7, 0.4)) over a hundred bins of [−1, 1], none of them empty.
fn data(seed: Seed) -> Vec<f64> {
    let mut rng = seed.rng();
    let mut counts = vec![1e-3; ACTIONS];
    for _ in 0..10_000 {
        let cauchy = -0.7 + 0.4 * (std::f64::consts::PI * (rng.uniform() - 0.5)).tan();
        let bin = ((cauchy.tanh() + 1.0) / 2.0 * ACTIONS as f64) as usize;
        counts[bin.min(ACTIONS - 1)] += 1.0;
    }
    let all: f64 = counts.iter().sum();
    counts.into_iter().map(|count| count / all).collect()
}

/// A net that chooses as the data does, whatever the context.
fn beginning(seed: Seed) -> Result<StateDict> {
    let target = data(seed.split("data"));
    let update = adamw(1e-2, 0.0, constant());
    let of = |step: u64, now: &StateDict| {
        let seen = contexts(64, &mut seed.split("contexts").at(step).rng())?;
        gradient(now, &seen, |logits_ka| {
            let rows: Vec<Vec<f32>> = logits_ka.to_vec2()?;
            let slope = |row: Vec<f32>| {
                let row: Vec<f64> = row.into_iter().map(f64::from).collect();
                reverse_kl(&target, &row).1.into_iter().map(|d| d as f32 / 64.0)
            };
            let slopes: Vec<f32> = rows.into_iter().flat_map(slope).collect();
            let slopes_ka = Tensor::from_vec(slopes, (64, ACTIONS), &Device::Cpu)?;
            Ok((logits_ka * slopes_ka)?.sum_all()?)
        })
    };
    descend(&update, 100, &net(seed.split("net"))?, of, |_, _| Ok(()))
}

/// One world: a beginning, contexts, and a peak.
struct World {
    reference: StateDict,
    trained: Tensor,
    fresh: Tensor,
    peak: f64,
    seed: Seed,
}

impl World {
    fn reward(&self, action: usize) -> f64 {
        (-((action as f64 - self.peak) / WIDTH).powi(2)).exp()
    }

    /// The expected reward.
    fn worth(&self, net: &StateDict, contexts: &Tensor) -> Result<f64> {
        let all = likelihoods(net, contexts)?;
        let of = |row: &Vec<f64>| -> f64 {
            row.iter().enumerate().map(|(action, p)| p * self.reward(action)).sum()
        };
        Ok(all.iter().map(of).sum::<f64>() / all.len() as f64)
    }

    /// Draws for every context that is trained on, from the policy of now.
    fn draws(&self, net: &StateDict, groups: usize, seed: Seed) -> Result<Vec<Vec<Vec<usize>>>> {
        let all = likelihoods(net, &self.trained)?;
        let mut rng = seed.rng();
        let mut group = |of: &Vec<f64>| (0..N).map(|_| drawn(of, &mut rng)).collect::<Vec<usize>>();
        Ok(all.iter().map(|of| (0..groups).map(|_| group(of)).collect()).collect())
    }

    /// The best of every group as rows.
    fn best(&self, draws: &[Vec<Vec<usize>>]) -> Vec<Row> {
        let best = |group: &Vec<usize>| {
            let first = group[0];
            let better = |best: usize, a: &usize| {
                if self.reward(*a) > self.reward(best) { *a } else { best }
            };
            group.iter().fold(first, better)
        };
        let rows = draws.iter().enumerate();
        rows.flat_map(|(context, groups)| {
            groups.iter().map(move |group| choice(context, best(group), 0.0))
        })
        .collect()
    }

    /// All pairs of a group with unequal rewards as rows, the better one first.
    fn pairs(&self, draws: &[Vec<Vec<usize>>]) -> Result<Vec<Row>> {
        let reference = logps(&self.reference, &self.trained)?;
        let mut rows = Vec::new();
        for (context, groups) in draws.iter().enumerate() {
            let row = |action: usize| choice(context, action, reference[context][action]);
            for group in groups {
                for (i, a) in group.iter().enumerate() {
                    for b in &group[i + 1..] {
                        match self.reward(*a).total_cmp(&self.reward(*b)) {
                            std::cmp::Ordering::Equal => {}
                            std::cmp::Ordering::Greater => rows.extend([row(*a), row(*b)]),
                            std::cmp::Ordering::Less => rows.extend([row(*b), row(*a)]),
                        }
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Trains on rows that are drawn anew at the beginning of each of `rounds` rounds.
    fn tune(
        &self,
        loss: &Loss,
        rounds: usize,
        rate: &str,
        rows: &dyn Fn(&StateDict, usize) -> Result<Vec<Row>>,
    ) -> Result<StateDict> {
        let objective = loss.objective()?;
        let rate: f64 = rate.parse().expect("rates are numbers");
        let inner = STEPS / rounds as u64;
        let mut round: Vec<Row> = Vec::new();
        let of = |step: u64, now: &StateDict| {
            if step.is_multiple_of(inner) {
                round = rows(now, (step / inner) as usize)?;
            }
            objective_gradient(now, &self.trained, objective.as_ref(), &round)
        };
        let update = adamw(rate, 0.0, constant());
        descend(&update, STEPS, &self.reference, of, |_, _| Ok(()))
    }

    /// The best of an arm's rates, and what it comes to.
    fn arm(
        &self,
        loss: &Loss,
        rounds: usize,
        rows: &dyn Fn(&StateDict, usize) -> Result<Vec<Row>>,
    ) -> Result<(f64, StateDict)> {
        let run = |rate: &str| {
            let net = self.tune(loss, rounds, rate, rows)?;
            Ok((self.worth(&net, &self.trained)?, net))
        };
        let (_, (_, net)) = rates::best(&RATES, |(worth, _): &(f64, StateDict)| *worth, run)?;
        Ok((self.worth(&net, &self.fresh)?, net))
    }
}

/// Likelihood, or a loss of pairs.
fn likelihood() -> Loss {
    Loss::default()
}

fn dpo() -> Loss {
    Loss { dpo: Some(Dpo { beta: 0.1, ..Dpo::default() }), ..Loss::default() }
}

/// A margin of 1/(2β) = 10.
fn ipo() -> Loss {
    let loss_type = Types(vec![LossType::Ipo]);
    Loss { dpo: Some(Dpo { beta: 0.05, loss_type, ..Dpo::default() }), ..Loss::default() }
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let seed = Seed(seed).split("p24");
        let reference = beginning(seed)?;
        for (where_, peak) in PEAKS {
            let mut rng = seed.split("worlds").rng();
            let world = World {
                reference: reference.clone(),
                trained: contexts(TRAINED, &mut rng)?,
                fresh: contexts(FRESH, &mut rng)?,
                peak,
                seed: seed.split(where_),
            };
            let begins = world.worth(&world.reference, &world.fresh)?;
            measured.add(REFERENCE, where_, begins);
            for (arm, rounds) in ROUNDS {
                let rows = |now: &StateDict, round: usize| {
                    let drawn = world.seed.split("rounds").at(round as u64);
                    Ok(world.best(&world.draws(now, GROUPS / rounds, drawn)?))
                };
                let (worth, _) = world.arm(&likelihood(), rounds, &rows)?;
                measured.add(arm, where_, worth);
                lab.say(&format!("{where_} peak, {arm}: {worth:.3}"));
            }
            let draws = world.draws(&world.reference, 1, world.seed.split("once"))?;
            for (arm, loss) in OFFLINE {
                let loss = loss();
                let rows = |_: &StateDict, _: usize| match loss.dpo {
                    None => Ok(world.best(&draws)),
                    Some(_) => world.pairs(&draws),
                };
                let (worth, tuned) = world.arm(&loss, 1, &rows)?;
                measured.add(arm, where_, worth);
                lab.say(&format!("{where_} peak, {arm}: {worth:.3}"));
                told(&world, &draws, &tuned, arm, where_, &mut measured)?;
            }
        }
    }
    claims(&mut measured)?;
    Ok(measured)
}

/// How much more likely the better and the worse choices of the pairs have become.
fn told(
    world: &World,
    draws: &[Vec<Vec<usize>>],
    tuned: &StateDict,
    arm: &str,
    where_: &str,
    measured: &mut Measured,
) -> Result<()> {
    let (now, rows) = (logps(tuned, &world.trained)?, world.pairs(draws)?);
    let gain = |row: &Row| now[row.example][row.targets[0] as usize] - row.reference;
    for (side, name) in ["chosen", "rejected"].into_iter().enumerate() {
        let gains: Vec<f64> = rows.iter().skip(side).step_by(2).map(gain).collect();
        measured.add(arm, &format!("{where_}: gain of {name}"), crate::stats::mean(&gains));
    }
    Ok(())
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, peak: &str| measured.values(arm, peak).map(<[f64]>::to_vec);
    let (once, often) = (of(ROUNDS[0].0, "far")?, of(ROUNDS[2].0, "far")?);
    let times: Vec<f64> = often.iter().zip(&once).map(|(often, once)| often / once).collect();
    let bon = of(OFFLINE[0].0, "far")?;
    let (dpo, ipo) = (of(OFFLINE[1].0, "far")?, of(OFFLINE[2].0, "far")?);
    let negative = match crate::stats::mean(&dpo) >= crate::stats::mean(&ipo) {
        true => dpo,
        false => ipo,
    };
    let mut near = Vec::new();
    for (arm, _) in &ROUNDS {
        near.push(of(arm, "near")?);
    }
    for (arm, _) in &OFFLINE {
        near.push(of(arm, "near")?);
    }
    let spread = |seed: usize| {
        let all = near.iter().map(|arm| arm[seed]);
        all.clone().fold(f64::NEG_INFINITY, f64::max) - all.fold(f64::INFINITY, f64::min)
    };
    let spreads: Vec<f64> = (0..near[0].len()).map(spread).collect();
    let fresh = "far peak, best of ten: reward with 20 rounds over that with 1";
    let pushed = "far peak, ten draws: reward of the better of DPO and IPO − best of ten";
    let alike = "near peak: largest reward of an arm − smallest";
    measured.claim(Inequality::new(fresh, Estimate::of(&times), Limit::AtLeast(2.0)));
    measured.claim(Inequality::paired(pushed, &negative, &bon, Limit::AtLeast(0.05)));
    measured.claim(Inequality::new(alike, Estimate::of(&spreads), Limit::AtMost(0.05)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_has_its_mass_under_the_near_peak() {
        let data = data(Seed(1));
        assert!((data.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let mass = |from: usize, to: usize| data[from..to].iter().sum::<f64>();
        assert!(mass(5, 35) > 0.5 && mass(60, 80) < 0.15, "{} {}", mass(5, 35), mass(60, 80));
    }

    #[test]
    fn ten_draws_are_forty_five_pairs_at_most_and_the_best_is_the_best() {
        let reference = net(Seed(1)).unwrap();
        let mut rng = Seed(2).rng();
        let seen = contexts(2, &mut rng).unwrap();
        let (trained, fresh) = (seen.clone(), seen);
        let world = World { reference, trained, fresh, peak: 70.0, seed: Seed(3) };
        let draws = vec![vec![(60..70).collect::<Vec<usize>>()], vec![vec![7; 10]]];
        let pairs = world.pairs(&draws).unwrap();
        assert_eq!(pairs.len(), 90);
        assert!(pairs.chunks(2).all(|p| p[0].targets[0] > p[1].targets[0] && p[0].example == 0));
        let best: Vec<u32> = world.best(&draws).iter().map(|row| row.targets[0]).collect();
        assert_eq!(best, [69, 7]);
    }

    /// A pair moves its two logits and no other; a likelihood pushes all others down.
    #[test]
    fn a_pair_moves_its_own_logits_alone() {
        let slopes = |loss: Loss, rows: &[Row]| -> Vec<f32> {
            let objective = loss.objective().unwrap();
            let reference = net(Seed(4)).unwrap();
            let seen = contexts(1, &mut Seed(5).rng()).unwrap();
            let state = objective_gradient(&reference, &seen, objective.as_ref(), rows).unwrap();
            state.get("3.bias").unwrap().to_vec1().unwrap()
        };
        let pair = slopes(dpo(), &[choice(0, 4, -4.0), choice(0, 9, -4.0)]);
        let moved: Vec<usize> = (0..ACTIONS).filter(|i| pair[*i].abs() > 1e-7).collect();
        assert_eq!(moved, [4, 9]);
        assert!(pair[4] < 0.0 && (pair[4] + pair[9]).abs() < 1e-6);
        let likelihood = slopes(likelihood(), &[choice(0, 4, 0.0)]);
        assert!(likelihood.iter().enumerate().all(|(i, d)| (*d < 0.0) == (i == 4)));
    }
}
