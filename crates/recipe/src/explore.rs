//! Texts that show what was new in a model's tuning data, without the data (CGE, contrastive generative
//! exploration; Isonuma and Titov 2025, paper 17).
//!
//! Text after text is sampled by [`BeamSampling`], the contrast of the tuned model and its base. With
//! `update` the base then learns the text, one step of AdamW on its mean token loss, with one memory
//! for the whole run: what was shown is no longer new, and the contrast moves to what else is.
//!
//! **Departures**: (1) the learning rate and the clipping of gradients are those of the published code's
//! trainer, since the paper's are not known.

use luthier_core::{Batch, Error, Policy, Result, Row, Seed};
use luthier_decode::{BeamSampling, Contrasted};
use luthier_loss::Nll;
use luthier_model::Tokenizer;
use luthier_params::{Bound, Full, Params};
use luthier_train::{Step, step::Data, sum::Gradients};
use luthier_update::{AdamW, Start, Stepper, Update, schedule::Constant};
use serde::{Deserialize, Serialize};

/// How a model is explored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Explore {
    /// How one text is sampled.
    pub sampling: BeamSampling,
    /// How many texts.
    pub n_texts: usize,
    /// Whether the base learns each text once it is there.
    pub update: bool,
    /// At which rate.
    pub learning_rate: f64,
    /// Where the draws come from.
    pub seed: u64,
}

impl Default for Explore {
    fn default() -> Self {
        Explore {
            sampling: BeamSampling::default(),
            n_texts: 100,
            update: true,
            learning_rate: 5e-5,
            seed: 0,
        }
    }
}

/// The base while it learns what was shown.
struct Learner {
    bound: Bound,
    policy: Policy,
    stepper: Stepper,
    objective: Nll,
    used: Gradients,
}

impl Learner {
    fn new(base: &Policy, how: &Explore) -> Result<Self> {
        let form = Params { full: Some(Full::default()), ..Params::default() };
        let bound = form.bind(&base.model, Seed(how.seed))?;
        let policy = Policy { model: bound.policy.model.clone(), hooks: base.hooks.clone() };
        let adamw = AdamW { learning_rate: how.learning_rate, ..AdamW::default() };
        let mut update = Update { adamw: Some(adamw), ..Update::default() };
        update.schedule.constant = Some(Constant::default());
        let stepper = Stepper::new(&update, &bound.params, &Start::steps(how.n_texts as u64))?;
        let used = Gradients::new();
        Ok(Learner { bound, policy, stepper, objective: Nll::default(), used })
    }

    /// One step towards saying `tokens` behind `prompt`.
    fn learn(&mut self, number: usize, prompt: &[u32], tokens: &[u32]) -> Result<()> {
        let text = [prompt, tokens].concat();
        let weight = |i: usize| f32::from(u8::from(i >= prompt.len()));
        let weights: Vec<f32> = (0..text.len()).map(weight).collect();
        let row = Row::from_tokens(&text, &weights, number);
        let row = row.behind(self.policy.hooks.virtual_tokens);
        let step = Step {
            policy: &self.policy,
            params: &self.bound.params,
            objective: &self.objective,
            teacher: None,
            keep: true,
        };
        let data = Data {
            number: number as u64 + 1,
            passes: &[Batch::from_rows([&row])],
            noise: Seed(0),
            describe: &|text| format!("text {}", text + 1),
        };
        step.run(&data, &mut self.used, &mut self.stepper).map(|_| ())
    }
}

impl Explore {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        self.sampling.check("explore")?;
        if self.n_texts == 0 {
            return Err(Error::input("explore.n_texts", "expected at least 1, got 0"));
        }
        if self.learning_rate.is_finite() && self.learning_rate >= 0.0 {
            return Ok(());
        }
        let what = format!("expected a number of at least 0, got {}", self.learning_rate);
        Err(Error::input("explore.learning_rate", what))
    }
}

/// Samples `how.n_texts` texts behind `prompt`; `told` hears of each. `banned` tokens (ends of text,
/// padding) are never said. Neither model is changed: the base learns as a copy.
pub fn explore(
    tuned: &Policy,
    base: &Policy,
    prompt: &[u32],
    banned: &[u32],
    how: &Explore,
    told: &mut dyn FnMut(usize, &Contrasted) -> Result<()>,
) -> Result<Vec<Contrasted>> {
    how.check()?;
    let mut learner = match how.update {
        true => Some(Learner::new(base, how)?),
        false => None,
    };
    let seed = Seed(how.seed).split("explore");
    let mut texts = Vec::with_capacity(how.n_texts);
    for i in 0..how.n_texts {
        let base = learner.as_ref().map_or(base, |learner| &learner.policy);
        let text = how.sampling.sample(tuned, base, prompt, banned, seed.at(i as u64))?;
        if let Some(learner) = learner.as_mut().filter(|_| i + 1 < how.n_texts) {
            learner.learn(i, prompt, &text.tokens)?;
        }
        told(i, &text)?;
        texts.push(text);
    }
    Ok(texts)
}

/// What begins a text, `prompt` or the beginning-of-sequence token alone, and the tokens that must not be
/// said: those that begin, end or fill one.
pub fn beginning(
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    prompt: Option<&str>,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let bos = tokenizer.bos().or(bos);
    let mut banned: Vec<u32> = tokenizer.eos_ids().to_vec();
    banned.extend(tokenizer.pad().into_iter().chain(bos));
    banned.sort_unstable();
    banned.dedup();
    let mut begin: Vec<u32> = Vec::new();
    // A prompt stands behind the token that the tokenizer itself would put there.
    begin.extend(bos.filter(|_| prompt.is_none() || tokenizer.add_bos()));
    if let Some(prompt) = prompt {
        begin.extend(tokenizer.encode(prompt)?);
    }
    if begin.is_empty() {
        return Err(Error::input("--prompt", "this model has no beginning-of-sequence token")
            .hint("say what the texts begin with"));
    }
    Ok((begin, banned))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use luthier_testkit::{Fake, Shape};

    use super::*;

    fn fake(seed: u64) -> Policy {
        Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(seed))))
    }

    fn how() -> Explore {
        let sampling = BeamSampling { length: 5, ..BeamSampling::default() };
        Explore { sampling, n_texts: 6, learning_rate: 0.02, ..Explore::default() }
    }

    fn run(how: &Explore) -> Vec<Contrasted> {
        let mut heard = Vec::new();
        let mut told = |i, text: &Contrasted| {
            heard.push((i, text.clone()));
            Ok(())
        };
        let texts = explore(&fake(2), &fake(1), &[3], &[0], how, &mut told).unwrap();
        assert!(heard.iter().enumerate().all(|(i, (n, text))| i == *n && *text == texts[i]));
        texts
    }

    #[test]
    fn the_first_text_is_the_same_and_what_was_shown_is_less_new() {
        let (learning, fixed) = (run(&how()), run(&Explore { update: false, ..how() }));
        assert_eq!(learning[0], fixed[0]);
        assert_eq!(learning, run(&how()));
        assert_ne!(learning[1..], fixed[1..]);
        // The base that has learned a text likes it better, so the contrast is smaller.
        let (tuned, base) = (fake(2), fake(1));
        let mut learner = Learner::new(&base, &how()).unwrap();
        let text = &fixed[0].tokens;
        let ratio = |base: &Policy| -> f64 {
            let ids = [&[3], &text[..]].concat();
            let rows = Arc::new(luthier_core::Rows::single(ids.len()));
            let logp = |policy: &Policy| {
                let logits = policy.logits(&ids, rows.clone()).unwrap();
                let logits = logits.narrow(0, 0, text.len()).unwrap();
                let logp = luthier_core::model::gather_logp(&logits, text).unwrap();
                f64::from(logp.sum_all().unwrap().to_scalar::<f32>().unwrap())
            };
            logp(&tuned) - logp(base)
        };
        assert!((ratio(&base) - fixed[0].total).abs() < 1e-3);
        learner.learn(0, &[3], text).unwrap();
        assert!(ratio(&learner.policy) < ratio(&base) - 0.01);
        assert_eq!(learner.stepper.step_count(), 1);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let (tuned, base) = (fake(2), fake(1));
        let refused = |how: Explore, key: &str| {
            let error = explore(&tuned, &base, &[3], &[], &how, &mut |_, _| Ok(())).unwrap_err();
            assert!(error.to_string().starts_with(key), "{error}");
        };
        refused(Explore { n_texts: 0, ..how() }, "explore.n_texts");
        let sampling = BeamSampling { alpha: 2.0, ..how().sampling };
        refused(Explore { sampling, ..how() }, "explore.alpha");
    }

    #[test]
    fn texts_begin_with_the_beginning_and_never_end() {
        let bytes = Tokenizer::bytes();
        let (begin, banned) = beginning(&bytes, Some(7), None).unwrap();
        assert_eq!(begin, [bytes.bos().unwrap_or(7)]);
        assert!(bytes.eos_ids().iter().chain(&begin).all(|id| banned.contains(id)));
        let (begin, _) = beginning(&bytes, Some(7), Some("ab")).unwrap();
        assert_eq!(begin, [97, 98]);
        if bytes.bos().is_none() {
            assert!(beginning(&bytes, None, None).is_err());
        }
    }
}
