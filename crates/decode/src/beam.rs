//! Beam search, with the settings and the meaning of transformers' `num_beams`, `length_penalty` and
//! `early_stopping`.
//!
//! Of all continuations of a prompt's beams by one token, the best `num_beams` that do not end go on;
//! those among the best `num_beams` that do end are kept with the score `Σ logp / length^length_penalty`,
//! the best `num_beams` of them. Log-probabilities are those of the combination; constraints and
//! penalties change them and they are not normalised again. It stops when no running beam can pass the
//! worst kept one (judged at its present length; with `early_stopping = "never"` and a positive
//! `length_penalty` at the longest), or with `early_stopping = true` as soon as `num_beams` are kept.
//! **Departures**: (1) of equal continuations the earlier beam and the lower id come first, where
//! transformers leaves it to the sorting; (2) a stop string ends a beam as an end-of-sequence token does.

mod search;

use luthier_core::{Error, Result};
use luthier_kernels::threads;
use serde::{Deserialize, Serialize};

use crate::{
    Combine, Constrain, Generate, Generated, Parts, SoFar, Source, TokenText,
    combine::log_z,
    generate::{Laid, check_prompts, common_vocab},
};
use search::{Ends, Search};

/// `[decode.beam]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Beam {
    /// Beams of a prompt.
    pub num_beams: usize,
    /// Above 0 favours long answers, below 0 short ones; 0 compares sums.
    pub length_penalty: f32,
    /// When a prompt is done.
    pub early_stopping: EarlyStopping,
}

/// When the search for a prompt ends: `true`, `false` or `"never"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EarlyStopping {
    /// As soon as there are `num_beams` answers, or by a rule of thumb.
    When(bool),
    /// When nothing better can come.
    Never(Never),
}

/// The word `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Never {
    /// `"never"`.
    Never,
}

impl Default for Beam {
    fn default() -> Self {
        let early_stopping = EarlyStopping::When(false);
        Beam { num_beams: 4, length_penalty: 1.0, early_stopping }
    }
}

impl Beam {
    /// Refuses numbers that cannot be followed.
    pub fn check(&self) -> Result<()> {
        if self.num_beams == 0 {
            return Err(Error::input("decode.beam.num_beams", "expected at least 1, got 0"));
        }
        if !self.length_penalty.is_finite() {
            let what = format!("expected a finite number, got {}", self.length_penalty);
            return Err(Error::input("decode.beam.length_penalty", what));
        }
        Ok(())
    }

    /// Slots that the sources need for `prompts` prompts at a time.
    pub fn slots(&self, prompts: usize) -> usize {
        2 * self.num_beams * prompts
    }
}

/// An answer that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The answer.
    pub generated: Generated,
    /// Its score.
    pub score: f32,
}

/// The best answers to every prompt, best first. `options` gives lengths, ends, constraints and
/// penalties; nothing is drawn. As many prompts are searched at a time as have room in
/// [`Generate::max_batch`], which is what the sources have slots for.
pub fn beam_search(
    parts: Parts,
    prompts: &[Vec<u32>],
    options: &Generate,
    beam: &Beam,
    tokens: &dyn TokenText,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Found>>> {
    let Parts { mut sources, combine, mut constrain } = parts;
    options.check(sources.len())?;
    beam.check()?;
    combine.check(sources.len())?;
    if options.draft.is_some() {
        let what = "a beam search cannot be drafted";
        return Err(Error::input("decode.draft", what).hint("leave out one of the two"));
    }
    if options.max_batch < beam.slots(1) {
        let what = format!("{} beams need room for {}", beam.num_beams, beam.slots(1));
        return Err(Error::input("decode.max_batch", what));
    }
    let vocab = common_vocab(&sources)?;
    check_prompts(prompts, vocab, options)?;
    constrain.extend(options.constraints());
    let ends = Ends { options, tokens, beam };
    let scorer = Scorer { combine, constrain: &constrain, options, prompts, vocab };
    threads::together(|| run(&mut sources, &scorer, &ends, on_done))
}

fn run(
    sources: &mut [Box<dyn Source + '_>],
    scorer: &Scorer,
    ends: &Ends,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Found>>> {
    let (prompts, options) = (scorer.prompts, scorer.options);
    let mut done: Vec<Vec<Found>> = vec![Vec::new(); prompts.len()];
    let mut waiting = (0..prompts.len()).peekable();
    let each = ends.beam.slots(1);
    let mut free: Vec<usize> = (0..options.max_batch / each).rev().map(|i| i * each).collect();
    let mut live: Vec<Search> = Vec::new();
    loop {
        let mut entering = 0;
        while let Some(prompt) = waiting.peek().copied() {
            if options.room(prompts[prompt].len()) == 0 {
                on_done(prompt);
                waiting.next();
                continue;
            }
            entering += prompts[prompt].len();
            let crowded = entering > options.prefill_tokens && entering > prompts[prompt].len();
            let Some(first) = (if crowded { None } else { free.pop() }) else { break };
            waiting.next();
            let room = options.room(prompts[prompt].len());
            live.push(Search::new(prompt, &prompts[prompt], room, first, each));
        }
        if live.is_empty() {
            return Ok(done);
        }
        let laid = Laid::new(live.iter().flat_map(Search::readings));
        let mut logits_sbv = vec![Vec::new(); sources.len()];
        let mut asked = sources.iter_mut().zip(&mut logits_sbv);
        asked.try_for_each(|(source, to)| source.step(&laid.step(), to))?;
        let rows: Vec<(usize, &[u32])> = live.iter().flat_map(Search::rows).collect();
        let logp_bv = scorer.score(&rows, &logits_sbv)?;
        let mut at = 0;
        for search in &mut live {
            let n = search.running();
            search.advance(&logp_bv[at..at + n], ends);
            at += n;
        }
        let (ended, going): (Vec<Search>, Vec<Search>) =
            live.into_iter().partition(|search| search.done);
        live = going;
        for search in ended {
            for slot in search.slots() {
                sources.iter_mut().for_each(|source| source.free(slot));
            }
            free.push(search.slots().start);
            on_done(search.prompt);
            let prompt = search.prompt;
            done[prompt] = search.finish(ends);
        }
    }
}

/// Logits of the sources to what a beam's continuation adds to its score.
struct Scorer<'a> {
    combine: &'a dyn Combine,
    constrain: &'a [Box<dyn Constrain>],
    options: &'a Generate,
    prompts: &'a [Vec<u32>],
    vocab: usize,
}

impl Scorer<'_> {
    fn score(&self, rows: &[(usize, &[u32])], logits_sbv: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let v = self.vocab;
        let mut scored: Vec<Result<Vec<f32>>> = rows.iter().map(|_| Ok(Vec::new())).collect();
        let tasks = scored.iter_mut().zip(rows).enumerate().collect();
        type Row<'a, 'b> = (usize, (&'a mut Result<Vec<f32>>, &'a (usize, &'b [u32])));
        threads::for_each(tasks, |(row, (to, (prompt, tokens))): Row| {
            let of: Vec<&[f32]> = logits_sbv.iter().map(|all| &all[row * v..][..v]).collect();
            let mut logp_v = vec![0.0; v];
            self.combine.combine(&of, &mut logp_v);
            if let Some(id) = logp_v.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
                let at = format!("prompt {}, token {}, logits", prompt + 1, tokens.len() + 1);
                *to = Err(Error::failed(at, format!("token {id} has the logit {}", logp_v[id])));
                return;
            }
            let z = log_z(&logp_v) as f32;
            logp_v.iter_mut().for_each(|l| *l -= z);
            let so_far = SoFar { prompt: &self.prompts[*prompt], tokens };
            self.constrain.constrain(&so_far, &mut logp_v);
            self.options.sampler.penalise(&so_far, &mut logp_v);
            *to = Ok(logp_v);
        });
        scored.into_iter().collect()
    }
}
