//! One tensor of the plan: its settings by their precedence, and the checks of its inputs.

use luthier_core::{Error, Result};
use luthier_model::save::SaveDtype;
use luthier_weights::{
    Config, Format, Given, Input, Place, Settings, Slice,
    method::{Base, Fallback, Key, Of},
};

use super::Planned;
use crate::merge::{
    beside::{Beside, Files},
    models::Models,
    tokens::Vocabulary,
};

/// Settings by their precedence, and the checks of one tensor's inputs.
pub(super) struct Resolver<'a> {
    pub config: &'a Config,
    pub models: &'a Models,
    pub files: &'a Files,
    pub vocabulary: Option<&'a Vocabulary>,
    /// Of the output.
    pub layers: usize,
}

impl Resolver<'_> {
    /// A tensor of the `i`-th block, which is the slice's `within`-th.
    pub(super) fn layer(
        &self,
        slice: &Slice,
        (i, within): (usize, usize),
        rest: &str,
        out: (String, Vec<usize>),
    ) -> Result<Planned> {
        let n = super::layers(slice);
        // A slice of one layer counts as its end.
        let t = if n > 1 { within as f64 / (n - 1) as f64 } else { 1.0 };
        let name = |source: &Input| {
            let from = source.layers.map_or(0, |(from, _)| from);
            format!("model.layers.{}.{rest}", from + within)
        };
        let names = slice.sources.iter().map(name).collect();
        self.tensor(slice, names, (t, Place::Block(i, self.layers)), out)
    }

    /// A tensor outside of the blocks.
    pub(super) fn outer(
        &self,
        slice: &Slice,
        place: Place,
        out: (String, Vec<usize>),
    ) -> Result<Planned> {
        let names = vec![out.0.clone(); slice.sources.len()];
        self.tensor(slice, names, (0.0, place), out)
    }

    fn tensor(
        &self,
        slice: &Slice,
        names: Vec<String>,
        (t, place): (f64, Place),
        (name, dims): (String, Vec<usize>),
    ) -> Result<Planned> {
        let by_token = matches!(name.as_str(), "model.embed_tokens.weight" | "lm_head.weight");
        let mut inputs = Vec::new();
        for (source, tensor) in slice.sources.iter().zip(&names) {
            let index = self.models.index(&source.model);
            let stored = self.models.at(index).stands_for(tensor);
            self.check_shape(index, stored, &dims, by_token)?;
            inputs.push((index, stored.to_string()));
        }
        let base = slice.base.as_ref().or(self.config.base.as_ref());
        let base = base.filter(|_| self.config.spec.base != Base::Ordinary);
        let base = base.and_then(|base| slice.sources.iter().position(|s| s.model == *base));
        let mut given = self.given(slice, (&name, &names), t, base)?;
        let (dtype, round) = self.formats(&inputs)?;
        let tensor = (inputs.as_slice(), dims.as_slice(), by_token);
        let beside = self.beside(slice, tensor, base, &mut given)?;
        let combine = self.config.spec.combine(&given)?;
        Ok(Planned {
            name,
            dims,
            dtype,
            round,
            inputs,
            beside,
            base,
            by_token,
            place,
            given,
            combine,
        })
    }

    /// What files beside the inputs have for a tensor.
    fn beside(
        &self,
        slice: &Slice,
        (inputs, dims, by_token): (&[(usize, String)], &[usize], bool),
        base: Option<usize>,
        given: &mut Given,
    ) -> Result<Vec<Beside>> {
        let Some(key) = self.config.spec.beside else { return Ok(Vec::new()) };
        let square = [dims[dims.len() - 1]; 2];
        let want: &[usize] = if key == "gram" { &square } else { dims };
        let mut found = Vec::new();
        let others = (0..inputs.len()).filter(|i| Some(*i) != base);
        for (other, i) in others.enumerate() {
            let (source, (_, tensor)) = (&slice.sources[i], &inputs[i]);
            let has = |name: &&String| self.files.shape(name, tensor).is_some();
            let names: Vec<String> = source.beside.iter().filter(has).cloned().collect();
            for name in &names {
                let got = self.files.shape(name, tensor).unwrap_or_default();
                if got != want {
                    let what = format!("tensor {tensor}: expected shape {want:?}, got {got:?}");
                    return Err(Error::input(name, what));
                }
                if by_token && self.vocabulary.is_some() {
                    let what = format!("{tensor} has rows of tokens, which `tokenizer` reorders");
                    return Err(Error::input(name, what).hint("leave this tensor out of the file"));
                }
            }
            given.beside[other] = !names.is_empty();
            if !names.is_empty() {
                found.push((names, tensor.clone()));
            } else if key == "mask" && !source.beside.is_empty() {
                // What a mask does not mention is not in it.
                let tops = given.each.iter_mut().filter(|(name, _)| *name == "top");
                tops.for_each(|(_, tops)| tops[other] = Some(0.0));
            }
        }
        Ok(found)
    }

    fn check_shape(
        &self,
        model: usize,
        tensor: &str,
        dims: &[usize],
        by_token: bool,
    ) -> Result<()> {
        let opened = self.models.at(model);
        let got = opened.shape(tensor)?;
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
            let stored = match self.models.at(*model).stored(tensor)? {
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
        let beside = vec![false; others.len()];
        Ok(Given { file: file.clone(), inputs, merge, each, beside })
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
