//! A head that scores labels in place of tokens, as in transformers' `…ForSequenceClassification`.
//!
//! `scores = W · norm(h)` with `W = score.weight`, `(labels, d)`, drawn from N(0, 0.02²); whoever asks
//! takes the scores at the last token of a row. It learns beside any other form, or alone (a linear
//! probe). A LoRA or IA3 keeps it as PEFT does, among `modules_to_save`; a whole model is saved with it
//! as a folder of that class. **Departures**: (1) transformers leaves out padding to find the last
//! token; rows here have none. (2) There is one head, without a hidden layer.

use luthier_core::{Error, Policy, Result};
use serde::{Deserialize, Serialize};

use crate::{Form, Init, Scope};

const KEY: &str = "train.params.head";
/// The variable's name, as transformers has it.
pub(crate) const WEIGHT: &str = "score.weight";
/// transformers' `initializer_range`, which most configurations leave as it is.
const INITIALIZER_RANGE: f64 = 0.02;

/// `[train.params.head]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Head {
    /// What is scored: so many labels, or labels of these names.
    pub labels: Labels,
}

/// Labels by number or by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Labels {
    /// `0`, `1`, … below this.
    Count(usize),
    /// In the order of their numbers.
    Names(Vec<String>),
}

impl Default for Labels {
    fn default() -> Self {
        Labels::Count(1)
    }
}

impl Labels {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Labels::Count(count) => *count,
            Labels::Names(names) => names.len(),
        }
    }

    /// Their names; `LABEL_0`, `LABEL_1`, … where none were given, as in transformers.
    pub fn names(&self) -> Vec<String> {
        match self {
            Labels::Count(count) => (0..*count).map(|i| format!("LABEL_{i}")).collect(),
            Labels::Names(names) => names.clone(),
        }
    }
}

impl Head {
    fn check(&self) -> Result<()> {
        if self.labels.count() == 0 {
            return Err(Error::input(format!("{KEY}.labels"), "expected one label or more, got 0"));
        }
        let mut names = self.labels.names();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(Error::input(format!("{KEY}.labels"), format!("names {} twice", pair[0])))
            }
            None => Ok(()),
        }
    }
}

impl Form for Head {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        self.check()?;
        // Where the whole model learns, the head that is replaced learned, too.
        let old = policy.model.sites().get("logits").and_then(|site| site.module.clone());
        if let Some(old) = old {
            scope.forget(|name| name.rsplit_once('.').is_some_and(|(module, _)| module == old));
        }
        let dims = [self.labels.count(), policy.model.width()];
        let weight = scope.shared(WEIGHT, &dims, Init::Normal(INITIALIZER_RANGE))?;
        let model = policy.model.with_head(weight.as_tensor())?;
        Ok(Policy { model, ..policy })
    }
}
