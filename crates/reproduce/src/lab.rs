//! What checks share: published settings, quiet training, models that are pretrained once.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use luthier_core::{Error, Model, Result, Row, Seed, StateDict, io, nearest::suggest};
use luthier_data::{Order, Plan, Size};
use luthier_model::{decoder::parameters, pull};
use luthier_params::Bound;
use luthier_recipe::{Recipe, methods::RECIPES};
use luthier_train::{
    Job, MaskToken, Outcome, Train, draw,
    log::{METRICS, metrics},
};
use luthier_update::Start;
use serde::Serialize;
use serde_json::Value;
use tracing::subscriber::{NoSubscriber, with_default};

use crate::small::{Sizes, Small};

/// Where checks are run.
pub struct Lab<'a> {
    seeds: usize,
    /// Where pretrained models are kept.
    home: PathBuf,
    /// Whether models are pretrained even where they are kept.
    anew: bool,
    say: &'a dyn Fn(&str),
}

/// How a small model is pretrained.
pub struct Pretraining<'a> {
    /// What it is called when it is spoken of.
    pub name: &'a str,
    /// Its sizes.
    pub sizes: Sizes,
    /// What it reads.
    pub rows: &'a [Row],
    /// How; its seed draws the weights to begin with, too.
    pub config: &'a Train,
}

/// The `[train]` table of a bundled recipe with `key=value` settings in place of its own.
pub fn recipe(path: &str, set: &[&str]) -> Result<Train> {
    let Some((_, text)) = RECIPES.iter().find(|(known, _)| *known == path) else {
        let known = RECIPES.iter().map(|(known, _)| *known);
        return Err(Error::failed(path, "no such recipe is bundled").hint(suggest(path, known)));
    };
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let train = Recipe::parse(text, path)?.with(&set)?.resolved().train;
    train.ok_or_else(|| Error::failed(path, "has no [train] table"))
}

impl<'a> Lab<'a> {
    /// A lab for checks over `seeds` seeds that tells `say` how it goes. With `anew`, models are
    /// pretrained even where they are kept, as on a fresh machine.
    pub fn new(seeds: usize, anew: bool, say: &'a dyn Fn(&str)) -> Result<Self> {
        Lab::at(pull::home()?.join("lab"), seeds, anew, say)
    }

    /// The same with pretrained models kept in `home`.
    pub fn at(home: PathBuf, seeds: usize, anew: bool, say: &'a dyn Fn(&str)) -> Result<Self> {
        if seeds == 0 {
            return Err(Error::input("seeds", "expected at least 1, got 0"));
        }
        Ok(Lab { seeds, home, anew, say })
    }

    /// How many seeds there are.
    pub fn count(&self) -> usize {
        self.seeds
    }

    /// The seeds, from 1.
    pub fn seeds(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.seeds as u64
    }

    /// Tells a person how it goes.
    pub fn say(&self, text: &str) {
        (self.say)(text);
    }

    /// A model that has read `how.rows`: made now, or kept from an earlier time.
    pub fn pretrained(&self, how: &Pretraining) -> Result<Small> {
        let path = self.home.join(format!("{}.safetensors", how.key()?));
        let name = how.name;
        if path.is_file() && !self.anew {
            let small = Small::of(how.sizes, StateDict::load(&path)?)?;
            self.say(&format!("{name}: pretrained {}, {}", made(&path), path.display()));
            return Ok(small);
        }
        let start = Small::random(how.sizes, Seed(how.config.seed).split("weights"))?;
        self.say(&format!("{name}: pretraining {} parameters", start.parameters()));
        let (bound, begun) = (start.bind(how.config)?, Instant::now());
        let outcome = self.train(&bound, how.rows, how.config)?;
        let small = start.tuned(&bound)?;
        small
            .weights
            .save(&path, &[("made_by", concat!("luthier ", env!("CARGO_PKG_VERSION")))])?;
        let (steps, seconds) = (outcome.steps, begun.elapsed().as_secs_f64());
        self.say(&format!(
            "{name}: pretrained in {steps} steps, {seconds:.0} s, kept for next time"
        ));
        Ok(small)
    }

    /// What `make` makes: made now, or kept from an earlier time under a hash of `name` and
    /// `settings`, which must say all that it depends on.
    pub fn kept(
        &self,
        name: &str,
        settings: &impl Serialize,
        make: impl FnOnce() -> Result<StateDict>,
    ) -> Result<StateDict> {
        let key = serde_json::to_vec(&(name, settings, env!("CARGO_PKG_VERSION")))
            .map_err(|e| Error::failed(name, e.to_string()))?;
        let path = self.home.join(format!("{}.safetensors", &io::sha256(&key)[..16]));
        if path.is_file() && !self.anew {
            self.say(&format!("{name}: made {}, {}", made(&path), path.display()));
            return StateDict::load(&path);
        }
        let begun = Instant::now();
        let state = make()?;
        state.save(&path, &[("made_by", concat!("luthier ", env!("CARGO_PKG_VERSION")))])?;
        let seconds = begun.elapsed().as_secs_f64();
        self.say(&format!("{name}: made in {seconds:.0} s, kept for next time"));
        Ok(state)
    }

    /// Trains what `bound` lets learn, without a word and without leaving a file.
    pub fn train(&self, bound: &Bound, rows: &[Row], config: &Train) -> Result<Outcome> {
        let config = Train { logging_steps: u64::MAX, ..config.clone() };
        Ok(self.logged(bound, rows, &[], &config)?.0)
    }

    /// The same with the log as `config` wants it, and evaluations on `eval` in it.
    pub fn logged(
        &self,
        bound: &Bound,
        rows: &[Row],
        eval: &[Row],
        config: &Train,
    ) -> Result<(Outcome, Vec<Value>)> {
        let config = config.clone().with_defaults();
        config.check()?;
        let (model, plan) = (bound.policy.model.as_ref(), order(rows, &config)?);
        let epochs = config.epochs.ceil() as usize;
        let start = Start {
            total_steps: 0,
            seed: Seed(config.seed),
            model_params: parameters(model.sites(), tied(model)?),
            n_layers: model.n_layers(),
            fisher: None,
        };
        let mask = match config.corrupt.as_ref().and_then(|corrupt| corrupt.mask_token.as_ref()) {
            Some(MaskToken::Id(id)) => Some(*id),
            // There is no tokenizer to look it up in.
            Some(MaskToken::Text(_)) | None => None,
        };
        let draw = draw::of(&config, mask)?;
        let out = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let job = Job {
            bound,
            config: &config,
            train: rows,
            eval,
            rounds: bound.form.rounds(),
            draw: draw.as_deref(),
            teacher: None,
            order: &|round, epoch| plan.epoch(round * epochs + epoch),
            start: &start,
            describe: &|example| format!("row {example}"),
            export: &|_| Ok(()),
            sample: &|_| Ok(Vec::new()),
            stop: &AtomicBool::new(false),
            out: out.path(),
            resume: false,
            fingerprint: String::new(),
            keep: true,
            progress: false,
        };
        // What a form says once to a person, it would say here a hundred times.
        let outcome = with_default(NoSubscriber::new(), || luthier_train::run(&job))?;
        Ok((outcome, metrics::read(&out.path().join(METRICS))?))
    }
}

impl Pretraining<'_> {
    /// Another setting, another key: sizes, settings, rows, and the version that trains.
    fn key(&self) -> Result<String> {
        let text = serde_json::to_string(&(self.sizes, self.config, env!("CARGO_PKG_VERSION")))
            .map_err(|e| Error::failed(self.name, e.to_string()))?;
        let mut bytes = text.into_bytes();
        for row in self.rows {
            bytes.extend((row.len() as u64).to_le_bytes());
            bytes.extend(row.ids.iter().chain(&row.targets).flat_map(|id| id.to_le_bytes()));
            bytes.extend(row.weights.iter().flat_map(|w| w.to_le_bytes()));
        }
        Ok(io::sha256(&bytes)[..16].to_string())
    }
}

/// Which rows make the steps.
pub(crate) fn order(rows: &[Row], config: &Train) -> Result<Plan> {
    Ok(Plan {
        lengths: rows.iter().map(Row::len).collect(),
        unit: config.loss.objective()?.unit().rows(),
        size: match (config.batch_size, config.batch_tokens) {
            (Some(rows), _) => Size::Rows(rows),
            (None, Some(tokens)) => Size::Tokens(tokens),
            (None, None) => return Err(Error::failed("train", "the recipe is not resolved")),
        },
        seed: Seed(config.seed).split("order"),
        order: match (config.shuffle, config.group_by_length) {
            (false, _) => Order::File,
            (true, true) => Order::Grouped,
            (true, false) => Order::Shuffled,
        },
        tasks: config.step_tasks(rows),
    })
}

/// Whether embedding and head are one table: asked to learn, both are the same variable.
fn tied(model: &dyn Model) -> Result<bool> {
    let site = |name: &str| model.sites().get(name).map(|site| site.id);
    let ends: Vec<_> = ["embed", "logits"].into_iter().filter_map(site).collect();
    Ok(model.learn(&ends)?.1.len() < ends.len())
}

/// When a file was made, as a person would say it.
fn made(path: &Path) -> String {
    let age = fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.map_or_else(|| "some time ago".to_string(), ago)
}

fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => "just now".to_string(),
        120..=7199 => format!("{} minutes ago", seconds / 60),
        7200..=172_799 => format!("{} hours ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_units_of_their_size() {
        let told = [5, 300, 7200, 200_000].map(|s| ago(Duration::from_secs(s)));
        assert_eq!(told, ["just now", "5 minutes ago", "2 hours ago", "2 days ago"]);
    }

    #[test]
    fn what_is_made_is_kept_until_its_settings_change() {
        let dir = tempfile::tempdir().unwrap();
        let state = |x: f32| {
            let tensor = candle_core::Tensor::new(&[x], &candle_core::Device::Cpu).unwrap();
            [("w".to_string(), tensor)].into_iter().collect::<StateDict>()
        };
        let run = |anew: bool, settings: u64, x: f32| {
            let lab = Lab::at(dir.path().to_path_buf(), 1, anew, &|_| {}).unwrap();
            let kept = lab.kept("state", &settings, || Ok(state(x))).unwrap();
            kept.get("w").unwrap().to_vec1::<f32>().unwrap()[0]
        };
        assert_eq!((run(false, 1, 1.0), run(false, 1, 2.0), run(false, 2, 3.0)), (1.0, 1.0, 3.0));
        assert_eq!((run(true, 1, 4.0), run(false, 1, 5.0)), (4.0, 4.0));
    }

    #[test]
    fn a_published_recipe_is_read_with_settings_in_place_of_its_own() {
        let set = ["learning_rate=1e-3", "batch_size=16", "train.seed=7"];
        let train = recipe("recipes/full/sft.toml", &set).unwrap();
        assert_eq!((train.batch_size, train.batch_tokens, train.seed), (Some(16), None, 7));
        assert_eq!(train.update.adamw.unwrap().learning_rate, 1e-3);
        assert!(train.params.full.is_some());
        let error = recipe("recipes/full/sf.toml", &[]).unwrap_err().to_string();
        assert!(error.contains("recipes/full/sft.toml"), "{error}");
    }
}
