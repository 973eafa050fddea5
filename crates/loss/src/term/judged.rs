//! What a head says of rows, and the graph of anything that is charged for that.
//!
//! A row that is judged has one position that counts, its last; what the head says there is a number for
//! each label. Charges are given by their value and their slopes, as for answers (`pair::answers`).

use candle_core::Tensor;
use luthier_core::{Batch, Error, Logits, Result};

/// The scores of some rows.
pub(super) struct Judged {
    logits_ml: Tensor,
    labels: usize,
    /// Of each, its row in the batch, what it counts, and what is scored.
    pub(super) rows: Vec<(usize, f64, Vec<f64>)>,
}

impl Judged {
    /// Asks the head for all rows of a batch that count; `None` where there are none.
    pub(super) fn ask(out: &mut dyn Logits, batch: &Batch) -> Result<Option<Self>> {
        let (mut index_m, mut rows) = (Vec::new(), Vec::new());
        for row in 0..batch.rows.b() {
            let trained = |i: &usize| batch.weights_n[*i] != 0.0;
            let mut counted = batch.rows.range(row).filter(trained);
            let Some(at) = counted.next() else { continue };
            if counted.next().is_some() {
                let of = format!("example {}", batch.examples_b[row]);
                let what = "several of its tokens count, where a head reads one";
                return Err(Error::failed(of, what));
            }
            index_m.push(at as u32);
            rows.push((row, f64::from(batch.weights_n[at]), Vec::new()));
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let logits_ml = out.logits(&index_m)?;
        let (_, labels) = logits_ml.dims2()?;
        let values: Vec<Vec<f32>> = logits_ml.to_vec2()?;
        for ((_, _, scores), values) in rows.iter_mut().zip(values) {
            *scores = values.into_iter().map(f64::from).collect();
        }
        Ok(Some(Judged { logits_ml, labels, rows }))
    }

    /// Refuses a head that scores more than one label.
    pub(super) fn single(&self, key: &str) -> Result<()> {
        if self.labels == 1 {
            return Ok(());
        }
        let what = format!("needs a head with one label, this one has {}", self.labels);
        Err(Error::input(format!("train.loss.{key}"), what).hint("train.params.head.labels = 1"))
    }

    /// A charge with its graph, from its value and its slopes, label by label, row by row.
    pub(super) fn charge(&self, value: f64, slopes: Vec<f64>) -> Result<Tensor> {
        let slopes: Vec<f32> = slopes.into_iter().map(|slope| slope as f32).collect();
        let slopes_ml = Tensor::from_vec(slopes, self.logits_ml.dims2()?, self.logits_ml.device())?;
        let moves = ((&self.logits_ml - self.logits_ml.detach())? * slopes_ml)?.sum_all()?;
        Ok((moves + value)?)
    }
}
