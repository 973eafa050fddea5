//! An objective asked on a table of logits, for the laws of all of them.

// Every test binary takes what it needs.
#![allow(dead_code)]

use candle_core::{Device, Tensor, Var, backprop::GradStore};
use luthier_core::{Batch, Logits, Piece, Result, Rng, model::gather_logp};
use luthier_loss::{Given, Objective, Seen, Teacher, Terms, Totals, given};

/// Tokens of the vocabulary.
pub const VOCAB: usize = 7;

/// A forward pass whose logits, and last residual stream, are the variable itself, and that remembers
/// what it was asked.
pub struct Table {
    /// Its gradient is the objective's.
    pub logits_nv: Var,
    pub asked: Vec<u32>,
    /// How many columns there are to see.
    pub columns: usize,
}

impl Logits for Table {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        gather_logp(&self.logits(index_m)?, targets_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.asked.extend(index_m);
        Given(self.logits_nv.narrow(1, 0, self.columns)?.contiguous()?).logits(index_m)
    }

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.logits(index_m)
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        given::sum(self, pieces, piece)
    }
}

pub fn logits(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n * VOCAB).map(|_| (2.0 * rng.normal()) as f32).collect()
}

/// One batch that is the whole step.
pub fn run(objective: &dyn Objective, logits: &[f32], batch: &Batch) -> (Terms, Table) {
    let by = objective.normaliser(&[batch]);
    run_in(objective, logits, batch, &Totals { by, ..Totals::of([batch]) })
}

pub fn run_in(
    objective: &dyn Objective,
    logits: &[f32],
    batch: &Batch,
    step: &Totals,
) -> (Terms, Table) {
    let table = |logits: &[f32]| {
        let logits_nv = Var::from_slice(logits, (batch.n(), VOCAB), &Device::Cpu).unwrap();
        Table { logits_nv, asked: Vec::new(), columns: VOCAB }
    };
    let (mut policy, mut teacher) = (table(logits), table(&taught(batch)));
    let teacher: Option<&mut dyn Logits> = match objective.teacher() {
        Teacher::Nobody => None,
        Teacher::Base | Teacher::Model => Some(&mut teacher),
    };
    match objective.terms(Seen { out: &mut policy, teacher, batch, step }) {
        Ok(terms) => (terms, policy),
        // A head of one label.
        Err(error) if error.to_string().contains("a head with one label") => {
            policy = Table { columns: 1, ..table(logits) };
            let seen = Seen { out: &mut policy, teacher: None, batch, step };
            (objective.terms(seen).unwrap(), policy)
        }
        Err(error) => panic!("{error}"),
    }
}

/// What a teacher says of every token: a function of what is read and asked there.
pub fn taught(batch: &Batch) -> Vec<f32> {
    let of = |i: usize| {
        let at = (3 * batch.ids_n[i] + 5 * batch.targets_n[i]) as f32;
        (0..VOCAB).map(move |v| 2.0 * (at + 1.7 * v as f32).sin())
    };
    (0..batch.n()).flat_map(of).collect()
}

pub fn gradient(grads: &GradStore, table: &Table) -> Vec<f32> {
    match grads.get(&table.logits_nv) {
        Some(g) => g.flatten_all().unwrap().to_vec1().unwrap(),
        None => vec![0.0; table.logits_nv.elem_count()],
    }
}
