//! Every objective as recipes name it, and rows in whole units of each.

// Every test binary takes what it needs.
#![allow(dead_code)]

use std::sync::Arc;

use luthier_core::{Batch, Rng, Row, batch::Told};
use luthier_loss::{
    Loss, METHODS, Unit,
    term::distil::{INSIDE, SPAN},
};

use crate::table::VOCAB;

/// `[train.loss]` tables: a row of `METHODS` has at least one.
const OBJECTIVES: &[&str] = &[
    "[nll]",
    "[nll]\nnormaliser = \"sequence\"",
    "[nll]\nnormaliser = \"batch\"",
    "[nll]\nnormaliser = { constant = 12.5 }",
    "[nll]\nlabel_smoothing = 0.2",
    "[nll]\nfocal_gamma = 1.5\nnormaliser = \"sequence\"",
    "[nll]\nunlikelihood = 0.5",
    "[nll]\nz_loss = 0.01",
    "[nll]\nlabel_smoothing = 0.1\nfocal_gamma = 2.0\nunlikelihood = 0.3\nz_loss = 0.01",
    "[penalty]\nentropy = 0.2",
    "[penalty]\nkl = 0.3",
    "[penalty]\nentropy = -0.1\nkl = 0.2\n[nll]\nnormaliser = \"batch\"",
    "[penalty]\nkl = 0.3\n[dpo]",
    "[penalty]\nentropy = 0.1\n[fait]",
    "[fait]",
    "[fait]\nalpha_line = 0.0\nloss_norm = \"token_count\"",
    "[align]",
    "[align]\nlambda_kl = 1.0",
    "[align]\nlambda_kl = 0.0",
    "[align]\nlambda_kl = 0.3\nalign_on = \"hidden\"",
    "[dpo]",
    "[dpo]\nbeta = 0.5\nlabel_smoothing = 0.1",
    "[dpo]\nloss_type = \"ipo\"\nbeta = 0.3",
    "[dpo]\nloss_type = [\"bco_pair\", \"apo_zero\"]\nloss_weights = [0.3, 2.0]",
    "[dpo]\nloss_type = \"discopop\"\nf_divergence_type = \"js_divergence\"",
    "[dpo]\nloss_type = \"sigmoid_norm\"\nf_divergence_type = \"alpha_divergence\"\nf_alpha_divergence_coef = 0.9",
    "[dpo]\nloss_type = [\"aot\", \"aot_unpaired\", \"sft\"]\ngroup = 2",
    "[dpo]\nuse_weighting = true",
    "[kto]\ngroup = 3\nbeta = 0.4\nundesirable_weight = 0.5",
    "[kto]\nloss_type = \"apo_zero_unpaired\"",
    "[bco]\ngroup = 2\nbeta = 0.3",
    "[reward]\ncenter_rewards_coefficient = 0.2",
    "[reward]\nloss_type = \"bce\"",
    "[reward]\nloss_type = \"mse\"",
    "[classify]\nlabel_smoothing = 0.1",
    "[regress]",
    "[cpo]",
    "[cpo]\nloss_type = \"simpo\"\nbeta = 2.0\ncpo_alpha = 0.0",
    "[cpo]\nloss_type = \"simpo\"\nalpha = 0.25",
    "[orpo]\nbeta = 0.7",
    "[distil]",
    "[distil]\ndivergence = \"reverse_kl\"\nnll = 0.25\nnormaliser = \"sequence\"",
    "[distil]\ndivergence = \"js\"\nbeta = 0.3\ntemperature = 2.0",
    "[distil]\ndivergence = \"skew_kl\"\nnll = 0.5\ntemperature = 0.7",
    "[distil]\ndivergence = \"skew_reverse_kl\"\nalpha = 0.2",
    "[distil]\ncache = \"given\"\ncalib = \"temp_prob\"",
    "[distil]\ncache = \"given\"\ntail = true\ndivergence = \"js\"\nnll = 0.1",
    "[distil]\ncache = \"given\"\nstudent_norm = \"linear\"\ncalib = \"label_smoothing\"",
    "[tasks]",
    "[tasks]\nmode = \"case1\"",
    "[tasks]\nmode = \"case2\"",
    "[tasks]\nmode = \"case4\"",
    "[tasks]\nmode = \"focal_sample\"\nfocal_gamma = 1.5\nfocal_alpha = 0.5",
    "[rationale]\nalpha = 0.3",
    "[advantage]\nbeta = 0.7",
];

/// Settings of `[train]`, which are no objectives.
const BESIDE: [&str; 5] =
    ["corrupt", "neftune_noise_alpha", "copilot", "balance.coba", "balance.famo"];

/// Every objective with its text for a name.
pub fn objectives() -> Vec<(String, Loss)> {
    let named = |text: &str, method: &str| {
        let table: toml::Value = toml::from_str(text).unwrap();
        method.split('.').try_fold(&table, |at, key| at.get(key)).is_some()
    };
    for method in METHODS.iter().filter(|method| !BESIDE.contains(&method.name)) {
        let has = OBJECTIVES.iter().any(|text| named(text, method.name));
        assert!(has, "{}: put it into OBJECTIVES", method.name);
    }
    let of = |text: &&str| (text.replace('\n', " "), toml::from_str(text).unwrap());
    OBJECTIVES.iter().map(of).collect()
}

pub fn rows(rng: &mut Rng) -> Vec<Row> {
    let weights = [0.0, 0.0, 0.25, 1.0, 2.0];
    let row = |rng: &mut Rng, (example, n): (usize, usize)| Row {
        ids: (0..n).map(|_| rng.below(VOCAB) as u32).collect(),
        targets: (0..n).map(|_| rng.below(VOCAB) as u32).collect(),
        weights: (0..n).map(|i| if i == 0 { 0.5 } else { weights[rng.below(5)] }).collect(),
        example,
        reference: -3.0,
        task: example % 3,
        ..Row::default()
    };
    let rows = [5, 1, 9, 3].into_iter().enumerate().map(|at| row(rng, at));
    let rows: Vec<Row> = rows.collect();
    rows.into_iter().map(|row| Row { teacher: Some(told(rng, row.trained())), ..row }).collect()
}

/// What a teacher said of so many targets: two tokens each, and of the first two as a whole where there
/// are more.
fn told(rng: &mut Rng, trained: usize) -> Arc<Told> {
    let mut told = Told { k: 2, ..Told::default() };
    for target in 0..trained {
        let first = rng.below(VOCAB - 1);
        let share = 0.5 + 0.3 * rng.uniform() as f32;
        let (id, logp) = match target {
            0 if trained > 2 => (INSIDE, 0.0),
            1 if trained > 2 => (SPAN, -1.0),
            _ => (first as u32, share.ln()),
        };
        told.ids.extend([id, first as u32 + 1]);
        told.logps.extend([logp, (0.15f32).ln()]);
    }
    Arc::new(told)
}

/// Rows in whole units.
pub fn units(rng: &mut Rng, unit: Unit) -> Vec<Row> {
    let rows = rows(rng);
    match unit {
        Unit::Row => rows,
        Unit::Phrasings => {
            let pair = |row: Row| [reference(rng, &row), row];
            rows.into_iter().flat_map(pair).collect()
        }
        Unit::Pair { .. } => {
            let pair = |row: Row| [other(rng, &row), row];
            rows.into_iter().flat_map(pair).collect()
        }
        Unit::Pairs { group } => {
            let pairs =
                |row: Row| (0..group).flat_map(|_| [other(rng, &row), row.clone()]).collect();
            rows.into_iter().flat_map::<Vec<Row>, _>(pairs).collect()
        }
        Unit::Unpaired { group, mismatched } => {
            let of = |row: Row| {
                let mut all = vec![Row { label: 1.0, ..row.clone() }];
                all.resize_with(group << usize::from(mismatched), || other(rng, &row));
                all
            };
            rows.into_iter().flat_map(of).collect()
        }
        Unit::Judged { pair } => {
            let judged = |row: Row| {
                let mut weights = vec![0.0; row.len() + 1];
                weights[row.len()] = row.weights[0];
                let label = f64::from(u8::from(row.example % 2 == 1));
                Row { label, weights, ..other(rng, &row) }
            };
            let rows: Vec<Row> = rows.into_iter().map(judged).collect();
            let again = |row: Row| vec![row; 1 + usize::from(pair)];
            rows.into_iter().flat_map(again).collect()
        }
        Unit::Rationale { .. } => {
            let pair = |row: Row| {
                let answer = Row { task: 0, ..row };
                [answer.clone(), Row { task: 1, ..other(rng, &answer) }]
            };
            rows.into_iter().flat_map(pair).collect()
        }
        Unit::Variants { .. } => {
            let pair = |row: Row| {
                let wrong = other(rng, &row);
                let tags = |row: &Row| (0..row.len()).map(|i| [0, 1, 3][i % 3]).collect();
                let label = 0.5 / (1.0 + row.example as f64);
                let weights = vec![0.0; wrong.len()];
                [
                    Row { tags: tags(&row), label, ..row },
                    Row { tags: tags(&wrong), weights, ..wrong },
                ]
            };
            rows.into_iter().flat_map(pair).collect()
        }
    }
}

/// The same targets behind other tokens.
pub fn reference(rng: &mut Rng, row: &Row) -> Row {
    let more = 1 + rng.below(3);
    let mut ids = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<u32>>();
    Row {
        ids: ids(more + row.len()),
        targets: [ids(more), row.targets.clone()].concat(),
        weights: [vec![0.0; more], row.weights.clone()].concat(),
        example: row.example,
        reference: row.reference,
        ..Row::default()
    }
}

/// Another answer to the same prompt.
pub fn other(rng: &mut Rng, row: &Row) -> Row {
    let mut tokens = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<u32>>();
    let n = row.len() + 1;
    Row {
        ids: tokens(n),
        targets: tokens(n),
        weights: [&[0.0], &row.weights[..]].concat(),
        example: row.example,
        reference: -4.5,
        ..Row::default()
    }
}

/// Whether a token is one of a reference, which is a constant.
pub fn of_reference(batch: &Batch, unit: Unit, token: usize) -> bool {
    let row = (0..batch.rows.b()).find(|row| batch.rows.range(*row).contains(&token)).unwrap();
    match unit {
        Unit::Phrasings => row % 2 == 0,
        // Answers to other prompts tell how far the policy went.
        Unit::Unpaired { group, mismatched: true } => row % (2 * group) >= group,
        _ => false,
    }
}

/// Whether what an objective charges depends on numbers that it takes for constants.
pub fn has_constants(name: &str) -> bool {
    name.contains("[bco]") || name.contains("use_weighting")
}
