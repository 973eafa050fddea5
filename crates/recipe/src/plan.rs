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
    /// What learns, by kind of site.
    pub params: Vec<Group>,
    /// Numbers that learn.
    pub trainable: u64,
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

/// Variables of like name in all layers.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// `layers.*.attn.q.lora_A`.
    pub name: String,
    /// How many variables.
    pub variables: usize,
    /// How many numbers.
    pub count: u64,
}

/// Plans a stage; runs one forward and backward pass (no update) to time it.
pub fn plan(stage: &Stage) -> Result<Plan> {
    let mut params: Vec<Group> = Vec::new();
    for param in &stage.bound.params {
        let (like, count) = (like(&param.name), param.count() as u64);
        match params.iter_mut().find(|g| g.name == like) {
            Some(group) => {
                group.variables += 1;
                group.count += count;
            }
            None => params.push(Group { name: like, variables: 1, count }),
        }
    }
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
    let step = Step {
        policy: &stage.bound.policy,
        params: &stage.bound.params,
        objective: stage.config.loss.objective()?,
        keep: stage.keep,
    };
    let (rows, micro) = (&stage.train.rows, stage.config.micro_tokens());
    let all = stage.plan.epoch(0);
    let all = all.iter().flat_map(|step| run::passes(step, rows, micro));
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
        for group in &self.params {
            line(format!(
                "│             {:<40} ×{:<4} {:>12}",
                group.name,
                group.variables,
                grouped(group.count)
            ));
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
