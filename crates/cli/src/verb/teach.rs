//! `luthier teach`: what a teacher finds likely at every trained token, asked once and written down.
//! The teacher is --model and --adapter, or the recipe's `models.teacher`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use luthier_core::{Error, Result, Seed};
use luthier_model::{Tokenizer, render::LossOn};
use luthier_recipe::{
    Recipe,
    open::find,
    schema::{Data, Paths},
    teacher::{Calib, Counts, Fitted, fit, teach},
};
use serde_json::json;

use crate::{
    out,
    verb::{
        bar,
        columns::{Side, aligned},
        model_args::ModelArgs,
        pull::bring,
    },
};

/// Arguments of `luthier teach`.
#[derive(clap::Args)]
pub struct Args {
    /// Settings in place of the recipe's, as key=value
    #[arg(value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
    /// The teacher: --model and --adapter [default with --recipe: its models.teacher]
    #[command(flatten)]
    model: ModelArgs,
    /// The student, whose tokens and template the rows are made of [default: the recipe's
    /// models.policy, or the teacher]
    #[arg(long = "for", value_name = "MODEL")]
    student: Option<String>,
    /// What is taught: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: Option<PathBuf>,
    /// A recipe whose [data] table makes the rows, so that they are those that it trains on
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// How many tokens are written down for each trained one
    #[arg(long, value_name = "K", default_value_t = 5)]
    top_k: usize,
    /// Longest row in tokens, without a recipe
    #[arg(long, value_name = "N", default_value_t = Data::default().max_length)]
    max_length: usize,
    /// Which turns are trained, without a recipe
    #[arg(
        long, value_name = "T", default_value = "assistant", value_parser =
        PossibleValuesParser::new(["assistant", "all", "last"]).map(|name| match name.as_str() {
            "all" => LossOn::All,
            "last" => LossOn::Last,
            _ => LossOn::Assistant,
        })
    )]
    loss_on: LossOn,
    /// The file to write, for train.loss.distil.cache
    #[arg(long, short, value_name = "FILE", required_unless_present = "fit")]
    out: Option<PathBuf>,
    /// Find c of this calib: print how well calibrated the teacher is under every c that is tried. The
    /// data must be held out from what the teacher learned
    #[arg(
        long, value_name = "CALIB", num_args = 0..=1, require_equals = true,
        default_missing_value = "temp_prob",
        value_parser = PossibleValuesParser::new(["temp_prob", "temp_logit"])
            .map(|name| if name == "temp_logit" { Calib::TempLogit } else { Calib::TempProb })
    )]
    fit: Option<Calib>,
    /// Print one JSON value: {"out", "top_k", "rows", "targets", "covered", "mass", "across", "fit"}
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(mut args: Args) -> Result<()> {
    if let Some(path) = args.out.as_ref().filter(|path| path.is_dir()) {
        return Err(Error::input(path.display().to_string(), "is a folder, expected a file name"));
    }
    let (data, seed, named) = args.rows()?;
    if let (None, None, Some((teacher, _))) = (&args.model.model, &args.model.adapter, &named) {
        let dir = PathBuf::from(teacher);
        match luthier_params::is_adapter(&dir) {
            true => args.model.adapter = Some(dir),
            false if !teacher.is_empty() => args.model.model = Some(teacher.clone()),
            false => {}
        }
    }
    let student = args.student.clone().or(named.map(|(_, policy)| policy));
    let loaded = args.model.load()?;
    let student = match student.filter(|name| !name.is_empty() && *name != loaded.opened.name) {
        Some(name) => {
            bring(&name)?;
            Some(Tokenizer::open(&find(&name)?)?)
        }
        None => None,
    };
    let own = &loaded.opened.tokenizer;
    let student = student.as_ref().unwrap_or(own);
    let progress = bar::pieces("asking the teacher", 1);
    let on_done = &mut |done: usize, total: usize| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
    };
    let lesson = teach((&loaded.policy, own), student, &data, seed, args.top_k, on_done);
    progress.finish_and_clear();
    let lesson = lesson?;
    let fitted = match (args.fit, &lesson.spoken) {
        (None, _) => None,
        (Some(calib), Some(spoken)) => Some(fit(calib, &lesson.rows, spoken)?),
        (Some(_), None) => {
            let what = "the student has other tokens, so confidences are not its own";
            return Err(Error::input("--fit", what).hint("fit the teacher without --for"));
        }
    };
    if let Some(path) = &args.out {
        let k = args.top_k.to_string();
        let about = [
            ("made_by", concat!("luthier ", env!("CARGO_PKG_VERSION"))),
            ("teacher", loaded.opened.name.as_str()),
            ("teacher_sha256", loaded.opened.sha256.as_str()),
            ("top_k", k.as_str()),
        ];
        lesson.cache.save(path, &about)?;
    }
    if args.json {
        let mut value = json!(lesson.counts);
        value["out"] = json!(args.out);
        value["top_k"] = json!(args.top_k);
        value["fit"] = json!(fitted);
        return out::json(&value);
    }
    out::say(&told(&lesson.counts, args.top_k));
    if let Some(fitted) = &fitted {
        out::data(&table(fitted))?;
    }
    match &args.out {
        Some(path) => out::data(&format!("{}\n", path.display())),
        None => Ok(()),
    }
}

/// Teacher and student of a recipe.
type Named = Option<(String, String)>;

impl Args {
    /// What the rows are made from.
    fn rows(&self) -> Result<(Data, Seed, Named)> {
        let given = self.data.as_ref().map(|path| Paths::One(path.display().to_string()));
        let Some(path) = &self.recipe else {
            let Some(train) = given else {
                return Err(Error::input("--data", "missing: what shall be taught?")
                    .hint("a data file, or --recipe with a [data] table"));
            };
            let (max_length, loss_on) = (self.max_length, self.loss_on);
            let data = Data { train: Some(train), max_length, loss_on, ..Data::default() };
            return Ok((data, Seed(0), None));
        };
        let recipe = Recipe::load(path, &self.set)?;
        let mut data = recipe.data;
        if let Some(train) = given {
            (data.train, data.eval, data.eval_fraction) = (Some(train), None, 0.0);
        }
        let seed = Seed(recipe.train.unwrap_or_default().seed);
        Ok((data, seed, Some((recipe.models.teacher, recipe.models.policy))))
    }
}

fn told(counts: &Counts, k: usize) -> String {
    let Counts { rows, targets, covered, mass, across } = counts;
    match across {
        true => format!(
            "{rows} rows, {targets} trained tokens, {covered} of them in spans that end with the \
             teacher's"
        ),
        false => format!(
            "{rows} rows, {targets} trained tokens; {k} tokens hold {:.1} % of the mass",
            100.0 * mass
        ),
    }
}

fn table(fitted: &Fitted) -> String {
    let mut rows = vec![["c".to_string(), "ECE".to_string()].to_vec()];
    for (c, error) in &fitted.fit.tried {
        rows.push(vec![format!("{c:.2}"), format!("{error:.4}")]);
    }
    let (before, after) = (&fitted.before, &fitted.after);
    aligned(&[Side::Left, Side::Right], &rows)
        + &format!(
            "\nas it is: accuracy {:.4}, confidence {:.4}, ECE {:.4}\nc = {:.2}: confidence {:.4}, \
             ECE {:.4}\n",
            before.accuracy,
            before.confidence,
            before.ece,
            fitted.fit.value,
            after.confidence,
            after.ece
        )
}
