//! The student's whole distribution against what was stored of the teacher's: a few tokens.
//!
//! Per token `[−log softmax(x)[target], D, whether the student's likeliest token is the teacher's]`.
//! With `p_i` the student's probability of the `i`-th stored token, made `p'` by the norm (and a bucket
//! for all the others), `D = D(p', q)` and `g_i = ∂D/∂log p_i`, the backward pass is
//! `∂D/∂x_v = Σ_i g_i 1[v = i] − softmax(x)_v Σ_i g_i`.

use candle_core::{Tensor, bail};
use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{
    calib::softmax,
    divergence::Measure,
    whole::{NUMBERS, Softmax, likeliest},
};
use crate::rows::{self, RowWise};

/// A probability as small as this is as good as none, and its logarithm is still a number.
const LEAST: f64 = 1e-12;

/// What is made of the student's probabilities of the stored tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentNorm {
    /// Nothing: they are shares of the whole vocabulary.
    #[default]
    Raw,
    /// They are divided by their sum.
    Linear,
    /// A softmax of them divided by `c`, as of the teacher's with `temp_prob`.
    Softmax,
}

/// How both sides are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Against {
    pub(super) measure: Measure,
    pub(super) norm: StudentNorm,
    /// Whether all tokens that were not stored are an outcome of their own.
    pub(super) tail: bool,
    pub(super) c: f64,
}

impl Against {
    /// How far the student's probabilities are from the teacher's, and the slope by each of their
    /// logarithms.
    pub(super) fn apart(&self, p: &[f64], q: &[f64]) -> (f64, Vec<f64>) {
        let p: Vec<f64> = p.iter().map(|p| p.max(LEAST)).collect();
        let rest = |of: &[f64]| (1.0 - of.iter().sum::<f64>()).max(LEAST);
        let (apart, mut by_p) = match self.norm {
            StudentNorm::Raw if self.tail => {
                let both = |of: &[f64]| [of, &[rest(of)]].concat();
                let (apart, mut slopes) = self.measure.between(&both(&p), &both(q));
                let of_rest = slopes.pop().unwrap_or(0.0);
                slopes.iter_mut().for_each(|slope| *slope -= of_rest);
                (apart, slopes)
            }
            StudentNorm::Raw => self.measure.between(&p, q),
            StudentNorm::Linear => {
                let (sum, of_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
                let shares: Vec<f64> = p.iter().map(|p| p / sum).collect();
                let q: Vec<f64> = q.iter().map(|q| q / of_q).collect();
                let (apart, slopes) = self.measure.between(&shares, &q);
                let mean: f64 = shares.iter().zip(&slopes).map(|(s, slope)| s * slope).sum();
                (apart, slopes.iter().map(|slope| (slope - mean) / sum).collect())
            }
            StudentNorm::Softmax => {
                let mut shares = p.clone();
                softmax(&mut shares, self.c);
                let (apart, slopes) = self.measure.between(&shares, q);
                let mean: f64 = shares.iter().zip(&slopes).map(|(s, slope)| s * slope).sum();
                let by = |(s, slope): (&f64, &f64)| s * (slope - mean) / self.c;
                (apart, shares.iter().zip(&slopes).map(by).collect())
            }
        };
        by_p.iter_mut().zip(&p).for_each(|(slope, p)| *slope *= p);
        (apart, by_p)
    }
}

/// What is known of a token's teacher: stored tokens, the likeliest first, and what they shall get.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    pub(super) ids: Vec<u32>,
    pub(super) q: Vec<f64>,
}

/// How far each row of the student's logits is from the target and from what is known, `(m, 3)`.
pub(super) fn top(
    student_mv: &Tensor,
    targets_m: &[u32],
    known_m: Vec<Known>,
    against: Against,
) -> Result<Tensor> {
    rows::alone(student_mv, Top { targets_m: targets_m.to_vec(), known_m, against })
}

struct Top {
    targets_m: Vec<u32>,
    known_m: Vec<Known>,
    against: Against,
}

impl Top {
    fn probabilities(&self, x: &[f32], all: &Softmax, known: &Known) -> Vec<f64> {
        let log_p = |id: &u32| f64::from(x[*id as usize]) - f64::from(all.log_z);
        known.ids.iter().map(|id| log_p(id).exp()).collect()
    }
}

impl RowWise for Top {
    const NAME: &'static str = "distil-top";
    const NUMBERS: usize = NUMBERS;

    fn check(&self, m: usize, v: usize) -> candle_core::Result<()> {
        if self.known_m.len() != m {
            bail!("distil-top: logits ({m}, {v}), {} tokens are known", self.known_m.len());
        }
        let ids = self.known_m.iter().flat_map(|known| &known.ids);
        rows::tokens(Self::NAME, (m, v), &self.targets_m, ids)
    }

    fn row(&self, i: usize, x: &[f32], _other: &[f32], out: &mut [f32]) {
        let (known, all) = (&self.known_m[i], Softmax::of(x, 1.0));
        let (apart, _) = self.against.apart(&self.probabilities(x, &all, known), &known.q);
        let same = known.ids.first() == Some(&(likeliest(x) as u32));
        let nll = all.log_z - x[self.targets_m[i] as usize];
        out.copy_from_slice(&[nll, apart as f32, f32::from(u8::from(same))]);
    }

    fn row_backward(&self, i: usize, x: &[f32], _other: &[f32], g: &[f32], d: &mut [f32]) {
        let (known, all) = (&self.known_m[i], Softmax::of(x, 1.0));
        let (_, slopes) = self.against.apart(&self.probabilities(x, &all, known), &known.q);
        let total: f64 = slopes.iter().sum();
        let by = (f64::from(g[0]) - f64::from(g[1]) * total) as f32 / all.sum;
        d.iter_mut().zip(&all.e).for_each(|(d, e)| *d = by * e);
        d[self.targets_m[i] as usize] -= g[0];
        for (id, slope) in known.ids.iter().zip(slopes) {
            d[*id as usize] += g[1] * slope as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use luthier_core::Seed;

    use super::{
        super::{Divergence, calib::Calib, whole::whole},
        *,
    };

    const FORWARD: Measure = Measure::Forward;

    fn against(norm: StudentNorm, tail: bool) -> Against {
        Against { measure: FORWARD, norm, tail, c: 0.3 }
    }

    /// Logits of one row, and the gradient of its divergence.
    fn pulled(x: &Var, known: Known, against: Against) -> (f32, Vec<f32>) {
        let out = top(x, &[0], vec![known], against).unwrap();
        let apart = out.narrow(1, 1, 1).unwrap().sum_all().unwrap();
        let d = apart.backward().unwrap().get(x).unwrap().flatten_all().unwrap();
        (apart.to_scalar().unwrap(), d.to_vec1().unwrap())
    }

    fn random(v: usize, seed: u64) -> Vec<f32> {
        let mut rng = Seed(seed).rng();
        (0..v).map(|_| (2.0 * rng.normal()) as f32).collect()
    }

    fn var(x: &[f32]) -> Var {
        Var::from_slice(x, (1, x.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn softmax_on_both_sides_is_as_far_as_the_paper_says() {
        let mut q = [0.80, 0.08, 0.05, 0.03, 0.02];
        Calib::TempProb.apply(&mut q, 0.3, 0.0);
        let (apart, _) =
            against(StudentNorm::Softmax, false).apart(&[0.5, 0.2, 0.1, 0.1, 0.05], &q);
        assert!((apart - 0.16848).abs() < 5e-6, "{apart}");
    }

    #[test]
    fn all_tokens_stored_is_the_whole_distribution() {
        let (x, z) = (var(&random(9, 1)), random(9, 2));
        let softmax = Softmax::of(&z, 1.0);
        let q: Vec<f64> = softmax.e.iter().map(|e| f64::from(e / softmax.sum)).collect();
        let known = Known { ids: (0..9).collect(), q };
        let (apart, d) = pulled(&x, known, against(StudentNorm::Raw, false));
        let teacher = Tensor::from_slice(&z, (1, 9), &Device::Cpu).unwrap();
        let measure = Divergence::ForwardKl.measure(0.5, 0.1);
        let out = whole(&x, &[0], &teacher, measure, 1.0).unwrap().narrow(1, 1, 1).unwrap();
        let store = out.sum_all().unwrap().backward().unwrap();
        let want = store.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((apart - out.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]).abs() < 1e-5);
        d.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    }

    #[test]
    fn one_token_stored_is_learning_it_weighted_by_how_sure_the_teacher_was() {
        let x = var(&random(9, 3));
        let known = Known { ids: vec![4], q: vec![0.7] };
        let (_, d) = pulled(&x, known, against(StudentNorm::Raw, false));
        let softmax = Softmax::of(&random(9, 3), 1.0);
        for (v, d) in d.iter().enumerate() {
            let p = softmax.e[v] / softmax.sum - f32::from(u8::from(v == 4));
            assert!((d - 0.7 * p).abs() < 1e-6, "{v}: {d} {p}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let x = random(12, 5);
        let known = Known { ids: vec![3, 0, 7], q: vec![0.5, 0.3, 0.1] };
        let mut all = vec![
            against(StudentNorm::Raw, false),
            against(StudentNorm::Raw, true),
            against(StudentNorm::Linear, false),
            against(StudentNorm::Softmax, false),
        ];
        for measure in [Measure::Reverse, Measure::Js(0.4), Measure::Skew(0.1)] {
            all.push(Against { measure, ..against(StudentNorm::Raw, true) });
            all.push(Against { measure, ..against(StudentNorm::Linear, false) });
        }
        for against in all {
            let (_, d) = pulled(&var(&x), known.clone(), against);
            for v in 0..x.len() {
                let at = |by: f32| {
                    let mut moved = x.clone();
                    moved[v] += by;
                    f64::from(pulled(&var(&moved), known.clone(), against).0)
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!(
                    (slope - f64::from(d[v])).abs() < 2e-4,
                    "{against:?} {v}: {slope} {}",
                    d[v]
                );
            }
        }
    }
}
