//! Which entry a row uses.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{At, Batch, Error, Hook, Param, Result};

use crate::{
    choice::{self, Choice, Moment},
    passing::Passing,
};

/// Rows that each entry has had in training.
pub(super) const COUNTS: &str = "pool.counts";
/// What the scores of entries are multiplied by in training; 0 before the first switch.
pub(super) const PENALTIES: &str = "pool.penalties";
/// The chosen entry of a sequence while it is decoded, from 1; 0 is none.
const NOTE: &str = "pool.entry";

/// Takes the counts so far into account from now on: another task begins. Before the first one nothing
/// is counted, and nothing changes.
pub fn switch(params: &[Param]) -> Result<()> {
    let find = |name: &str| {
        let found = params.iter().find(|p| p.name == name);
        found.map(|p| &p.var).ok_or_else(|| Error::failed(name, "no pool is learned"))
    };
    let (counts, to) = (find(COUNTS)?, find(PENALTIES)?);
    let counts: Vec<f64> = counts.to_vec1::<f32>()?.iter().map(|n| f64::from(*n)).collect();
    let rows: f64 = counts.iter().sum();
    if rows == 0.0 {
        return Ok(());
    }
    let shares: Vec<f64> = counts.iter().map(|n| n / rows).collect();
    set(to, penalties(&shares))
}

/// Switches as a round begins. What learns stays the same: rows decide by the entry they choose.
pub(super) struct Task;

impl Choice for Task {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<choice::Chosen>> {
        if now.step == 0 {
            switch(now.own)?;
        }
        Ok(None)
    }
}

/// `νᵢ = (1 / (nᵢ + 1e-6)) / Σⱼ (1 / (nⱼ + 1e-6))`.
pub fn penalties(shares: &[f64]) -> Vec<f64> {
    let inverse: Vec<f64> = shares.iter().map(|n| 1.0 / (n + 1e-6)).collect();
    let sum: f64 = inverse.iter().sum();
    inverse.iter().map(|x| x / sum).collect()
}

/// `(c + 1) / 2 · ν`: a factor below 1 would raise a negative cosine.
pub fn score(cosine: f64, penalty: f64) -> f64 {
    (cosine + 1.0) / 2.0 * penalty
}

/// Replaces a variable's numbers.
fn set(var: &Var, values: Vec<f64>) -> Result<()> {
    let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
    Ok(var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?)
}

/// Chooses at the embedding and leaves its choice to the modulators of the pass.
pub(super) struct Chooser {
    pub(super) keys: Vec<Var>,
    pub(super) counts: Var,
    /// `None`: counts do not matter.
    pub(super) penalties: Option<Var>,
    pub(super) pull_coef: f64,
    pub(super) min_cosine: Option<f64>,
    pub(super) chosen: Arc<Passing<Arc<Chosen>>>,
}

/// The entries of a pass.
pub(super) struct Chosen {
    /// Tokens of the pass.
    pub(super) n: usize,
    /// The entries in use in ascending order, with the tokens that use them.
    pub(super) groups: Vec<Group>,
    /// For each token its place when groups are laid end to end, and what uses no entry after them.
    pub(super) place_n: Tensor,
    /// For each token its group, or the number of groups.
    pub(super) group_n: Tensor,
    /// The sum of the unit queries that chose an entry.
    queries: BTreeMap<usize, Vec<f64>>,
}

/// The tokens that use one entry.
pub(super) struct Group {
    pub(super) entry: usize,
    pub(super) len: usize,
    pub(super) tokens: Tensor,
}

impl Chosen {
    fn new(
        n: usize,
        rows: &[(Range<usize>, Option<usize>)],
        queries: BTreeMap<usize, Vec<f64>>,
    ) -> Result<Self> {
        let mut tokens: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut rest: Vec<u32> = Vec::new();
        for (range, entry) in rows {
            let of = match entry {
                Some(entry) => tokens.entry(*entry).or_default(),
                None => &mut rest,
            };
            of.extend(range.clone().map(|t| t as u32));
        }
        let (mut place, mut group) = (vec![0u32; n], vec![0u32; n]);
        for (g, tokens) in tokens.values().chain([&rest]).enumerate() {
            tokens.iter().for_each(|t| group[*t as usize] = g as u32);
        }
        for (at, t) in tokens.values().chain([&rest]).flatten().enumerate() {
            place[*t as usize] = at as u32;
        }
        let index = |of: Vec<u32>| {
            let n = of.len();
            Tensor::from_vec(of, n, &Device::Cpu)
        };
        let groups = tokens.into_iter().map(|(entry, tokens)| -> Result<Group> {
            Ok(Group { entry, len: tokens.len(), tokens: index(tokens)? })
        });
        let groups = groups.collect::<Result<_>>()?;
        Ok(Chosen { n, groups, place_n: index(place)?, group_n: index(group)?, queries })
    }
}

impl Chooser {
    /// What a pass chooses by.
    fn present(&self, training: bool) -> Result<Present> {
        let penalties = match &self.penalties {
            Some(penalties) if training => penalties.to_vec1::<f32>()?,
            _ => Vec::new(),
        };
        let keys = self.keys.iter().map(|key| Ok(unit(&key.to_vec1::<f32>()?)));
        let penalised = penalties.iter().any(|p| *p > 0.0);
        let least = self.min_cosine.filter(|_| !training);
        Ok(Present {
            keys: keys.collect::<Result<_>>()?,
            penalties: if penalised { penalties } else { Vec::new() },
            least,
        })
    }
}

/// Keys and penalties as they are in a pass.
struct Present {
    /// Of length 1.
    keys: Vec<Vec<f64>>,
    /// Empty where none counts.
    penalties: Vec<f32>,
    /// The cosine below which no entry is chosen.
    least: Option<f64>,
}

impl Present {
    /// The entry for the unit vector `q`.
    fn choose(&self, q: &[f64]) -> Option<usize> {
        let cosine = |key: &Vec<f64>| key.iter().zip(q).map(|(k, q)| k * q).sum();
        let cosines: Vec<f64> = self.keys.iter().map(cosine).collect();
        let of = |i: usize| match self.penalties.get(i) {
            Some(penalty) => score(cosines[i], f64::from(*penalty)),
            None => cosines[i],
        };
        let best = (0..cosines.len()).fold(0, |best, i| if of(i) > of(best) { i } else { best });
        self.least.is_none_or(|least| cosines[best] >= least).then_some(best)
    }
}

fn unit(x: &[f32]) -> Vec<f64> {
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    x.iter().map(|x| f64::from(*x) / norm).collect()
}

/// How many tokens of a row are its prompt.
fn prompt(weights: Option<&[f32]>, len: usize) -> usize {
    let first = weights.and_then(|weights| weights.iter().position(|w| *w != 0.0));
    first.map_or(len, |t| t + 1)
}

impl Hook for Chooser {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (n, _d) = y.dims2()?;
        let (training, h_nd) = (at.noise.is_some(), y.detach().to_dtype(DType::F32)?);
        let mut rows = Vec::with_capacity(at.rows.b());
        let mut queries: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let mut used = vec![0f64; self.keys.len()];
        let present = self.present(training)?;
        for row in (0..at.rows.b()).filter(|row| !at.rows.range(*row).is_empty()) {
            let range = at.rows.range(row);
            let goes_on = at.rows.positions_n[range.start] > 0;
            if let Some(noted) = at.cache.filter(|_| goes_on).and_then(|c| c.noted(row, NOTE)) {
                rows.push((range, (noted as usize).checked_sub(1)));
                continue;
            }
            let len = prompt(at.weights_n.map(|w| &w[range.clone()]), range.len());
            let q = unit(&h_nd.narrow(0, range.start, len)?.mean(0)?.to_vec1::<f32>()?);
            let entry = present.choose(&q);
            if let Some(cache) = at.cache {
                cache.note(row, NOTE, entry.map_or(0, |entry| entry as u64 + 1));
            }
            if let Some(entry) = entry {
                used[entry] += 1.0;
                let sum = queries.entry(entry).or_insert_with(|| vec![0.0; q.len()]);
                sum.iter_mut().zip(&q).for_each(|(sum, q)| *sum += q);
            }
            rows.push((range, entry));
        }
        if training {
            let before = self.counts.to_vec1::<f32>()?;
            let now = before.iter().zip(&used).map(|(n, more)| f64::from(*n) + more);
            set(&self.counts, now.collect())?;
        }
        self.chosen.put(at.rows, Arc::new(Chosen::new(n, &rows, queries)?));
        Ok(y)
    }

    /// `−pull_coef · Σ cos(q, k)` over the rows.
    fn penalty(&self, batch: &Batch) -> Result<Option<Tensor>> {
        let chosen = self.chosen.get(&batch.rows).filter(|_| self.pull_coef > 0.0);
        let Some(chosen) = chosen else { return Ok(None) };
        let mut sum: Option<Tensor> = None;
        for (entry, q) in &chosen.queries {
            let key = self.keys[*entry].as_tensor();
            let q: Vec<f32> = q.iter().map(|x| *x as f32).collect();
            let q_d = Tensor::from_vec(q, key.dims(), key.device())?;
            let cosines = ((key * q_d)?.sum_all()? / key.sqr()?.sum_all()?.sqrt()?)?;
            sum = Some(match sum {
                Some(sum) => (sum + cosines)?,
                None => cosines,
            });
        }
        Ok(sum.map(|sum| sum * -self.pull_coef).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the keys with the first axis.
    const COSINES: [f64; 4] = [0.9, 0.1, -0.9, -0.2];

    fn chooser(penalties: &[f64], min_cosine: Option<f64>) -> Chooser {
        let var = |x: &[f64]| {
            let x: Vec<f32> = x.iter().map(|x| *x as f32).collect();
            Var::new(x.as_slice(), &Device::Cpu).unwrap()
        };
        Chooser {
            keys: COSINES.map(|c| var(&[c, (1.0 - c * c).sqrt()])).to_vec(),
            counts: var(&vec![0.0; penalties.len()]),
            penalties: Some(var(penalties)),
            pull_coef: 0.5,
            min_cosine,
            chosen: Arc::default(),
        }
    }

    #[test]
    fn used_entries_are_barred_in_training_alone() {
        let nu = penalties(&[0.5, 0.5, 0.0, 0.0]);
        for (got, want) in nu.iter().zip([1e-6, 1e-6, 0.5, 0.5]) {
            assert!((got / want - 1.0).abs() < 5e-6, "{nu:?}");
        }
        let scores: Vec<f64> = COSINES.iter().zip(&nu).map(|(c, nu)| score(*c, *nu)).collect();
        for (got, want) in scores.iter().zip([9.5e-7, 5.5e-7, 0.025, 0.2]) {
            assert!((got / want - 1.0).abs() < 1e-5, "{scores:?}");
        }
        let later = chooser(&nu, None);
        let choose = |of: &Chooser, training| of.present(training).unwrap().choose(&[1.0, 0.0]);
        assert_eq!((choose(&later, true), choose(&later, false)), (Some(3), Some(0)));
        let first = chooser(&[0.0; 4], Some(0.95));
        assert_eq!((choose(&first, true), choose(&first, false)), (Some(0), None));
    }

    #[test]
    fn a_switch_takes_the_shares_of_rows() {
        let var = |x: &[f32]| Var::new(x, &Device::Cpu).unwrap();
        let params = [
            Param::whole(COUNTS, var(&[3.0, 1.0, 0.0])),
            Param::whole(PENALTIES, var(&[0.0, 0.0, 0.0])),
        ];
        switch(&params).unwrap();
        let got = params[1].var.to_vec1::<f32>().unwrap();
        let want = penalties(&[0.75, 0.25, 0.0]);
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7), "{got:?}");
        assert!(switch(&params[..1]).unwrap_err().to_string().contains(PENALTIES));
        let first =
            [Param::whole(COUNTS, var(&[0.0, 0.0])), Param::whole(PENALTIES, var(&[0.0, 0.0]))];
        switch(&first).unwrap();
        assert_eq!(first[1].var.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn tokens_find_their_groups_and_their_way_back() {
        let rows = [(0..2, Some(4)), (2..3, None), (3..6, Some(1)), (6..7, Some(4))];
        let chosen = Chosen::new(7, &rows, BTreeMap::new()).unwrap();
        let list = |t: &Tensor| t.to_vec1::<u32>().unwrap();
        let groups: Vec<_> = chosen.groups.iter().map(|g| (g.entry, list(&g.tokens))).collect();
        assert_eq!(groups, [(1, vec![3, 4, 5]), (4, vec![0, 1, 6])]);
        assert_eq!(list(&chosen.place_n), [3, 4, 6, 0, 1, 2, 5]);
        assert_eq!(list(&chosen.group_n), [1, 1, 2, 0, 0, 0, 1]);
    }

    #[test]
    fn a_prompt_ends_with_the_token_that_predicts_the_first_trained_one() {
        assert_eq!(prompt(None, 5), 5);
        assert_eq!(prompt(Some(&[0.0, 0.0, 1.0, 1.0]), 4), 3);
        assert_eq!(prompt(Some(&[0.0; 4]), 4), 4);
    }
}
