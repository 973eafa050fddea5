//! The directions in which the inputs of linear sites vary: EVA (Paischer et al. 2024), its probe.
//!
//! Per distinct input an [`Incremental`] principal component analysis, batch after batch, until the
//! components that the present allotment of ranks asks of it are converged: cosine between a
//! component and itself one batch earlier `≥ tau`. Sites with the same input share one analysis.
//! How the ratios of explained variance become ranks is the caller's business (a closure).
//!
//! **Departures** from the published code: (1) exact decompositions instead of randomised ones;
//! (2) with `use_label_mask`, a row counts when a prediction is trained *at* it: PEFT reads labels
//! before they are shifted, so its rows lie one token later; (3) the number of batches is limited:
//! two components that are nearly equal may change places for ever.

mod incremental;
mod inputs;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor};
use luthier_core::{Batch, Ctx, Error, Hooks, Policy, Result, SiteId, SiteMap, StateDict};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use incremental::Incremental;
use inputs::{Digests, Inputs};

/// Numbers of inputs that wait before they are worked off together, a gigabyte's quarter of f32.
const HELD: usize = 1 << 26;

/// Which rows are looked at and when the looking ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Components {
    /// Cosine with its former self at which a component has converged.
    pub tau: f64,
    /// Around the mean; without, the plain singular vectors of the rows.
    pub center: bool,
    /// Only tokens at which a prediction is trained; else all of them.
    pub use_label_mask: bool,
    /// Batches after which it ends in any case.
    pub svd_batches_max: usize,
}

impl Default for Components {
    fn default() -> Self {
        Components { tau: 0.99, center: true, use_label_mask: true, svd_batches_max: 64 }
    }
}

/// Ranks by site from the explained variance ratios by site, largest first.
pub type Allot<'a> = dyn Fn(&BTreeMap<String, Vec<f64>>) -> BTreeMap<String, usize> + 'a;

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Per site `SITE.components` (n, in), rows orthonormal, `SITE.ratio` (n,) and
    /// `SITE.singular_values` (n,).
    pub state: StateDict,
    /// The ranks that the last allotment gave.
    pub ranks: BTreeMap<String, usize>,
    /// Sites that share an input, in forward order; a site of its own is a group of one.
    pub groups: Vec<Vec<String>>,
    /// Batches read.
    pub batches: usize,
    /// Groups, by their first site, that the limit on batches left unconverged.
    pub unconverged: Vec<String>,
}

/// Sites with one input.
struct Group {
    sites: Vec<String>,
    /// The one whose input is watched.
    watched: SiteId,
    analysis: Incremental,
    done: bool,
}

impl Components {
    /// Analyses the inputs of the linear sites in `wanted`, so many components each, over `batches`,
    /// which are read again and again.
    pub fn find(
        &self,
        policy: &Policy,
        batches: &[Batch],
        wanted: &BTreeMap<String, usize>,
        allot: &Allot,
    ) -> Result<Found> {
        self.check()?;
        let sites = self.sites(policy.model.sites(), wanted)?;
        let mut groups = self.groups(policy, batches, &sites)?;
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        let mut read = 0;
        while groups.iter().any(|g| !g.done) && read < self.svd_batches_max {
            self.read(policy, &batches[read % batches.len()], &mut groups)?;
            read += 1;
            if groups.iter().all(|g| g.analysis.begun()) {
                ranks = allot(&ratios(&groups));
            } else if read == batches.len().min(self.svd_batches_max) {
                let most = groups.iter().map(|g| g.analysis.keep()).max().unwrap_or(0);
                let what = format!("no batch has the {most} rows that as many components need");
                return Err(Error::input("batches", what).hint(match self.use_label_mask {
                    true => "make batches larger, or use_label_mask = false",
                    false => "make batches larger",
                }));
            }
            for group in &mut groups {
                // Before the first allotment all of them are asked for.
                let asked = match ranks.is_empty() {
                    true => group.analysis.keep(),
                    false => {
                        group.sites.iter().filter_map(|s| ranks.get(s)).copied().max().unwrap_or(0)
                    }
                };
                group.done = group.analysis.converged(asked, self.tau);
            }
        }
        let unconverged = groups.iter().filter(|g| !g.done).map(|g| g.sites[0].clone()).collect();
        let state = state(&groups)?;
        let groups = groups.into_iter().map(|g| g.sites).collect();
        Ok(Found { state, ranks, groups, batches: read, unconverged })
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.tau) {
            let what = format!("expected a cosine from 0 to 1, got {}", self.tau);
            return Err(Error::input("tau", what));
        }
        match self.svd_batches_max {
            // A component needs a former self to be compared with.
            0 | 1 => Err(Error::input("svd_batches_max", "expected at least 2 batches")),
            _ => Ok(()),
        }
    }

    /// The wanted sites in forward order.
    fn sites(
        &self,
        sites: &SiteMap,
        wanted: &BTreeMap<String, usize>,
    ) -> Result<Vec<(SiteId, usize, usize)>> {
        let mut found = Vec::with_capacity(wanted.len());
        for (name, keep) in wanted {
            let site = sites.get(name).ok_or_else(|| {
                let near =
                    luthier_core::nearest::suggest(name, sites.iter().map(|s| s.name.as_str()));
                Error::input(name, "this model has no such site").hint(near)
            })?;
            let (Some((i, _)), Some(_)) = (site.linear(), site.layer) else {
                return Err(Error::input(name, "is no linear map inside a block"));
            };
            if *keep == 0 || *keep > i {
                let what = format!("expected 1 to {i} components, got {keep}");
                return Err(Error::input(name, what));
            }
            found.push((site.id, i, *keep));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The tokens whose rows count; `None` for all of them.
    fn rows(&self, batch: &Batch) -> Result<Option<Tensor>> {
        let trained = batch.trained_m();
        if !self.use_label_mask || trained.len() == batch.n() {
            return Ok(None);
        }
        let m = trained.len();
        Ok(Some(Tensor::from_vec(trained, m, &Device::Cpu)?))
    }

    fn counted(&self, batch: &Batch) -> usize {
        if self.use_label_mask { batch.trained_m().len() } else { batch.n() }
    }

    /// Which sites share an input, by the first batch that has any row.
    fn groups(
        &self,
        policy: &Policy,
        batches: &[Batch],
        sites: &[(SiteId, usize, usize)],
    ) -> Result<Vec<Group>> {
        let Some(batch) = batches.iter().find(|b| self.counted(b) > 0) else {
            return Err(Error::input("batches", "hold no row to look at"));
        };
        let digests = Arc::new(Digests::new(self.rows(batch)?));
        let mut hooks = Hooks::none();
        sites.iter().for_each(|(site, ..)| hooks.bind(*site, digests.clone()));
        forward(policy, batch, hooks, |_| Ok(()))?;
        let digests = digests.take();

        let mut groups: Vec<Group> = Vec::new();
        let mut known: BTreeMap<(usize, [u64; 2]), usize> = BTreeMap::new();
        for (site, i, keep) in sites {
            let name = policy.model.sites().info(*site).name.clone();
            let digest = digests
                .get(site)
                .copied()
                .ok_or_else(|| Error::failed(&name, "was not reached by the forward pass"))?;
            let at = *known.entry((*i, digest)).or_insert(groups.len());
            match groups.get_mut(at) {
                Some(group) => {
                    group.analysis.keep_at_least(*keep);
                    group.sites.push(name);
                }
                None => groups.push(Group {
                    sites: vec![name],
                    watched: *site,
                    analysis: Incremental::new(*i, *keep, self.center),
                    done: false,
                }),
            }
        }
        Ok(groups)
    }

    /// One batch, for the groups that are not done.
    fn read(&self, policy: &Policy, batch: &Batch, groups: &mut [Group]) -> Result<()> {
        if self.counted(batch) == 0 {
            return Ok(());
        }
        let inputs = Arc::new(Inputs::new(self.rows(batch)?));
        let mut hooks = Hooks::none();
        for group in groups.iter().filter(|g| !g.done) {
            hooks.bind(group.watched, inputs.clone());
        }
        forward(policy, batch, hooks, |last| match last || inputs.numbers() > HELD {
            true => work_off(groups, inputs.take()),
            false => Ok(()),
        })
    }
}

/// The blocks up to the last hook; `after_block` hears whether it was the last.
fn forward(
    policy: &Policy,
    batch: &Batch,
    watching: Hooks,
    mut after_block: impl FnMut(bool) -> Result<()>,
) -> Result<()> {
    let model = policy.model.as_ref();
    let layers = watching.sites().filter_map(|site| model.sites().info(site).layer);
    let last = layers.max().unwrap_or(0);
    let hooks = policy.hooks.clone().and(&watching);
    let mut ctx = Ctx::new(&hooks, batch.rows.clone(), &batch.ids_n);
    let mut h_nd = model.embed(&batch.ids_n, &mut ctx)?.detach();
    for layer in 0..=last {
        h_nd = model.forward(layer, h_nd, &mut ctx)?;
        after_block(layer == last)?;
    }
    Ok(())
}

/// Several groups at a time, each on one thread.
fn work_off(groups: &mut [Group], mut inputs: BTreeMap<SiteId, Tensor>) -> Result<()> {
    let waiting: Vec<(&mut Group, Tensor)> = groups
        .iter_mut()
        .filter_map(|group| inputs.remove(&group.watched).map(|x_mi| (group, x_mi)))
        .collect();
    waiting.into_par_iter().try_for_each(|(group, x_mi)| {
        let rows: Vec<f32> = x_mi.flatten_all()?.to_vec1()?;
        group.analysis.add(&group.sites[0], &rows).map(|_| ())
    })
}

fn ratios(groups: &[Group]) -> BTreeMap<String, Vec<f64>> {
    let all = groups.iter().flat_map(|g| {
        let ratio = g.analysis.ratio();
        g.sites.iter().map(move |site| (site.clone(), ratio.clone()))
    });
    all.collect()
}

fn state(groups: &[Group]) -> Result<StateDict> {
    let mut state = StateDict::default();
    let vector = |values: &[f64]| -> Result<Tensor> {
        let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        let n = values.len();
        Ok(Tensor::from_vec(values, n, &Device::Cpu)?)
    };
    for group in groups {
        let found = &group.analysis;
        let components = vector(&found.components())?.reshape((found.keep(), found.width()))?;
        let (ratio, sigma) = (vector(&found.ratio())?, vector(found.singular_values())?);
        for site in &group.sites {
            state.insert(format!("{site}.components"), components.clone());
            state.insert(format!("{site}.ratio"), ratio.clone());
            state.insert(format!("{site}.singular_values"), sigma.clone());
        }
    }
    Ok(state)
}
