//! The report's facts, gathered from a finished run.

use std::path::Path;

use luthier_core::Result;
use luthier_data::Size;
use luthier_params::Kept;
use luthier_probe::stats::{Bootstrap, Comparison};
use luthier_train::{Outcome, log};

use crate::{
    change, export, manifest, precision,
    prepare::Prepared,
    report::{
        Answer, Artefact, Cut, DataFile, Fact, Field, General, Measured as Value, Method,
        ModelFacts, Paired, ReportData, Resources, Stage as Part, Task, from_metrics,
    },
    run::{Measure, Measured},
    training::Stage,
};

/// Everything the report is made from.
pub struct Facts<'a> {
    /// The training stage.
    pub stage: &'a Stage,
    /// The measuring stage.
    pub measure: Option<&'a Measure>,
    /// Measured before.
    pub before: Option<&'a Measured>,
    /// Measured after.
    pub after: Option<&'a Measured>,
    /// The task, paired.
    pub task: Option<&'a Comparison>,
    /// How training went.
    pub outcome: Option<&'a Outcome>,
    /// The run directory.
    pub out: &'a Path,
    /// The command line.
    pub command: &'a str,
}

/// Sample answers shown.
const ANSWERS: usize = 20;

/// Today's date in UTC.
fn today() -> String {
    luthier_model::template::date("%-d %B %Y")
}

/// Gathers the report.
pub fn report(facts: &Facts) -> Result<ReportData> {
    let stage = facts.stage;
    let metrics = log::metrics::read(&facts.out.join(log::METRICS))?;
    let (curve, evals) = from_metrics(&metrics);
    let title = match stage.recipe.about.as_str() {
        "" => format!("Fine-tuning {}", stage.opened.name),
        about => about.to_string(),
    };
    Ok(ReportData {
        title,
        when: today(),
        version: env!("CARGO_PKG_VERSION").into(),
        model: Some(model(stage)),
        data: data(facts),
        cuts: cuts(stage),
        method: Some(method(stage)),
        curve,
        evals,
        tasks: task(facts).into_iter().collect(),
        fields: fields(facts),
        general: general(facts)?,
        answers: answers(facts),
        changes: change::for_report(&change::changes(&stage.bound, &stage.opened)?),
        resources: Some(resources(facts)),
        artefacts: artefacts(facts)?,
        command: facts.command.to_string(),
    })
}

fn fact(name: &str, value: impl ToString) -> Fact {
    Fact { name: name.into(), value: value.to_string() }
}

fn model(stage: &Stage) -> ModelFacts {
    let opened = &stage.opened;
    ModelFacts {
        name: opened.name.clone(),
        parameters: Some(opened.parameters),
        sha256: opened.sha256.clone(),
        license: String::new(),
        source: opened.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into()),
        more: vec![fact("Architecture", export::describe(&opened.config))],
    }
}

fn file(role: &str, p: &Prepared) -> DataFile {
    let counts = p.counts();
    DataFile {
        role: role.into(),
        path: short(&counts.source),
        layout: counts.layout,
        rows: Some(counts.rows as u64),
        tokens: Some(counts.tokens as u64),
        trained_tokens: Some(counts.trained as u64),
        sha256: counts.sha256,
    }
}

/// The end of a path: enough to recognise the file, nothing about the machine.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.rsplit('/').take(2).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

fn data(facts: &Facts) -> Vec<DataFile> {
    let mut files = vec![file("train", &facts.stage.train)];
    files.extend(facts.stage.eval.as_ref().map(|e| file("eval", e)));
    let tables = [
        ("test", facts.measure.and_then(Measure::task)),
        ("general text", facts.measure.and_then(Measure::general)),
    ];
    for (role, table) in tables {
        let Some(table) = table else { continue };
        files.push(DataFile {
            role: role.into(),
            path: short(&table.name),
            layout: table.layout.clone(),
            rows: Some(table.examples.len() as u64),
            sha256: table.sha256.clone(),
            ..DataFile::default()
        });
    }
    files
}

fn cuts(stage: &Stage) -> Vec<Cut> {
    let sets = [Some(&stage.train), stage.eval.as_ref()];
    let touched = sets.into_iter().flatten().filter(|p| p.cut.over_length > 0);
    let cut = |p: &Prepared| Cut {
        file: short(&p.table.name),
        policy: format!("{:?}", p.cut.policy).to_lowercase(),
        rows: p.cut.over_length as u64,
        tokens: p.cut.tokens_cut as u64,
        answers: p.cut.answers_lost as u64,
        ends: p.cut.eos_lost as u64,
    };
    touched.map(cut).collect()
}

fn method(stage: &Stage) -> Method {
    let trainable: u64 = stage.bound.count();
    let forms: Vec<&str> = stage.bound.form.named().iter().map(|(key, _)| *key).collect();
    let lora = stage.bound.form.lora.as_ref();
    let config = &stage.config;
    let mut settings = vec![
        fact("Epochs", config.epochs),
        match stage.plan.size {
            Size::Tokens(tokens) => fact("Tokens per step", tokens),
            Size::Rows(rows) => fact("Rows per step", rows),
        },
        fact("Seed", config.seed),
    ];
    if let Ok(plan) = config.update.check() {
        settings.push(fact("Learning rate", plan.learning_rate));
    }
    Method {
        recipe: short(&stage.recipe.about),
        form: forms.join(" + "),
        trainable: Some(trainable),
        share: Some(trainable as f64 / stage.opened.parameters as f64),
        sites: Some(match stage.bound.form.kept() {
            Kept::Model => stage.bound.params.len() as u64,
            Kept::Peft | Kept::Own => stage.bound.policy.hooks.sites().count() as u64,
        }),
        r: lora.map(|lora| lora.r as u64),
        alpha: lora.map(|lora| lora.alpha),
        settings,
    }
}

fn value(value: f64, ci95: [f64; 2]) -> Option<Value> {
    Some(Value { value, ci95: Some(ci95) })
}

fn task(facts: &Facts) -> Option<Task> {
    let of = |m: Option<&Measured>| m.and_then(|m| m.task.as_ref()).map(|t| t.score.clone());
    let (before, after) = (of(facts.before), of(facts.after));
    let score = after.as_ref().or(before.as_ref())?;
    let likelihood = ["nll", "calibration"].contains(&score.metric.as_str());
    let metric = match score.metric.as_str() {
        // The whole answer must be right for a JSON match to count.
        "json_match" => "exact match".to_string(),
        other => other.replace('_', " "),
    };
    Some(Task {
        metric,
        items: "held-out requests".into(),
        n: Some(score.n as u64),
        before: before.as_ref().and_then(|s| value(s.value, s.ci95)),
        after: after.as_ref().and_then(|s| value(s.value, s.ci95)),
        // Shares of 1 are shown in percent; what counts to 100 by itself is not.
        plain: likelihood || ["bleu", "chrf"].contains(&score.metric.as_str()),
        lower_is_better: likelihood,
        paired: facts.task.map(|c| Paired { test: test_name(c), p: c.p_value }),
    })
}

fn test_name(comparison: &Comparison) -> String {
    match comparison.test {
        luthier_probe::stats::Test::Mcnemar => "McNemar".into(),
        luthier_probe::stats::Test::PairedBootstrap => "paired bootstrap".into(),
    }
}

/// Times a field was expected.
fn expected(counts: &luthier_probe::metric::FieldCounts) -> usize {
    counts.right + counts.wrong + counts.missing
}

fn fields(facts: &Facts) -> Vec<Field> {
    let of = |m: Option<&Measured>| m.and_then(|m| m.task.as_ref()).and_then(|t| t.fields.clone());
    let (before, after) =
        (of(facts.before).unwrap_or_default(), of(facts.after).unwrap_or_default());
    let field = |(name, counts): (&String, &luthier_probe::metric::FieldCounts)| {
        let share =
            |c: &luthier_probe::metric::FieldCounts| c.right as f64 / expected(c).max(1) as f64;
        (expected(counts) > 0).then(|| Field {
            name: name.clone(),
            n: Some(expected(counts) as u64),
            before: before.get(name).map(share),
            after: Some(share(counts)),
        })
    };
    after.iter().filter_map(field).collect()
}

fn general(facts: &Facts) -> Result<Option<General>> {
    let of = |m: Option<&Measured>| m.and_then(|m| m.general.clone());
    let (Some(before), Some(after)) = (of(facts.before), of(facts.after)) else { return Ok(None) };
    let nll = |rows: &[luthier_probe::metric::RowNll]| -> Vec<f64> {
        rows.iter().map(|r| r.sum).collect()
    };
    let weights: Vec<f64> = after.rows.iter().map(|r| r.weight).collect();
    // The ratio of perplexities is the exponential of the mean difference per token.
    let differences: Vec<f64> =
        nll(&after.rows).iter().zip(nll(&before.rows)).map(|(a, b)| a - b).collect();
    let ends = Bootstrap::default().ratio(&differences, &weights)?;
    let per_token = |rows: &[luthier_probe::metric::RowNll]| -> Vec<f64> {
        rows.iter().map(|r| -r.sum / r.weight).collect()
    };
    let paired = Comparison::of(
        "logp",
        &per_token(&before.rows),
        &per_token(&after.rows),
        &Bootstrap::default(),
    )?;
    let name = facts.measure.and_then(Measure::general).map_or(String::new(), |t| short(&t.name));
    Ok(Some(General {
        text: name,
        tokens: Some(after.report.tokens as u64),
        before: value(before.report.perplexity, before.report.ci95),
        after: value(after.report.perplexity, after.report.ci95),
        ratio: value((after.report.nll - before.report.nll).exp(), ends.map(f64::exp)),
        paired: Some(Paired { test: test_name(&paired), p: paired.p_value }),
    }))
}

fn answers(facts: &Facts) -> Vec<Answer> {
    let of = |m: Option<&Measured>| m.and_then(|m| m.task.clone()).map(|t| t.answers);
    let (before, after) =
        (of(facts.before).unwrap_or_default(), of(facts.after).unwrap_or_default());
    let answer = |(i, a): (usize, &crate::evaluate::AnswerRow)| {
        let b = before.get(i);
        Answer {
            prompt: a.prompt.clone(),
            expected: Some(a.expected.clone()),
            before: b.map(|b| b.answer.clone()),
            after: Some(a.answer.clone()),
            before_right: b.map(|b| b.value == 1.0),
            after_right: Some(a.value == 1.0),
        }
    };
    after.iter().enumerate().take(ANSWERS).map(answer).collect()
}

fn resources(facts: &Facts) -> Resources {
    let outcome = facts.outcome;
    let part = |name: &str, seconds: Option<f64>| {
        seconds.map(|seconds| Part { name: name.into(), seconds })
    };
    Resources {
        seconds: outcome.map(|o| o.seconds),
        tokens_per_second: outcome.map(|o| o.tokens_per_second),
        peak_rss_bytes: log::rss().map(|(_, peak)| peak),
        cores: std::thread::available_parallelism().ok().map(|n| n.get() as u64),
        precision: precision::name(facts.stage.opened.precision).into(),
        stages: [
            part("measuring before", facts.before.map(|m| m.seconds)),
            part("training", outcome.map(|o| o.seconds)),
            part("measuring after", facts.after.map(|m| m.seconds)),
        ]
        .into_iter()
        .flatten()
        .collect(),
        ..Resources::default()
    }
}

fn artefacts(facts: &Facts) -> Result<Vec<Artefact>> {
    let names = [
        "adapter_model.safetensors",
        "adapter_config.json",
        "model.safetensors",
        "config.json",
        "recipe.toml",
        manifest::MANIFEST,
    ];
    let files: Vec<_> = names.iter().map(|n| facts.out.join(n)).filter(|p| p.is_file()).collect();
    let outputs = manifest::outputs(facts.out, files.iter().map(|p| p.as_path()))?;
    let artefact =
        |o: manifest::Output| Artefact { path: o.path, bytes: Some(o.bytes), sha256: o.sha256 };
    Ok(outputs.into_iter().map(artefact).collect())
}
