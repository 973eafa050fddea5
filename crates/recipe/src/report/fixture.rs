//! Made-up facts for looking at the page and for its tests; no run produced these numbers.

use luthier_core::{Seed, io::sha256};

use super::*;

fn measured(value: f64, lo: f64, hi: f64) -> Option<Measured> {
    Some(Measured { value, ci95: Some([lo, hi]) })
}

fn fact(name: &str, value: &str) -> Fact {
    Fact { name: name.into(), value: value.into() }
}

fn hash(name: &str) -> String {
    sha256(name.as_bytes())
}

/// A page with every section.
pub fn full() -> ReportData {
    ReportData {
        title: "Plain English to JSON actions".into(),
        when: "7 March 2031, 14:05 UTC".into(),
        version: "0.1.0".into(),
        model: Some(ModelFacts {
            name: "SmolLM2-135M-Instruct".into(),
            parameters: Some(134_515_008),
            sha256: hash("model"),
            license: "Apache-2.0".into(),
            source: "smollm2-135m-instruct (GGUF, Q4_1)".into(),
            more: vec![fact("architecture", "Llama, 30 layers, width 576"), fact("vocabulary", "49,152")],
        }),
        data: files(),
        cuts: vec![Cut {
            file: "train.jsonl".into(),
            policy: "truncate".into(),
            rows: 7,
            tokens: 213,
            answers: 2,
            ends: 0,
        }],
        method: Some(Method {
            recipe: "sft/lora".into(),
            form: "LoRA".into(),
            trainable: Some(4_884_480),
            share: Some(0.0363),
            sites: Some(210),
            r: Some(16),
            alpha: Some(32.0),
            settings: vec![
                fact("at", "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}"),
                fact("optimizer", "AdamW"),
                fact("learning rate", "1e-3"),
                fact("schedule", "cosine, 10 steps of warm-up"),
                fact("batch", "2,048 tokens"),
                fact("epochs", "3"),
                fact("seed", "42"),
            ],
        }),
        curve: curve(),
        evals: (1..=8)
            .map(|i| EvalPoint {
                step: i * 30,
                loss: 0.11 + 1.7 * (-(i as f64) * 0.75).exp() + 0.004 * (i as f64 - 5.0).max(0.0),
            })
            .collect(),
        tasks: vec![Task {
            metric: "exact match".into(),
            items: "held-out requests".into(),
            n: Some(120),
            before: measured(0.0, 0.0, 0.031),
            after: measured(0.95, 0.895, 0.98),
            paired: Some(Paired { test: "McNemar".into(), p: 1e-20 }),
            ..Task::default()
        }],
        fields: [("intent", 0.31, 0.992), ("when", 0.08, 0.967), ("who", 0.12, 0.975), ("amount", 0.02, 0.958)]
            .map(|(name, a, b)| Field {
                name: name.into(),
                n: Some(if name == "amount" { 48 } else { 120 }),
                before: Some(a),
                after: Some(b),
            })
            .into(),
        general: Some(General {
            text: "general text".into(),
            tokens: Some(8_192),
            before: measured(17.42, 16.61, 18.30),
            after: measured(18.11, 17.25, 19.04),
            ratio: measured(1.0396, 1.031, 1.048),
            paired: Some(Paired { test: "paired bootstrap".into(), p: 0.0002 }),
        }),
        answers: answers(),
        changes: changes(),
        resources: Some(Resources {
            seconds: Some(161.3),
            tokens_per_second: Some(3_050.0),
            peak_rss_bytes: Some(1_240_000_000),
            cores: Some(2),
            precision: "bf16".into(),
            processor: "x86-64 with AVX-512".into(),
            stages: [("load the model", 2.1), ("measure before", 38.0), ("train", 161.3), ("measure after", 31.5), ("compare weights", 6.4)]
                .map(|(name, seconds)| Stage { name: name.into(), seconds })
                .into(),
        }),
        artefacts: [("adapter/adapter_model.safetensors", 9_790_000), ("adapter/adapter_config.json", 731), ("metrics.jsonl", 48_210)]
            .map(|(path, n)| Artefact { path: path.into(), bytes: Some(n), sha256: hash(path) })
            .into(),
        command: "luthier train --model smollm2-135m-instruct --data train.jsonl --out runs/actions epochs=3 lora.r=16 learning_rate=1e-3 seed=42".into(),
    }
}

fn files() -> Vec<DataFile> {
    let file = |role: &str, path: &str, rows, tokens, trained| DataFile {
        role: role.into(),
        path: path.into(),
        layout: if role == "general" { "text".into() } else { "messages".into() },
        rows: Some(rows),
        tokens: Some(tokens),
        trained_tokens: trained,
        sha256: hash(path),
    };
    vec![
        file("train", "train.jsonl", 960, 84_210, Some(25_920)),
        file("eval", "eval.jsonl", 60, 5_260, Some(1_620)),
        file("test", "test.jsonl", 120, 10_544, Some(3_248)),
        file("general", "general.txt", 16, 8_192, Some(8_176)),
    ]
}

fn curve() -> Vec<CurvePoint> {
    let mut rng = Seed(7).rng();
    (1..=240)
        .map(|step| {
            let t = step as f64 / 240.0;
            let warm = (step as f64 / 10.0).min(1.0);
            let base = 0.06 + 2.4 * (-t * 14.0).exp() + 0.25 * (-t * 3.0).exp();
            CurvePoint {
                step,
                loss: Some(base * (1.0 + 0.22 * rng.normal()).max(0.35)),
                learning_rate: Some(1e-3 * warm * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())),
                grad_norm: Some((0.3 + 2.0 * (-t * 9.0).exp()) * (1.0 + 0.2 * rng.normal())),
                tokens_per_second: Some(3050.0 + 70.0 * rng.normal()),
            }
        })
        .collect()
}

fn changes() -> Vec<SiteChange> {
    let mut rng = Seed(11).rng();
    let mut out = Vec::new();
    for layer in 0..30 {
        let sites = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"];
        for (i, site) in sites.into_iter().enumerate() {
            let depth = layer as f64 / 29.0;
            let size = [0.014, 0.012, 0.031, 0.026, 0.018, 0.022, 0.029][i];
            out.push(SiteChange {
                layer: Some(layer),
                site: site.into(),
                relative_norm: size * (0.5 + 1.1 * depth * depth + 0.12 * rng.normal()).max(0.1),
                effective_rank: Some(3.0 + 9.0 * (1.0 - depth) + rng.uniform() * 2.0),
            });
        }
    }
    out.push(SiteChange {
        layer: None,
        site: "embed".into(),
        relative_norm: 0.0,
        effective_rank: None,
    });
    out
}

fn answers() -> Vec<Answer> {
    let asked = [
        (
            "Remind me to water the ferns at 7 in the evening",
            "reminder",
            "water the ferns",
            "19:00",
        ),
        ("Could you wake me at a quarter past six tomorrow?", "alarm", "wake up", "06:15"),
        ("Send Ines forty euros for the tickets", "transfer", "tickets", "40 EUR"),
        ("Put oat milk & rye bread on the shopping list", "shopping", "oat milk; rye bread", ""),
        ("What is the weather going to be in Tromsø on Friday?", "weather", "Tromsø", "Friday"),
    ];
    (0..20)
        .map(|i| {
            let (prompt, intent, what, when) = asked[i % asked.len()];
            let wanted = format!("{{\"intent\": \"{intent}\", \"what\": \"{what}\", \"when\": \"{when}\"}}");
            let wrong = i == 6 || i == 17;
            let after = if wrong { wanted.replace("wake up", "wake me").replace("40", "14") } else { wanted.clone() };
            let after = if i == 17 { after.replace("EUR", "USD") } else { after };
            Answer {
                prompt: prompt.into(),
                before: Some(match i % 3 {
                    0 => "Sure! I'd be happy to help you with that. Here is how you could go about it:\n\n1. Find a quiet moment.\n2. Set a reminder on your phone.".into(),
                    1 => wanted.replace(intent, "request"),
                    _ => format!("```json\n{{\"action\": \"{intent}\"}}\n```"),
                }),
                expected: Some(wanted),
                after: Some(after),
                before_right: Some(false),
                after_right: Some(!wrong),
            }
        })
        .collect()
}
