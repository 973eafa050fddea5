//! The engine: many prompts, each to its end, a changing set of them at a time.
//!
//! A step lays the new tokens of every live sequence into one flat run (a whole prompt for a
//! sequence that has just entered, one token for the others), reads logits at each row's last
//! token, and chooses. A finished sequence leaves its slot to the next prompt at once. What a
//! sequence becomes depends on its prompt, its index and the seed; its company changes no more than
//! the rounding of a logit, where few rows are multiplied in another order than many.

mod laid;
mod live;
mod options;
mod speculate;

use luthier_core::{Error, Policy, Result, Seed};
use luthier_kernels::{pool::Buffer, threads};
use serde::{Deserialize, Serialize};

pub(crate) use laid::{Laid, Reading};
pub use options::{Draft, Generate};

use crate::{
    Combine, Constrain, SoFar, Source, TokenText,
    combine::{Identity, log_z},
    sources::PolicySource,
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
    options.check(sources.len())?;
    combine.check(sources.len())?;
    let vocab = common_vocab(&sources)?;
    check_prompts(prompts, vocab, options)?;
    constrain.extend(options.constraints());
    let task = Task { combine, constrain: &constrain, prompts, options, vocab };
    // A token is hundreds of small operations: the threads stay awake for all of them.
    threads::together(|| task.run(&mut sources, tokens, on_token))
}

/// What stays the same from the first token to the last.
struct Task<'a> {
    combine: &'a dyn Combine,
    constrain: &'a [Box<dyn Constrain>],
    prompts: &'a [Vec<u32>],
    options: &'a Generate,
    vocab: usize,
}

/// A token, its log-probability if that was asked for, and what choosing remembers.
struct Chosen {
    token: u32,
    logprob: Option<f32>,
    memory: f32,
}

impl Task<'_> {
    fn run(
        &self,
        sources: &mut [Box<dyn Source + '_>],
        tokens: &dyn TokenText,
        on_token: &mut dyn FnMut(usize, u32, &str),
    ) -> Result<Vec<Generated>> {
        let Task { prompts, options, .. } = *self;
        let mut done: Vec<Option<Generated>> = vec![None; prompts.len()];
        let mut waiting = (0..prompts.len()).peekable();
        let mut free: Vec<usize> = (0..options.max_batch).rev().collect();
        let mut live: Vec<Live> = Vec::new();
        let mut logits_sbv = vec![Vec::new(); sources.len()];
        loop {
            let mut entering = 0;
            while let Some(sequence) = waiting.peek().copied() {
                let room = options.room(prompts[sequence].len());
                if room == 0 {
                    let empty = Live::new(sequence, 0, &[], options).finish(Finish::Length);
                    done[sequence] = Some(empty);
                    waiting.next();
                    continue;
                }
                entering += prompts[sequence].len();
                let crowded =
                    entering > options.prefill_tokens && entering > prompts[sequence].len();
                let Some(slot) = (if crowded { None } else { free.pop() }) else { break };
                waiting.next();
                live.push(Live::new(sequence, slot, &prompts[sequence], options));
            }
            if live.is_empty() {
                break;
            }

            let chosen = match options.draft {
                None => self.next(sources, &live, &mut logits_sbv)?,
                Some(draft) => self.drafted(sources, &live, draft)?,
            };
            for (seq, chosen) in live.iter_mut().zip(chosen) {
                let room = options.room(prompts[seq.sequence].len());
                for Chosen { token, logprob, memory } in chosen {
                    seq.memory = memory;
                    let piece = seq.accept(token, logprob, room, options, tokens);
                    on_token(seq.sequence, token, &piece);
                    if seq.ended.is_some() {
                        break;
                    }
                }
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
        Ok((done.into_iter()).map(|d| d.expect("every prompt was worked on to its end")).collect())
    }

    /// One more token for every sequence.
    fn next(
        &self,
        sources: &mut [Box<dyn Source + '_>],
        live: &[Live],
        logits_sbv: &mut [Vec<f32>],
    ) -> Result<Vec<Vec<Chosen>>> {
        let laid = Laid::new(live.iter().map(|seq| seq.reading(&seq.unread, 1)));
        let mut asked = sources.iter_mut().zip(logits_sbv.iter_mut());
        asked.try_for_each(|(source, to)| source.step(&laid.step(), to))?;
        let logits_sbv = &*logits_sbv;
        // Rows do not know of each other, so their tokens are chosen side by side.
        self.side_by_side(live, |row, seq| {
            let rows: Vec<&[f32]> =
                logits_sbv.iter().map(|all| &all[row * self.vocab..][..self.vocab]).collect();
            let so_far = SoFar { prompt: &self.prompts[seq.sequence], tokens: &seq.tokens };
            let (mut logits_v, raw) = self.combined(&rows, &so_far);
            let mut rng = self.seed("sample", seq, 0).rng();
            let (sampler, mut memory) = (&self.options.sampler, seq.memory);
            let token = sampler
                .choose_after(&so_far, &mut logits_v, &mut rng, &mut memory)
                .map_err(|e| place(e, seq.sequence, seq.tokens.len()))?;
            Ok(vec![Chosen { token, logprob: raw.map(|raw| logp(&raw, token)), memory }])
        })
    }

    fn side_by_side(
        &self,
        live: &[Live],
        choose: impl Fn(usize, &Live) -> Result<Vec<Chosen>> + Sync,
    ) -> Result<Vec<Vec<Chosen>>> {
        let mut chosen: Vec<Option<Result<Vec<Chosen>>>> = live.iter().map(|_| None).collect();
        let tasks = chosen.iter_mut().zip(live).enumerate().collect();
        threads::for_each(tasks, |(row, (chosen, seq)): (usize, (&mut Option<_>, &Live))| {
            *chosen = Some(choose(row, seq));
        });
        chosen.into_iter().map(|c| c.expect("a token was chosen for every row")).collect()
    }

    /// Combined and constrained logits, and the former alone where log-probabilities are asked for.
    fn combined(&self, logits_sv: &[&[f32]], so_far: &SoFar) -> (Buffer, Option<Buffer>) {
        let mut logits_v = Buffer::new(self.vocab);
        self.combine.combine(logits_sv, &mut logits_v);
        let raw = self.options.logprobs.then(|| Buffer::copy(&logits_v));
        self.constrain.constrain(so_far, &mut logits_v);
        (logits_v, raw)
    }

    /// The seed of the token that is `ahead` tokens further on.
    fn seed(&self, purpose: &str, seq: &Live, ahead: usize) -> Seed {
        let seed = Seed(self.options.sampler.seed).split(purpose).at(seq.sequence as u64);
        seed.at((seq.tokens.len() + ahead) as u64)
    }
}

fn logp(logits_v: &[f32], token: u32) -> f32 {
    (f64::from(logits_v[token as usize]) - log_z(logits_v)) as f32
}

pub(crate) fn place(error: Error, sequence: usize, step: usize) -> Error {
    match error {
        Error::Failed { at, what, hint } => Error::Failed {
            at: format!("prompt {}, token {}, {at}", sequence + 1, step + 1),
            what,
            hint,
        },
        other => other,
    }
}

pub(crate) fn common_vocab(sources: &[Box<dyn Source + '_>]) -> Result<usize> {
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

pub(crate) fn check_prompts(prompts: &[Vec<u32>], vocab: usize, options: &Generate) -> Result<()> {
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
