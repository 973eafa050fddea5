//! Whose tokens the output has, and which row of each model belongs to each of them.
//!
//! A token that a model lacks gets the row of the only model that has it, else the base's row, else
//! the mean of those that have it, as in mergekit; one that nobody has gets zeros.

use std::{collections::HashMap, path::Path};

use luthier_core::{Error, Result};
use luthier_model::Tokenizer;
use luthier_weights::{Config, Tokens};

use super::models::Models;

/// The output's tokens.
pub(super) struct Vocabulary {
    /// The model whose tokenizer it is.
    pub donor: usize,
    size: usize,
    /// By model and token: the row there.
    rows: Vec<Vec<Option<u32>>>,
    base: Option<usize>,
}

/// Where the row of a token comes from.
pub(super) enum Row {
    /// The model's own table.
    Of(usize),
    /// Nowhere.
    Zero,
    /// The mean of these rows of these models.
    Mean(Vec<(usize, usize)>),
}

impl Vocabulary {
    /// `None` where the file leaves vocabularies alone.
    pub(super) fn of(config: &Config, models: &Models) -> Result<Option<Vocabulary>> {
        let Some(tokens) = &config.tokens else { return Ok(None) };
        let first = models.donor(config);
        let donor = match tokens {
            Tokens::Of(model) => models.index(model),
            Tokens::Base | Tokens::Union => models.index(&first.model),
        };
        let mut all = Vec::new();
        for (i, opened) in models.iter().enumerate() {
            let rows = opened.source.config().vocab;
            match Tokenizer::open(&opened.path) {
                Ok(tokenizer) => all.push(Some(words(&tokenizer, rows))),
                // As mergekit, but only for a folder without any tokenizer.
                Err(_) if i != donor && !has_tokenizer(&opened.path) => all.push(None),
                Err(e) => return Err(e),
            }
        }
        let own = |i: usize| all[i].as_ref().or(all[donor].as_ref());
        let target = own(donor).cloned().unwrap_or_default();
        let size = target.values().max().map_or(0, |id| *id as usize + 1);
        let mut rows = Vec::new();
        for (i, opened) in models.iter().enumerate() {
            let Some(words) = own(i) else { continue };
            if *tokens == Tokens::Union
                && let Some(token) = words.keys().filter(|token| !target.contains_key(*token)).min()
            {
                let what = format!(
                    "tokenizer: union: {} has the token {token:?}, {} has not; such unions cannot \
                     be made yet",
                    opened.model,
                    models.at(donor).model
                );
                return Err(Error::input(&config.file, what).hint("take `source: base`"));
            }
            let mut of_model = vec![None; size];
            for (token, id) in &target {
                of_model[*id as usize] = words.get(token).copied();
            }
            rows.push(of_model);
        }
        let base = config.base.as_ref().map(|base| models.index(base));
        Ok(Some(Vocabulary { donor, size, rows, base }))
    }

    /// One more than the largest id.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where `model` has the row of `token`.
    pub(super) fn row(&self, model: usize, token: usize) -> Row {
        if let Some(row) = self.rows[model][token] {
            return Row::Of(row as usize);
        }
        let has = |m: usize| self.rows[m][token].map(|row| (m, row as usize));
        let have: Vec<(usize, usize)> = (0..self.rows.len()).filter_map(has).collect();
        match (have.len(), self.base.and_then(has)) {
            (0, _) => Row::Zero,
            (1, _) | (_, None) => Row::Mean(have),
            (_, Some(base)) => Row::Mean(vec![base]),
        }
    }
}

/// The tokens that have a row, with their ids.
fn words(tokenizer: &Tokenizer, rows: usize) -> HashMap<String, u32> {
    let ids = 0..tokenizer.vocab_size().min(rows) as u32;
    ids.filter_map(|id| Some((tokenizer.token(id)?, id))).collect()
}

/// Whether a model comes with a tokenizer.
pub(super) fn has_tokenizer(path: &Path) -> bool {
    path.is_file() || ["tokenizer.json", "tokenizer.model"].iter().any(|f| path.join(f).exists())
}
