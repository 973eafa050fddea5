//! Whose tokens the output has, and which row of each model belongs to each of them.
//!
//! A token that a model lacks gets the row of the only model that has it, else the base's row, else
//! the mean of those that have it, as in mergekit; one that nobody has gets zeros. `tokenizer.tokens`
//! says otherwise for single tokens. Rows that fill a table up are the mean of the others.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use luthier_core::{Error, Result};
use luthier_model::Tokenizer;
use luthier_weights::{Config, Input, Layout, Model, RowOf, TokenSource, Tokens};

use super::models::Models;

pub(super) mod join;

use join::{Added, Flags};

/// The output's tokens.
pub(super) struct Vocabulary {
    /// The model whose tokenizer it is.
    pub donor: usize,
    /// What is put behind the donor's tokens.
    pub added: Vec<Added>,
    /// One more than the largest id.
    pub used: usize,
    /// Rows of the output's tables.
    pub size: usize,
    /// By model and token: the row there.
    rows: Vec<Vec<Option<u32>>>,
    rules: HashMap<usize, Rule>,
    base: Option<usize>,
    /// Whether a row that a model lacks is zeros.
    zero: bool,
}

/// What the file says of one token.
#[derive(Clone, Copy)]
struct Rule {
    /// Model and row; `None` for zeros.
    from: Option<(usize, usize)>,
    force: bool,
}

/// Where the row of a token comes from: rows of models.
pub(super) enum Row {
    /// A model's own table.
    Of(usize, usize),
    /// Nowhere.
    Zero,
    /// The mean of these rows of these models.
    Mean(Vec<(usize, usize)>),
    /// The mean of all rows before.
    Fill,
}

/// Tokens of a model with their ids.
type Words = BTreeMap<String, u32>;

impl Vocabulary {
    /// `None` where the file leaves vocabularies alone.
    pub(super) fn of(config: &Config, models: &Models) -> Result<Option<Vocabulary>> {
        match &config.tokens {
            Some(tokens) => Vocabulary::joined(config, tokens, models).map(Some),
            None if config.spec.name == "transfer" => Ok(Vocabulary::tuned(config, models)),
            None => Ok(None),
        }
    }

    /// Tokens of the tuned model, row for row; what another version lacks counts as zeros.
    fn tuned(config: &Config, models: &Models) -> Option<Vocabulary> {
        let Layout::Models(inputs) = &config.layout else { return None };
        let is_source = |input: &Input| input.settings.contains_key("source");
        let is_base = |input: &Input| Some(&input.model) == config.base.as_ref();
        let tuned = inputs.iter().find(|input| !is_source(input) && !is_base(input))?;
        let donor = models.index(&tuned.model);
        let size = models.at(donor).config().vocab;
        let own = |vocab: usize| (0..size).map(|t| (t < vocab).then_some(t as u32)).collect();
        let rows = models.iter().map(|opened| own(opened.config().vocab)).collect();
        let (added, rules) = (Vec::new(), HashMap::new());
        Some(Vocabulary { donor, added, used: size, size, rows, rules, base: None, zero: true })
    }

    fn joined(config: &Config, tokens: &Tokens, models: &Models) -> Result<Vocabulary> {
        let first = models.donor(config);
        let donor = match &tokens.source {
            TokenSource::Of(model) => models.index(model),
            TokenSource::Base | TokenSource::Union => models.index(&first.model),
        };
        let mut all: Vec<Option<(Words, Flags)>> = Vec::new();
        for (i, opened) in models.iter().enumerate() {
            match Tokenizer::open(&opened.path) {
                Ok(tokenizer) => {
                    let words = words(&tokenizer, opened.config().vocab);
                    all.push(Some((words, Flags::of(&opened.path, &tokenizer)?)));
                }
                // As mergekit, but only for a folder without any tokenizer.
                Err(_) if i != donor && !has_tokenizer(&opened.path) => all.push(None),
                Err(e) => return Err(e),
            }
        }
        let own = |i: usize| all[i].as_ref().or(all[donor].as_ref());
        let mut target = own(donor).map(|(words, _)| words.clone()).unwrap_or_default();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|i| *i != donor);
        let known: Vec<&(Words, Flags)> = order.iter().filter_map(|i| all[*i].as_ref()).collect();
        let wanted = match tokens.source {
            TokenSource::Union => join::missing(&known, &target),
            _ => Vec::new(),
        };
        let named = tokens.rows.iter().map(|(token, _)| token.clone());
        let mut next = target.values().max().map_or(0, |id| *id + 1);
        let mut added = Vec::new();
        for token in wanted.into_iter().chain(named) {
            if target.contains_key(&token) {
                continue;
            }
            added.push(Added::new(&token, next, &known));
            target.insert(token, next);
            next += 1;
        }
        let used = next as usize;
        let mut rows = Vec::new();
        for i in 0..all.len() {
            let mut of_model = vec![None; used];
            let has = models.at(i).config().vocab;
            if let Some((words, _)) = own(i) {
                for (token, id) in &target {
                    let row = words.get(token).filter(|row| (**row as usize) < has);
                    of_model[*id as usize] = row.copied();
                }
            }
            rows.push(of_model);
        }
        let multiple = tokens.pad_to_multiple_of.unwrap_or(1);
        let base = config.base.as_ref().map(|base| models.index(base));
        let size = used.next_multiple_of(multiple);
        let rules = HashMap::new();
        let mut made = Vocabulary { donor, added, used, size, rows, rules, base, zero: false };
        for (token, row) in &tokens.rows {
            let at = format!("{}: tokenizer.tokens.{token}", config.file);
            let id = target[token] as usize;
            let from = match &row.from {
                None if made.rows.iter().all(|rows| rows[id].is_none()) => {
                    return Err(Error::input(at, "no model has this token").hint(
                        "add `source: {kind: zero}`, or {kind: model_token, model: …, token: …}",
                    ));
                }
                None => continue,
                Some(RowOf::Zero) => None,
                Some(RowOf::Same(model)) => {
                    let index = models.index(model);
                    let row = made.rows[index][id].map(|row| (index, row as usize));
                    Some(row.ok_or_else(|| lacks(&at, model, token))?)
                }
                Some(RowOf::Token(model, other)) => {
                    let index = models.index(model);
                    let words = own(index).map(|(words, _)| words);
                    let row = words.and_then(|words| words.get(other));
                    Some((index, *row.ok_or_else(|| lacks(&at, model, other))? as usize))
                }
                Some(RowOf::Id(model, row)) => {
                    let index = models.index(model);
                    let has = models.at(index).config().vocab;
                    if *row >= has {
                        let what = format!("expected an id below {has} for {model}, got {row}");
                        return Err(Error::input(at, what));
                    }
                    Some((index, *row))
                }
            };
            made.rules.insert(id, Rule { from, force: row.force });
        }
        Ok(made)
    }

    /// Where the `model`-th of all models, one of those in `inputs`, gets the row of `token`.
    pub(super) fn row(&self, model: usize, inputs: &[usize], token: usize) -> Row {
        if token >= self.used {
            return Row::Fill;
        }
        let has = |m: usize| self.rows[m][token].map(|row| (m, row as usize));
        let rule = if self.rules.is_empty() { None } else { self.rules.get(&token) };
        match (has(model), rule) {
            (Some((m, row)), None | Some(Rule { force: false, .. })) => return Row::Of(m, row),
            (_, Some(Rule { from: Some((m, row)), .. })) => return Row::Of(*m, *row),
            (_, Some(Rule { from: None, .. })) => return Row::Zero,
            (None, None) => {}
        }
        if self.zero {
            return Row::Zero;
        }
        let have: Vec<(usize, usize)> = inputs.iter().filter_map(|m| has(*m)).collect();
        let base = self.base.filter(|base| inputs.contains(base)).and_then(has);
        match (have[..].len(), base) {
            (0, _) => Row::Zero,
            (1, _) | (_, None) => Row::Mean(have),
            (_, Some((m, row))) => Row::Of(m, row),
        }
    }

    /// The models of which single rows are taken.
    pub(super) fn lenders(&self) -> impl Iterator<Item = usize> {
        self.rules.values().filter_map(|rule| Some(rule.from?.0))
    }
}

fn lacks(at: &str, model: &Model, token: &str) -> Error {
    Error::input(at, format!("{model} has no token {token:?}"))
}

/// The tokens that have a row, with their ids.
fn words(tokenizer: &Tokenizer, rows: usize) -> Words {
    let ids = 0..tokenizer.vocab_size().min(rows) as u32;
    ids.filter_map(|id| Some((tokenizer.token(id)?, id))).collect()
}

/// Whether a model comes with a tokenizer.
pub(super) fn has_tokenizer(path: &Path) -> bool {
    path.is_file() || ["tokenizer.json", "tokenizer.model"].iter().any(|f| path.join(f).exists())
}
