//! What a teacher said beforehand, row by row, and the loss against it.

use candle_core::{DType, Tensor};
use luthier_core::{Batch, Error, Logits, Result};

use super::{
    Distil, INSIDE, NONE, PIECE, SPAN, Sums, span,
    span::Span,
    top::{self, Against, Known},
};
use crate::Terms;

/// What was stored of a batch's teacher, token by token.
#[derive(Default)]
struct Stored {
    /// Tokens whose likeliest successors are known, and which.
    known_m: Vec<u32>,
    known: Vec<Known>,
    /// Tokens of spans, one span after another.
    spanned_m: Vec<u32>,
    spans: Vec<Span>,
    /// Tokens of which nothing is known.
    blank_m: Vec<u32>,
}

impl Distil {
    /// Against what a teacher said beforehand.
    pub(super) fn stored(&self, out: &mut dyn Logits, batch: &Batch) -> Result<Terms> {
        let coefficients_n = self.normaliser.coefficients_n(batch)?;
        let Stored { known_m, known, spanned_m, spans, blank_m } = self.told(batch)?;
        let measure = self.divergence.measure(self.beta, self.alpha);
        let against = Against { measure, norm: self.student_norm, tail: self.tail, c: self.c };
        let mut sums = Sums::default();
        let mut sum = out.sum(known_m.len().div_ceil(PIECE), &mut |out, piece| {
            let index = known_m.chunks(PIECE).nth(piece).unwrap_or_default();
            let known = known.chunks(PIECE).nth(piece).unwrap_or_default().to_vec();
            let targets: Vec<u32> = index.iter().map(|i| batch.targets_n[*i as usize]).collect();
            let numbers_c3 = top::top(&out.logits(index)?, &targets, known, against)?;
            self.weighed(&numbers_c3, index, &coefficients_n, batch, &mut sums)
        })?;
        // Nobody asks for the answers' own probabilities where they count nothing.
        let blank_m = if self.nll > 0.0 { blank_m } else { Vec::new() };
        let rest_m = [&spanned_m[..], &blank_m].concat();
        if rest_m.is_empty() {
            return Ok(Terms { sum, logs: sums.logs() });
        }
        let pick = |i: &u32| *i as usize;
        let targets: Vec<u32> = rest_m.iter().map(|i| batch.targets_n[pick(i)]).collect();
        let logp_m = out.logp(&rest_m, &targets)?.to_dtype(DType::F32)?;
        for (i, logp) in rest_m.iter().zip(logp_m.to_vec1::<f32>()?) {
            sums.add(0, f64::from(batch.weights_n[pick(i)]), -f64::from(logp));
        }
        if self.nll > 0.0 {
            let by = |i: &u32| (-self.nll * f64::from(coefficients_n[pick(i)])) as f32;
            let by: Vec<f32> = rest_m.iter().map(by).collect();
            let by_m = Tensor::from_vec(by, rest_m.len(), logp_m.device())?;
            sum = (sum + (&logp_m * by_m)?.sum_all()?)?;
        }
        if !spans.is_empty() {
            let apart_s =
                span::spans(&logp_m.narrow(0, 0, spanned_m.len())?, spans.clone(), measure)?;
            let (mut factors, mut tokens) = (Vec::with_capacity(spans.len()), &spanned_m[..]);
            for (span, apart) in spans.iter().zip(apart_s.to_vec1::<f32>()?) {
                let (own, later) = tokens.split_at(span.tokens);
                tokens = later;
                // A span counts once, as much as one of its tokens.
                let mean = |of: &[f32]| {
                    own.iter().map(|i| f64::from(of[pick(i)])).sum::<f64>() / own.len() as f64
                };
                sums.add(1, mean(&batch.weights_n), f64::from(apart));
                factors.push(((1.0 - self.nll) * mean(&coefficients_n)) as f32);
            }
            let factors_s = Tensor::from_vec(factors, spans.len(), apart_s.device())?;
            sum = (sum + (apart_s * factors_s)?.sum_all()?)?;
        }
        Ok(Terms { sum, logs: sums.logs() })
    }

    /// What the rows carry, with their probabilities as they shall be.
    fn told(&self, batch: &Batch) -> Result<Stored> {
        let mut stored = Stored::default();
        for (row, told) in batch.teachers_b.iter().enumerate() {
            let trained = batch.rows.range(row).filter(|i| batch.weights_n[*i] != 0.0);
            let trained: Vec<u32> = trained.map(|i| i as u32).collect();
            if trained.is_empty() {
                continue;
            }
            let failed =
                |what: &str| Err(Error::failed(format!("example {}", batch.examples_b[row]), what));
            let Some(told) = told else {
                return failed("nothing is stored of what the teacher says to it");
            };
            let numbers = trained.len() * told.k;
            if told.k == 0 || told.ids.len() != numbers || told.logps.len() != numbers {
                return failed("what is stored of the teacher has other targets");
            }
            let mut inside = 0;
            let entries = told.ids.chunks_exact(told.k).zip(told.logps.chunks_exact(told.k));
            for (i, (ids, logps)) in trained.into_iter().zip(entries) {
                match ids[0] {
                    INSIDE => {
                        stored.spanned_m.push(i);
                        inside += 1;
                    }
                    SPAN => {
                        stored.spanned_m.push(i);
                        stored.spans.push(Span { tokens: inside + 1, logp: logps[0].into() });
                        inside = 0;
                    }
                    _ if inside > 0 => return failed("a stored span has no end"),
                    NONE => stored.blank_m.push(i),
                    _ => {
                        let n = ids.iter().take_while(|id| **id != NONE).count();
                        let p = logps[..n].iter().map(|logp| f64::from(*logp).exp());
                        let mut q: Vec<f64> = p.collect();
                        self.calib.apply(&mut q, self.c, self.smoothing_factor);
                        stored.known_m.push(i);
                        stored.known.push(Known { ids: ids[..n].to_vec(), q });
                    }
                }
            }
            if inside > 0 {
                return failed("a stored span has no end");
            }
        }
        Ok(stored)
    }
}
