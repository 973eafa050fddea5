//! A copilot that learns beside the policy, its pilot (Transformer Copilot, Zou et al. 2025, paper 40).
//!
//! Every pass leaves a mistake log: what the pilot embedded, the mean of its streams, and its errors
//! `e = 1[target] − softmax(logits)` at the trained targets, all before its weights move. The copilot
//! reads them row by row, each place with the error before it, and minimises the mean over a step's rows
//! of `sqrt(1/m Σ_k ‖f_k − e_k‖²)`.
//!
//! The vocabulary's two matrices, which read errors and give corrections, are pulled back by hand, so
//! that corrections exist for a few tokens at a time and nothing is charged for the gradient of a
//! constant; between them runs candle's graph.
//!
//! **Departures**: (1) the log is that of the step and is then forgotten, where the paper draws from all
//! steps; where the pilot learns its data by heart there is then nothing left to learn, so one epoch is
//! best; (2) AdamW without decay, under the policy's schedule, over the whole run also where the policy
//! runs its schedule several times.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor, Var};
use luthier_core::{Batch, Error, Logits, Param, Result, StateDict};
use luthier_loss::copilot::{LEAST, errors};
use luthier_params::copilot::{Copilot as Net, HEAD, READ, Sizes, States};
use luthier_update::{AdamW, Start, Stepper, Update};
use serde::{Deserialize, Serialize};

use crate::beside::Beside;

/// `[train.copilot]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Copilot {
    /// Its blocks; every second one looks at the pilot.
    pub layers: usize,
    /// Width of its stream.
    pub width: usize,
    /// Its attention heads.
    pub heads: usize,
    /// Its learning rate, times the policy's.
    pub lr_ratio: f64,
    /// Of its AdamW. Large beside the gradients of tokens that hardly ever come, small beside the others':
    /// at AdamW's own all the vocabulary would move at the same rate, and the many that should stay at 0
    /// would drown the few that should not.
    pub eps: f64,
    /// How much of its corrections is used when nobody says so; kept with it, without a part in training.
    pub lambda: f64,
    /// Begins with the weights of an earlier copilot in this folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

impl Default for Copilot {
    fn default() -> Self {
        // The rates are those of the paper's tables, 5e-4 beside 3e-4 and 3e-4 beside 2e-4; λ is its
        // grid's value that does no harm where nobody has chosen.
        Copilot {
            layers: 4,
            width: 128,
            heads: 4,
            lr_ratio: 1.5,
            eps: 1e-3,
            lambda: 0.3,
            from: None,
        }
    }
}

impl Copilot {
    /// Refuses values that cannot be meant.
    pub fn check(&self) -> Result<()> {
        self.sizes(1, 1).check("train.copilot")?;
        for (key, value, ok) in [
            ("lr_ratio", self.lr_ratio, self.lr_ratio > 0.0),
            ("eps", self.eps, self.eps > 0.0),
            ("lambda", self.lambda, self.lambda >= 0.0),
        ] {
            if !(ok && value.is_finite()) {
                let what = format!("expected a positive number, got {value}");
                return Err(Error::input(format!("train.copilot.{key}"), what));
            }
        }
        Ok(())
    }

    /// Its sizes beside a pilot of this vocabulary and width.
    pub fn sizes(&self, vocab: usize, pilot_width: usize) -> Sizes {
        let Copilot { layers, width, heads, .. } = *self;
        Sizes { layers, width, heads, vocab, pilot_width }
    }

    /// How it learns beside a policy that learns by `update`.
    fn update(&self, update: &Update) -> Result<Update> {
        let learning_rate = self.lr_ratio * update.check()?.learning_rate;
        Ok(Update {
            adamw: Some(AdamW { learning_rate, eps: self.eps, ..AdamW::default() }),
            schedule: update.schedule.clone(),
            ..Update::default()
        })
    }
}

/// Tokens whose logits and corrections exist at a time.
const PIECE: usize = 128;
/// What the optimizer remembers, in a checkpoint.
const OPTIMIZER: &str = "copilot_optimizer.safetensors";

/// A copilot in training.
pub struct Learner<'a> {
    net: &'a Net,
    params: Vec<Param>,
    update: Update,
    /// What is saved with it.
    about: (&'a str, f64),
    stepper: Option<Stepper>,
    states: States,
    sums: StateDict,
    logged: Logged,
}

/// What is known of a step's rows.
#[derive(Default)]
struct Logged {
    rows: usize,
    distance: f64,
    /// The same distance from no correction at all.
    errors: f64,
}

impl<'a> Learner<'a> {
    /// `net` beside a policy made of `base` that learns by `update`.
    pub fn new(settings: &Copilot, net: &'a Net, update: &Update, base: &'a str) -> Result<Self> {
        Ok(Learner {
            net,
            params: net.params(),
            update: settings.update(update)?,
            about: (base, settings.lambda),
            stepper: None,
            states: States::default(),
            sums: StateDict::default(),
            logged: Logged::default(),
        })
    }

    /// Writes what decoding needs.
    pub fn export(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.net.save(dir, self.about.0, self.about.1)
    }

    fn found(&mut self, name: &str, new: Tensor) -> Result<()> {
        let sum = match self.sums.remove(name) {
            None => new,
            Some(so_far) => (so_far + new)?,
        };
        self.sums.insert(name, sum);
        Ok(())
    }

    /// One row: its distance and the gradients of that.
    fn row(&mut self, pooled: &[Tensor; 2], at_m: &[u32], errors_mv: &Tensor) -> Result<f64> {
        let net = self.net;
        let read = Var::from_tensor(&net.read(errors_mv)?.detach())?;
        let hidden_md = net.hidden(read.as_tensor(), &net.align(pooled)?, at_m)?;
        let constant_md = hidden_md.detach();
        let head_vd = self.var(HEAD)?;
        let m = at_m.len();
        let (mut squares, mut dh, mut dhead_vd) = (0.0, Vec::new(), None);
        for begin in (0..m).step_by(PIECE) {
            let len = PIECE.min(m - begin);
            let h = constant_md.narrow(0, begin, len)?;
            let gap = (net.correct(&h)?.detach() - errors_mv.narrow(0, begin, len)?)?;
            squares += squares_of(&gap)?;
            dh.push(gap.matmul(&head_vd)?);
            let new = gap.t()?.matmul(&h)?;
            dhead_vd = Some(match dhead_vd {
                None => new,
                Some(so_far) => (so_far + new)?,
            });
        }
        let distance = (squares / m as f64 + LEAST).sqrt();
        // d distance / d f = (f − e) / (m · distance).
        let by = 1.0 / (m as f64 * distance);
        if let Some(dhead_vd) = dhead_vd {
            self.found(HEAD, (dhead_vd * by)?)?;
        }
        let dh_md = (Tensor::cat(&dh, 0)? * by)?;
        let store = (hidden_md * dh_md)?.sum_all()?.backward()?;
        for i in 0..self.params.len() {
            let Param { name, var, .. } = self.params[i].clone();
            if let Some(new) = store.get(var.as_tensor()) {
                self.found(&name, new.clone())?;
            }
        }
        if let Some(dread_md) = store.get(read.as_tensor()) {
            self.found(READ, dread_md.t()?.matmul(errors_mv)?)?;
        }
        Ok(distance)
    }

    fn var(&self, name: &str) -> Result<Tensor> {
        let found = self.params.iter().find(|param| param.name == name);
        let missing = || Error::failed(name, "is no variable of the copilot");
        Ok(found.ok_or_else(missing)?.var.as_detached_tensor())
    }
}

/// `Σ x²`, in f64 from row to row.
fn squares_of(x: &Tensor) -> Result<f64> {
    let rows = x.sqr()?.sum(1)?.to_vec1::<f32>()?;
    Ok(rows.into_iter().map(f64::from).sum())
}

impl Beside for Learner<'_> {
    fn begin(&mut self, steps: u64, from: Option<&Path>) -> Result<()> {
        let mut stepper = Stepper::new(&self.update, &self.params, &Start::steps(steps))?;
        if let Some(dir) = from {
            self.net.load(dir)?;
            stepper.load(StateDict::load(&dir.join(OPTIMIZER))?)?;
        }
        self.stepper = Some(stepper);
        Ok(())
    }

    fn stream(&mut self, h_nd: &Tensor) -> Result<()> {
        self.states.take(h_nd)
    }

    fn end(&mut self, batch: &Batch, out: &mut dyn Logits) -> Result<()> {
        let pooled = std::mem::take(&mut self.states).pooled()?;
        for row in 0..batch.rows.b() {
            let range = batch.rows.range(row);
            let trained = range.clone().filter(|i| batch.weights_n[*i] != 0.0);
            let index: Vec<u32> = trained.map(|i| i as u32).collect();
            let Some(last) = index.last() else { continue };
            let at_m: Vec<u32> = index.iter().map(|i| i - range.start as u32).collect();
            // What stands behind the last target is seen by none.
            let n = *last as usize + 1 - range.start;
            let seen = |half: &Tensor| half.narrow(0, range.start, n)?.contiguous();
            let seen = [seen(&pooled[0])?, seen(&pooled[1])?];
            let pieces: Result<Vec<Tensor>> = (index.chunks(PIECE))
                .map(|piece| {
                    let targets: Vec<u32> =
                        piece.iter().map(|i| batch.targets_n[*i as usize]).collect();
                    errors(&out.logits(piece)?.to_dtype(DType::F32)?, &targets)
                })
                .collect();
            let errors_mv = Tensor::cat(&pieces?, 0)?;
            self.logged.errors += (squares_of(&errors_mv)? / at_m.len() as f64).sqrt();
            self.logged.distance += self.row(&seen, &at_m, &errors_mv)?;
            self.logged.rows += 1;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<(&'static str, f64)>> {
        let Logged { rows, distance, errors } = std::mem::take(&mut self.logged);
        let rows = rows.max(1) as f64;
        let mut sums = StateDict::default();
        for (name, sum) in std::mem::take(&mut self.sums).iter() {
            sums.insert(name, (sum / rows)?);
        }
        let Some(stepper) = &mut self.stepper else {
            return Err(Error::failed("train.copilot", "a step before it has begun"));
        };
        stepper
            .step(&|name, _| sums.get(name).cloned())
            .map_err(|e| Error::within("copilot", e))?;
        Ok(vec![("copilot_loss", distance / rows), ("pilot_error", errors / rows)])
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.export(dir)?;
        let Some(stepper) = &self.stepper else { return Ok(()) };
        stepper.state()?.save(&dir.join(OPTIMIZER), &[])
    }
}

#[cfg(test)]
mod tests;
