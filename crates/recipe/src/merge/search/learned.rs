//! A learned soup (Wortsman et al. 2022, paper 60): the weights of a mean, found by descent.
//!
//! `θ = Σᵢ αᵢ θᵢ`, `α = softmax(raw)` for the whole model, for each block, or for each tensor, from equal
//! weights on. `raw` goes down the likelihood of the held-out data with AdamW, all data in every step:
//! `dL/dαᵢ = ⟨dL/dθ, θᵢ⟩`. The lowest point on the way is kept, and becomes the merge if its score is
//! better than that of equal weights.
//!
//! Models are read tensor by tensor, twice in a step; what is in memory is one model in f32, its gradient
//! and the activations of one pass, however many models go in. **Departures**: (1) no temperature of the
//! logits: a model's folder has no place for one; (2) whole gradients in the place of batches.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Error, Param, Result, Table};
use luthier_update::{AdamW, Start, Stepper, Update, schedule::Constant};
use luthier_weights::{
    Config, Operands,
    operands::{add, dot},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Trials, change::set};
use crate::{
    landscape::{Landscape, Weights},
    merge::{
        beside::Files,
        models::Models,
        plan::{Plan, Planned},
        read::Tensors,
        tokens::Vocabulary,
    },
    open::open,
    precision::Precision,
};

/// `learned`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Learned {
    steps: u64,
    learning_rate: f64,
    by: By,
}

impl Default for Learned {
    fn default() -> Self {
        // The rate is the paper's; its three epochs of small batches are about as many steps.
        Learned { steps: 30, learning_rate: 0.05, by: By::Model }
    }
}

/// What has weights of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    /// The whole model.
    #[default]
    Model,
    /// Each block, and each tensor outside of blocks.
    Layer,
    /// Each tensor.
    Tensor,
}

impl By {
    /// The part of a tensor's name that says to which group it belongs, which a filter can have.
    fn group(self, tensor: &str) -> String {
        let block = tensor.split_once("layers.").and_then(|(_, rest)| rest.split_once('.'));
        match (self, block) {
            (By::Model, _) => "*".to_string(),
            (By::Layer, Some((i, _))) => format!("layers.{i}."),
            (By::Layer | By::Tensor, _) => tensor.to_string(),
        }
    }
}

/// A mean on its way.
struct Soup<'a> {
    plan: &'a Plan,
    models: &'a Models,
    files: &'a Files,
    vocabulary: Option<&'a Vocabulary>,
    landscape: Landscape<'a>,
    /// What has weights of its own, in the order of the tensors.
    groups: Vec<String>,
    by: By,
}

/// A number for every group and model.
type Numbers = Vec<Vec<f64>>;

impl<'a> Soup<'a> {
    fn new(
        plan: &'a Plan,
        (models, files, vocabulary): (&'a Models, &'a Files, Option<&'a Vocabulary>),
        landscape: Landscape<'a>,
        by: By,
    ) -> Self {
        let mut groups: Vec<String> = Vec::new();
        for planned in &plan.tensors {
            let group = by.group(&planned.name);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        Soup { plan, models, files, vocabulary, landscape, groups, by }
    }

    fn place(&self, planned: &Planned) -> usize {
        let group = self.by.group(&planned.name);
        let place = self.groups.iter().position(|one| *one == group);
        place.expect("groups are those of these tensors")
    }

    /// Goes through all tensors of all models, one at a time.
    fn visit(&self, mut each: impl FnMut(&Planned, usize, &[f32]) -> Result<()>) -> Result<()> {
        let mut numbers = Vec::new();
        for planned in &self.plan.tensors {
            let tensors = Tensors::of(planned, self.models, self.files, self.vocabulary)?;
            numbers.resize(planned.len(), 0f32);
            for model in 0..planned.inputs.len() {
                tensors.read(model, 0, &mut numbers)?;
                each(planned, model, &numbers)?;
            }
        }
        Ok(())
    }

    /// Loss and its slopes by every weight, where the weights are `alphas`.
    fn at(&self, alphas: &Numbers) -> Result<(f64, Numbers)> {
        let mut mean: Vec<f32> = Vec::new();
        self.visit(|planned, model, numbers| {
            if model == 0 {
                mean.clear();
                mean.resize(numbers.len(), 0.0);
            }
            let weights = &alphas[self.place(planned)];
            add(&mut mean, weights[model] as f32, numbers);
            if model + 1 < weights.len() {
                return Ok(());
            }
            let mean = Tensor::from_slice(&mean, &planned.dims[..], &Device::Cpu)?;
            self.landscape.weights().put(&planned.name, &mean)
        })?;
        let (loss, gradient) = self.landscape.gradient()?;
        let mut slopes: Numbers = alphas.iter().map(|of| vec![0.0; of.len()]).collect();
        let mut slope: Vec<f32> = Vec::new();
        self.visit(|planned, model, numbers| {
            // What nothing reaches changes nothing.
            let Some(found) = gradient.get(&planned.name) else { return Ok(()) };
            if model == 0 {
                slope = found.flatten_all()?.to_vec1()?;
            }
            slopes[self.place(planned)][model] += dot(&slope, numbers);
            Ok(())
        })?;
        Ok((loss, slopes))
    }

    /// The lowest point on the way down, and the losses of the way.
    fn descend(&self, how: &Learned, n: usize) -> Result<(Numbers, Vec<f64>)> {
        let shape = (self.groups.len(), n);
        let var = Var::zeros(shape, candle_core::DType::F32, &Device::Cpu)?;
        let raw = Param { name: "raw".to_string(), var, mask: None, optional: false };
        let adamw = AdamW { learning_rate: how.learning_rate, ..AdamW::default() };
        let mut update = Update { adamw: Some(adamw), ..Update::default() };
        update.schedule.constant = Some(Constant::default());
        let all = std::slice::from_ref(&raw);
        let mut stepper = Stepper::new(&update, all, &Start::steps(how.steps))?;
        let mut best: Option<(f64, Numbers)> = None;
        let mut losses = Vec::new();
        for step in 0..=how.steps {
            let rows: Vec<Vec<f32>> = raw.var.to_vec2()?;
            let alphas: Numbers = rows.iter().map(|row| softmax(row)).collect();
            let (loss, along) = self.at(&alphas)?;
            if !loss.is_finite() {
                return Err(Error::failed(format!("step {}", step + 1), "the loss is not finite"));
            }
            tracing::info!("learned soup, step {step} of {}: {loss:.5}", how.steps);
            losses.push(loss);
            let slopes: Vec<f32> =
                alphas.iter().zip(&along).flat_map(|(a, d)| slopes(a, d)).collect();
            if best.as_ref().is_none_or(|(lowest, _)| loss < *lowest) {
                best = Some((loss, alphas));
            }
            if step < how.steps {
                let slopes = Tensor::from_vec(slopes, shape, &Device::Cpu)?;
                stepper.step(&|_, _| Some(slopes.clone()))?;
            }
        }
        let none = || Error::failed("learned", "took no step");
        Ok((best.ok_or_else(none)?.1, losses))
    }
}

/// Weights that add up to 1.
fn softmax(raw: &[f32]) -> Vec<f64> {
    let top = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = raw.iter().map(|x| f64::from(x - top).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|x| x / total).collect()
}

/// The slopes by `raw`, from those by the weights.
fn slopes(alphas: &[f64], along: &[f64]) -> Vec<f32> {
    let mean: f64 = alphas.iter().zip(along).map(|(a, d)| a * d).sum();
    alphas.iter().zip(along).map(|(a, d)| (a * (d - mean)) as f32).collect()
}

/// Equal weights, then what is learned from there; of the two merges the better one is the best.
pub(super) fn learned(
    trials: &mut Trials<'_>,
    value: &Value,
    how: &Learned,
    table: &Table,
    at: &str,
) -> Result<()> {
    let at = format!("{at}.learned");
    if how.steps == 0 || !(how.learning_rate.is_finite() && how.learning_rate > 0.0) {
        return Err(Error::input(&at, "expected at least 1 step and a learning_rate above 0"));
    }
    if value["merge_method"] != "linear"
        || value.pointer("/parameters/normalize") == Some(&json!(false))
    {
        return Err(Error::input(&at, "a learned soup is a mean")
            .hint("`merge_method: linear`, without `normalize: false`"));
    }
    let entries = value.get("models").and_then(Value::as_array).filter(|all| all.len() > 1);
    let entries = entries.ok_or_else(|| Error::input(&at, "takes `models`, two at least"))?;
    let names: Vec<&Value> = entries.iter().map(|entry| &entry["model"]).collect();
    let weighted = |weights: &[Value]| -> Result<Value> {
        let mut file = value.clone();
        set(&mut file, "weight", &json!(1), &at)?;
        for (entry, weight) in file["models"].as_array_mut().into_iter().flatten().zip(weights) {
            // The entry as a file of its own: names may be tables.
            set(entry, "weight", weight, &at)?;
        }
        Ok(file)
    };
    let equal = weighted(&vec![json!(1); names.len()])?;
    trials.one(&equal, json!("equal weights"))?;
    let folder = trials.tried.first().and_then(|trial| trial.merged.as_ref());
    let folder = folder.map(|merged| merged.model.display().to_string());
    let folder = folder.ok_or_else(|| Error::failed(&at, "lost its first merge"))?;
    let job = trials.job;
    let config = Config::from_value(&equal, &job.file)?;
    let models = Models::open(&config, job.find)?;
    let files = Files::open(&config)?;
    let vocabulary = Vocabulary::of(&config, &models)?;
    let plan = Plan::of(&config, &models, &files, vocabulary.as_ref())?;
    let weights = Weights::of(&open(&folder, Precision::F32)?)?;
    let landscape = Landscape::of(&weights, table)?;
    let inputs = (&models, &files, vocabulary.as_ref());
    let soup = Soup::new(&plan, inputs, landscape, how.by);
    let (alphas, losses) = soup.descend(how, names.len())?;
    // Six digits are more than the likelihood can tell apart.
    let round = |x: f64| json!((x * 1e6).round() / 1e6);
    let weight = |model: usize| match how.by {
        By::Model => round(alphas[0][model]),
        _ => {
            let pairs = soup.groups.iter().zip(&alphas);
            pairs.map(|(group, of)| json!({"filter": group, "value": round(of[model])})).collect()
        }
    };
    let weights: Vec<Value> = (0..names.len()).map(weight).collect();
    let mut settings = Map::new();
    for (name, weight) in names.iter().zip(&weights) {
        let name = name.as_str().map_or_else(|| name.to_string(), str::to_string);
        settings.insert(name, weight.clone());
    }
    trials.told = Some(json!({"losses": losses}));
    drop(soup);
    trials.one(&weighted(&weights)?, Value::Object(settings)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::{
        path::{Path, PathBuf},
        sync::Arc,
    };

    use luthier_core::{Model, Row, Seed};
    use luthier_model::{
        Decoder, ModelConfig, Source, Tokenizer,
        names::tensors,
        save::{Save, save_hf},
    };

    use super::*;

    fn pico(dir: &Path, seed: u64) {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 20,
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "head_dim": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "eos_token_id": 2, "tie_word_embeddings": seed == 2,
        });
        let config = ModelConfig::from_hf(&config, "config.json").unwrap();
        let list = tensors(&config);
        let load = |name: &str| {
            let (_, shape) = list.iter().find(|(n, _)| n == name).unwrap();
            let mut rng = Seed(seed).split(name).rng();
            let n: usize = shape.iter().product();
            let center = if shape.len() == 1 { 1.0 } else { 0.0 };
            Ok((0..n).map(|_| center + 0.4 * rng.normal() as f32).collect())
        };
        save_hf(dir, &config, &list, load, &Save::default()).unwrap();
    }

    #[test]
    fn slopes_are_those_of_the_loss_and_descent_goes_down() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"];
        names.iter().zip([1, 2, 3]).for_each(|(name, seed)| pico(&dir.path().join(name), seed));
        let file = json!({
            "merge_method": "linear", "parameters": {"weight": 1},
            "models": names.map(|name| json!({"model": dir.path().join(name)})),
        });
        let config = Config::from_value(&file, "m.yml").unwrap();
        let find = |name: &str| Ok(PathBuf::from(name));
        let models = Models::open(&config, &find).unwrap();
        let files = Files::open(&config).unwrap();
        let plan = Plan::of(&config, &models, &files, None).unwrap();
        let source = Source::open(&dir.path().join("a")).unwrap();
        let model: Arc<dyn Model> =
            Arc::new(Decoder::load(&source, luthier_model::Precision::F32, |_, _| ()).unwrap());
        let rows = [
            Row::from_tokens(&[3, 9, 4, 4, 17], &[1.0, 1.0, 0.5, 1.0, 1.0], 0),
            Row::from_tokens(&[5, 3], &[0.0, 2.0], 1),
        ];
        let weights = Weights::new(&model, Arc::new(Tokenizer::bytes()), 64).unwrap();
        for by in [By::Model, By::Layer, By::Tensor] {
            let landscape = Landscape::new(&weights, &rows, "rows").unwrap();
            let soup = Soup::new(&plan, (&models, &files, None), landscape, by);
            let groups = soup.groups.len();
            assert_eq!(groups, [1, 5, plan.tensors.len()][by as usize]);
            let mut raw: Vec<Vec<f32>> =
                (0..groups).map(|g| vec![0.3, -0.2, 0.1 * (g % 3) as f32]).collect();
            let at = |raw: &[Vec<f32>]| {
                let alphas: Numbers = raw.iter().map(|row| softmax(row)).collect();
                let (loss, along) = soup.at(&alphas).unwrap();
                let all = alphas.iter().zip(&along).map(|(a, d)| slopes(a, d));
                (loss, all.collect::<Vec<_>>())
            };
            let found = at(&raw).1;
            for group in [0, groups / 2, groups - 1] {
                for model in 0..3 {
                    let mut moved = |by: f32| {
                        raw[group][model] += by;
                        let loss = at(&raw).0;
                        raw[group][model] -= by;
                        loss
                    };
                    let want = (moved(0.02) - moved(-0.02)) / 0.04;
                    let got = f64::from(found[group][model]);
                    let limit = 2e-3 * (1.0 + want.abs());
                    assert!((got - want).abs() < limit, "{by:?} {group} {model}: {got} {want}");
                }
            }
            let how = Learned { steps: 8, learning_rate: 0.1, by };
            let (alphas, losses) = soup.descend(&how, 3).unwrap();
            assert_eq!((alphas.len(), losses.len()), (groups, 9));
            let reached = soup.at(&alphas).unwrap().0;
            assert!(losses.iter().all(|loss| reached <= loss + 1e-9), "{reached} {losses:?}");
            assert!(reached < losses[0] - 0.01, "{losses:?}");
        }
    }
}
