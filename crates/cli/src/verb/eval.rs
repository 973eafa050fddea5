//! `luthier eval`: a score with its interval, alone or against another model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use luthier_core::{Error, Form, Policy, Result, Table};
use luthier_data::ReadOptions;
use luthier_model::Tokenizer;
use luthier_probe::{Comparison, Kind, calibration::svg, stats::Test};
use luthier_recipe::{
    Opened,
    decode::{Decode, Decoding},
    evaluate::{self, Evaluated, Likelihood, Limits},
    open, precision,
};
use serde_json::{Value, json};

use crate::{
    out,
    verb::{
        bar,
        columns::{Side, aligned},
        decode_args::DecodeArgs,
        model_args::{ModelArgs, check_adapter},
        pull::bring,
    },
};

/// Arguments of `luthier eval`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Questions with their answers: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: PathBuf,
    /// exact_match, json_match, bleu, chrf, rouge_l, pass_at_k, choice, calibration (ECE), nll or
    /// perplexity; options in TOML, as in 'exact_match={extract="after_hashes"}' or 'pass_at_k={k=[1,5],n=10}'
    #[arg(long, value_name = "METRIC", default_value = "exact_match")]
    metric: String,
    /// Compare with: `base` (without the adapter), an adapter folder, or a model
    #[arg(long, value_name = "OTHER")]
    against: Option<String>,
    /// Only the first N examples
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Longest row of a likelihood, in tokens; longer ones are split [default: 1024, or the model's
    /// context if that is shorter]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Join prompt and answer as they are, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Write the result of every example to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Draw the reliability diagram of a choice or of calibration into this SVG file
    #[arg(long, value_name = "FILE")]
    reliability: Option<PathBuf>,
    /// Divides the logits where answers are drawn; 0 always takes the most probable token [default: 0,
    /// or what the table of --decode says]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// The same seed gives the same answers [default: 0]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Print one JSON value: {"metric", "value", "n", "ci95", …, "tokens_read", "seconds" (without
    /// loading), "tokens_per_second"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    decode: DecodeArgs,
}

/// Who is compared with.
enum Other {
    Base,
    Adapter(PathBuf),
    Model(String),
}

/// Scores.
pub fn run(mut args: Args) -> Result<()> {
    let decode = args.decoding()?;
    let metric = evaluate::metric("--metric", &args.metric)?;
    if args.max_new_tokens == 0 {
        return Err(Error::input("--max-new-tokens", "expected at least 1, got 0"));
    }
    if let Some(path) = args.answers.as_ref().filter(|path| path.is_dir()) {
        return Err(Error::input(path.display().to_string(), "is a folder, expected a file name"));
    }
    let other = args.against.as_deref().map(|name| args.other(name)).transpose()?;
    let table = args.table()?;
    let loaded = args.model.load()?;
    let (opened, tokenizer) = (&loaded.opened, &loaded.opened.tokenizer);
    let context = opened.config.max_positions;
    if let Some(length) = args.max_length.filter(|length| *length > context) {
        let what = format!("{length} tokens are more than the model's context of {context}");
        return Err(Error::input("--max-length", what));
    }
    let usual = Limits::default();
    let limits = Limits {
        max_new_tokens: args.max_new_tokens,
        max_context: context,
        max_length: args.max_length.unwrap_or(usual.max_length.min(context)),
        ..usual
    };
    type Scored = Result<(Evaluated, f64)>;
    let decoding =
        decode.as_ref().map(|table| Decoding::open(table, opened, &loaded.policy, usize::MAX));
    let decoding = decoding.transpose()?;
    type By<'a> = Option<&'a Decoding>;
    let score = |by: By, policy: &Policy, tokenizer: &Tokenizer, what: &'static str| -> Scored {
        let begun = Instant::now();
        let progress = bar::pieces(what, table.examples.len());
        let on_done = &mut |done: usize, total: usize| {
            progress.set_length(total as u64);
            progress.set_position(done as u64);
        };
        let result =
            evaluate::evaluate_by(by, policy, tokenizer, &table, &metric, &limits, on_done);
        progress.finish_and_clear();
        Ok((result?, begun.elapsed().as_secs_f64()))
    };
    let against = other.map(|other| other.open(opened, &metric)).transpose()?;
    let by = decoding.as_ref();
    let (mut evaluated, seconds) = score(by, &loaded.policy, tokenizer, "evaluating")?;
    let compared = match &against {
        None => None,
        Some((name, policy, tokenizer)) => {
            // The other one answers greedily by itself: what is compared is the whole way to an answer.
            let (before, _) = score(None, policy, tokenizer, "evaluating the other")?;
            Some((name, evaluate::compare(&before, &evaluated)?))
        }
    };
    // Both names mean one measurement; the number is the one that was asked for.
    if let (Some(likelihood), "perplexity") = (&evaluated.likelihood, args.metric.trim()) {
        evaluated.score = likelihood.report.score();
    }
    if let Some(path) = &args.answers {
        write_answers(path, &evaluated, &table)?;
        out::say(&format!("answers: {}", path.display()));
    }
    if let Some(path) = &args.reliability {
        let Some(found) = &evaluated.calibration else {
            let what = format!("{} has no confidence to draw", metric.name());
            return Err(Error::input("--reliability", what)
                .hint("use --metric choice or --metric calibration"));
        };
        luthier_core::io::write_bytes(path, svg(&table.name, found).as_bytes())?;
        out::say(&format!("reliability diagram: {}", path.display()));
    }
    if !args.json {
        out::say(&speed(&evaluated, seconds));
        let mut text = described(&evaluated);
        if let Some((name, comparison)) = &compared {
            text += &comparison_text(name, comparison);
        }
        return out::data(&text);
    }
    let mut value = machine_readable(&evaluated);
    value["model"] = json!({
        "name": opened.name, "sha256": opened.sha256,
        "adapter": args.model.adapter.as_ref().map(|dir| dir.display().to_string()),
        "precision": precision::name(opened.precision),
    });
    value["data"] = json!({"source": table.name, "layout": table.layout, "sha256": table.sha256});
    value["tokens_read"] = json!(evaluated.tokens_read);
    value["seconds"] = json!(seconds);
    value["tokens_per_second"] = json!(evaluated.tokens_read as f64 / seconds.max(1e-9));
    if let Some((name, comparison)) = &compared {
        value["against"] = json!(comparison);
        value["against"]["model"] = json!(name);
    }
    out::json(&value)
}

/// The score, and what the metric knows besides it; single answers are for --answers.
fn machine_readable(evaluated: &Evaluated) -> Value {
    let mut value = json!(evaluated.score);
    if let Some(fields) = &evaluated.fields {
        value["fields"] = json!(fields);
        value["field_accuracy"] = json!(evaluated.field_accuracy);
    }
    if let Some(signature) = &evaluated.signature {
        value["signature"] = json!(signature);
    }
    if !evaluated.passing.is_empty() {
        value["passing"] = json!(evaluated.passing);
    }
    if let Some(choice) = &evaluated.choice {
        value["acc"] = json!(choice.acc);
        value["acc_norm"] = json!(choice.acc_norm);
        value["acc_bytes"] = json!(choice.acc_bytes);
    }
    if let Some(found) = &evaluated.calibration {
        value["calibration"] = json!(found);
    }
    match &evaluated.likelihood {
        Some(Likelihood { report, .. }) => {
            value["nll"] = json!(report.nll);
            value["perplexity"] = json!(report.perplexity);
            value["tokens"] = json!(report.tokens);
        }
        None if evaluated.choice.is_none() && evaluated.calibration.is_none() => {
            value["cut_answers"] = json!(evaluated.cut_answers);
            value["tokens"] = json!(evaluated.tokens_new);
        }
        None => {}
    }
    value
}

/// Tokens, time and both together, for people.
fn speed(evaluated: &Evaluated, seconds: f64) -> String {
    let tokens = evaluated.tokens_read;
    let rate = tokens as f64 / seconds.max(1e-9);
    format!("{tokens} tokens in {seconds:.1} s ({rate:.0} tokens/s)")
}

impl Args {
    /// The `[decode]` table with what the flags say.
    fn decoding(&mut self) -> Result<Option<Decode>> {
        let Some(mut table) = self.decode.table(&mut self.model)? else {
            let flags =
                [("--temperature", self.temperature.is_some()), ("--seed", self.seed.is_some())];
            if let Some((flag, _)) = flags.into_iter().find(|(_, given)| *given) {
                return Err(Error::input(flag, "answers are greedy unless something draws them")
                    .hint("add --best-of N or --self-consistency N, or a table with --decode"));
            }
            return Ok(None);
        };
        let mut sampler = table.sampler.unwrap_or_default();
        sampler.temperature = self.temperature.unwrap_or(sampler.temperature);
        sampler.seed = self.seed.unwrap_or(sampler.seed);
        if table.several() > 1 && sampler.temperature == 0.0 {
            return Err(Error::input("--temperature", "at 0 all answers to a prompt are the same")
                .hint("add --temperature 0.7 to choose among different answers"));
        }
        table.sampler = Some(sampler);
        Ok(Some(table))
    }

    fn table(&self) -> Result<Table> {
        let form = self.raw.then_some(Form::Raw);
        let options = ReadOptions { form, ..ReadOptions::default() };
        let mut table = luthier_data::read(&self.data, &options)?;
        if self.limit == Some(0) {
            return Err(Error::input("--limit", "expected at least 1, got 0"));
        }
        table.examples.truncate(self.limit.unwrap_or(usize::MAX));
        if table.examples.is_empty() {
            return Err(Error::input(&table.name, "holds no example"));
        }
        out::say(&format!("{}: {} examples, {}", table.name, table.examples.len(), table.layout));
        Ok(table)
    }

    /// Tells apart what --against may be, before anything is loaded.
    fn other(&self, name: &str) -> Result<Other> {
        let path = Path::new(name);
        if name == "base" && !path.exists() {
            return match &self.model.adapter {
                Some(_) => Ok(Other::Base),
                None => Err(Error::input("--against base", "this is the base already")
                    .hint("give the tuned model with --adapter, or another model to compare with")),
            };
        }
        if luthier_params::is_adapter(path) {
            return Ok(Other::Adapter(path.to_path_buf()));
        }
        if path.is_dir() && !path.join("config.json").is_file() {
            check_adapter(path)?;
        }
        Ok(Other::Model(name.to_string()))
    }
}

impl Other {
    /// What runs, what it reads with, and what it is called.
    fn open(self, first: &Opened, metric: &Kind) -> Result<(String, Policy, Arc<Tokenizer>)> {
        match self {
            Other::Base => {
                let name = format!("{} without adapter", first.name);
                Ok((name, first.policy(None)?, first.tokenizer.clone()))
            }
            Other::Adapter(dir) => {
                let name = dir.display().to_string();
                Ok((name, first.policy(Some(&dir))?, first.tokenizer.clone()))
            }
            Other::Model(name) => {
                bring(&name)?;
                let other = open(&name, first.precision.into())?;
                let same = other.tokenizer.sha256() == first.tokenizer.sha256();
                if matches!(metric, Kind::Nll(_) | Kind::Calibration(_)) && !same {
                    let what = "cuts text into other tokens (or words it by another template), so \
                        likelihoods per token cannot be compared";
                    return Err(Error::input(name, what).hint("compare by exact_match or choice"));
                }
                let policy = other.policy(None)?;
                Ok((name, policy, other.tokenizer))
            }
        }
    }
}

fn write_answers(path: &Path, evaluated: &Evaluated, table: &Table) -> Result<()> {
    let mut lines: Vec<Value> = evaluated.answers.iter().map(|row| json!(row)).collect();
    lines.extend(evaluated.likelihood.iter().flat_map(|l| &l.rows).map(|row| {
        json!({
            "origin": table.examples[row.example].origin.to_string(),
            "nll": row.sum / row.weight, "tokens": row.tokens,
        })
    }));
    luthier_core::io::write_atomic(path, |out| lines.iter().try_for_each(|l| writeln!(out, "{l}")))
}

fn described(evaluated: &Evaluated) -> String {
    let score = &evaluated.score;
    let mut text = format!(
        "{}  {:.4}  95 % interval [{:.4}, {:.4}]  n = {}\n",
        score.metric, score.value, score.ci95[0], score.ci95[1], score.n
    );
    for score in evaluated.passing.iter().skip(1) {
        text += &format!(
            "{}  {:.4}  95 % interval [{:.4}, {:.4}]\n",
            score.metric, score.value, score.ci95[0], score.ci95[1]
        );
    }
    if let Some(signature) = &evaluated.signature {
        text += &format!("{signature}\n");
    }
    if let Some(choice) = &evaluated.choice {
        text += &format!(
            "acc {:.4}, acc_norm {:.4}, acc_bytes {:.4}\n",
            choice.acc, choice.acc_norm, choice.acc_bytes
        );
    }
    if let Some(found) = &evaluated.calibration {
        text += &format!(
            "accuracy {:.4}, confidence {:.4}, ECE {:.4} ({:.4} in bins of equal mass), Brier {:.4}\n",
            found.accuracy, found.confidence, found.ece, found.ece_mass, found.brier
        );
    }
    if let Some(Likelihood { report, .. }) = &evaluated.likelihood {
        text += &format!(
            "nll {:.4}, perplexity {:.3}, {} tokens in {} rows\n",
            report.nll, report.perplexity, report.tokens, report.n
        );
    }
    if evaluated.cut_answers > 0 {
        text += &format!("{} answers ran into the limit of new tokens\n", evaluated.cut_answers);
    }
    if let (Some(fields), Some(accuracy)) = (&evaluated.fields, evaluated.field_accuracy) {
        let head = ["field", "right", "wrong", "missing", "extra"].map(str::to_string).to_vec();
        let counted = fields.iter().map(|(name, c)| {
            let counts = [c.right, c.wrong, c.missing, c.extra].map(|n| n.to_string());
            std::iter::once(name.clone()).chain(counts).collect()
        });
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(counted).collect();
        let sides = [Side::Left, Side::Right, Side::Right, Side::Right, Side::Right];
        text += &format!("\nright fields {accuracy:.4}\n{}", aligned(&sides, &rows));
    }
    text
}

fn comparison_text(name: &str, comparison: &Comparison) -> String {
    let c = comparison;
    let test = match c.test {
        Test::Mcnemar => "exact McNemar test",
        Test::PairedBootstrap => "paired bootstrap",
    };
    format!(
        "\nagainst {name}: {:.4} → {:.4} ({}), difference {:+.4} [{:+.4}, {:+.4}]\n\
        {} better, {} worse of {}; p = {:.2e} ({test})\n",
        c.before,
        c.after,
        c.metric,
        c.difference,
        c.ci95[0],
        c.ci95[1],
        c.better,
        c.worse,
        c.n,
        c.p_value
    )
}
