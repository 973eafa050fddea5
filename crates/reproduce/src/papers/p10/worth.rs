//! Whether the importance of a tensor tells by how much the loss falls when it alone takes a step.

use candle_core::{Tensor, Var};
use luthier_core::{Batch, Param, Result, Row, Seed, StateDict};
use luthier_params::{Bound, Trial, form::green::importance};
use luthier_train::{Gradients, Step, Train, step::Data};
use luthier_update::{Start, Stepper};

use crate::measure;

/// Trial passes over the same rows again and again.
struct Passes<'a> {
    step: Step<'a>,
    data: Data<'a>,
    stepper: &'a Stepper,
    rate: f64,
}

impl Trial for Passes<'_> {
    fn rows(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    fn gradients(&mut self, params: &[Param]) -> Result<(f64, StateDict)> {
        let step = Step { params, ..self.step };
        let found = step.gradients(&self.data, Gradients::new())?;
        Ok((found.loss, found.gradients.into_iter().collect()))
    }

    fn step(&mut self, params: &[Param], gradients: &StateDict) -> Result<()> {
        self.stepper.first_step(params, self.rate, &|name, _| gradients.get(name).cloned())
    }
}

/// The importance of every tensor that learns, and by how much the loss of `rows` falls when it
/// alone takes its trial step.
pub fn of_tensors(bound: &Bound, config: &Train, rows: &[Row]) -> Result<(Vec<f64>, Vec<f64>)> {
    let params = bound.params.as_slice();
    let stepper = Stepper::new(&config.update, params, &Start::steps(1))?;
    let passes = [Batch::from_rows(rows)];
    let describe = |example: usize| format!("row {example}");
    let objective = config.loss.objective()?;
    let mut trial = Passes {
        step: Step {
            policy: &bound.policy,
            params,
            objective: objective.as_ref(),
            teacher: None,
            keep: true,
        },
        data: Data { number: 1, passes: &passes, noise: Seed(config.seed), describe: &describe },
        stepper: &stepper,
        rate: config.update.check()?.learning_rate,
    };
    let importance = importance(params, &mut trial)?;

    let start: Vec<Tensor> = params.iter().map(|p| copy(&p.var)).collect::<Result<_>>()?;
    let (_, gradients) = trial.gradients(params)?;
    trial.step(params, &gradients)?;
    let mut moved = Vec::with_capacity(params.len());
    for (param, start) in params.iter().zip(&start) {
        moved.push(copy(&param.var)?);
        param.var.set(start)?;
    }
    let before = measure::loss(&bound.policy, rows)?;
    let mut falls = Vec::with_capacity(params.len());
    for ((param, start), moved) in params.iter().zip(&start).zip(&moved) {
        param.var.set(moved)?;
        falls.push(before - measure::loss(&bound.policy, rows)?);
        param.var.set(start)?;
    }
    Ok((importance, falls))
}

fn copy(var: &Var) -> Result<Tensor> {
    Ok(var.as_detached_tensor().copy()?)
}

/// Spearman's correlation of numbers among which no two are equal.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(a, b)| (a - b) * (a - b)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    order.iter().enumerate().for_each(|(rank, i)| ranks[*i] = rank as f64);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sizes, Small, recipe};

    #[test]
    fn ranks_correlate_as_in_the_textbook() {
        // Differences of rank 1, 1, 2, 1, 1: 1 − 6 · 8 / 120.
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0], [20.0, 10.0, 99.0, 30.0, 40.0]);
        assert!((spearman(&a, &b) - 0.6).abs() < 1e-12);
        assert_eq!((spearman(&a, &a), spearman(&a, &[5.0, 4.0, 3.0, 2.0, 1.0])), (1.0, -1.0));
    }

    #[test]
    fn looking_leaves_the_weights_as_they_were_and_small_steps_are_what_they_seem() {
        let sizes =
            Sizes { layers: 2, width: 16, heads: 2, kv_heads: 2, ffn: 24, vocab: 12, tied: false };
        let small = Small::random(sizes, Seed(3)).unwrap();
        let rows: Vec<Row> = (0..6).map(|i| measure::row(&[i, 3, 7], &[i + 1, 2], 0)).collect();
        let set = ["batch_size=6", "learning_rate=1e-3"];
        let mut config = recipe("recipes/full/sft.toml", &set).unwrap();
        config.seed = 4;
        let bound = small.bind(&config).unwrap();
        let (importance, falls) = of_tensors(&bound, &config, &rows).unwrap();
        for Param { name, var, .. } in &bound.params {
            let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let before = small.weights.get(name).unwrap();
            assert!(numbers(var.as_tensor()) == numbers(before), "{name}");
        }
        assert_eq!(importance.len(), bound.params.len());
        assert!(falls.iter().all(|fall| *fall > -1e-5), "{falls:?}");
        assert!(spearman(&importance, &falls) > 0.8, "{importance:?} {falls:?}");
    }
}
