//! Which tensors come out, what goes into each, and with which settings: all of it known, and
//! every mistake named, before a number is read.

use luthier_core::{Error, Result};
use luthier_model::{
    ModelConfig,
    names::tensors,
    save::{Announced, SaveDtype},
};
use luthier_weights::{
    Combine, Config, Format, Given, Input, Layout, Model, Settings, Slice,
    method::{Base, Fallback, Key, Of},
};

use super::{models::Models, tokens::Vocabulary};

mod stack;

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
    /// Which of them the merge works from.
    pub base: Option<usize>,
    /// Whether its rows are those of tokens.
    pub by_token: bool,
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
}

impl Plan {
    pub(super) fn of(
        config: &Config,
        models: &Models,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Plan> {
        let slices = slices(config, models)?;
        check_slices(config, models, &slices)?;
        let out = stack::config(config, models, &slices, vocabulary)?;
        let resolver = Resolver { config, models, vocabulary };
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
                    resolver.layer(&slices[s], within, rest, (name.clone(), dims))?
                }
                None if name == "model.embed_tokens.weight" => {
                    resolver.outer(&slices[0], (name.clone(), dims))?
                }
                None => resolver.outer(&slices[slices.len() - 1], (name.clone(), dims))?,
            });
        }
        Ok(Plan { config: out, tensors: planned })
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
    let all = |model: &Model| models.at(models.index(model)).source.config().layers;
    let mut sources: Vec<Input> = inputs
        .iter()
        .map(|input| Input { layers: Some((0, all(&input.model))), ..input.clone() })
        .collect();
    if let Some(base) =
        config.base.as_ref().filter(|base| sources.iter().all(|s| s.model != **base))
    {
        let layers = Some((0, all(base)));
        sources.push(Input { model: base.clone(), layers, settings: Settings::new() });
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
            let has = models.at(models.index(&source.model)).source.config().layers;
            if let Some((from, to)) = source.layers.filter(|(_, to)| *to > has) {
                let what = format!("{} has layers 0 to {has}, got {from} to {to}", source.model);
                return Err(Error::input(format!("{at}.sources"), what));
            }
        }
    }
    Ok(())
}

/// Settings by their precedence, and the checks of one tensor's inputs.
struct Resolver<'a> {
    config: &'a Config,
    models: &'a Models,
    vocabulary: Option<&'a Vocabulary>,
}

impl Resolver<'_> {
    fn layer(
        &self,
        slice: &Slice,
        within: usize,
        rest: &str,
        out: (String, Vec<usize>),
    ) -> Result<Planned> {
        let n = layers(slice);
        // A slice of one layer counts as its end.
        let t = if n > 1 { within as f64 / (n - 1) as f64 } else { 1.0 };
        let name = |source: &Input| {
            let from = source.layers.map_or(0, |(from, _)| from);
            format!("model.layers.{}.{rest}", from + within)
        };
        let names = slice.sources.iter().map(name).collect();
        self.tensor(slice, names, t, out)
    }

    fn outer(&self, slice: &Slice, out: (String, Vec<usize>)) -> Result<Planned> {
        let names = vec![out.0.clone(); slice.sources.len()];
        self.tensor(slice, names, 0.0, out)
    }

    fn tensor(
        &self,
        slice: &Slice,
        names: Vec<String>,
        t: f64,
        (name, dims): (String, Vec<usize>),
    ) -> Result<Planned> {
        let by_token = matches!(name.as_str(), "model.embed_tokens.weight" | "lm_head.weight");
        let mut inputs = Vec::new();
        for (source, tensor) in slice.sources.iter().zip(&names) {
            let index = self.models.index(&source.model);
            // A tied head is the table of embeddings.
            let tied = tensor == "lm_head.weight" && self.models.at(index).source.config().tied;
            let stored = if tied { "model.embed_tokens.weight" } else { tensor };
            self.check_shape(index, stored, &dims, by_token)?;
            inputs.push((index, stored.to_string()));
        }
        let base = slice.base.as_ref().or(self.config.base.as_ref());
        let base = base.filter(|_| self.config.spec.base != Base::Ordinary);
        let base = base.and_then(|base| slice.sources.iter().position(|s| s.model == *base));
        let given = self.given(slice, (&name, &names), t, base)?;
        let (dtype, round) = self.formats(&inputs)?;
        let combine = self.config.spec.combine(&given)?;
        Ok(Planned { name, dims, dtype, round, inputs, base, by_token, combine })
    }

    fn check_shape(
        &self,
        model: usize,
        tensor: &str,
        dims: &[usize],
        by_token: bool,
    ) -> Result<()> {
        let opened = self.models.at(model);
        let got = opened.source.shape(tensor)?;
        // Rows of tokens are brought into the output's order.
        let same = match by_token && self.vocabulary.is_some() {
            true => got[1..] == dims[1..],
            false => got == dims,
        };
        if same {
            return Ok(());
        }
        let what = format!("tensor {tensor}: expected shape {dims:?}, got {got:?}");
        let error = Error::input(opened.model.to_string(), what);
        Err(match by_token {
            true => error.hint("vocabularies differ: `tokenizer: {source: base}` lines them up"),
            false => error,
        })
    }

    /// How the output is stored, and what inputs are rounded to.
    fn formats(&self, inputs: &[(usize, String)]) -> Result<(SaveDtype, Option<Format>)> {
        let save = |format: Format| match format {
            Format::Float32 => SaveDtype::F32,
            Format::Float16 => SaveDtype::F16,
            Format::Bfloat16 => SaveDtype::BF16,
        };
        let (dtype, out) = (self.config.dtype, self.config.out_dtype);
        if let Some(format) = out.or(dtype) {
            return Ok((save(format), dtype));
        }
        // As wide as the widest input; two different halves fit into nothing smaller than f32.
        let mut found: Option<SaveDtype> = None;
        for (model, tensor) in inputs {
            let stored = match self.models.at(*model).source.dtype_name(tensor)? {
                "F16" => SaveDtype::F16,
                "BF16" => SaveDtype::BF16,
                _ => SaveDtype::F32,
            };
            found = match found {
                Some(before) if before != stored => Some(SaveDtype::F32),
                _ => Some(stored),
            };
        }
        Ok((found.unwrap_or(SaveDtype::F32), None))
    }

    fn given(
        &self,
        slice: &Slice,
        (name, names): (&str, &[String]),
        t: f64,
        base: Option<usize>,
    ) -> Result<Given> {
        let Config { file, spec, module, settings, .. } = self.config;
        let outer = [&slice.settings, module, settings];
        let others: Vec<usize> = (0..names.len()).filter(|i| Some(*i) != base).collect();
        let (mut merge, mut each) = (Vec::new(), Vec::new());
        for key in spec.keys {
            if key.of == Of::Merge {
                let at = format!("{file}: {}", key.name);
                merge.push((key.name, resolve(key, &outer, (name, t), &at)?));
                continue;
            }
            let mut values = Vec::new();
            for i in &others {
                let source = &slice.sources[*i];
                let scopes = [&source.settings, outer[0], outer[1], outer[2]];
                let at = format!("{file}: {} of {}", key.name, source.model);
                values.push(resolve(key, &scopes, (&names[*i], t), &at)?);
            }
            each.push((key.name, values));
        }
        let inputs = others.iter().map(|i| slice.sources[*i].model.to_string()).collect();
        Ok(Given { file: file.clone(), inputs, merge, each })
    }
}

/// The first scope that says something about this tensor.
fn resolve(
    key: &Key,
    scopes: &[&Settings],
    (tensor, t): (&str, f64),
    at: &str,
) -> Result<Option<f64>> {
    for setting in scopes.iter().filter_map(|scope| scope.get(key.name)) {
        if let Some(value) = setting.value(key.kind, tensor, t, at)? {
            return Ok(Some(value));
        }
    }
    match key.default {
        Fallback::Number(value) => Ok(Some(value)),
        Fallback::Nothing => Ok(None),
        Fallback::Needed => {
            let what = format!("is missing for tensor {tensor}");
            Err(Error::input(at, what).hint(format!("add `{}:` under parameters", key.name)))
        }
    }
}
