//! Distillation: a student learns what a teacher finds likely (Hinton et al. 2015; generalised by
//! Agarwal et al. 2024, GKD; FIRST, Shum et al. 2024, paper 36).
//!
//! Over the target tokens, with coefficients `w` of the normaliser,
//!
//! `L = Σ w·[(1 − nll)·D(teacher, student) + nll·(−log P_student(y))]`,
//!
//! both given the text before. `D` is a [`Divergence`] between `softmax(logits / temperature)` of the two
//! models; the teacher's is a constant. With `cache`, the teacher has spoken before (`luthier teach`):
//! its `k` likeliest tokens and their probabilities at every target, which `calib` makes into `q`, are
//! compared with what the student gives to the same tokens. Where the two models cut text otherwise,
//! what is stored may also be the probability of a longer [`mod@span`].
//!
//! **Departures**: (1) as in GKD and unlike Hinton, nothing is multiplied by `temperature²`; (2) of the
//! forms in FIRST's own trainer, one appends the remaining mass where log-probabilities are expected:
//! `tail` here is the bucket that was meant; (3) what is stored is read into memory as training begins,
//! eight bytes for each of the `k` tokens of a target.

mod calib;
mod divergence;
mod span;
mod stored;
mod top;
mod whole;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

pub use calib::Calib;
pub use divergence::Divergence;
pub use top::StudentNorm;
pub use whole::naive_whole;

use crate::{Log, Normaliser, Objective, Seen, Teacher, Terms};

/// Tokens whose logits exist at a time, for each of the two models.
const PIECE: usize = 64;

/// In the place of a stored token: no further one is known.
pub const NONE: u32 = u32::MAX;
/// In the place of the first stored token: a span of several tokens ends here, whose log-probability
/// stands beside.
pub const SPAN: u32 = u32::MAX - 1;
/// In the place of the first stored token: the span goes on.
pub const INSIDE: u32 = u32::MAX - 2;

/// `[train.loss.distil]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distil {
    /// How the two are compared.
    pub divergence: Divergence,
    /// The teacher's part in `js`.
    pub beta: f64,
    /// The mixture of `skew_kl` and `skew_reverse_kl`.
    pub alpha: f64,
    /// Divides the logits of both.
    pub temperature: f64,
    /// The share of the data's own answers in the loss.
    pub nll: f64,
    /// What counts the same: every token, or every row.
    pub normaliser: Normaliser,
    /// What the teacher said beforehand: a file of `luthier teach`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Whether all tokens that were not stored are one more outcome.
    pub tail: bool,
    /// What is made of the student's probabilities of the stored tokens.
    pub student_norm: StudentNorm,
    /// What is made of the teacher's.
    pub calib: Calib,
    /// The temperature of `calib`.
    pub c: f64,
    /// How much `calib = "label_smoothing"` moves.
    pub smoothing_factor: f64,
    /// The share of steps that read answers of the student itself.
    pub lmbda: f64,
    /// The temperature at which it answers.
    pub sampling_temperature: f64,
    /// Its longest answer.
    pub max_new_tokens: usize,
}

impl Default for Distil {
    fn default() -> Self {
        Distil {
            divergence: Divergence::ForwardKl,
            beta: 0.5,
            // DistiLLM's.
            alpha: 0.1,
            temperature: 1.0,
            nll: 0.0,
            normaliser: Normaliser::Token,
            cache: None,
            tail: false,
            student_norm: StudentNorm::Raw,
            calib: Calib::None,
            // What the paper mostly found.
            c: 0.3,
            smoothing_factor: 0.1,
            lmbda: 0.0,
            // TRL's for GKD, as the next.
            sampling_temperature: 0.9,
            max_new_tokens: 128,
        }
    }
}

/// Sums for the log: of nll, divergence, agreement, and of what each is a mean over.
#[derive(Default)]
struct Sums {
    sums: [f64; 3],
    weights: [f64; 3],
}

impl Sums {
    fn add(&mut self, at: usize, weight: f64, value: f64) {
        self.sums[at] += weight * value;
        self.weights[at] += weight;
    }

    fn logs(&self) -> Vec<Log> {
        let names = ["nll", "divergence", "agreement"];
        let log = |at: usize| Log { name: names[at], sum: self.sums[at], weight: self.weights[at] };
        (0..3).map(log).collect()
    }
}

impl Objective for Distil {
    fn check(&self) -> Result<()> {
        let at = |key: &str| format!("train.loss.distil.{key}");
        for (key, share) in [("beta", self.beta), ("nll", self.nll), ("lmbda", self.lmbda)] {
            if !(0.0..=1.0).contains(&share) {
                let what = format!("expected a share from 0 to 1, got {share}");
                return Err(Error::input(at(key), what));
            }
        }
        if !(0.0..1.0).contains(&self.alpha) {
            let what = format!("expected a share from 0 to below 1, got {}", self.alpha);
            return Err(Error::input(at("alpha"), what));
        }
        let positive = [
            ("temperature", self.temperature),
            ("sampling_temperature", self.sampling_temperature),
        ];
        for (key, number) in positive {
            if !(number > 0.0 && number.is_finite()) {
                let what = format!("expected a positive number, got {number}");
                return Err(Error::input(at(key), what));
            }
        }
        if self.max_new_tokens == 0 {
            return Err(Error::input(at("max_new_tokens"), "expected at least 1, got 0"));
        }
        self.calib.check(self.c, self.smoothing_factor)?;
        match &self.cache {
            Some(_) => self.check_stored(),
            None => self.check_live(),
        }
    }

    fn teacher(&self) -> Teacher {
        match self.cache {
            Some(_) => Teacher::Nobody,
            None => Teacher::Model,
        }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        self.normaliser.total(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, teacher, batch, .. } = seen;
        let index_m = batch.trained_m();
        if index_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: Sums::default().logs() });
        }
        match (&self.cache, teacher) {
            (Some(_), _) => self.stored(out, batch),
            (None, Some(teacher)) => self.live(out, teacher, batch, &index_m),
            (None, None) => Err(Error::failed("train.loss.distil", "there is no teacher to ask")),
        }
    }
}

impl Distil {
    fn check_stored(&self) -> Result<()> {
        let refuse = |key: &str, what: &str, hint: &str| {
            Err(Error::input(format!("train.loss.distil.{key}"), what).hint(hint.to_string()))
        };
        if self.temperature != 1.0 {
            let hint = "calib = \"temp_logit\" with c is the temperature of what is stored";
            return refuse("temperature", "probabilities of a few tokens have no logits", hint);
        }
        if self.lmbda > 0.0 {
            let hint = "name the teacher in models.teacher and leave cache out";
            return refuse("lmbda", "a stored teacher cannot judge new answers", hint);
        }
        if self.tail && self.student_norm != StudentNorm::Raw {
            let hint = "student_norm = \"raw\" with tail = true, or tail = false";
            return refuse("tail", "of probabilities that are made to sum to 1 none is left", hint);
        }
        let forward =
            self.divergence.measure(self.beta, self.alpha) == divergence::Measure::Forward;
        if !forward && !self.tail && self.student_norm == StudentNorm::Raw {
            let what = "between shares that do not sum to 1 only forward_kl is meant";
            return refuse("divergence", what, "tail = true, or student_norm = \"linear\"");
        }
        Ok(())
    }

    fn check_live(&self) -> Result<()> {
        let plain = Distil::default();
        let stored = [
            ("tail", self.tail),
            ("student_norm", self.student_norm != plain.student_norm),
            ("calib", self.calib != plain.calib),
        ];
        match stored.iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((key, _)) => {
                let at = format!("train.loss.distil.{key}");
                Err(Error::input(
                    at,
                    "is about what a teacher said beforehand, and there is no cache",
                )
                .hint(
                    "write one with `luthier teach` and name it: cache = \"teacher.safetensors\"",
                ))
            }
        }
    }

    /// The loss of some tokens from their numbers (nll, divergence, agreement).
    fn weighed(
        &self,
        numbers_c3: &Tensor,
        index: &[u32],
        coefficients_n: &[f32],
        batch: &Batch,
        sums: &mut Sums,
    ) -> Result<Tensor> {
        let mut factors = Vec::with_capacity(3 * index.len());
        for (i, numbers) in index.iter().zip(numbers_c3.to_vec2::<f32>()?) {
            let (weight, by) =
                (batch.weights_n[*i as usize], f64::from(coefficients_n[*i as usize]));
            let told = numbers.iter().enumerate();
            told.for_each(|(at, n)| sums.add(at, f64::from(weight), f64::from(*n)));
            factors.extend([(self.nll * by) as f32, ((1.0 - self.nll) * by) as f32, 0.0]);
        }
        let factors_c3 = Tensor::from_vec(factors, (index.len(), 3), numbers_c3.device())?;
        Ok((numbers_c3 * factors_c3)?.sum_all()?)
    }

    /// Against a teacher who reads the same rows.
    fn live(
        &self,
        out: &mut dyn Logits,
        teacher: &mut dyn Logits,
        batch: &Batch,
        index_m: &[u32],
    ) -> Result<Terms> {
        let coefficients_n = self.normaliser.coefficients_n(batch)?;
        let (measure, mut sums) = (self.divergence.measure(self.beta, self.alpha), Sums::default());
        let sum = out.sum(index_m.len().div_ceil(PIECE), &mut |out, piece| {
            let index = index_m.chunks(PIECE).nth(piece).unwrap_or_default();
            let targets: Vec<u32> = index.iter().map(|i| batch.targets_n[*i as usize]).collect();
            let (student_cv, teacher_cv) = (out.logits(index)?, teacher.logits(index)?.detach());
            // Tables are often padded beyond the last token, and not to the same size.
            let v = student_cv.dim(1)?.min(teacher_cv.dim(1)?);
            let (student_cv, teacher_cv) =
                (student_cv.narrow(1, 0, v)?, teacher_cv.narrow(1, 0, v)?);
            let numbers_c3 =
                whole::whole(&student_cv, &targets, &teacher_cv, measure, self.temperature)?;
            self.weighed(&numbers_c3, index, &coefficients_n, batch, &mut sums)
        })?;
        Ok(Terms { sum, logs: sums.logs() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Distil {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_by_their_key() {
        let refused = |text: &str, key: &str| {
            let error = of(text).check().unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = error.to_string();
            assert!(error.starts_with(&format!("train.loss.distil.{key}: ")), "{error}");
        };
        refused("beta = 1.5", "beta");
        refused("nll = -0.1", "nll");
        refused("alpha = 1.0", "alpha");
        refused("temperature = 0.0", "temperature");
        refused("max_new_tokens = 0", "max_new_tokens");
        refused("tail = true", "tail");
        refused("calib = \"temp_prob\"", "calib");
        refused("cache = \"t\"\ncalib = \"temp_prob\"\nc = 0.0", "c");
        refused("cache = \"t\"\nlmbda = 0.5", "lmbda");
        refused("cache = \"t\"\ntemperature = 2.0", "temperature");
        refused("cache = \"t\"\ntail = true\nstudent_norm = \"linear\"", "tail");
        refused("cache = \"t\"\ndivergence = \"reverse_kl\"", "divergence");
        for fine in [
            "",
            "divergence = \"js\"\nbeta = 0.1\nlmbda = 0.5",
            "cache = \"t\"\ncalib = \"temp_prob\"",
            "cache = \"t\"\ndivergence = \"reverse_kl\"\ntail = true",
            "cache = \"t\"\ndivergence = \"js\"\nstudent_norm = \"softmax\"",
        ] {
            of(fine).check().unwrap();
        }
    }

    #[test]
    fn only_a_teacher_who_has_not_spoken_yet_is_asked() {
        assert_eq!(Distil::default().teacher(), Teacher::Model);
        assert_eq!(of("cache = \"t\"").teacher(), Teacher::Nobody);
    }
}
