//! The table `tokenizer` of a merge's file: whose tokens the result has, and where rows of tokens come
//! from that some model lacks.

use luthier_core::Result;
use serde_json::{Map, Value};

use super::{Model, Reader};

/// The table `tokenizer`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// Whose tokens the result has.
    pub source: TokenSource,
    /// What is said of single tokens; those that nobody has are added.
    pub rows: Vec<(String, TokenRow)>,
    /// The table's number of rows is a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// Whose tokens the result has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The base's, or the first model's.
    Base,
    /// All that any model has.
    Union,
    /// Those of one model.
    Of(Model),
}

/// What is said of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Where its row comes from; `None` for the usual place.
    pub from: Option<RowOf>,
    /// Whether models that have the token get this row too.
    pub force: bool,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOf {
    /// Zeros.
    Zero,
    /// That of the same token in a model.
    Same(Model),
    /// That of another token in a model.
    Token(Model, String),
    /// That of a token id in a model.
    Id(Model, usize),
}

impl RowOf {
    /// The model that has the row.
    pub fn model(&self) -> Option<&Model> {
        match self {
            RowOf::Zero => None,
            RowOf::Same(model) | RowOf::Token(model, _) | RowOf::Id(model, _) => Some(model),
        }
    }
}

impl Reader<'_> {
    pub(super) fn tokens(&self, map: &Map<String, Value>) -> Result<Option<Tokens>> {
        let given = |key: &str| map.get(key).filter(|v| !v.is_null());
        let plain = |source| Tokens { source, rows: Vec::new(), pad_to_multiple_of: None };
        match (given("tokenizer_source"), given("tokenizer")) {
            (Some(_), Some(_)) => Err(self
                .error("", "has tokenizer_source and tokenizer")
                .hint("keep tokenizer, the newer one")),
            (None, None) => Ok(None),
            (Some(source), None) => Ok(Some(plain(self.source(source, "tokenizer_source")?))),
            (None, Some(Value::Object(table))) => {
                let keys = ["source", "tokens", "pad_to_multiple_of"];
                self.known(table, "tokenizer", &keys)?;
                let source = match table.get("source").filter(|v| !v.is_null()) {
                    Some(source) => self.source(source, "tokenizer.source")?,
                    None => TokenSource::Union,
                };
                let pad_to_multiple_of = self.multiple(table)?;
                Ok(Some(Tokens { source, rows: self.rows(table)?, pad_to_multiple_of }))
            }
            (None, Some(other)) => {
                Err(self.error("tokenizer", format!("expected `source: …`, got {other}")))
            }
        }
    }

    fn source(&self, value: &Value, at: &str) -> Result<TokenSource> {
        Ok(match value.as_str() {
            Some("base") => TokenSource::Base,
            Some("union") => TokenSource::Union,
            _ => TokenSource::Of(self.model(value, at)?),
        })
    }

    fn multiple(&self, table: &Map<String, Value>) -> Result<Option<usize>> {
        match table.get("pad_to_multiple_of") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().filter(|n| (1..=1 << 20).contains(n)) {
                Some(n) => Ok(Some(n as usize)),
                None => {
                    let what = format!("expected a whole number above 0, got {value}");
                    Err(self.error("tokenizer.pad_to_multiple_of", what))
                }
            },
        }
    }

    fn rows(&self, table: &Map<String, Value>) -> Result<Vec<(String, TokenRow)>> {
        let list = match table.get("tokens") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(list)) => list,
            Some(other) => {
                let what = format!("expected tokens with their source, got {other}");
                return Err(self.error("tokenizer.tokens", what));
            }
        };
        let row = |(token, value): (&String, &Value)| {
            let at = format!("tokenizer.tokens.{token}");
            let Value::Object(row) = value else {
                return Err(self.error(&at, format!("expected source and force, got {value}")));
            };
            self.known(row, &at, &["source", "force"])?;
            let from = match row.get("source") {
                None | Some(Value::Null) => None,
                Some(source) => Some(self.row_of(source, &format!("{at}.source"))?),
            };
            let force = match row.get("force") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(force)) => *force,
                Some(other) => {
                    let what = format!("expected true or false, got {other}");
                    return Err(self.error(&format!("{at}.force"), what));
                }
            };
            if force && from.is_none() {
                return Err(self
                    .error(&at, "forces a row without saying which")
                    .hint("add `source: MODEL`, or {kind: zero}"));
            }
            Ok((token.clone(), TokenRow { from, force }))
        };
        list.iter().map(row).collect()
    }

    fn row_of(&self, value: &Value, at: &str) -> Result<RowOf> {
        let kind = value.get("kind").and_then(Value::as_str);
        let (Some(kind), Value::Object(map)) = (kind, value) else {
            return Ok(RowOf::Same(self.model(value, at)?));
        };
        match kind {
            "zero" => {
                self.known(map, at, &["kind"])?;
                Ok(RowOf::Zero)
            }
            "model_token" => {
                self.known(map, at, &["kind", "model", "token", "token_id"])?;
                let model = self.model(map.get("model").unwrap_or(&Value::Null), at)?;
                let id = map.get("token_id").filter(|v| !v.is_null());
                match (self.text(map, "token", at)?, id.map(Value::as_u64)) {
                    (Some(token), None) => Ok(RowOf::Token(model, token)),
                    (None, Some(Some(id))) => Ok(RowOf::Id(model, id as usize)),
                    _ => Err(self.error(at, "expected either token or token_id")),
                }
            }
            other => Err(self
                .error(at, format!("unknown kind {other:?}"))
                .hint("model_token, zero, or the name of a model")),
        }
    }
}
