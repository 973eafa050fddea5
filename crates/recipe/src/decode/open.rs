//! The table with its models opened: what answers prompts.

use std::sync::Arc;

use luthier_core::{Error, Example, Policy, Result, nearest::suggest};
use luthier_decode::{
    Constrain, Draft, Generate, Generated, Parts, Scaled, TokenText, beam_search,
    best::{best_of, majority, mean_logprob},
    combine::Picked,
    generate_from,
    sources::{Ngram, PolicySource, Reworded, Source as Logits},
};
use luthier_model::Tokenizer;

use super::{BASE, Decode, POLICY, Source, compare, prompts, rectified::Corrector, rules};
use crate::{Opened, open_for};

/// A source with what gives its logits.
struct Member {
    name: String,
    source: Source,
    gives: Gives,
    tokenizer: Arc<Tokenizer>,
    /// Tokens that it can read; 0 is any number.
    context: usize,
}

/// What gives logits.
enum Gives {
    /// A model.
    Model(Policy),
    /// A model and what it was tuned from, with what tuning adds to each block, times a number.
    Scaled(Policy, Policy, f64),
    /// A model whose errors a copilot corrects.
    Rectified(Policy, Box<Corrector>),
    /// Texts.
    Texts(Ngram),
}

/// A table of which everything is open.
pub struct Decoding {
    members: Vec<Member>,
    rule: Picked,
    vocab: usize,
    constrain: Vec<Arc<dyn Constrain>>,
    table: Decode,
    tokenizer: Arc<Tokenizer>,
}

/// Prompts to answer.
pub struct Job<'a> {
    /// The prompts as examples, for sources that word them in their own way.
    pub examples: &'a [Example],
    /// The same as the policy's tokens.
    pub prompts: &'a [Vec<u32>],
    /// How far and how to generate; the table's beams, drafts and constraints are added.
    pub options: &'a Generate,
    /// Whether two answers say the same, for self-consistency.
    pub agree: &'a dyn Fn(&str, &str) -> bool,
}

impl Decoding {
    /// Opens what the table names besides `policy`, which is `opened` with its adapter. At most `rows`
    /// texts are read at a time.
    pub fn open(table: &Decode, opened: &Opened, policy: &Policy, rows: usize) -> Result<Self> {
        table.check()?;
        let constrain = rules::constraints(&table.constrain, &opened.tokenizer)?;
        let mut names: Vec<&str> = table.combine.names();
        let mut seen = Vec::new();
        names.retain(|name| {
            !seen.contains(name) && {
                seen.push(*name);
                true
            }
        });
        if let Some(name) = table.sources.keys().find(|name| !names.contains(&name.as_str())) {
            let what = "is not part of the combination";
            return Err(Error::input(format!("decode.sources.{name}"), what)
                .hint(format!("decode.combine asks for {}", names.join(", "))));
        }
        let mut others: Vec<Opened> = Vec::new();
        let mut members = Vec::with_capacity(names.len());
        for name in &names {
            let source = named(table, name)?;
            if let Some(texts) = &source.ngram {
                let at = format!("decode.sources.{name}.ngram");
                let gives = Gives::Texts(texts.open(&at, &opened.tokenizer)?);
                let tokenizer = opened.tokenizer.clone();
                members.push(Member {
                    name: name.to_string(),
                    source,
                    gives,
                    tokenizer,
                    context: 0,
                });
                continue;
            }
            // Each model is loaded once, however many sources it is the model of.
            for model in [&source.model].into_iter().chain(&source.base) {
                if [POLICY, BASE, opened.name.as_str()].contains(&model.as_str())
                    || others.iter().any(|other| other.name == *model)
                {
                    continue;
                }
                let at = |e| Error::within(format!("decode.sources.{name}"), e);
                let precision = opened.precision.into();
                others.push(open_for(model, precision, rows).map_err(at)?);
            }
            let of =
                |model: &str| others.iter().find(|other| other.name == model).unwrap_or(opened);
            let (model, base) = (of(&source.model), source.base.as_deref().map(of));
            for model in [model].into_iter().chain(base) {
                compare(name, &model.tokenizer, &opened.tokenizer)?;
            }
            members.push(Member::new(name, source, (model, base), policy)?);
        }
        let rule = Picked::new(table.combine.clone(), &names)?;
        let vocab = members.iter().filter_map(Member::vocab).min();
        let vocab = vocab.unwrap_or(opened.model.vocab());
        let tokenizer = opened.tokenizer.clone();
        let decoding =
            Decoding { members, rule, vocab, constrain, table: table.clone(), tokenizer };
        decoding.draft()?;
        Ok(decoding)
    }

    /// The table it was opened from.
    pub fn table(&self) -> &Decode {
        &self.table
    }

    /// Adds a constraint that acts after the table's.
    pub fn with_constraint(mut self, more: Arc<dyn Constrain>) -> Self {
        self.constrain.push(more);
        self
    }

    /// Answers every prompt. `on_token` hears of each token; where several answers are drawn, sequence
    /// `i + k · prompts` is the `k`-th answer to prompt `i`. A search is heard of in the end.
    pub fn answer(
        &self,
        job: &Job,
        tokens: &dyn TokenText,
        on_token: &mut dyn FnMut(usize, u32, &str),
    ) -> Result<Vec<Generated>> {
        let Job { examples, prompts, options, agree } = *job;
        let (n, several) = (prompts.len(), self.table.several());
        let examples: Vec<&Example> = (0..several).flat_map(|_| examples).collect();
        let prompts: Vec<Vec<u32>> =
            std::iter::repeat_n(prompts, several).flatten().cloned().collect();
        let mut options = Generate { draft: self.draft()?, ..options.clone() };
        options.logprobs |= self.table.best_of > 1;
        if let Some(beam) = &self.table.beam {
            // As many prompts at a time as fit into the usual batch, but one at least.
            let at_a_time = (options.max_batch / beam.num_beams).clamp(1, n.max(1));
            options.max_batch = beam.slots(at_a_time);
        }
        let sources = self.sources(&examples, &prompts, &mut options)?;
        let shared = self.constrain.iter().cloned();
        let constrain = shared.map(|rule| Box::new(rule) as Box<dyn Constrain>).collect();
        let parts = Parts { sources, combine: &self.rule, constrain };
        if let Some(beam) = &self.table.beam {
            let found = beam_search(parts, &prompts, &options, beam, tokens, &mut |_| ())?;
            let best = found.into_iter().map(|mut all| match all.is_empty() {
                true => nothing(),
                false => all.swap_remove(0).generated,
            });
            let best: Vec<Generated> = best.collect();
            for (i, answer) in best.iter().enumerate() {
                let (last, before) = match answer.tokens.split_last() {
                    Some(split) => split,
                    None => continue,
                };
                before.iter().for_each(|token| on_token(i, *token, ""));
                on_token(i, *last, &answer.text);
            }
            return Ok(best);
        }
        let mut all = generate_from(parts, &prompts, &options, tokens, on_token)?;
        if several == 1 {
            return Ok(all);
        }
        Ok((0..n).map(|i| self.choose(&mut all, i, n, agree)).collect())
    }

    /// One of the answers to prompt `i` of `n`.
    fn choose(
        &self,
        all: &mut [Generated],
        i: usize,
        n: usize,
        agree: &dyn Fn(&str, &str) -> bool,
    ) -> Generated {
        let mine: Vec<Generated> =
            all[i..].iter_mut().step_by(n).map(|one| std::mem::replace(one, nothing())).collect();
        let best = match self.table.best_of > 1 {
            true => best_of(&mine, |one| mean_logprob(one).unwrap_or(f64::NEG_INFINITY)),
            false => majority(&mine, |one, other| agree(&one.text, &other.text)),
        };
        mine.into_iter().nth(best.unwrap_or(0)).unwrap_or_else(nothing)
    }

    /// What gives logits for these prompts; `options` learn of the shortest context.
    fn sources<'s>(
        &'s self,
        examples: &[&Example],
        prompts: &[Vec<u32>],
        options: &mut Generate,
    ) -> Result<Vec<Box<dyn Logits + 's>>> {
        let mut all = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let source = member.logits(options.max_batch, self.vocab)?;
            let at = |e| Error::within(format!("decode.sources.{}", member.name), e);
            let own = member.own(examples, prompts, &self.tokenizer).map_err(at)?;
            let Some(own) = own else {
                all.push(source);
                options.max_context = shorter(options.max_context, member.context);
                continue;
            };
            let longer =
                own.iter().zip(prompts).map(|(o, p)| o.len().saturating_sub(p.len())).max();
            let left = member.context.saturating_sub(longer.unwrap_or(0));
            if member.context > 0 {
                options.max_context = shorter(options.max_context, left.max(1));
            }
            all.push(Box::new(Reworded::new(source, own, prompts)?) as Box<dyn Logits>);
        }
        Ok(all)
    }

    /// The drafting source by its place.
    fn draft(&self) -> Result<Option<Draft>> {
        let Some(draft) = &self.table.draft else { return Ok(None) };
        let names = || self.members.iter().map(|member| member.name.as_str());
        let Some(source) = names().position(|name| name == draft.source) else {
            let what = format!("`{}` is not part of the combination", draft.source);
            let error = Error::input("decode.draft.source", what);
            return Err(error.hint(suggest(&draft.source, names())));
        };
        if self.members.len() == 1 {
            let what = "a model that drafts for itself saves nothing";
            return Err(Error::input("decode.draft", what));
        }
        Ok(Some(Draft { source, tokens: draft.tokens }))
    }
}

/// The shorter of two contexts, of which 0 is none.
fn shorter(one: usize, other: usize) -> usize {
    match (one, other) {
        (0, n) | (n, 0) => n,
        (one, other) => one.min(other),
    }
}

fn nothing() -> Generated {
    let finish = luthier_decode::Finish::Length;
    Generated { tokens: Vec::new(), text: String::new(), finish, logprobs: Vec::new() }
}

/// The source called `name`: as the table has it, or one of the two that are always there.
fn named(table: &Decode, name: &str) -> Result<Source> {
    if let Some(source) = table.sources.get(name) {
        return Ok(source.clone());
    }
    if [POLICY, BASE].contains(&name) {
        return Ok(Source { model: name.to_string(), ..Source::default() });
    }
    let known = table.sources.keys().map(String::as_str).chain([POLICY, BASE]);
    Err(Error::input("decode.combine", format!("there is no source `{name}`"))
        .hint(format!("{}; sources are tables: [decode.sources.{name}]", suggest(name, known))))
}

impl Member {
    /// `base` is what `model` was tuned from, where the source names it.
    fn new(
        name: &str,
        source: Source,
        (model, base): (&Opened, Option<&Opened>),
        policy: &Policy,
    ) -> Result<Self> {
        let at = format!("decode.sources.{name}");
        let plain = Policy::plain(model.model.clone());
        let untuned = base.map_or_else(|| plain.clone(), |base| Policy::plain(base.model.clone()));
        let bound = match (&source.adapter, source.model.as_str()) {
            (Some(dir), _) => model.policy(Some(dir)).map_err(|e| Error::within(&at, e))?,
            (None, POLICY) => policy.clone(),
            (None, _) => plain,
        };
        let gives = match (source.scaled, &source.copilot) {
            (None, None) => Gives::Model(bound),
            (None, Some(by)) => {
                let by = by.open(&format!("{at}.copilot"), &bound)?;
                Gives::Rectified(bound, Box::new(by))
            }
            (Some(alpha), _) => {
                Scaled::new(&untuned, &bound, alpha).map_err(|e| Error::within(&at, e))?;
                Gives::Scaled(bound, untuned, alpha)
            }
        };
        Ok(Member {
            name: name.to_string(),
            source,
            gives,
            tokenizer: model.tokenizer.clone(),
            context: model.config.max_positions,
        })
    }

    /// The size of its vocabulary, where it has one of its own.
    fn vocab(&self) -> Option<usize> {
        match &self.gives {
            Gives::Model(policy) | Gives::Scaled(policy, ..) | Gives::Rectified(policy, _) => {
                Some(policy.model.vocab())
            }
            Gives::Texts(_) => None,
        }
    }

    fn logits(&self, max_batch: usize, vocab: usize) -> Result<Box<dyn Logits + '_>> {
        Ok(match &self.gives {
            Gives::Model(policy) => Box::new(PolicySource::new(policy, max_batch).narrowed(vocab)),
            Gives::Scaled(policy, base, alpha) => {
                Box::new(Scaled::new(base, policy, *alpha)?.source(max_batch))
            }
            Gives::Rectified(policy, by) => Box::new(by.source(policy, max_batch, vocab)),
            Gives::Texts(texts) => {
                let at = |e| Error::within(format!("decode.sources.{}.ngram", self.name), e);
                Box::new(texts.source(max_batch, vocab).map_err(at)?)
            }
        })
    }

    /// Its own prompts, if it words them otherwise than the policy.
    fn own(
        &self,
        examples: &[&Example],
        prompts: &[Vec<u32>],
        policy: &Tokenizer,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        let mut own = Vec::with_capacity(prompts.len());
        for (example, ids) in examples.iter().zip(prompts) {
            match prompts::own(&self.source, example, ids, policy, &self.tokenizer)? {
                Some(ids) => own.push(ids),
                None => return Ok(None),
            }
        }
        Ok(Some(own))
    }
}
