//! Chosen entries of the weights are learned, all others stay.
//!
//! `w ← w` but at the entries of a 0/1 mask. Which entries: `random`, or the rule of a paper. Memory
//! beyond the weights is for the chosen entries alone: gradients are gathered from each pass as they
//! come, and the optimizer knows nothing else.

use luthier_core::{Error, Mask, Param, Policy, Result, Seed};
use serde::{Deserialize, Serialize};

use super::weights;
use crate::{Choice, Form, Globs, Scope};

pub mod lift;
pub mod lottery;
pub mod random;
pub mod sara;

pub use lift::Lift;
pub use lottery::Lottery;
pub use random::Random;
pub use sara::Sara;

pub(crate) const KEY: &str = "train.params.sparse";

/// `[train.params.sparse]`: where, and exactly one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sparse {
    /// Sites whose weights may learn.
    pub at: Globs,
    /// Sites among them that stay as they are.
    pub exclude: Globs,
    /// Entries drawn without looking at them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<Random>,
    /// Entries that are large after rank reduction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lift: Option<Lift>,
    /// Entries that are idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sara: Option<Sara>,
    /// Entries that move most when all learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lottery: Option<Lottery>,
}

impl Default for Sparse {
    fn default() -> Self {
        Sparse {
            at: "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}".into(),
            exclude: Globs::default(),
            random: None,
            lift: None,
            sara: None,
            lottery: None,
        }
    }
}

/// Which entries learn.
pub(crate) trait Rule {
    /// Refuses settings without a meaning; `at` is the rule's key.
    fn check(&self, at: &str) -> Result<()>;

    /// Masks of the variables as they stand; `None` while all of them learn.
    fn masks(&self, params: &[Param], seed: Seed) -> Result<Option<Vec<Mask>>>;

    /// What chooses again later.
    fn choice(&self) -> Option<Box<dyn Choice>> {
        None
    }

    fn rounds(&self) -> usize {
        1
    }
}

impl Sparse {
    fn rule(&self) -> Result<(&'static str, &dyn Rule)> {
        let random = self.random.as_ref().map(|r| ("random", r as &dyn Rule));
        let lift = self.lift.as_ref().map(|r| ("lift", r as &dyn Rule));
        let sara = self.sara.as_ref().map(|r| ("sara", r as &dyn Rule));
        let lottery = self.lottery.as_ref().map(|r| ("lottery", r as &dyn Rule));
        let named: Vec<_> = [random, lift, sara, lottery].into_iter().flatten().collect();
        match named.as_slice() {
            [one] => Ok(*one),
            several => {
                let what = format!("expected one rule that chooses entries, got {}", several.len());
                Err(Error::input(KEY, what).hint("name one: random, lift, sara or lottery"))
            }
        }
    }
}

impl Form for Sparse {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        let (name, rule) = self.rule()?;
        rule.check(&format!("{KEY}.{name}"))?;
        let model = policy.model.clone();
        let sites = self.at.sites(model.sites(), KEY, &self.exclude, weights::has_weight)?;
        let first = scope.params().len();
        let policy = weights::learn(policy, &sites, |_, var| var.rank() == 2, scope)?;
        if !scope.is_given() {
            let params = scope.params()[first..].to_vec();
            if let Some(masks) = rule.masks(&params, scope.seed("sparse"))? {
                for (param, mask) in params.iter().zip(masks) {
                    scope.mask(&param.name, mask)?;
                }
            }
        }
        Ok(policy)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        self.rule().ok()?.1.choice()
    }

    fn rounds(&self) -> usize {
        self.rule().map_or(1, |(_, rule)| rule.rounds())
    }
}

/// Refuses a share outside of 0 to 1.
pub(crate) fn check_density(at: &str, density: f64) -> Result<()> {
    if density > 0.0 && density <= 1.0 {
        return Ok(());
    }
    let what = format!("expected a share above 0 and up to 1, got {density}");
    Err(Error::input(format!("{at}.density"), what))
}

/// As many entries as `density` says.
pub(crate) fn share(params: &[Param], density: f64) -> usize {
    let all: usize = params.iter().map(|p| p.var.elem_count()).sum();
    (density * all as f64).round() as usize
}

/// The variables with their masks.
pub(crate) fn masked(params: &[Param], masks: Vec<Mask>) -> Result<Vec<Param>> {
    let whole = |p: &Param| Param::whole(&p.name, p.var.clone());
    params.iter().zip(masks).map(|(p, mask)| whole(p).masked(mask)).collect()
}
