//! Streams drawn by probability (ALMA's first stage, Xu et al. 2024, arXiv 2309.11674).
//!
//! Every file is a stream. Streams with a `share` of their own have it; the others divide the rest by
//! `P(l) ~ (|D_l| / Σ|D|)^(1 / temperature)`. At each draw a stream is chosen by these probabilities
//! and gives its next row; a stream that is through begins again, until all have been through
//! (`all_exhausted`) or the first is (`first_exhausted`). **Departures**: none; the draws themselves
//! are luthier's own.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use luthier_core::{Error, Result, Seed, Table, nearest::suggest};
use serde::{Deserialize, Serialize};

use crate::Step;

/// What the size of a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamSize {
    /// The number of its rows.
    #[default]
    Rows,
    /// The bytes of its texts.
    Bytes,
}

/// When drawing ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopping {
    /// When every stream has given all its rows; short ones have begun again by then.
    #[default]
    AllExhausted,
    /// When one has; no row comes twice.
    FirstExhausted,
}

/// `interleave = { temperature = 6, share = { en = 0.1667 } }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Interleave {
    /// 1 draws by size; the larger, the more alike.
    pub temperature: f64,
    /// Fixed probabilities, by the name of a file without its endings.
    pub share: BTreeMap<String, f64>,
    /// What the size of a stream is.
    pub size: StreamSize,
    /// When drawing ends.
    pub stopping: Stopping,
}

impl Default for Interleave {
    fn default() -> Self {
        Interleave {
            temperature: 6.0,
            share: BTreeMap::new(),
            size: StreamSize::default(),
            stopping: Stopping::default(),
        }
    }
}

/// Probabilities of streams of these sizes, where some are fixed.
pub fn probabilities(sizes: &[f64], fixed: &[Option<f64>], temperature: f64) -> Vec<f64> {
    let taken: f64 = fixed.iter().flatten().sum();
    let total: f64 = sizes.iter().sum();
    let like = |size: f64| (size / total).powf(1.0 / temperature);
    let free = sizes.iter().zip(fixed).filter(|(_, fixed)| fixed.is_none());
    let all: f64 = free.map(|(size, _)| like(*size)).sum();
    let of = |(size, fixed): (&f64, &Option<f64>)| {
        fixed.unwrap_or_else(|| (1.0 - taken) * like(*size) / all)
    };
    sizes.iter().zip(fixed).map(of).collect()
}

/// The rows of streams of these lengths in the order in which they are drawn, as stream and row.
pub fn draws(
    lengths: &[usize],
    probabilities: &[f64],
    stopping: Stopping,
    seed: Seed,
) -> Vec<(usize, usize)> {
    let mut rng = seed.rng();
    let (mut next, mut through) = (vec![0; lengths.len()], vec![false; lengths.len()]);
    let mut order = Vec::new();
    loop {
        let mut left = rng.uniform() * probabilities.iter().sum::<f64>();
        let above = |p: &f64| {
            left -= p;
            left < 0.0
        };
        let last = probabilities.iter().rposition(|p| *p > 0.0).unwrap_or(0);
        let stream = probabilities.iter().position(above).unwrap_or(last);
        order.push((stream, next[stream]));
        next[stream] += 1;
        if next[stream] == lengths[stream] {
            (next[stream], through[stream]) = (0, true);
            let done = stopping == Stopping::FirstExhausted || !through.contains(&false);
            if done {
                return order;
            }
        }
    }
}

/// `texts/en.jsonl.gz` → `en`.
fn stem(file: &str) -> &str {
    let name = Path::new(file).file_name().and_then(|n| n.to_str()).unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

impl Interleave {
    fn fixed(&self, names: &[&str]) -> Result<Vec<Option<f64>>> {
        let refused = |key: &str, what: String| Error::input(format!("interleave.{key}"), what);
        if self.temperature.is_nan() || self.temperature <= 0.0 {
            let what = format!("expected a number above 0, got {}", self.temperature);
            return Err(refused("temperature", what));
        }
        for (name, share) in &self.share {
            let key = format!("share.{name}");
            if !names.contains(&name.as_str()) {
                let what = "is no file of the training data".to_owned();
                return Err(refused(&key, what).hint(suggest(name, names.iter().copied())));
            }
            if !(*share > 0.0 && *share <= 1.0) {
                let what = format!("expected a share above 0 and at most 1, got {share}");
                return Err(refused(&key, what));
            }
        }
        let fixed: Vec<Option<f64>> =
            names.iter().map(|name| self.share.get(*name).copied()).collect();
        let taken: f64 = fixed.iter().flatten().sum();
        let free = fixed.contains(&None);
        if (free && taken >= 1.0) || taken > 1.0 + 1e-9 || (!free && (taken - 1.0).abs() > 1e-3) {
            let what =
                format!("adds up to {taken}, expected {}", if free { "less than 1" } else { "1" });
            return Err(refused("share", what).hint("files without a share divide what is left"));
        }
        Ok(fixed)
    }
}

impl Step for Interleave {
    fn apply(&self, table: Table, seed: Seed) -> Result<Table> {
        let mut files: Vec<Arc<str>> = Vec::new();
        let mut streams: Vec<Vec<usize>> = Vec::new();
        for (i, example) in table.examples.iter().enumerate() {
            let file = &example.origin.file;
            match files.iter().position(|known| known == file) {
                Some(stream) => streams[stream].push(i),
                None => {
                    files.push(file.clone());
                    streams.push(vec![i]);
                }
            }
        }
        let names: Vec<&str> = files.iter().map(|file| stem(file)).collect();
        let fixed = self.fixed(&names)?;
        if streams.len() < 2 {
            return Ok(table);
        }
        let bytes = |i: &usize| -> usize {
            let example = &table.examples[*i];
            let turns =
                example.prompt.iter().chain(example.completions.iter().flat_map(|c| &c.turns));
            turns.map(|turn| turn.content.len()).sum()
        };
        let size = |rows: &Vec<usize>| match self.size {
            StreamSize::Rows => rows.len() as f64,
            StreamSize::Bytes => rows.iter().map(bytes).sum::<usize>() as f64,
        };
        let sizes: Vec<f64> = streams.iter().map(size).collect();
        let chances = probabilities(&sizes, &fixed, self.temperature);
        let lengths: Vec<usize> = streams.iter().map(Vec::len).collect();
        let order = draws(&lengths, &chances, self.stopping, seed);
        let drawn = |(stream, row): &(usize, usize)| table.examples[streams[*stream][*row]].clone();
        let examples = order.iter().map(drawn).collect();
        let told: Vec<String> =
            names.iter().zip(&chances).map(|(name, p)| format!("{name} {p:.3}")).collect();
        let layout = format!("{}; interleaved: {}", table.layout, told.join(", "));
        Ok(Table { examples, layout, ..table })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-9), "{got:?} {want:?}");
    }

    #[test]
    fn temperature_goes_from_proportional_to_uniform() {
        close(&probabilities(&[30.0, 60.0, 10.0], &[None; 3], 1.0), &[0.3, 0.6, 0.1]);
        let sixth = 1.0 / 6.0;
        let fixed = [Some(sixth), None, None];
        let flat = probabilities(&[9.0, 100.0, 1.0], &fixed, 1e12);
        close(&flat, &[sixth, 5.0 / 12.0, 5.0 / 12.0]);
        let six = probabilities(&[9.0, 100.0, 1.0], &fixed, 6.0);
        assert!(
            (six[1] / six[2] - 2.1544).abs() < 1e-4 && (six[1] + six[2] - 5.0 / 6.0).abs() < 1e-12
        );
    }

    #[test]
    fn streams_are_drawn_by_chance_and_short_ones_begin_again() {
        let lengths = [200, 10];
        let order = draws(&lengths, &[0.5, 0.5], Stopping::AllExhausted, Seed(3));
        let of = |stream: usize| -> Vec<usize> {
            order.iter().filter(|(s, _)| *s == stream).map(|(_, row)| *row).collect()
        };
        // The long one once and in order; the short one about as often, round after round.
        assert_eq!(of(0), (0..200).collect::<Vec<usize>>());
        let short = of(1);
        assert!((150..260).contains(&short.len()), "{}", short.len());
        assert!(short.iter().enumerate().all(|(i, row)| *row == i % 10));
        let first = draws(&lengths, &[0.5, 0.5], Stopping::FirstExhausted, Seed(3));
        assert!(first.len() < 45 && first.iter().filter(|(s, _)| *s == 1).count() == 10);
    }

    #[test]
    fn files_are_known_by_their_stem_and_shares_must_fit() {
        assert_eq!([stem("a/en.jsonl.gz"), stem("de.txt"), stem("x")], ["en", "de", "x"]);
        let of = |share: &[(&str, f64)]| {
            let share = share.iter().map(|(name, x)| (name.to_string(), *x)).collect();
            Interleave { share, ..Interleave::default() }.fixed(&["en", "de"])
        };
        assert_eq!(of(&[("en", 0.25)]).unwrap(), [Some(0.25), None]);
        for bad in
            [&[("fr", 0.5)][..], &[("en", 1.0)], &[("en", 0.5), ("de", 0.6)], &[("en", -1.0)]]
        {
            assert!(of(bad).unwrap_err().to_string().starts_with("interleave.share"), "{bad:?}");
        }
        let cold = Interleave { temperature: 0.0, ..Interleave::default() };
        assert!(cold.fixed(&["en"]).is_err());
    }
}
