//! The likelihood of data as a function of a model's weights: what searches over weights move on.
//!
//! The model is loaded once, in f32; [`Weights::set`] writes other numbers into it. With gradients the
//! memory is the weights twice, and the activations of one pass.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Batch, Error, Model, Policy, Result, Row, Seed, StateDict, Table, batch::pack};
use luthier_kernels::threads;
use luthier_loss::Nll;
use luthier_model::Tokenizer;
use luthier_params::{Bound, Full, Params};
use luthier_probe::{
    Graft,
    graft::{Region, Search},
    metric::nll,
    sharpness,
};
use luthier_train::{Step, step::Data, sum::Gradients};

use crate::{
    evaluate::{self, Limits},
    open::Opened,
};

/// Tokens of a pass: as many as a training step reads at a time where nothing is said.
const PASS: usize = 2048;

/// A model with weights that can be written.
pub struct Weights {
    bound: Bound,
    tokenizer: Arc<Tokenizer>,
    max_length: usize,
}

impl Weights {
    /// Of a model that was loaded in f32.
    pub fn of(opened: &Opened) -> Result<Self> {
        let max_length = Limits::default().max_length.min(opened.config.max_positions);
        Weights::new(&opened.model, opened.tokenizer.clone(), max_length)
    }

    /// Of a model in f32 with its tokenizer, for rows of at most `max_length` tokens.
    pub fn new(
        model: &Arc<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        max_length: usize,
    ) -> Result<Self> {
        let form = Params { full: Some(Full::default()), ..Params::default() };
        Ok(Weights { bound: form.bind(model, Seed(0))?, tokenizer, max_length })
    }

    /// The model with the weights that were written last.
    pub fn policy(&self) -> &Policy {
        &self.bound.policy
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How far rows may reach.
    pub fn limits(&self) -> Limits {
        let usual = Limits::default();
        Limits { max_length: self.max_length, max_context: self.max_length, ..usual }
    }

    /// Writes one weight.
    pub fn put(&self, name: &str, weight: &Tensor) -> Result<()> {
        let var = self.bound.var(name);
        let var = var.ok_or_else(|| Error::input(name, "is no weight of this model"))?;
        if var.dims() != weight.dims() {
            let what = format!("expected shape {:?}, got {:?}", var.dims(), weight.dims());
            return Err(Error::input(name, what));
        }
        Ok(var.set(weight)?)
    }

    /// Writes all weights that `weights` has.
    pub fn set(&self, weights: &StateDict) -> Result<()> {
        weights.iter().try_for_each(|(name, weight)| self.put(name, weight))
    }
}

/// The mean negative log-likelihood per token of given rows, where the weights are.
pub struct Landscape<'a> {
    weights: &'a Weights,
    passes: Vec<Batch>,
    name: String,
}

impl<'a> Landscape<'a> {
    /// Of the answers in `table` (all tokens of plain texts), as `luthier eval --metric nll` has it.
    pub fn of(weights: &'a Weights, table: &Table) -> Result<Self> {
        let rows = evaluate::rows(&weights.tokenizer, table, &weights.limits())?;
        Landscape::new(weights, &rows, &table.name)
    }

    /// Of rows; `name` is theirs, for errors.
    pub fn new(weights: &'a Weights, rows: &[Row], name: &str) -> Result<Self> {
        if rows.iter().all(|row| row.trained() == 0) {
            return Err(Error::input(name, "there is no token to measure"));
        }
        let all: Vec<usize> = (0..rows.len()).collect();
        let passes = pack(&all, |row| rows[row].len(), PASS);
        let passes = passes.iter().map(|pass| Batch::from_rows(pass.iter().map(|row| &rows[*row])));
        Ok(Landscape { passes: passes.collect(), weights, name: name.to_string() })
    }

    /// The weights it looks at.
    pub fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// The likelihood.
    pub fn loss(&self) -> Result<f64> {
        let (mut sum, mut weight) = (0.0, 0.0);
        for pass in &self.passes {
            for row in threads::together(|| nll(self.weights.policy(), [pass]))? {
                (sum, weight) = (sum + row.sum, weight + row.weight);
            }
        }
        Ok(sum / weight)
    }

    /// The likelihood, and its gradient by the name of each weight that something reaches.
    pub fn gradient(&self) -> Result<(f64, Gradients)> {
        let objective = Nll::default();
        let step = Step {
            policy: self.weights.policy(),
            params: &self.weights.bound.params,
            objective: &objective,
            teacher: None,
            keep: true,
        };
        let data = Data {
            number: 1,
            passes: &self.passes,
            noise: Seed(0),
            describe: &|row| format!("{} {}", self.name, row + 1),
        };
        let found = step.gradients(&data, Gradients::new())?;
        Ok((found.loss, found.gradients))
    }

    /// The same as a state, with zeros where nothing reaches (a token that no row has).
    fn slopes(&self) -> Result<(f64, StateDict)> {
        let (loss, mut found) = self.gradient()?;
        let mut state = StateDict::default();
        for param in &self.weights.bound.params {
            let gradient = match found.remove(&param.name) {
                Some(gradient) => gradient,
                None => param.var.zeros_like()?,
            };
            state.insert(param.name.clone(), gradient);
        }
        Ok((loss, state))
    }

    /// How sharp it is around `at` within the tensors that `layer` names.
    pub fn sharpness(
        &self,
        how: &luthier_probe::Sharpness,
        at: &StateDict,
        layer: &dyn Fn(&str) -> bool,
    ) -> Result<f64> {
        let loss = |state: &StateDict| {
            self.weights.set(state)?;
            self.loss()
        };
        let gradient = |state: &StateDict| {
            self.weights.set(state)?;
            self.slopes()
        };
        how.measure(at, layer, &sharpness::Landscape { loss: &loss, gradient: &gradient })
    }

    /// The smallest region of `tuned` that carries its tuning: sought with gradients on these rows, each
    /// step on all of them, and judged on `held` by the likelihood of a token.
    pub fn graft(
        &self,
        how: &Graft,
        (base, tuned): (&StateDict, &StateDict),
        candidates: &dyn Fn(&str) -> bool,
        held: &Landscape<'_>,
        seed: Seed,
    ) -> Result<Region> {
        let mut gradient = |_: u64, state: &StateDict| {
            self.weights.set(state)?;
            Ok(self.slopes()?.1)
        };
        let mut score = |state: &StateDict| held.likelihood(state);
        let score = &mut score;
        how.search(&mut Search { base, tuned, candidates, gradient: &mut gradient, score, seed })
    }

    /// The geometric mean of the tokens' probabilities at given weights.
    pub fn likelihood(&self, at: &StateDict) -> Result<f64> {
        self.weights.set(at)?;
        Ok((-self.loss()?).exp())
    }
}
