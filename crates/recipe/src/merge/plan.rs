//! Which tensors come out, what goes into each, and with which settings: all of it known, and
//! every mistake named, before a number is read.

use luthier_core::{Error, Result};
use luthier_model::{
    ModelConfig,
    names::tensors,
    save::{Announced, SaveDtype},
};
use luthier_weights::{
    Combine, Config, Format, Given, Input, Layout, Model, Place, Settings, Slice, method::Base,
};

use super::{
    beside::{Beside, Files},
    models::Models,
    tokens::Vocabulary,
};

mod resolve;
mod settle;
mod stack;

use resolve::Resolver;
pub(super) use settle::settle;
pub(super) use stack::drop_beyond;

/// A tensor that comes out.
pub(super) struct Planned {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub dims: Vec<usize>,
    /// How it is stored.
    pub dtype: SaveDtype,
    /// What inputs are rounded to first.
    pub round: Option<Format>,
    /// What goes in: a model, and the name the tensor has there.
    pub inputs: Vec<(usize, String)>,
    /// What is read beside them.
    pub beside: Vec<Beside>,
    /// Which of the inputs the merge works from.
    pub base: Option<usize>,
    /// Whether its rows are those of tokens.
    pub by_token: bool,
    /// Where in the output it stands.
    pub place: Place,
    /// Its settings.
    pub given: Given,
    /// How they become one.
    pub combine: Box<dyn Combine>,
}

impl Planned {
    /// Its numbers.
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Everything that comes out.
pub(super) struct Plan {
    /// The configuration of the output.
    pub config: ModelConfig,
    /// Its tensors, in the order of the forward pass.
    pub tensors: Vec<Planned>,
    /// What deserves to be known.
    pub notes: Vec<String>,
}

impl Plan {
    pub(super) fn of(
        config: &Config,
        models: &Models,
        files: &Files,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Plan> {
        let slices = slices(config, models)?;
        check_slices(config, models, &slices)?;
        let mut out = stack::config(config, models, &slices, vocabulary)?;
        let notes = stack::drop_beyond(&mut out);
        let resolver = Resolver { config, models, files, vocabulary, layers: out.layers };
        let depth: Vec<(usize, usize)> = slices
            .iter()
            .enumerate()
            .flat_map(|(s, slice)| (0..layers(slice)).map(move |layer| (s, layer)))
            .collect();
        let mut planned = Vec::new();
        for (name, dims) in tensors(&out) {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let layer = layer.and_then(|(i, rest)| Some((i.parse::<usize>().ok()?, rest)));
            planned.push(match layer {
                Some((i, rest)) => {
                    let (s, within) = depth[i];
                    resolver.layer(&slices[s], (i, within), rest, (name.clone(), dims))?
                }
                None if name == "model.embed_tokens.weight" => {
                    resolver.outer(&slices[0], Place::Before, (name.clone(), dims))?
                }
                None => {
                    let last = &slices[slices.len() - 1];
                    resolver.outer(last, Place::Behind, (name.clone(), dims))?
                }
            });
        }
        let mut plan = Plan { config: out, tensors: planned, notes };
        let plain = plan.tensors.iter().filter(|planned| planned.beside.is_empty()).count();
        if config.spec.beside == Some("fisher") && plain > 0 {
            let all = plan.tensors.len();
            let note = format!("{plain} of {all} tensors have no Fisher values: plain means");
            plan.notes.push(note);
        }
        plan.check_files(config)?;
        Ok(plan)
    }

    /// Refuses files of which no tensor takes anything.
    fn check_files(&self, config: &Config) -> Result<()> {
        let inputs: Vec<&Input> = match &config.layout {
            Layout::Models(inputs) => inputs.iter().collect(),
            Layout::Slices(slices) => slices.iter().flat_map(|slice| &slice.sources).collect(),
        };
        for name in inputs.iter().flat_map(|input| &input.beside) {
            let takes = |planned: &Planned| planned.beside.iter().any(|(n, _)| n.contains(name));
            if !self.tensors.iter().any(takes) {
                return Err(Error::input(name, "has nothing for any tensor of this merge")
                    .hint("its tensors are found by the names of the weights they are about"));
            }
        }
        Ok(())
    }

    /// What is to be written.
    pub(super) fn coming(&self) -> Vec<Announced> {
        let coming = |planned: &Planned| Announced {
            name: planned.name.clone(),
            shape: planned.dims.clone(),
            dtype: planned.dtype,
        };
        self.tensors.iter().map(coming).collect()
    }

    /// Numbers in all.
    pub(super) fn parameters(&self) -> u64 {
        self.tensors.iter().map(|planned| planned.len() as u64).sum()
    }

    /// How most of it is stored.
    pub(super) fn dtype(&self) -> SaveDtype {
        let largest = self.tensors.iter().max_by_key(|planned| planned.len());
        largest.map_or(SaveDtype::F32, |planned| planned.dtype)
    }
}

/// Layers of a slice.
fn layers(slice: &Slice) -> usize {
    slice.sources[0].layers.map_or(0, |(from, to)| to - from)
}

/// The slices of the file; whole models are one slice of all their layers, the base among them.
fn slices(config: &Config, models: &Models) -> Result<Vec<Slice>> {
    let inputs = match &config.layout {
        Layout::Slices(slices) => return Ok(slices.clone()),
        Layout::Models(inputs) => inputs,
    };
    let all = |model: &Model| models.at(models.index(model)).config().layers;
    let mut sources: Vec<Input> = inputs
        .iter()
        .map(|input| Input { layers: Some((0, all(&input.model))), ..input.clone() })
        .collect();
    if let Some(base) =
        config.base.as_ref().filter(|base| sources.iter().all(|s| s.model != **base))
    {
        let layers = Some((0, all(base)));
        sources.push(Input {
            model: base.clone(),
            layers,
            settings: Settings::new(),
            beside: Vec::new(),
        });
    }
    let first = sources[0].clone();
    if let Some(other) = sources.iter().find(|s| s.layers != first.layers) {
        let (want, got) = (all(&first.model), all(&other.model));
        let what = format!("expected {want} layers as in {}, got {got}", first.model);
        return Err(
            Error::input(other.model.to_string(), what).hint("choose layers of each with slices")
        );
    }
    Ok(vec![Slice { sources, base: None, settings: Settings::new() }])
}

fn check_slices(config: &Config, models: &Models, slices: &[Slice]) -> Result<()> {
    for (i, slice) in slices.iter().enumerate() {
        let at = match &config.layout {
            Layout::Models(_) => format!("{}: models", config.file),
            Layout::Slices(_) => format!("{}: slices[{i}]", config.file),
        };
        let names: Vec<String> = slice.sources.iter().map(|s| s.model.to_string()).collect();
        let base = slice.base.as_ref().or(config.base.as_ref()).map(Model::to_string);
        config.spec.check_inputs(&at, &names, base.as_deref())?;
        if config.spec.base == Base::Welcome
            && let Some(base) = base.filter(|base| !names.contains(base))
        {
            return Err(Error::input(at, format!("the base {base} is not among the sources")));
        }
        for source in &slice.sources {
            let has = models.at(models.index(&source.model)).config().layers;
            if let Some((from, to)) = source.layers.filter(|(_, to)| *to > has) {
                let what = format!("{} has layers 0 to {has}, got {from} to {to}", source.model);
                return Err(Error::input(format!("{at}.sources"), what));
            }
        }
    }
    Ok(())
}
