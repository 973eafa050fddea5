//! The most important tensors within a budget: one knapsack for every deepest tensor.

use serde::{Deserialize, Serialize};

use super::cost::Costs;

/// Whether the deepest chosen tensor is charged for passing a gradient on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// It is, as published.
    #[default]
    Inclusive,
    /// It is not: nothing below it needs one.
    Exclusive,
}

/// The best choice, in forward order, whose backward pass costs at most `share` of a whole one.
pub fn select(
    costs: &Costs,
    importance: &[f64],
    share: f64,
    t_q: usize,
    convention: Convention,
) -> Vec<bool> {
    let whole = costs.backward();
    let parts = |cost: &f64| (cost * t_q as f64 / whole).floor() as usize;
    // Output first.
    let t_dy: Vec<usize> = costs.t_dy.iter().rev().map(parts).collect();
    let t_dw: Vec<usize> = costs.t_dw.iter().rev().map(parts).collect();
    let values: Vec<f64> = importance.iter().rev().copied().collect();
    // A share of 1 may come as a little less.
    let most = (share * t_q as f64 + 1e-9).floor() as usize;
    let allowed = share * whole * (1.0 + 1e-9);
    // What is lost by rounding down adds up over many tensors.
    for budget in (0..=most).rev() {
        let mut chosen = best(&t_dy, &t_dw, &values, budget, convention);
        chosen.reverse();
        if costs.backward_of(&chosen, convention) <= allowed {
            return chosen;
        }
    }
    vec![false; importance.len()]
}

/// The same on whole numbers, from the output down.
pub fn best(
    t_dy: &[usize],
    t_dw: &[usize],
    values: &[f64],
    budget: usize,
    convention: Convention,
) -> Vec<bool> {
    let n = values.len();
    // Largest value of the tensors so far for every cost, and which of them were taken for it.
    let mut value = vec![0f64; budget + 1];
    let mut taken: Vec<Vec<bool>> = Vec::with_capacity(n);
    let mut found: Option<(f64, usize, usize)> = None;
    let mut passed = 0;
    for k in 0..n {
        let through = passed + t_dy[k];
        let base = t_dw[k] + if convention == Convention::Inclusive { through } else { passed };
        passed = through;
        if values[k] > 0.0 && base <= budget {
            let total = values[k] + value[budget - base];
            if found.is_none_or(|(most, ..)| total > most) {
                found = Some((total, k, budget - base));
            }
        }
        let mut takes = vec![false; budget + 1];
        if values[k] > 0.0 {
            for left in (t_dw[k]..=budget).rev() {
                let with = value[left - t_dw[k]] + values[k];
                if with > value[left] {
                    (value[left], takes[left]) = (with, true);
                }
            }
        }
        taken.push(takes);
    }
    let mut chosen = vec![false; n];
    if let Some((_, deepest, mut left)) = found {
        chosen[deepest] = true;
        for k in (0..deepest).rev() {
            if taken[k][left] {
                chosen[k] = true;
                left -= t_dw[k];
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    fn cost(t_dy: &[usize], t_dw: &[usize], chosen: &[bool], convention: Convention) -> usize {
        let Some(deepest) = chosen.iter().rposition(|m| *m) else { return 0 };
        let to = deepest + usize::from(convention == Convention::Inclusive);
        let dw = t_dw.iter().zip(chosen).filter(|(_, m)| **m).map(|(dw, _)| dw);
        t_dy[..to].iter().chain(dw).sum()
    }

    #[test]
    fn the_published_example() {
        let (t_dy, t_dw) = ([0, 2, 1, 4, 0], [5, 1, 7, 3, 1]);
        let values = [1.0, 3.0, 10.0, 5.0, 3.0];
        let inclusive = best(&t_dy, &t_dw, &values, 14, Convention::Inclusive);
        assert_eq!(inclusive, [false, true, true, false, false]);
        assert_eq!(cost(&t_dy, &t_dw, &inclusive, Convention::Inclusive), 11);
        let exclusive = best(&t_dy, &t_dw, &values, 14, Convention::Exclusive);
        assert_eq!(exclusive, [false, true, true, true, false]);
        assert_eq!(cost(&t_dy, &t_dw, &exclusive, Convention::Exclusive), 14);
    }

    #[test]
    fn no_choice_is_better_and_none_is_too_expensive() {
        let mut rng = Seed(4).rng();
        for case in 0..300 {
            let n = 8;
            let mut draw = |most: usize| (0..n).map(|_| rng.below(most)).collect::<Vec<usize>>();
            let (t_dy, t_dw, raw) = (draw(6), draw(8), draw(20));
            let values: Vec<f64> = raw.iter().map(|v| *v as f64 - 4.0).collect();
            let budget = (t_dy.iter().chain(&t_dw).sum::<usize>()) * (case % 10) / 10;
            for convention in [Convention::Inclusive, Convention::Exclusive] {
                let worth = |chosen: &[bool]| -> f64 {
                    values.iter().zip(chosen).filter(|(_, m)| **m).map(|(v, _)| v).sum()
                };
                let all = (0..1usize << n).map(|bits| (0..n).map(|k| bits >> k & 1 == 1).collect());
                let most = all
                    .filter(|m: &Vec<bool>| cost(&t_dy, &t_dw, m, convention) <= budget)
                    .map(|m| worth(&m))
                    .fold(0.0, f64::max);
                let got = best(&t_dy, &t_dw, &values, budget, convention);
                assert!(cost(&t_dy, &t_dw, &got, convention) <= budget);
                assert_eq!(worth(&got), most, "case {case}");
                assert!(got.iter().zip(&values).all(|(m, v)| !m || *v > 0.0));
            }
        }
    }
    /// Forty tensors whose costs are no whole number of parts, a third of them tiny.
    fn many(rng: &mut luthier_core::Rng) -> (Costs, Vec<f64>) {
        let mut draw = |k: usize| {
            if k.is_multiple_of(3) { rng.uniform() } else { 100.0 + 400.0 * rng.uniform() }
        };
        let size: Vec<f64> = (0..40).map(&mut draw).collect();
        let values = size.iter().map(|size| size.sqrt() * (rng.normal() + 0.5)).collect();
        (Costs { forward: size.iter().sum(), t_dy: size.clone(), t_dw: size }, values)
    }

    #[test]
    fn rounding_makes_no_choice_too_expensive_and_few_much_worse() {
        let mut rng = Seed(10).rng();
        for case in 0..60 {
            let (costs, values) = many(&mut rng);
            let share = [0.05, 0.25, 0.55][case % 3];
            for convention in [Convention::Inclusive, Convention::Exclusive] {
                let [coarse, fine] = [1000, 5000].map(|t_q| {
                    let chosen = select(&costs, &values, share, t_q, convention);
                    let spent = costs.backward_of(&chosen, convention) / costs.backward();
                    assert!(spent <= share * (1.0 + 1e-6), "case {case}: {spent} of {share}");
                    let taken = values.iter().zip(&chosen).filter(|(_, m)| **m);
                    taken.map(|(v, _)| v).sum::<f64>()
                });
                assert!(share < 0.2 || coarse > 0.9 * fine, "case {case}: {coarse} {fine}");
            }
        }
    }

    #[test]
    fn with_the_whole_budget_all_that_helps_learns_and_nothing_else() {
        let mut rng = Seed(11).rng();
        for _ in 0..20 {
            let (costs, values) = many(&mut rng);
            let share = costs.backward_share(1.0, 0.05);
            let chosen = select(&costs, &values, share, 1000, Convention::Inclusive);
            assert!(chosen.iter().zip(&values).all(|(m, v)| *m == (*v > 0.0)), "{chosen:?}");
        }
    }
}
