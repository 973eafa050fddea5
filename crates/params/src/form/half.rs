//! HFT (Hui et al. 2025, paper 28): half of the tensors learn, another half in every round.
//!
//! Unit is a whole tensor. In every block 2 of the 4 attention matrices, 1 of the 2 norms, and of the
//! 3 feed-forward matrices 2 in a random half of the blocks and 1 in the others; embedding, final
//! norm and head always learn. What rests gets no gradient and no optimizer state; activation
//! gradients pass through it. **Departures**: (1) norms beyond the two of a block (of queries and
//! keys) are drawn with them.

use luthier_core::{Error, Param, Policy, Result, Seed, SiteInfo, SiteKind, SiteMap};
use serde::{Deserialize, Serialize};

use super::{tokens, weights};
use crate::{Choice, Chosen, Form, Globs, Handover, Moment, Scope};

const KEY: &str = "train.params.half";

/// Draws among which the one nearest to the share of parameters is taken.
const DRAWS: u64 = 2000;

/// `[train.params.half]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Half {
    /// Share of the tensors of the blocks that learn.
    pub ratio: f64,
    /// What is drawn from.
    pub granularity: Granularity,
    /// Whether every round draws anew.
    pub redraw: Redraw,
    /// What the share is a share of.
    pub balance: Balance,
    /// Whether the embedding learns.
    pub train_embeddings: bool,
    /// Whether an output head of its own learns.
    pub train_head: bool,
    /// Whether the last norm learns.
    pub train_final_norm: bool,
}

/// What is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Attention, feed-forward and norms of every block by themselves.
    #[default]
    Category,
    /// Whole blocks.
    Layer,
    /// All tensors of all blocks.
    Model,
}

/// When the draw is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redraw {
    /// At the start of every round.
    #[default]
    PerStage,
    /// Once.
    Never,
}

/// What the share is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Tensors.
    #[default]
    Count,
    /// Numbers, within 1 % where a draw allows it.
    Params,
}

impl Default for Half {
    fn default() -> Self {
        Half {
            ratio: 0.5,
            granularity: Granularity::Category,
            redraw: Redraw::PerStage,
            balance: Balance::Count,
            train_embeddings: true,
            train_head: true,
            train_final_norm: true,
        }
    }
}

fn size(site: &SiteInfo) -> usize {
    match site.kind {
        SiteKind::Linear { i, o, .. } => i * o,
        SiteKind::Norm { d } => d,
        SiteKind::Embed { v, d } => v * d,
        SiteKind::Activation { .. } => 0,
    }
}

/// 0 attention, 1 feed-forward, 2 norms.
fn category(site: &SiteInfo) -> usize {
    match site.kind {
        SiteKind::Norm { .. } => 2,
        _ if site.name.contains(".attn.") => 0,
        _ => 1,
    }
}

impl Half {
    fn always(&self, site: &SiteInfo) -> bool {
        match site.name.as_str() {
            "embed" => self.train_embeddings,
            "logits" => self.train_head,
            _ => self.train_final_norm,
        }
    }

    /// Names of the sites that learn: those drawn in the blocks, and those that always do.
    pub fn draw(&self, sites: &SiteMap, seed: Seed) -> Vec<String> {
        let weighted: Vec<&SiteInfo> = sites.iter().filter(|s| weights::has_weight(s)).collect();
        let (blocks, rest): (Vec<&SiteInfo>, Vec<&SiteInfo>) =
            weighted.into_iter().partition(|s| s.layer.is_some());
        let total: usize = blocks.iter().map(|s| size(s)).sum();
        let off = |drawn: &[&SiteInfo]| {
            let share = drawn.iter().map(|s| size(s)).sum::<usize>() as f64 / total as f64;
            (share - self.ratio).abs()
        };
        let mut drawn = self.once(&blocks, seed);
        if self.balance == Balance::Params {
            for i in 1..DRAWS {
                if off(&drawn) <= 0.01 {
                    break;
                }
                let other = self.once(&blocks, seed.at(i));
                if off(&other) < off(&drawn) {
                    drawn = other;
                }
            }
        }
        drawn.extend(rest.into_iter().filter(|s| self.always(s)));
        drawn.sort_by_key(|s| s.id);
        drawn.into_iter().map(|s| s.name.clone()).collect()
    }

    fn once<'s>(&self, blocks: &[&'s SiteInfo], seed: Seed) -> Vec<&'s SiteInfo> {
        let mut rng = seed.rng();
        let layers = blocks.iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1);
        match self.granularity {
            Granularity::Model => {
                let mut all = blocks.to_vec();
                rng.shuffle(&mut all);
                let total: usize = all.iter().map(|s| size(s)).sum();
                let (mut left, wanted) = (0, self.ratio * total as f64);
                all.retain(|s| {
                    let take = (left as f64) < wanted;
                    left += if take { size(s) } else { 0 };
                    take
                });
                all
            }
            Granularity::Layer => {
                let mut order: Vec<usize> = (0..layers).collect();
                rng.shuffle(&mut order);
                order.truncate((self.ratio * layers as f64).round() as usize);
                blocks
                    .iter()
                    .copied()
                    .filter(|s| s.layer.is_some_and(|l| order.contains(&l)))
                    .collect()
            }
            Granularity::Category => {
                let mut drawn = Vec::new();
                for kind in 0..3 {
                    // Blocks in random order: the first of them round up, the others down.
                    let mut order: Vec<usize> = (0..layers).collect();
                    rng.shuffle(&mut order);
                    for (place, layer) in order.into_iter().enumerate() {
                        let of = |s: &&&SiteInfo| s.layer == Some(layer) && category(s) == kind;
                        let mut members: Vec<&SiteInfo> =
                            blocks.iter().filter(of).copied().collect();
                        let wanted = self.ratio * members.len() as f64;
                        let up = (wanted.fract() * layers as f64).round() as usize;
                        rng.shuffle(&mut members);
                        members.truncate(wanted.floor() as usize + usize::from(place < up));
                        drawn.extend(members);
                    }
                }
                drawn
            }
        }
    }
}

impl Form for Half {
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy> {
        if !(0.0..=1.0).contains(&self.ratio) {
            let what = format!("expected a share from 0 to 1, got {}", self.ratio);
            return Err(Error::input(format!("{KEY}.ratio"), what));
        }
        let model = policy.model.clone();
        let all: Globs = "**".into();
        // A tied head is the embedding: what keeps the one keeps the other.
        let keeps_table = !self.train_embeddings && tokens::tied(model.as_ref())?;
        let may = |s: &SiteInfo| {
            let kept = keeps_table && s.name == "logits";
            weights::has_weight(s) && !kept && (s.layer.is_some() || self.always(s))
        };
        let sites = all.sites(model.sites(), KEY, &Globs::default(), may)?;
        weights::learn(policy, &sites, |_, _| true, scope)
    }

    fn choice(&self) -> Option<Box<dyn Choice>> {
        Some(Box::new(Draw(self.clone())))
    }
}

/// Draws at the start of a round.
struct Draw(Half);

impl Choice for Draw {
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>> {
        if now.step > 0 || (now.round > 0 && self.0.redraw == Redraw::Never) {
            return Ok(None);
        }
        let sites = now.all.policy.model.sites();
        let drawn = self.0.draw(sites, now.seed.split("half").at(now.round as u64));
        let learns = |p: &&Param| {
            let site = p.name.rsplit_once('.').and_then(|(module, _)| sites.by_module(module));
            site.is_some_and(|s| drawn.contains(&s.name))
        };
        let params: Vec<Param> = now.own.iter().filter(learns).cloned().collect();
        if params.is_empty() {
            return Err(Error::input(format!("{KEY}.ratio"), "leaves nothing to learn"));
        }
        let count = |params: &[Param]| params.iter().map(Param::count).sum::<usize>();
        let share = 100.0 * count(&params) as f64 / count(now.own) as f64;
        let note = format!("round {}: {share:.1} % of the numbers learn", now.round + 1);
        Ok(Some(Chosen { params, handover: Handover::Fresh, note }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama's sites: `heads` and `kv` give the widths of q and k.
    fn llama(layers: usize, d: usize, kv: usize, f: usize) -> SiteMap {
        let mut map = SiteMap::default();
        map.add("embed", SiteKind::Embed { v: 10, d }, None, None);
        for l in 0..layers {
            let mut add =
                |part: &str, kind| map.add(format!("layers.{l}.{part}"), kind, Some(l), None);
            add("attn_norm", SiteKind::Norm { d });
            let linear = |i, o| SiteKind::Linear { i, o, bias: false };
            for (part, i, o) in [("q", d, d), ("k", d, kv), ("v", d, kv), ("o", d, d)] {
                add(&format!("attn.{part}"), linear(i, o));
            }
            add("mlp_norm", SiteKind::Norm { d });
            for (part, i, o) in [("gate", d, f), ("up", d, f), ("down", f, d)] {
                add(&format!("mlp.{part}"), linear(i, o));
            }
        }
        map.add("final_norm", SiteKind::Norm { d }, None, None);
        map
    }

    fn in_blocks(map: &SiteMap, drawn: &[String]) -> usize {
        let sites = drawn.iter().filter_map(|name| map.get(name));
        sites.filter(|s| s.layer.is_some()).map(size).sum()
    }

    #[test]
    fn of_llama_2_exactly_half_of_the_blocks_learns() {
        let map = llama(32, 4096, 4096, 11008);
        let all: Vec<String> = map.iter().map(|s| s.name.clone()).collect();
        assert_eq!(in_blocks(&map, &all), 6_476_267_520);
        for seed in 0..5 {
            let drawn = Half::default().draw(&map, Seed(seed));
            assert_eq!(in_blocks(&map, &drawn), 3_238_133_760);
            let two = |l: usize| {
                let prefix = format!("layers.{l}.mlp.");
                drawn.iter().filter(|n| n.starts_with(&prefix)).count() == 2
            };
            assert_eq!((0..32).filter(|l| two(*l)).count(), 16);
            assert!(
                drawn.contains(&"embed".to_string()) && drawn.contains(&"final_norm".to_string())
            );
        }
    }

    #[test]
    fn shares_granularities_and_rounds() {
        let map = llama(30, 576, 192, 1536);
        let total = 30 * 3_540_096;
        let share =
            |half: &Half, seed| in_blocks(&map, &half.draw(&map, Seed(seed))) as f64 / total as f64;
        let params = Half { balance: Balance::Params, ..Half::default() };
        assert!((share(&params, 1) - 0.5).abs() <= 0.01);
        for granularity in [Granularity::Layer, Granularity::Model] {
            let half = Half { granularity, ..Half::default() };
            assert!((share(&half, 1) - 0.5).abs() < 0.02, "{granularity:?}");
        }
        let whole = Half { ratio: 1.0, ..Half::default() };
        assert_eq!(share(&whole, 1), 1.0);
        let none = Half { ratio: 0.0, train_embeddings: false, train_final_norm: false, ..whole };
        assert!(none.draw(&map, Seed(1)).is_empty());
        // A tensor is left out of three draws in one case of eight.
        let never = |seed: u64| {
            let drawn = |round| Half::default().draw(&map, Seed(seed).at(round));
            !(0..3).any(|round| drawn(round).iter().any(|name| name == "layers.7.attn.k"))
        };
        let times = (0..400).filter(|seed| never(*seed)).count();
        assert!((30..75).contains(&times), "{times} of 400");
    }
}
