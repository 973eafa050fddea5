//! How several models, rules and searches have a part in an answer: the flags of generate, chat and
//! eval, on top of a `[decode]` table.

use std::path::PathBuf;

use luthier_core::{Error, Result};
use luthier_decode::{
    Beam,
    beam::{EarlyStopping, Never},
    combine::{Cfg, Kind},
    constrain::Dry,
};
use luthier_recipe::{
    Recipe,
    decode::{CopilotBy, Decode, POLICY, Source, Template},
};

use crate::verb::model_args::ModelArgs;

/// Sources, constraints and searches.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Decoding")]
pub struct DecodeArgs {
    /// A recipe whose [decode] table says whose logits are combined, and how; its model is the default
    /// of --model
    #[arg(long, value_name = "FILE")]
    pub decode: Option<PathBuf>,
    /// Only JSON that the schema in this file allows
    #[arg(long, value_name = "FILE", group = "form")]
    json_schema: Option<PathBuf>,
    /// Only text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", group = "form")]
    regex: Option<String>,
    /// Only one of these texts
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "form")]
    choice: Vec<String>,
    /// Only text of the Lark grammar in this file
    #[arg(long, value_name = "FILE", group = "form")]
    grammar: Option<PathBuf>,
    /// Beam search with so many beams
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Beam search: above 0 favours long answers, below 0 short ones [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "num_beams")]
    length_penalty: Option<f32>,
    /// Beam search: end as soon as there are enough answers, by a rule of thumb, or never early
    /// [default: false]
    #[arg(long, value_name = "WHEN", value_parser = ["true", "false", "never"],
        requires = "num_beams")]
    early_stopping: Option<String>,
    /// Draw N answers and give the one with the best mean log-probability
    #[arg(long, value_name = "N", conflicts_with = "num_beams")]
    best_of: Option<usize>,
    /// Draw N answers and give the one that most agree on
    #[arg(long, value_name = "N", conflicts_with_all = ["num_beams", "best_of"])]
    self_consistency: Option<usize>,
    /// Correct the model's probabilities by a copilot: the folder of a run with [train.copilot]
    #[arg(long, value_name = "DIR")]
    copilot: Option<PathBuf>,
    /// How much of the copilot's corrections; 0 is none [default: as it was trained for]
    #[arg(long, value_name = "X", requires = "copilot")]
    lambda: Option<f64>,
    /// Classifier-free guidance: above 1 the answer heeds the prompt more
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// What the answer should not follow, for --guidance-scale [default: no prompt]
    #[arg(long, value_name = "TEXT", requires = "guidance_scale")]
    negative_prompt: Option<String>,
    /// DRY: how strongly repetitions of stretches are discouraged
    #[arg(long, value_name = "X")]
    dry_multiplier: Option<f32>,
    /// DRY: what each further token of a repetition multiplies [default: 1.75]
    #[arg(long, value_name = "X", requires = "dry_multiplier")]
    dry_base: Option<f32>,
    /// DRY: repetitions of fewer tokens cost nothing [default: 2]
    #[arg(long, value_name = "N", requires = "dry_multiplier")]
    dry_allowed_length: Option<usize>,
    /// DRY: text that repetitions do not reach over (may be repeated) [default: \n : " *]
    #[arg(long, value_name = "TEXT", requires = "dry_multiplier")]
    dry_sequence_breaker: Vec<String>,
}

impl DecodeArgs {
    /// The table: of the file, with what the flags say; `None` where neither says anything. A file names
    /// the model unless `model` has one.
    pub fn table(&self, model: &mut ModelArgs) -> Result<Option<Decode>> {
        let mut table = None;
        if let Some(file) = &self.decode {
            let recipe = Recipe::load(file, &[])?;
            let Some(decode) = recipe.decode else {
                return Err(Error::input(file.display().to_string(), "has no [decode] table")
                    .hint("recipes/decode holds examples"));
            };
            if model.model.is_none() && model.adapter.is_none() && !recipe.models.policy.is_empty()
            {
                model.model = Some(recipe.models.policy);
            }
            table = Some(decode);
        }
        let given = table.is_some();
        let mut decode = table.unwrap_or_default();
        let usual = decode.clone();
        self.rules(&mut decode);
        self.searches(&mut decode);
        self.guidance(&mut decode)?;
        if let Some(folder) = &self.copilot {
            let policy = decode.sources.entry(POLICY.to_string()).or_default();
            policy.copilot = Some(CopilotBy { folder: folder.clone(), lambda: self.lambda });
        }
        decode.check().map_err(by_flag)?;
        Ok((given || decode != usual).then_some(decode))
    }

    fn rules(&self, decode: &mut Decode) {
        let rules = &mut decode.constrain;
        let forms = self.json_schema.is_some() || self.regex.is_some() || self.grammar.is_some();
        if forms || !self.choice.is_empty() {
            // A form on the command line takes the place of the file's.
            (rules.json_schema, rules.grammar) = (self.json_schema.clone(), self.grammar.clone());
            (rules.regex, rules.choice) = (self.regex.clone(), self.choice.clone());
        }
        if let Some(multiplier) = self.dry_multiplier {
            let usual = rules.dry.clone().unwrap_or_default();
            let breakers = match self.dry_sequence_breaker.is_empty() {
                true => usual.sequence_breakers,
                false => self.dry_sequence_breaker.iter().map(|s| s.replace("\\n", "\n")).collect(),
            };
            rules.dry = Some(Dry {
                multiplier,
                base: self.dry_base.unwrap_or(usual.base),
                allowed_length: self.dry_allowed_length.unwrap_or(usual.allowed_length),
                sequence_breakers: breakers,
                range: usual.range,
                breakers: Vec::new(),
            });
        }
    }

    fn searches(&self, decode: &mut Decode) {
        if let Some(num_beams) = self.num_beams {
            let usual = decode.beam.unwrap_or_default();
            let early_stopping = match self.early_stopping.as_deref() {
                Some("never") => EarlyStopping::Never(Never::Never),
                Some(word) => EarlyStopping::When(word == "true"),
                None => usual.early_stopping,
            };
            let length_penalty = self.length_penalty.unwrap_or(usual.length_penalty);
            decode.beam = Some(Beam { num_beams, length_penalty, early_stopping });
        }
        decode.best_of = self.best_of.unwrap_or(decode.best_of);
        decode.self_consistency = self.self_consistency.unwrap_or(decode.self_consistency);
    }

    fn guidance(&self, decode: &mut Decode) -> Result<()> {
        let Some(guidance_scale) = self.guidance_scale else { return Ok(()) };
        if decode.combine != Kind::default() {
            let what = "the file of --decode combines sources already";
            return Err(Error::input("--guidance-scale", what).hint("leave out one of the two"));
        }
        let source = match &self.negative_prompt {
            Some(text) => Source { user: Some(text.clone()), ..Source::default() },
            None => Source { template: Template::LastToken, ..Source::default() },
        };
        decode.combine = Kind::Cfg(Cfg { guidance_scale, ..Cfg::default() });
        decode.sources.insert(Cfg::default().unconditional, source);
        Ok(())
    }
}

/// `decode.beam.num_beams` is `--num-beams` to whoever typed it; what only a file says keeps its name.
fn by_flag(error: Error) -> Error {
    match error {
        Error::Input { at, what, hint } => {
            let name = match at.strip_prefix("decode.") {
                Some(key) if key.starts_with("constrain.dry.") => {
                    format!("--dry-{}", key["constrain.dry.".len()..].replace('_', "-"))
                }
                Some(key) if key.starts_with("beam.") => {
                    format!("--{}", key["beam.".len()..].replace('_', "-"))
                }
                Some(key @ ("best_of" | "self_consistency")) => {
                    format!("--{}", key.replace('_', "-"))
                }
                _ => at,
            };
            Error::Input { at: name, what, hint }
        }
        other => other,
    }
}
