//! The engine: many prompts, each to its end, a changing set of them at a time.
//!
//! A step lays the new tokens of every live sequence into one flat run (a whole prompt for a
//! sequence that has just entered, one token for the others), reads logits at each row's last
//! token, and chooses. A finished sequence leaves its slot to the next prompt at once. What a
//! sequence becomes depends on its prompt, its index and the seed; its company changes no more than
//! the rounding of a logit, where few rows are multiplied in another order than many.

mod live;
mod options;

use std::sync::Arc;

use luthier_core::{Error, Policy, Result, Rows, Seed};
use luthier_kernels::{pool::Buffer, threads};
use serde::{Deserialize, Serialize};

pub use options::Generate;

use crate::{
    Combine, Constrain, SoFar, Source, TokenText,
    combine::{Identity, log_z},
    sources::{PolicySource, Step},
};
use live::Live;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end-of-sequence token.
    Eos,
    /// A stop string.
    Stop,
    /// The permitted number of tokens.
    Length,
}

/// What became of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// The new tokens, with the end-of-sequence token or those of the stop string.
    pub tokens: Vec<u32>,
    /// Their text, without special tokens and up to the stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Log-probability of each token before constraints and sampling; empty unless asked for.
    pub logprobs: Vec<f32>,
}

/// One choice per axis; how the token is chosen stands in [`Generate::sampler`].
pub struct Parts<'a> {
    /// Where logits come from; each has room for [`Generate::max_batch`] sequences.
    pub sources: Vec<Box<dyn Source + 'a>>,
    /// How several sources' logits become one.
    pub combine: &'a dyn Combine,
    /// Constraints besides those that [`Generate`] names; they come first.
    pub constrain: Vec<Box<dyn Constrain>>,
}

/// Continues every prompt with one policy.
///
/// `on_token` hears of each token as it is chosen: the prompt's index, the token, and the text
/// that is now certain (all pieces of a prompt joined are its [`Generated::text`]).
pub fn generate(
    policy: &Policy,
    prompts: &[Vec<u32>],
    options: &Generate,
    tokens: &dyn TokenText,
    on_token: &mut dyn FnMut(usize, u32, &str),
) -> Result<Vec<Generated>> {
    let source = Box::new(PolicySource::new(policy, options.max_batch));
    let parts = Parts { sources: vec![source], combine: &Identity {}, constrain: Vec::new() };
    generate_from(parts, prompts, options, tokens, on_token)
}

/// Continues every prompt with several sources, combined at each token.
pub fn generate_from(
    parts: Parts,
    prompts: &[Vec<u32>],
    options: &Generate,
    tokens: &dyn TokenText,
    on_token: &mut dyn FnMut(usize, u32, &str),
) -> Result<Vec<Generated>> {
    let Parts { mut sources, combine, mut constrain } = parts;
    options.check()?;
    combine.check(sources.len())?;
    let vocab = common_vocab(&sources)?;
    check_prompts(prompts, vocab, options)?;
    constrain.extend(options.constraints());
    // A token is hundreds of small operations: the threads stay awake for all of them.
    threads::together(|| run(&mut sources, combine, &constrain, prompts, options, tokens, on_token))
}

fn run(
    sources: &mut [Box<dyn Source + '_>],
    combine: &dyn Combine,
    constrain: &[Box<dyn Constrain>],
    prompts: &[Vec<u32>],
    options: &Generate,
    tokens: &dyn TokenText,
    on_token: &mut dyn FnMut(usize, u32, &str),
) -> Result<Vec<Generated>> {
    let vocab = sources[0].vocab();
    let mut logits_sbv = vec![Vec::new(); sources.len()];
    let mut done: Vec<Option<Generated>> = vec![None; prompts.len()];
    let mut waiting = (0..prompts.len()).peekable();
    let mut free: Vec<usize> = (0..options.max_batch).rev().collect();
    let mut live: Vec<Live> = Vec::new();
    loop {
        let mut entering = 0;
        while let Some(sequence) = waiting.peek().copied() {
            let room = options.room(prompts[sequence].len());
            if room == 0 {
                done[sequence] = Some(Live::new(sequence, 0, &[], options).finish(Finish::Length));
                waiting.next();
                continue;
            }
            entering += prompts[sequence].len();
            let crowded = entering > options.prefill_tokens && entering > prompts[sequence].len();
            let Some(slot) = (if crowded { None } else { free.pop() }) else { break };
            waiting.next();
            live.push(Live::new(sequence, slot, &prompts[sequence], options));
        }
        if live.is_empty() {
            break;
        }

        step(sources, &live, &mut logits_sbv)?;
        // Rows do not know of each other, so their tokens are chosen side by side.
        let choose = |row: usize, seq: &Live| {
            let rows: Vec<&[f32]> =
                logits_sbv.iter().map(|all| &all[row * vocab..][..vocab]).collect();
            let mut logits_v = Buffer::new(vocab);
            combine.combine(&rows, &mut logits_v);
            let raw = options.logprobs.then(|| Buffer::copy(&logits_v));
            let so_far = SoFar { prompt: &prompts[seq.sequence], tokens: &seq.tokens };
            constrain.constrain(&so_far, &mut logits_v);
            let seed = Seed(options.sampler.seed).split("sample").at(seq.sequence as u64);
            let mut rng = seed.at(seq.tokens.len() as u64).rng();
            let token = options
                .sampler
                .choose(&so_far, &mut logits_v, &mut rng)
                .map_err(|e| place(e, seq.sequence, seq.tokens.len()))?;
            let logprob = raw.map(|raw| (f64::from(raw[token as usize]) - log_z(&raw)) as f32);
            Ok((token, logprob))
        };
        /// A token and, if asked for, its log-probability.
        type Chosen = Option<Result<(u32, Option<f32>)>>;
        let mut chosen: Vec<Chosen> = live.iter().map(|_| None).collect();
        let tasks = chosen.iter_mut().zip(&live).enumerate().collect();
        threads::for_each(tasks, |(row, (chosen, seq))| *chosen = Some(choose(row, seq)));
        for (seq, chosen) in live.iter_mut().zip(chosen) {
            let (token, logprob) = chosen.expect("a token was chosen for every row")?;
            let room = options.room(prompts[seq.sequence].len());
            let piece = seq.accept(token, logprob, room, options, tokens);
            on_token(seq.sequence, token, &piece);
        }

        let (ended, going): (Vec<Live>, Vec<Live>) =
            live.into_iter().partition(|seq| seq.ended.is_some());
        live = going;
        for seq in ended {
            sources.iter_mut().for_each(|source| source.free(seq.slot));
            free.push(seq.slot);
            let (sequence, finish) = (seq.sequence, seq.ended.unwrap_or(Finish::Length));
            done[sequence] = Some(seq.finish(finish));
        }
    }
    Ok(done.into_iter().map(|d| d.expect("every prompt was worked on until its end")).collect())
}

/// Lays the new tokens of all live sequences end to end and asks every source; flat `(b, v)` each.
fn step(
    sources: &mut [Box<dyn Source + '_>],
    live: &[Live],
    logits_sbv: &mut [Vec<f32>],
) -> Result<()> {
    let ids_n: Vec<u32> = live.iter().flat_map(|seq| seq.unread.iter().copied()).collect();
    let lengths: Vec<usize> = live.iter().map(|seq| seq.unread.len()).collect();
    let slots_b: Vec<usize> = live.iter().map(|seq| seq.slot).collect();
    let rows = Arc::new(Rows::new(&lengths, |i| live[i].read));
    let step = Step { ids_n: &ids_n, rows, slots_b: &slots_b };
    sources.iter_mut().zip(logits_sbv).try_for_each(|(source, to)| source.step(&step, to))
}

fn place(error: Error, sequence: usize, step: usize) -> Error {
    match error {
        Error::Failed { at, what, hint } => Error::Failed {
            at: format!("prompt {}, token {}, {at}", sequence + 1, step + 1),
            what,
            hint,
        },
        other => other,
    }
}

fn common_vocab(sources: &[Box<dyn Source + '_>]) -> Result<usize> {
    let vocabs: Vec<usize> = sources.iter().map(|source| source.vocab()).collect();
    match vocabs.first() {
        None => Err(Error::input("decode.sources", "expected at least one source, got none")),
        Some(first) if vocabs.iter().all(|v| v == first) => Ok(*first),
        Some(_) => {
            let what = format!("expected one vocabulary size for all sources, got {vocabs:?}");
            Err(Error::input("decode.sources", what).hint("combine models that share a tokenizer"))
        }
    }
}

fn check_prompts(prompts: &[Vec<u32>], vocab: usize, options: &Generate) -> Result<()> {
    for (i, prompt) in prompts.iter().enumerate() {
        let at = format!("prompt {}", i + 1);
        if prompt.is_empty() {
            return Err(Error::input(at, "has no token")
                .hint("begin with the model's beginning-of-sequence token"));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            let what = format!("token id {id} is out of range: the vocabulary has {vocab} tokens");
            return Err(Error::input(at, what)
                .hint("the tokenizer belongs to another model; use the one beside the weights"));
        }
        let (context, len) = (options.max_context, prompt.len());
        if context != 0 && len >= context {
            let what = format!("has {len} tokens, the model's context is {context}");
            return Err(Error::input(at, what).hint("shorten the prompt"));
        }
    }
    Ok(())
}
