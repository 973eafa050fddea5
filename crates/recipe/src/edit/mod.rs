//! Editing what a model says, by networks that turn a gradient into a good edit (MEND; Mitchell et al.
//! 2022, paper 38).
//!
//! The loss of what shall be said gives every edited matrix the factors of its gradient, inputs `x_t` and
//! output gradients `δ_t` ([`factors`]). Both are normalised by running means and deviations, and go side
//! by side, `z = [x̃; δ̃]`, through two layers `z ← z + relu(s ∘ (U V z + b) + o)`; then
//! `W ← W − α Σ_t δ̂_t x̂_tᵀ`. `U` begins at 0, so at first an edit is a step along the normalised
//! gradient. Maps of one shape share `U`, `V`, `b` and the statistics and have their own `s`, `o`, `α`.
//!
//! The editor is trained with the model as it is: one episode edits, then minimises
//! `cedit · NLL(rephrase) + cloc · KL(before ‖ after)`, through the edit into the networks, not through
//! the factors. Edits of several facts in one go concatenate their tokens; a further edit starts from the
//! edited model.
//!
//! **Departures**: (1) the published code adds the edit and lets α find its sign, here it is subtracted,
//! so that it begins downhill; (2) α learns by `lr_lr` alone, where the published code clears its
//! gradient before that step; (3) factors always go through one network together and two layers.

mod editor;
mod factors;
mod facts;
mod learn;

use std::sync::Arc;

use luthier_core::{Error, Model, Policy, Result, Row, SiteInfo};
use luthier_kernels::threads;
use serde::{Deserialize, Serialize};

pub use editor::{CONFIG, Edited, Editor, WEIGHTS};
pub use factors::{Factors, factors};
pub use facts::{Facts, Training, rows};
pub use learn::{Episode, Judged, Learner};

/// How an editor is made and trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mend {
    /// The matrices to edit, as a glob; without it the MLPs' of the last three blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Rank of `U` and `V`, at most the width of what they work on.
    pub rank: usize,
    /// Whether factors are normalised.
    pub norm: bool,
    /// Where α begins.
    pub edit_lr: f64,
    /// Learning rate of the networks.
    pub lr: f64,
    /// Learning rate of α.
    pub lr_lr: f64,
    /// Weight of what shall be said in other words.
    pub cedit: f64,
    /// Weight of what shall stay.
    pub cloc: f64,
    /// Episodes of a step.
    pub accumulate_bs: usize,
    /// Of the networks' first numbers.
    pub seed: u64,
}

impl Default for Mend {
    fn default() -> Self {
        Mend {
            at: None,
            rank: 1920,
            norm: true,
            edit_lr: 1e-4,
            lr: 1e-6,
            lr_lr: 1e-4,
            cedit: 0.1,
            cloc: 1.0,
            accumulate_bs: 10,
            seed: 0,
        }
    }
}

impl Mend {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        for (key, n) in [("rank", self.rank), ("accumulate_bs", self.accumulate_bs)] {
            if n == 0 {
                return Err(Error::input(format!("edit.{key}"), "expected at least 1, got 0"));
            }
        }
        for (key, x) in
            [("lr", self.lr), ("lr_lr", self.lr_lr), ("cedit", self.cedit), ("cloc", self.cloc)]
        {
            if !x.is_finite() || x < 0.0 {
                let what = format!("expected a number of at least 0, got {x}");
                return Err(Error::input(format!("edit.{key}"), what));
            }
        }
        if !self.edit_lr.is_finite() {
            let what = format!("expected a finite number, got {}", self.edit_lr);
            return Err(Error::input("edit.edit_lr", what));
        }
        Ok(())
    }

    /// The maps to edit.
    pub fn sites<'m>(&self, model: &'m dyn Model) -> Result<Vec<&'m SiteInfo>> {
        let lowest = model.n_layers().saturating_sub(3);
        let late = |site: &SiteInfo| site.layer.is_some_and(|layer| layer >= lowest);
        let (glob, chosen) = match &self.at {
            Some(glob) => (glob.as_str(), true),
            None => ("layers.*.mlp.{gate,up,down}", false),
        };
        let linear = |site: &SiteInfo| site.linear().is_some() && (chosen || late(site));
        let sites = model.sites().find("edit.at", glob, linear)?;
        // A tied head is the embedding, which an edit must leave alone.
        match sites.iter().find(|site| site.layer.is_none()) {
            None => Ok(sites),
            Some(site) => Err(Error::input("edit.at", format!("names {}", site.name))
                .hint("only maps inside of blocks can be edited")),
        }
    }
}

/// The policy after one edit, by a trained editor, of everything that `rows` say: the loss before, and
/// the policy with the edit bound. It folds into the weights.
pub fn edit(policy: &Policy, editor: &Editor, rows: &[Row]) -> Result<(f64, Policy)> {
    threads::together(|| {
        let sites = editor.mend.sites(policy.model.as_ref())?;
        let (before, found) = factors(policy, &sites, rows)?;
        let mut edited = policy.clone();
        for (site, pending) in editor.pending(&found)? {
            edited.hooks.bind(site, Arc::new(pending.made()?));
        }
        Ok((before, edited))
    })
}

#[cfg(test)]
mod tests;
