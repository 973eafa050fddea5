//! `luthier plan`: everything a run would do, before it does it.

use std::fmt::Write;

use luthier_core::Result;
use luthier_train::{estimate::Memory, order, run, step::Step};
use serde::Serialize;

use crate::{export, precision, prepare::Counts, training::Stage};

/// The facts of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The resolved recipe.
    pub recipe: crate::Recipe,
    /// Identifies recipe, data and model.
    pub fingerprint: String,
    /// The base model.
    pub model: ModelFacts,
    /// Training data.
    pub train: Counts,
    /// Evaluation data.
    pub eval: Option<Counts>,
    /// What learns, by form and kind of site.
    pub params: Vec<Group>,
    /// Numbers that learn.
    pub trainable: u64,
    /// Whether what learns is chosen among them as training goes on.
    pub chooses: bool,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens read over all epochs.
    pub tokens: u64,
    /// The arithmetic of matrix products.
    pub precision: &'static str,
    /// Whether block activations are kept.
    pub keep_activations: bool,
    /// Peak memory by what takes it.
    pub memory: Memory,
    /// Their sum.
    pub peak_bytes: u64,
    /// Tokens per second of one real micro-step on the longest rows.
    pub tokens_per_second: f64,
    /// Estimated training time.
    pub seconds: f64,
}

/// The base model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Architecture and sizes in words.
    pub kind: String,
    /// Number of weights.
    pub parameters: u64,
    /// Hash of its files.
    pub sha256: String,
}

/// Variables of a form with like names in all layers.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The form, as the recipe names it.
    pub form: &'static str,
    /// `layers.*.attn.q.lora_A`.
    pub name: String,
    /// How many variables, each at a site of its own.
    pub variables: usize,
    /// How many numbers.
    pub count: u64,
    /// Their share of the model's parameters.
    pub share: f64,
    /// The lowest and the highest learning rate among them, before the schedule.
    pub learning_rate: [f64; 2],
}

impl Group {
    fn row(&self) -> [String; 5] {
        let [low, high] = self.learning_rate;
        let rate =
            if low == high { rate(low) } else { format!("{} … {}", rate(low), rate(high)) };
        let name = format!("{} ×{}", self.name, self.variables);
        let share = format!("{:.3} %", 100.0 * self.share);
        [self.form.to_string(), name, grouped(self.count), share, rate]
    }
}

/// A learning rate in as few digits as tell it.
fn rate(x: f64) -> String {
    let rounded: f64 = format!("{x:.2e}").parse().unwrap_or(x);
    format!("{rounded:e}")
}

fn groups(stage: &Stage) -> Result<Vec<Group>> {
    let Stage { bound, config, opened, .. } = stage;
    let rates = config.update.clone().with_defaults().rates(&bound.params, &stage.start())?;
    let mut groups: Vec<Group> = Vec::new();
    for ((param, form), rates) in bound.params.iter().zip(&bound.forms).zip(rates) {
        let (name, count, rate) = (like(&param.name), param.count() as u64, rates.learning_rate);
        let at = match groups.iter().position(|g| g.name == name && g.form == *form) {
            Some(at) => at,
            None => {
                let learning_rate = [rate, rate];
                groups.push(Group {
                    form,
                    name,
                    variables: 0,
                    count: 0,
                    share: 0.0,
                    learning_rate,
                });
                groups.len() - 1
            }
        };
        let group = &mut groups[at];
        let [low, high] = group.learning_rate;
        group.variables += 1;
        group.count += count;
        group.share = group.count as f64 / opened.parameters.max(1) as f64;
        group.learning_rate = [low.min(rate), high.max(rate)];
    }
    Ok(groups)
}

/// Plans a stage; runs one forward and backward pass (no update) to time it.
pub fn plan(stage: &Stage) -> Result<Plan> {
    let params = groups(stage)?;
    let (mut steps, mut tokens) = (0, 0);
    for round in 0..stage.rounds() {
        let order = |epoch| stage.order(round, epoch);
        let (more, read) = order::extent(&stage.config, &order, &stage.train.rows);
        (steps, tokens) = (steps + more, tokens + read);
    }
    let tokens_per_second = probe(stage)?;
    Ok(Plan {
        recipe: stage.recipe.clone(),
        fingerprint: stage.fingerprint()?,
        model: ModelFacts {
            name: stage.opened.name.clone(),
            kind: export::describe(&stage.opened.config),
            parameters: stage.opened.parameters,
            sha256: stage.opened.sha256.clone(),
        },
        train: stage.train.counts(),
        eval: stage.eval.as_ref().map(|e| e.counts()),
        trainable: params.iter().map(|g| g.count).sum(),
        params,
        chooses: stage.bound.form.choice()?.is_some(),
        steps: steps as usize,
        tokens,
        precision: precision::name(stage.opened.precision),
        keep_activations: stage.keep,
        peak_bytes: stage.memory.total(),
        memory: stage.memory,
        tokens_per_second,
        seconds: tokens as f64 / tokens_per_second,
    })
}

/// `model.layers.3.x` → `model.layers.*.x`.
fn like(name: &str) -> String {
    let part = |p: &str| if p.parse::<usize>().is_ok() { "*".into() } else { p.to_string() };
    name.split('.').map(part).collect::<Vec<String>>().join(".")
}

/// Tokens per second of the first step's first micro-batch: the second of two passes, so that
/// buffers are warm.
fn probe(stage: &Stage) -> Result<f64> {
    let objective = stage.config.loss.objective()?;
    let step = Step {
        policy: &stage.bound.policy,
        params: &stage.bound.params,
        objective: objective.as_ref(),
        teacher: stage.teacher.as_ref(),
        keep: stage.keep,
    };
    let (rows, micro) = (&stage.train.rows, stage.config.micro_tokens());
    let all = stage.plan.epoch(0);
    let all = all.iter().flat_map(|step| run::passes(step, rows, micro, stage.plan.unit));
    all.max_by_key(luthier_core::Batch::n).map_or(Ok(0.0), |largest| step.time(&largest))
}

const KIB: f64 = 1024.0;

/// Bytes in words.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= KIB * KIB * KIB => format!("{:.2} GiB", n / KIB / KIB / KIB),
        n if n >= KIB * KIB => format!("{:.0} MiB", n / KIB / KIB),
        n => format!("{:.0} KiB", n / KIB),
    }
}

/// Seconds in words.
pub fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        s if s < 100 => format!("{s} s"),
        s if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// A number with thin groups of three.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

impl Plan {
    /// The plan as a tree for the terminal.
    pub fn tree(&self) -> Result<String> {
        let mut out = String::new();
        let mut line = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{text}");
        };
        let about = if self.recipe.about.is_empty() { "training" } else { &self.recipe.about };
        line(about.to_string());
        line(format!("├─ model      {} ({})", self.model.name, self.model.kind));
        line(format!(
            "│             {} parameters, sha256 {}",
            grouped(self.model.parameters),
            short(&self.model.sha256)
        ));
        for (role, counts) in [("train", Some(&self.train)), ("eval", self.eval.as_ref())] {
            let Some(c) = counts else { continue };
            line(format!("├─ {role:<10} {} — {}", c.source, c.layout));
            line(format!(
                "│             {} rows, {} tokens ({} trained), longest {}, sha256 {}",
                grouped(c.rows as u64),
                grouped(c.tokens as u64),
                grouped(c.trained as u64),
                c.longest,
                short(&c.sha256)
            ));
        }
        line(format!(
            "├─ learns     {} numbers ({:.2} % of the model)",
            grouped(self.trainable),
            100.0 * self.trainable as f64 / self.model.parameters as f64
        ));
        if self.chooses {
            line("│             among these, as training goes on:".to_string());
        }
        let head = ["form", "sites", "numbers", "share", "learning rate"].map(str::to_string);
        let rows: Vec<_> =
            std::iter::once(head).chain(self.params.iter().map(Group::row)).collect();
        let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let [form, name, count, share, _] = std::array::from_fn(width);
        for [a, b, c, d, e] in &rows {
            let row = format!("{a:<form$}  {b:<name$}  {c:>count$}  {d:>share$}  {e}");
            line(format!("│             {row}"));
        }
        line(format!(
            "├─ work       {} steps, {} tokens; activations {}, products in {}",
            self.steps,
            grouped(self.tokens),
            if self.keep_activations { "kept" } else { "recomputed" },
            self.precision
        ));
        let m = &self.memory;
        line(format!(
            "├─ memory     {} peak (weights {}, learned {}, activations {}, rest {})",
            bytes(self.peak_bytes),
            bytes(m.weights),
            bytes(m.learned),
            bytes(m.activations),
            bytes(m.rest)
        ));
        line(format!(
            "├─ time       about {} at {:.0} tokens/s (measured on one pass)",
            duration(self.seconds),
            self.tokens_per_second
        ));
        line(format!("├─ fingerprint {}", short(&self.fingerprint)));
        line("└─ recipe".to_string());
        for text in self.recipe.to_toml()?.lines() {
            line(format!("   {text}"));
        }
        Ok(out)
    }
}

fn short(hash: &str) -> &str {
    &hash[..hash.len().min(12)]
}
