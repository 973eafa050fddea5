//! Whole distributions of two models, a few tokens at a time.
//!
//! Per token `[−log softmax(x)[target], D, whether both have the same likeliest token]` with
//! `p = softmax(x / T)`, `r = softmax(z / T)`. With `s_v = p_v ∂D/∂p_v` the backward pass is
//! `∂D/∂x_v = (s_v − p_v Σ_u s_u) / T`; nothing of the vocabulary's size is kept but both sets of logits.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Shape, Tensor, bail};
use luthier_core::{Result, model::gather_logp};
use luthier_kernels::{
    math::{exp_sum, max},
    tensor, threads,
};

use super::divergence::Measure;

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
    let teacher_mv = teacher_mv.detach().contiguous()?;
    Ok(student_mv.contiguous()?.apply_op2(&teacher_mv, op)?)
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
        let logits_mv = (logits_mv / temperature)?;
        let shifted_mv = logits_mv.broadcast_sub(&logits_mv.max_keepdim(D::Minus1)?.detach())?;
        let log_sum_m1 = shifted_mv.exp()?.sum_keepdim(D::Minus1)?.log()?;
        Ok(shifted_mv.broadcast_sub(&log_sum_m1)?)
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

impl Whole {
    fn check(&self, student: &Shape, teacher: &Shape) -> candle_core::Result<(usize, usize)> {
        let (m, v) = student.dims2()?;
        if teacher.dims2()? != (m, v) || self.targets_m.len() != m {
            let targets = self.targets_m.len();
            bail!("distil: logits ({m}, {v}), the teacher's {teacher:?}, {targets} targets");
        }
        match self.targets_m.iter().find(|t| **t as usize >= v) {
            Some(t) => bail!("distil: target id {t} is beyond {v} logits"),
            None => Ok((m, v)),
        }
    }

    fn row(&self, x: &[f32], target: usize, z: &[f32]) -> [f32; NUMBERS] {
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
        [nll, apart, f32::from(u8::from(likeliest(x) == likeliest(z)))]
    }

    /// The gradient of `g·nll + k·D`.
    fn row_backward(&self, x: &[f32], target: usize, z: &[f32], [g, k]: [f32; 2], d: &mut [f32]) {
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

impl CustomOp2 for Whole {
    fn name(&self) -> &'static str {
        "distil"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, v) = self.check(l1.shape(), l2.shape())?;
        let (student, teacher) = (tensor::slice(s1, l1)?, tensor::slice(s2, l2)?);
        let mut out = vec![0f32; m * NUMBERS];
        let rows = out.chunks_exact_mut(NUMBERS).zip(&self.targets_m);
        let rows = rows.zip(student.chunks_exact(v).zip(teacher.chunks_exact(v))).collect();
        threads::for_each(rows, |((out, target), (x, z))| {
            out.copy_from_slice(&self.row(x, *target as usize, z));
        });
        Ok((CpuStorage::F32(out), (m, NUMBERS).into()))
    }

    fn bwd(
        &self,
        student_mv: &Tensor,
        teacher_mv: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, v) = self.check(student_mv.shape(), teacher_mv.shape())?;
        let mut d = vec![0f32; m * v];
        tensor::with(student_mv, |student| {
            tensor::with(teacher_mv, |teacher| {
                tensor::with(g, |g| {
                    let rows =
                        d.chunks_exact_mut(v).zip(&self.targets_m).zip(g.chunks_exact(NUMBERS));
                    let given = student.chunks_exact(v).zip(teacher.chunks_exact(v));
                    threads::for_each(rows.zip(given).collect(), |(((d, target), g), (x, z))| {
                        self.row_backward(x, *target as usize, z, [g[0], g[1]], d);
                    });
                })
            })
        })???;
        Ok((Some(tensor::from_vec(d, (m, v))?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use luthier_core::Seed;

    use super::{super::Divergence, *};

    fn random(m: usize, v: usize, seed: u64) -> Tensor {
        let mut rng = Seed(seed).rng();
        let values: Vec<f32> = (0..m * v).map(|_| 3.0 * rng.normal() as f32).collect();
        Tensor::from_vec(values, (m, v), &Device::Cpu).unwrap()
    }

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
            let (x, z, by) = (random(m, v, 1), random(m, v, 2), random(m, NUMBERS, 3));
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
        let x = Var::from_tensor(&random(3, 40, 4)).unwrap();
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
        assert!(whole(&x, &[1, 2, 3], &random(3, 39, 1), Measure::Forward, 1.0).is_err());
    }
}
