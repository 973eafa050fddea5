//! Spans: stretches of text that end at the same character for both tokenizers, of which the teacher
//! told one number, the log-probability `t` of the whole stretch.
//!
//! The student's is `s = Σ logp` over its tokens of the span. Both are chances that the text goes on
//! just so or otherwise, and the divergence is taken between `(e^s, 1 − e^s)` and `(e^t, 1 − e^t)`.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, bail};
use luthier_core::Result;
use luthier_kernels::tensor;

use super::divergence::Measure;

/// No chance is nearer to 0 or 1, so that both outcomes have a logarithm.
const EDGE: f64 = 1e-9;

/// Consecutive tokens of the student, and the teacher's log-probability of their text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) tokens: usize,
    pub(super) logp: f64,
}

/// The divergence at each span, whose tokens' log-probabilities stand one after another, `(spans,)`.
pub(super) fn spans(logp_m: &Tensor, spans: Vec<Span>, measure: Measure) -> Result<Tensor> {
    Ok(logp_m.contiguous()?.apply_op1(Spans { spans, measure })?)
}

struct Spans {
    spans: Vec<Span>,
    measure: Measure,
}

impl Spans {
    /// Divergence and slope by the student's log-probability of every span.
    fn apart(&self, logps: &[f32]) -> Vec<(f64, f64)> {
        let chance = |logp: f64| logp.exp().clamp(EDGE, 1.0 - EDGE);
        let mut rest = logps;
        let of = |span: &Span| {
            let (own, later) = rest.split_at(span.tokens);
            rest = later;
            let p = chance(own.iter().map(|logp| f64::from(*logp)).sum());
            let r = chance(span.logp);
            let (apart, slopes) = self.measure.between(&[p, 1.0 - p], &[r, 1.0 - r]);
            (apart, (slopes[0] - slopes[1]) * p)
        };
        self.spans.iter().map(of).collect()
    }

    fn check(&self, logps: &Shape) -> candle_core::Result<()> {
        let (m, tokens) = (logps.dims1()?, self.spans.iter().map(|s| s.tokens).sum::<usize>());
        match m == tokens {
            true => Ok(()),
            false => bail!("distil: {m} log-probabilities for spans of {tokens} tokens"),
        }
    }
}

impl CustomOp1 for Spans {
    fn name(&self) -> &'static str {
        "distil-spans"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.check(l.shape())?;
        let apart = self.apart(tensor::slice(s, l)?);
        let out: Vec<f32> = apart.iter().map(|(apart, _)| *apart as f32).collect();
        let n = out.len();
        Ok((CpuStorage::F32(out), n.into()))
    }

    fn bwd(
        &self,
        logp_m: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        self.check(logp_m.shape())?;
        let slopes = tensor::with(logp_m, |logps| self.apart(logps))?;
        let mut d = Vec::with_capacity(logp_m.dims1()?);
        tensor::with(g, |g| {
            for ((span, (_, slope)), g) in self.spans.iter().zip(slopes).zip(g) {
                d.extend(std::iter::repeat_n(*g * slope as f32, span.tokens));
            }
        })?;
        let m = d.len();
        Ok(Some(tensor::from_vec(d, m)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_span_is_one_chance_whatever_its_tokens() {
        let whole = |logps: &[f32], logp: f64| {
            let logp_m = Var::from_slice(logps, logps.len(), &Device::Cpu).unwrap();
            let span = Span { tokens: logps.len(), logp };
            let apart = spans(&logp_m, vec![span], Measure::Forward).unwrap().sum_all().unwrap();
            let d = apart.backward().unwrap().get(&logp_m).unwrap().to_vec1::<f32>().unwrap();
            (apart.to_scalar::<f32>().unwrap(), d)
        };
        // 0.2 against 0.5: 0.5 ln(0.5/0.2) + 0.5 ln(0.5/0.8).
        let (apart, d) = whole(&[0.4f32.ln(), 0.5f32.ln()], 0.5f64.ln());
        assert!((apart - 0.223_144).abs() < 1e-5, "{apart}");
        // By log p: −r + (1 − r) p / (1 − p).
        d.iter().for_each(|d| assert!((d + 0.375).abs() < 1e-5, "{d}"));
        let (same, d) = whole(&[0.5f32.ln(), 0.5f32.ln()], 0.25f64.ln());
        assert!(same.abs() < 1e-6 && d.iter().all(|d| d.abs() < 1e-6));
        let (sure, d) = whole(&[0.0], 0.0);
        assert!(sure.is_finite() && d[0].is_finite());
    }

    #[test]
    fn spans_that_do_not_cover_their_tokens_are_refused() {
        let logp_m = Tensor::new(&[-1f32, -2.0], &Device::Cpu).unwrap();
        let one = vec![Span { tokens: 1, logp: -1.0 }];
        assert!(spans(&logp_m, one, Measure::Forward).is_err());
    }
}
