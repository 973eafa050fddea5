//! Whole distributions of two models, a few tokens at a time.
//!
//! Per token `[−log softmax(x)[target], D, whether both have the same likeliest token]` with
//! `p = softmax(x / T)`, `r = softmax(z / T)`. With `s_v = p_v ∂D/∂p_v` the backward pass is
//! `∂D/∂x_v = (s_v − p_v Σ_u s_u) / T`; nothing of the vocabulary's size is kept but both sets of logits.

use candle_core::{D, Tensor};
use luthier_core::{Result, model::gather_logp};
use luthier_kernels::math::{exp_sum, max};

use super::divergence::Measure;
use crate::{
    distribution,
    rows::{self, RowWise},
};

/// Numbers per token: `−log p(target)`, the divergence, and the agreement, which has no gradient.
pub(super) const NUMBERS: usize = 3;

/// How far each row of the student's logits is from the target and from the teacher's, `(m, 3)`; no
/// gradient reaches the teacher.
pub(super) fn whole(
    student_mv: &Tensor,
    targets_m: &[u32],
    teacher_mv: &Tensor,
    measure: Measure,
    temperature: f64,
) -> Result<Tensor> {
    let op = Whole { targets_m: targets_m.to_vec(), measure, temperature: temperature as f32 };
    rows::beside(student_mv, teacher_mv, op)
}

/// [`whole`] in plain tensor operations: its oracle.
pub fn naive_whole(
    student_mv: &Tensor,
    targets_m: &[u32],
    teacher_mv: &Tensor,
    divergence: super::Divergence,
    [beta, alpha, temperature]: [f64; 3],
) -> Result<Tensor> {
    let log_softmax = |logits_mv: &Tensor| -> Result<Tensor> {
        Ok(distribution::log_softmax(&(logits_mv / temperature)?)?.0)
    };
    let kl = |of_mv: &Tensor, from_mv: &Tensor| -> Result<Tensor> {
        Ok((of_mv.exp()? * (of_mv - from_mv)?)?.sum(D::Minus1)?)
    };
    let (p_mv, r_mv) = (log_softmax(student_mv)?, log_softmax(&teacher_mv.detach())?);
    let mixed = |own: f64| -> Result<Tensor> {
        Ok(((p_mv.exp()? * own)? + (r_mv.exp()? * (1.0 - own))?)?.log()?)
    };
    let apart_m = match divergence.measure(beta, alpha) {
        Measure::Forward => kl(&r_mv, &p_mv)?,
        Measure::Reverse => kl(&p_mv, &r_mv)?,
        Measure::Js(_) => {
            let m_mv = mixed(1.0 - beta)?;
            ((kl(&r_mv, &m_mv)? * beta)? + (kl(&p_mv, &m_mv)? * (1.0 - beta))?)?
        }
        Measure::Skew(_) => kl(&r_mv, &mixed(1.0 - alpha)?)?,
        Measure::SkewReverse(_) => kl(&p_mv, &mixed(alpha)?)?,
    };
    let likeliest = |logits_mv: &Tensor| logits_mv.detach().argmax(D::Minus1);
    let same_m = likeliest(student_mv)?.eq(&likeliest(teacher_mv)?)?.to_dtype(p_mv.dtype())?;
    let nll_m = gather_logp(student_mv, targets_m)?.neg()?;
    Ok(Tensor::stack(&[nll_m, apart_m, same_m], 1)?)
}

struct Whole {
    targets_m: Vec<u32>,
    measure: Measure,
    temperature: f32,
}

/// Probabilities of one row of logits.
pub(super) struct Softmax {
    /// What was added up, `e^(x/T − top)`.
    pub(super) e: Vec<f32>,
    pub(super) sum: f32,
    /// `x/T − log_z` is a logarithm of a probability.
    pub(super) log_z: f32,
}

impl Softmax {
    pub(super) fn of(x: &[f32], temperature: f32) -> Self {
        let by = 1.0 / temperature;
        let top = max(x) * by;
        let mut e = x.to_vec();
        let sum = exp_sum(&mut e, by, top);
        Softmax { e, sum, log_z: top + sum.ln() }
    }
}

/// Where the largest number stands, of equals the first.
pub(super) fn likeliest(x: &[f32]) -> usize {
    let top = max(x);
    x.iter().position(|x| *x == top).unwrap_or(0)
}

impl RowWise for Whole {
    const NAME: &'static str = "distil";
    const NUMBERS: usize = NUMBERS;

    fn check(&self, m: usize, v: usize) -> candle_core::Result<()> {
        rows::tokens(Self::NAME, (m, v), &self.targets_m, [])
    }

    fn row(&self, i: usize, x: &[f32], z: &[f32], out: &mut [f32]) {
        let target = self.targets_m[i] as usize;
        let by = 1.0 / self.temperature;
        let (p, r) = (Softmax::of(x, self.temperature), Softmax::of(z, self.temperature));
        let mut apart = 0.0;
        for v in 0..x.len() {
            let (log_p, log_r) = (x[v] * by - p.log_z, z[v] * by - r.log_z);
            apart += f64::from(self.measure.point(p.e[v] / p.sum, r.e[v] / r.sum, log_p, log_r).0);
        }
        let nll = match self.temperature == 1.0 {
            true => p.log_z - x[target],
            false => Softmax::of(x, 1.0).log_z - x[target],
        };
        // Rounding may make a little less than 0 of it.
        let apart = if apart < 0.0 { 0.0 } else { apart as f32 };
        out.copy_from_slice(&[nll, apart, f32::from(u8::from(likeliest(x) == likeliest(z)))]);
    }

    fn row_backward(&self, i: usize, x: &[f32], z: &[f32], g: &[f32], d: &mut [f32]) {
        let (g, k, target) = (g[0], g[1], self.targets_m[i] as usize);
        let by = 1.0 / self.temperature;
        let (p, r) = (Softmax::of(x, self.temperature), Softmax::of(z, self.temperature));
        if k != 0.0 {
            let mut total = 0.0;
            for v in 0..x.len() {
                let (log_p, log_r) = (x[v] * by - p.log_z, z[v] * by - r.log_z);
                d[v] = self.measure.point(p.e[v] / p.sum, r.e[v] / r.sum, log_p, log_r).1;
                total += f64::from(d[v]);
            }
            let total = total as f32;
            d.iter_mut().zip(&p.e).for_each(|(d, e)| *d = k * by * (*d - total * (e / p.sum)));
        }
        if g != 0.0 {
            let p = if self.temperature == 1.0 { p } else { Softmax::of(x, 1.0) };
            d.iter_mut().zip(&p.e).for_each(|(d, e)| *d += g * (e / p.sum));
            d[target] -= g;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use luthier_core::Seed;
    use luthier_testkit::random;

    use super::{super::Divergence, *};

    #[test]
    fn numbers_and_gradients_are_those_of_plain_tensor_operations() {
        let all = [
            (Divergence::ForwardKl, 0.5),
            (Divergence::ReverseKl, 0.5),
            (Divergence::Js, 0.1),
            (Divergence::Js, 0.0),
            (Divergence::Js, 1.0),
            (Divergence::SkewKl, 0.5),
            (Divergence::SkewReverseKl, 0.5),
        ];
        for ((divergence, beta), temperature) in all.into_iter().zip([1.0, 0.7, 2.0].repeat(3)) {
            let (m, v) = (5, 61);
            let (x, z, by) = (
                random((m, v), 3.0, Seed(1)),
                random((m, v), 3.0, Seed(2)),
                random((m, NUMBERS), 3.0, Seed(3)),
            );
            let x = Var::from_tensor(&x).unwrap();
            let targets: Vec<u32> = (0..m).map(|i| (i * 7 % v) as u32).collect();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let pulled = |out: Tensor| {
                let store = (&out * &by).unwrap().sum_all().unwrap().backward().unwrap();
                (flat(&out), flat(store.get(&x).unwrap()))
            };
            let measure = divergence.measure(beta, 0.2);
            let got = pulled(whole(&x, &targets, &z, measure, temperature).unwrap());
            let settings = [beta, 0.2, temperature];
            let want = pulled(naive_whole(&x, &targets, &z, divergence, settings).unwrap());
            let all = |(out, d): (Vec<f32>, Vec<f32>)| [out, d].concat();
            for (got, want) in all(got).iter().zip(all(want)) {
                let near = 3e-5 * (1.0 + want.abs());
                assert!((got - want).abs() < near, "{divergence:?} {beta}: {got} {want}");
            }
        }
    }

    #[test]
    fn who_agrees_with_the_teacher_learns_nothing_and_shapes_are_looked_at() {
        let x = Var::from_tensor(&random((3, 40), 3.0, Seed(4))).unwrap();
        for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Js] {
            let out = whole(&x, &[1, 2, 3], &x, divergence.measure(0.5, 0.1), 1.0).unwrap();
            let rows = out.to_vec2::<f32>().unwrap();
            assert!(rows.iter().all(|row| row[1] < 1e-6 && row[2] == 1.0), "{rows:?}");
            let apart = out.narrow(1, 1, 1).unwrap().sum_all().unwrap();
            let d = apart.backward().unwrap().get(&x).unwrap().abs().unwrap().max_all().unwrap();
            assert!(d.to_scalar::<f32>().unwrap() < 1e-6);
        }
        assert!(whole(&x, &[1, 2], &x, Measure::Forward, 1.0).is_err());
        assert!(whole(&x, &[1, 2, 40], &x, Measure::Forward, 1.0).is_err());
        assert!(
            whole(&x, &[1, 2, 3], &random((3, 39), 3.0, Seed(1)), Measure::Forward, 1.0).is_err()
        );
    }
}
