//! The inputs of one tensor as a merge sees them: in f32, rounded if the file says so, with their rows
//! in the order of the output's tokens.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use luthier_core::Result;
use luthier_kernels::num::{narrow, widen};
use luthier_weights::{Format, Operands};

use super::{
    models::Models,
    plan::Planned,
    tokens::{Row, Vocabulary},
};

/// The inputs of one tensor.
pub(super) struct Tensors<'a> {
    planned: &'a Planned,
    models: &'a Models,
    vocabulary: Option<&'a Vocabulary>,
}

impl<'a> Tensors<'a> {
    pub(super) fn of(
        planned: &'a Planned,
        models: &'a Models,
        vocabulary: Option<&'a Vocabulary>,
    ) -> Self {
        let vocabulary = vocabulary.filter(|_| planned.by_token);
        Tensors { planned, models, vocabulary }
    }

    fn numbers(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        let (model, tensor) = &self.planned.inputs[input];
        self.models.at(*model).source.read_f32(tensor, from, out)
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
        let (mut at, mut rest) = (from, out);
        while !rest.is_empty() {
            let (token, column) = (at / width, at % width);
            let (now, later) = rest.split_at_mut(rest.len().min(width - column));
            match vocabulary.row(self.planned.inputs[input].0, token) {
                Row::Of(row) => self.numbers(input, row * width + column, now)?,
                Row::Zero => now.fill(0.0),
                Row::Mean(sources) => self.mean(&sources, column, now)?,
            }
            at += now.len();
            rest = later;
        }
        Ok(())
    }

    /// The mean of rows of other inputs; a model that is no input of this tensor has no say.
    fn mean(&self, sources: &[(usize, usize)], column: usize, out: &mut [f32]) -> Result<()> {
        let (width, mut n) = (self.planned.dims[1], 0.0);
        let mut row = vec![0f32; out.len()];
        out.fill(0.0);
        for (model, at) in sources {
            let input = self.planned.inputs.iter().position(|(index, _)| index == model);
            let Some(input) = input else { continue };
            self.numbers(input, at * width + column, &mut row)?;
            out.iter_mut().zip(&row).for_each(|(y, x)| *y += x);
            n += 1.0;
        }
        if n > 1.0 {
            out.iter_mut().for_each(|y| *y /= n);
        }
        Ok(())
    }
}

impl Operands for Tensors<'_> {
    fn dims(&self) -> &[usize] {
        &self.planned.dims
    }

    fn inputs(&self) -> (usize, Option<usize>) {
        (self.planned.inputs.len(), self.planned.base)
    }

    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        match self.vocabulary {
            Some(vocabulary) => self.rows(vocabulary, input, from, out)?,
            None => self.numbers(input, from, out)?,
        }
        let (model, tensor) = &self.planned.inputs[input];
        let stored = self.models.at(*model).source.dtype_name(tensor)?;
        match self.planned.round {
            Some(Format::Bfloat16) if stored != "BF16" => {
                let mut short = vec![bf16::ZERO; out.len()];
                narrow(out, &mut short);
                widen(&short, out);
            }
            Some(Format::Float16) if stored != "F16" => {
                let mut short = vec![f16::ZERO; out.len()];
                short.convert_from_f32_slice(out);
                short.convert_to_f32_slice(out);
            }
            _ => {}
        }
        Ok(())
    }
}
