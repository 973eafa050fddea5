//! The inputs of one tensor as a merge sees them: in f32, rounded if the file says so, with their rows
//! in the order of the output's tokens; behind the models what files beside them have.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use luthier_core::Result;
use luthier_kernels::num::{narrow, widen};
use luthier_weights::{Format, Operands};

use super::{
    beside::Files,
    models::Models,
    plan::Planned,
    tokens::{Row, Vocabulary},
};

/// Rows that are read at a time for their mean.
const ROWS: usize = 256;

/// The inputs of one tensor.
pub(super) struct Tensors<'a> {
    planned: &'a Planned,
    models: &'a Models,
    files: &'a Files,
    vocabulary: Option<&'a Vocabulary>,
    /// By input: its model.
    indices: Vec<usize>,
    /// Tensors that adapters change, whole: by model and name.
    folded: Vec<(usize, String, Vec<f32>)>,
    /// By input: the row that fills a table up.
    fill: Vec<Vec<f32>>,
}

impl<'a> Tensors<'a> {
    pub(super) fn of(
        planned: &'a Planned,
        models: &'a Models,
        files: &'a Files,
        vocabulary: Option<&'a Vocabulary>,
    ) -> Result<Self> {
        let vocabulary = vocabulary.filter(|_| planned.by_token);
        let indices = planned.inputs.iter().map(|(model, _)| *model).collect();
        let mut tensors = Tensors {
            planned,
            models,
            files,
            vocabulary,
            indices,
            folded: Vec::new(),
            fill: Vec::new(),
        };
        for (model, tensor) in &planned.inputs {
            tensors.fold(*model, tensor)?;
        }
        if let Some(vocabulary) = vocabulary {
            for model in vocabulary.lenders() {
                tensors.fold(model, models.at(model).stands_for(&planned.name))?;
            }
            if vocabulary.size > vocabulary.used {
                let means = (0..planned.inputs.len()).map(|i| tensors.mean_row(vocabulary, i));
                tensors.fill = means.collect::<Result<_>>()?;
            }
        }
        Ok(tensors)
    }

    /// Folds an adapter into a tensor, once.
    fn fold(&mut self, model: usize, tensor: &str) -> Result<()> {
        let opened = self.models.at(model);
        let done = self.folded.iter().any(|(m, name, _)| *m == model && name == tensor);
        if let Some(tuned) = opened.tuned.as_ref().filter(|tuned| !done && tuned.changes(tensor)) {
            self.folded.push((model, tensor.to_string(), tuned.load(tensor)?));
        }
        Ok(())
    }

    fn numbers(&self, model: usize, tensor: &str, from: usize, out: &mut [f32]) -> Result<()> {
        match self.folded.iter().find(|(m, name, _)| *m == model && name == tensor) {
            Some((_, _, whole)) => out.copy_from_slice(&whole[from..from + out.len()]),
            None => self.models.at(model).source.read_f32(tensor, from, out)?,
        }
        Ok(())
    }

    /// The tensor of this name in a model that need not be an input.
    fn name_in(&self, model: usize) -> &str {
        let input = self.planned.inputs.iter().find(|(m, _)| *m == model);
        input.map_or_else(|| self.models.at(model).stands_for(&self.planned.name), |(_, name)| name)
    }

    /// Numbers of a table whose rows are brought into another order.
    fn rows(
        &self,
        vocabulary: &Vocabulary,
        input: usize,
        from: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let width = self.planned.dims[1];
        let row = |token: usize| vocabulary.row(self.indices[input], &self.indices, token);
        let (mut at, mut rest) = (from, out);
        while !rest.is_empty() {
            let (token, column) = (at / width, at % width);
            let source = row(token);
            let mut n = width - column;
            // Rows that follow one another are read at once.
            if let Row::Of(model, first) = source {
                let next = |ahead: usize| matches!(row(token + ahead), Row::Of(m, r) if m == model && r == first + ahead);
                let mut ahead = 1;
                while n < rest.len() && next(ahead) {
                    (n, ahead) = (n + width, ahead + 1);
                }
            }
            let (now, later) = rest.split_at_mut(rest.len().min(n));
            match source {
                Row::Of(model, first) => {
                    self.numbers(model, self.name_in(model), first * width + column, now)?;
                }
                Row::Zero => now.fill(0.0),
                Row::Mean(sources) => self.mean(&sources, column, now)?,
                Row::Fill => now.copy_from_slice(&self.fill[input][column..][..now.len()]),
            }
            at += now.len();
            rest = later;
        }
        Ok(())
    }

    /// The mean of rows of several models.
    fn mean(&self, sources: &[(usize, usize)], column: usize, out: &mut [f32]) -> Result<()> {
        let width = self.planned.dims[1];
        let mut row = vec![0f32; out.len()];
        out.fill(0.0);
        for (model, at) in sources {
            self.numbers(*model, self.name_in(*model), at * width + column, &mut row)?;
            out.iter_mut().zip(&row).for_each(|(y, x)| *y += x);
        }
        if sources.len() > 1 {
            out.iter_mut().for_each(|y| *y /= sources.len() as f32);
        }
        Ok(())
    }

    /// The mean of all rows of an input that are tokens'.
    fn mean_row(&self, vocabulary: &Vocabulary, input: usize) -> Result<Vec<f32>> {
        let width = self.planned.dims[1];
        let mut sums = vec![0f64; width];
        let mut rows = Vec::new();
        for first in (0..vocabulary.used).step_by(ROWS) {
            rows.resize(ROWS.min(vocabulary.used - first) * width, 0f32);
            self.rows(vocabulary, input, first * width, &mut rows)?;
            for row in rows.chunks(width) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        Ok(sums.iter().map(|sum| (sum / vocabulary.used.max(1) as f64) as f32).collect())
    }

    /// Whether numbers of an input are exactly those of a 16-bit format already.
    fn is_rounded(&self, input: usize, format: &str) -> Result<bool> {
        let (model, tensor) = &self.planned.inputs[input];
        let opened = self.models.at(*model);
        let plain = self.folded.is_empty() && self.vocabulary.is_none();
        Ok(plain && opened.stored(tensor)? == format)
    }
}

impl Operands for Tensors<'_> {
    fn dims(&self) -> &[usize] {
        &self.planned.dims
    }

    fn inputs(&self) -> (usize, Option<usize>) {
        (self.planned.inputs.len() + self.planned.beside.len(), self.planned.base)
    }

    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        let Some((model, tensor)) = self.planned.inputs.get(input) else {
            let beside = &self.planned.beside[input - self.planned.inputs.len()];
            return self.files.read(beside, from, out);
        };
        match self.vocabulary {
            Some(vocabulary) => self.rows(vocabulary, input, from, out)?,
            None => self.numbers(*model, tensor, from, out)?,
        }
        match self.planned.round {
            Some(Format::Bfloat16) if !self.is_rounded(input, "BF16")? => {
                let mut short = vec![bf16::ZERO; out.len()];
                narrow(out, &mut short);
                widen(&short, out);
            }
            Some(Format::Float16) if !self.is_rounded(input, "F16")? => {
                let mut short = vec![f16::ZERO; out.len()];
                short.convert_from_f32_slice(out);
                short.convert_to_f32_slice(out);
            }
            _ => {}
        }
        Ok(())
    }
}
