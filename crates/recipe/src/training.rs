//! The training stage: from a recipe to a trained adapter or model in a run directory.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use luthier_core::{Error, Policy, Result, Row, Seed, StateDict, io};
use luthier_data::{Order, Plan, Size};
use luthier_decode::{Generate, generate};
use luthier_kernels::num::Precision;
use luthier_model::render::generation_prompt;
use luthier_params::{Bound, Kept, Scope, copilot::Copilot};
use luthier_train::{
    Job, Outcome, Stopped, Train, checkpoint, draw,
    estimate::Memory,
    evaluate,
    log::{self, Sample},
};
use luthier_update::Start;

use crate::{
    begin, copilot, corrupt, distil, export, heads,
    manifest::{self, Input, Manifest},
    memory,
    open::Opened,
    precision,
    prepare::{self, Prepared},
    schema::Recipe,
    sequence::Sequence,
    tasks, teacher,
    text::Text,
};

/// How a stage is run, apart from what the recipe says.
pub struct Circumstances<'a> {
    /// Goes on from the newest checkpoint.
    pub resume: bool,
    /// Shows a progress bar.
    pub progress: bool,
    /// Set to stop after the step in progress.
    pub stop: &'a AtomicBool,
    /// The command line, for the manifest.
    pub command: String,
}

/// A training stage ready to start.
pub struct Stage {
    /// The recipe with every default.
    pub recipe: Recipe,
    /// Its `[train]` table.
    pub config: Train,
    /// The base model; its weights are those that learn when they all do.
    pub opened: Opened,
    /// Training rows.
    pub train: Prepared,
    /// Evaluation rows.
    pub eval: Option<Prepared>,
    /// The policy and what learns.
    pub bound: Bound,
    /// Steps of any epoch over all rows.
    pub plan: Plan,
    /// Which rows a round reads.
    sequence: Sequence,
    /// Whether block activations are kept.
    pub keep: bool,
    /// Estimated peak memory.
    pub memory: Memory,
    /// How much the base depends on each weight, for a penalty.
    fisher: Option<StateDict>,
    /// Whose distributions the objective compares with.
    pub teacher: Option<Policy>,
    /// The token that hides others.
    mask: Option<u32>,
    /// What learns the policy's errors.
    copilot: Option<Copilot>,
}

/// What a finished training stage leaves.
pub struct Trained {
    /// How the run went.
    pub outcome: Outcome,
    /// Files of the trained adapter or model.
    pub files: Vec<PathBuf>,
}

impl Stage {
    /// Opens the model, prepares the data, binds the parameters: all errors of the recipe show
    /// here, before anything is written.
    pub fn new(recipe: Recipe) -> Result<Self> {
        let recipe = recipe.resolved();
        let Some(config) = recipe.train.clone() else {
            return Err(Error::input("train", "the recipe has no training stage")
                .hint("add a [train] table"));
        };
        config.check()?;
        if recipe.models.policy.is_empty() {
            return Err(Error::input("models.policy", "missing: which model is trained?")
                .hint("models.policy = \"smollm2-135m-instruct\", or --model"));
        }
        let beside = config.params.kept() != Kept::Model;
        let opened = crate::open::open_base(&recipe.models, beside)?;
        Stage::with(recipe, config, opened)
    }

    /// The same on a model that is already open.
    pub fn with(recipe: Recipe, mut config: Train, mut opened: Opened) -> Result<Self> {
        let seed = Seed(config.seed);
        let unit = config.loss.objective()?.unit();
        let labels = heads::labels(&config, &opened);
        heads::check(unit, labels.is_some(), config.sample_steps)?;
        let (mut train, mut eval) = prepare::both(&recipe.data, &opened.tokenizer, seed, unit)?;
        let tasks = tasks::assign(recipe.data.task.as_ref(), &mut train, eval.as_mut())?;
        config.loss = config.loss.of_tasks(&tasks)?;
        for prepared in [Some(&mut train), eval.as_mut()].into_iter().flatten() {
            prepared.fit(&config.loss, labels)?;
        }
        for row in train.rows.iter().chain(eval.iter().flat_map(|e| &e.rows)) {
            luthier_core::Batch::from_rows([row]).check_vocab(opened.model.vocab())?;
        }
        let mut plan = Plan {
            lengths: train.rows.iter().map(Row::len).collect(),
            unit: unit.rows(),
            size: match (config.batch_size, config.batch_tokens) {
                (Some(rows), _) => Size::Rows(rows),
                (None, Some(tokens)) => Size::Tokens(tokens),
                (None, None) => return Err(Error::failed("train", "the recipe is not resolved")),
            },
            seed: seed.split("order"),
            order: match (config.shuffle, config.group_by_length) {
                (false, _) => Order::File,
                (true, true) => Order::Grouped,
                (true, false) => Order::Shuffled,
            },
            tasks: config.step_tasks(&train.rows),
        };
        let sequence = match recipe.data.sequential {
            true => Sequence::files(&train, &config.params)?,
            false => Sequence::whole(),
        };
        let measured = begin::measured(&config, &opened, &train.rows, &plan)?;
        let bound = bind(&config, &opened, seed, measured)?;
        let full = bound.form.kept() == Kept::Model;
        let objective = config.loss.objective()?;
        let teacher = teacher::of(objective.as_ref(), &recipe.models, &opened, full)?;
        drop(objective);
        let (teacher, beside) = teacher.map_or((None, 0), |(policy, bytes)| (Some(policy), bytes));
        if teacher.is_some() && bound.policy.hooks.virtual_tokens > 0 {
            let what = "rows begin with virtual tokens, which only the policy that learns them can \
                read, and the objective compares it with another";
            return Err(Error::input("train.params.prompt", what)
                .hint("train.params.lora, for example, leaves rows as they are"));
        }
        let mask = corrupt::settle(&mut config, &opened, &train)?;
        match &config.continue_from {
            Some(from) => continue_from(&bound, &opened, Path::new(from))?,
            // The frozen twins of what learns are not needed any more.
            None if full => opened.model = bound.policy.model.clone(),
            None => {}
        }
        let placeholders = bound.policy.hooks.virtual_tokens;
        for prepared in [Some(&mut train), eval.as_mut()].into_iter().flatten() {
            let rows = std::mem::take(&mut prepared.rows);
            prepared.rows = rows.into_iter().map(|row| row.behind(placeholders)).collect();
        }
        plan.lengths = train.rows.iter().map(Row::len).collect();
        let rows = &train.rows;
        let (keep, mut memory) = memory::plan(&config, &opened, &bound, beside, rows, &plan);
        let copilot = copilot::of(&config, &opened, &bound)?;
        memory.learned += copilot::bytes(copilot.as_ref());
        let fisher = match config.update.ewc.as_ref().and_then(|ewc| ewc.fisher.as_ref()) {
            Some(file) => Some(StateDict::load(file)?),
            None => None,
        };
        Ok(Stage {
            recipe,
            config,
            opened,
            train,
            eval,
            bound,
            plan,
            sequence,
            keep,
            memory,
            fisher,
            teacher,
            mask,
            copilot,
        })
    }

    /// How often the schedule is run.
    pub fn rounds(&self) -> usize {
        self.bound.form.rounds().max(self.sequence.rounds())
    }

    /// The steps of an epoch of a round: no two have the same order.
    pub fn order(&self, round: usize, epoch: usize) -> Vec<Vec<usize>> {
        let epoch = round * self.config.epochs.ceil() as usize + epoch;
        self.sequence.epoch(&self.plan, round, epoch)
    }

    /// What the update needs to know besides the variables.
    pub fn start(&self) -> Start<'_> {
        Start {
            total_steps: 0,
            seed: Seed(self.config.seed),
            model_params: self.opened.parameters,
            n_layers: self.opened.model.n_layers(),
            fisher: self.fisher.as_ref(),
        }
    }

    /// Identifies recipe, data and model, whatever they are called.
    pub fn fingerprint(&self) -> Result<String> {
        let mut recipe = self.recipe.clone();
        recipe.models.policy = self.opened.sha256.clone();
        recipe.models.precision = self.opened.precision.into();
        if !recipe.models.teacher.is_empty() {
            recipe.models.teacher = teacher::sha256(&recipe.models.teacher)?;
        }
        if let Some(file) = self.config.loss.distil.as_ref().and_then(|d| d.cache.as_ref()) {
            recipe.models.teacher = io::sha256_file(file)?;
        }
        recipe.data.train = None;
        recipe.data.eval = None;
        (recipe.eval, recipe.decode) = (None, None);
        let eval = self.eval.as_ref().map_or("", |e| e.table.sha256.as_str());
        let text =
            recipe.to_toml()? + &self.train.table.sha256 + eval + self.opened.tokenizer.sha256();
        Ok(io::sha256(text.as_bytes()))
    }

    /// Trains and writes everything into `out`.
    pub fn run(&self, out: &Path, how: &Circumstances) -> Result<Trained> {
        let recipe = self.recipe.to_toml()?;
        io::write_bytes(&out.join(RECIPE), recipe.as_bytes())?;
        let export = |dir: &Path| -> Result<()> {
            // A full model's weights are in the checkpoint already, under their own names.
            match self.bound.form.kept() {
                Kept::Model => Ok(()),
                _ => export::trained(&self.bound, &self.opened, dir).map(|_| ()),
            }
        };
        let train = self.referred(&self.train.rows)?;
        let eval = self.referred(self.eval.as_ref().map_or(&[][..], |p| &p.rows))?;
        let (tokenizer, context) = (&self.opened.tokenizer, self.opened.config.max_positions);
        let then = draw::of(&self.config, self.mask)?;
        let draw = distil::draw(self.config.loss.distil.as_ref(), tokenizer, context, then);
        let job = Job {
            bound: &self.bound,
            config: &self.config,
            train: &train,
            eval: &eval,
            rounds: self.rounds(),
            draw: draw.as_deref(),
            teacher: self.teacher.as_ref(),
            order: &|round, epoch| self.order(round, epoch),
            start: &self.start(),
            describe: &|example| self.train.origin(example),
            export: &export,
            sample: &|step| self.samples(step),
            stop: how.stop,
            out,
            resume: how.resume,
            fingerprint: self.fingerprint()?,
            keep: self.keep,
            progress: how.progress,
        };
        let (outcome, more) = copilot::train(&job, self.copilot.as_ref(), &self.opened.name, out)?;
        if let Some(Stopped::Interrupted(dir)) = &outcome.stopped {
            let what = format!("interrupted; everything is in {}", dir.display());
            return Err(Error::failed(format!("step {}", outcome.steps), what)
                .hint("run the same command with --resume to go on"));
        }
        let mut files = [export::trained(&self.bound, &self.opened, out)?, more].concat();
        files.push(out.join(RECIPE));
        self.manifest(out, &outcome, &files, &how.command, &recipe)?;
        Ok(Trained { outcome, files })
    }

    /// Rows with what the policy says of them before anything is learned, where the objective compares
    /// with that. A resumed run asks again: its checkpoint is not read yet.
    fn referred<'a>(&self, rows: &'a [Row]) -> Result<Cow<'a, [Row]>> {
        if !self.config.loss.objective()?.unit().reference() {
            return Ok(Cow::Borrowed(rows));
        }
        let mut rows = rows.to_vec();
        evaluate::refer(&self.bound.policy, &mut rows, self.config.micro_tokens())?;
        Ok(Cow::Owned(rows))
    }

    fn manifest(
        &self,
        out: &Path,
        outcome: &Outcome,
        files: &[PathBuf],
        command: &str,
        recipe: &str,
    ) -> Result<()> {
        let input = |role: &str, name: &str, sha256: &str| Input {
            role: role.into(),
            name: name.into(),
            sha256: sha256.into(),
        };
        let mut inputs = vec![
            input("model", &self.opened.name, &self.opened.sha256),
            input("tokenizer", self.opened.tokenizer.name(), self.opened.tokenizer.sha256()),
            input("train", &self.train.table.name, &self.train.table.sha256),
        ];
        if let Some(eval) = &self.eval {
            inputs.push(input("eval", &eval.table.name, &eval.table.sha256));
        }
        let mut metrics = std::collections::BTreeMap::from([
            ("train_loss".to_string(), outcome.train_loss),
            ("steps".to_string(), outcome.steps as f64),
        ]);
        metrics.extend(outcome.eval_loss.map(|loss| ("eval_loss".to_string(), loss)));
        let manifest = Manifest {
            luthier: env!("CARGO_PKG_VERSION").into(),
            command: command.into(),
            recipe_sha256: io::sha256(recipe.as_bytes()),
            seed: self.config.seed,
            precision: precision::name(self.opened.precision).into(),
            weights: self.opened.held().into(),
            inputs,
            outputs: manifest::outputs(out, files.iter().map(PathBuf::as_path))?,
            metrics,
        };
        manifest.write(out)
    }

    /// Greedy answers to the first evaluation (or training) prompts, for the log.
    fn samples(&self, step: u64) -> Result<Vec<Sample>> {
        let table = &self.eval.as_ref().unwrap_or(&self.train).table;
        let tokenizer = &self.opened.tokenizer;
        let chosen: Vec<_> = table.examples.iter().take(self.config.samples).collect();
        let prompts: Vec<Vec<u32>> =
            chosen.iter().map(|e| generation_prompt(e, tokenizer)).collect::<Result<_>>()?;
        let options = Generate {
            max_new_tokens: 64,
            eos: tokenizer.eos_ids().to_vec(),
            ..Generate::default()
        };
        let text = Text(tokenizer);
        let answers = generate(&self.bound.policy, &prompts, &options, &text, &mut |_, _, _| ())?;
        let sample =
            |(example, answer): (&&luthier_core::Example, luthier_decode::Generated)| Sample {
                step,
                sample_prompt: example.prompt.last().map_or(String::new(), |t| t.content.clone()),
                sample_text: answer.text,
                sample_expected: example.completions.first().map(|c| c.text().to_string()),
            };
        Ok(chosen.iter().zip(answers).map(sample).collect())
    }
}

/// The resolved recipe inside a run directory.
pub const RECIPE: &str = "recipe.toml";

/// Refuses an output folder that holds a run, unless it shall be resumed.
pub fn check_out(out: &Path, resume: bool) -> Result<()> {
    let taken = [RECIPE, log::METRICS, "adapter_config.json", "config.json"];
    let holds = taken.iter().find(|f| out.join(f).exists());
    let at = out.display().to_string();
    match (holds, resume) {
        (Some(file), false) => {
            Err(Error::input(at, format!("this folder already holds a run ({file})"))
                .hint("name another --out, or go on with --resume"))
        }
        (None, true) => {
            Err(Error::input(at, "there is no run to resume").hint("start it without --resume"))
        }
        _ if out.is_file() => Err(Error::input(at, "is a file, a folder is needed")),
        _ => Ok(()),
    }
}

/// Makes the model learnable. Weights that learn begin as the file has them, not as a model in bf16
/// holds them.
fn bind(config: &Train, opened: &Opened, seed: Seed, measured: StateDict) -> Result<Bound> {
    let exact = |name: &str| opened.exact_if(name);
    let mut scope = Scope::new(seed.split("params").split("params")).with_measured(measured);
    if opened.precision != Precision::F32 || opened.holding.quantize.is_some() {
        scope = scope.with_exact(&exact);
    }
    config.params.bind_in(&opened.model, scope)
}

/// Takes the weights, and only the weights, of an adapter or a checkpoint.
fn continue_from(bound: &Bound, opened: &Opened, from: &Path) -> Result<()> {
    let trained = from.join("trained.safetensors");
    if trained.is_file() {
        return checkpoint::restore(&bound.params, &StateDict::load(&trained)?, &trained);
    }
    let saved = opened.with_adapter(from)?;
    checkpoint::restore(&bound.params, &checkpoint::snapshot(&saved.params), from)
}
