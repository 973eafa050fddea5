//! The components of a site's inputs against PEFT's own EVA.

mod replay;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use luthier_core::StateDict;
use luthier_probe::{
    Components,
    components::{Allot, Found},
};
use replay::{Replay, batch};

fn numbers(state: &StateDict, key: &str) -> Vec<f32> {
    state.get(key).unwrap_or_else(|| panic!("{key}")).flatten_all().unwrap().to_vec1().unwrap()
}

/// Rank by rank to the largest ratios, as PEFT does: of equals the earlier site.
fn by_ratio(order: &[String], budget: usize) -> Box<Allot<'_>> {
    Box::new(move |ratios| {
        let mut all: Vec<(f64, &String)> = Vec::new();
        for site in order {
            all.extend(ratios[site].iter().map(|ratio| (*ratio, site)));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut ranks: BTreeMap<String, usize> = order.iter().map(|s| (s.clone(), 0)).collect();
        for (_, site) in all.iter().take(budget) {
            *ranks.get_mut(*site).expect("it is of the order") += 1;
        }
        ranks
    })
}

/// `tests/golden/eva.safetensors`: what went into every module of the pico llama, batch by batch, and
/// what `get_eva_state_dict` made of it, with exact decompositions and with PEFT's random ones.
#[test]
fn components_and_ranks_are_those_of_pefts_eva() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/eva.safetensors");
    let golden = StateDict::load(&path).unwrap();
    let modules: BTreeSet<&str> =
        golden.iter().filter_map(|(key, _)| key.strip_prefix("exact.4.rank.")).collect();
    assert_eq!(modules.len(), 14);
    let part = |key: String| golden.get(&key).unwrap_or_else(|| panic!("{key}"));
    let weights: Vec<Vec<f32>> = part("weights".into()).to_vec2().unwrap();
    // The order of the forward pass, which is that of named_modules().
    let place = |module: &str| -> (usize, usize) {
        let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let parts: Vec<&str> = module.split('.').collect();
        let last = names.iter().position(|n| Some(n) == parts.last()).unwrap();
        (parts[2].parse().unwrap(), last)
    };
    let mut order: Vec<String> = modules.iter().map(|m| m.to_string()).collect();
    order.sort_by_key(|module| place(module));
    let input = |module: &str| match module.rsplit_once('.').unwrap() {
        (before, "k_proj" | "v_proj") => format!("{before}.q_proj"),
        (before, "up_proj") => format!("{before}.gate_proj"),
        _ => module.to_string(),
    };
    let mut replay = Replay::default();
    for module in &order {
        let rows = |k: usize| part(format!("input.{k}.{}", input(module))).clone();
        replay.add(module, place(module).0, (0..weights.len()).map(rows).collect());
    }
    let batches: Vec<_> = weights.iter().enumerate().map(|(k, w)| batch(k as u32, w)).collect();
    for (r, rho) in [(4usize, 2usize), (3, 1)] {
        let sites: BTreeMap<String, usize> = order.iter().map(|s| (s.clone(), r * rho)).collect();
        let settings = Components { svd_batches_max: 400, ..Components::default() };
        let allot = by_ratio(&order, r * order.len());
        let found: Found = settings.find(&replay.policy(), &batches, &sites, &*allot).unwrap();
        assert!(found.unconverged.is_empty());
        assert_eq!(found.groups.len(), 8);
        let scalar = |key: String| part(key).to_vec1::<f32>().unwrap()[0] as usize;
        assert_eq!(found.batches, scalar(format!("exact.{r}.batches")));
        for kind in ["exact", "random"] {
            for module in &order {
                let rank = scalar(format!("{kind}.{r}.rank.{module}"));
                if kind == "exact" {
                    // In a group PEFT lets the first have the most; the sum is the same.
                    let group = found.groups.iter().find(|g| g.contains(module)).unwrap();
                    let sum =
                        |rank: &dyn Fn(&String) -> usize| group.iter().map(rank).sum::<usize>();
                    assert_eq!(
                        sum(&|s| found.ranks[s]),
                        sum(&|s| scalar(format!("exact.{r}.rank.{s}"))),
                        "{module}"
                    );
                }
                if rank == 0 {
                    continue;
                }
                let want = numbers(&golden, &format!("{kind}.{r}.components.{module}"));
                let d = want.len() / rank;
                let got = numbers(&found.state, &format!("{module}.components"));
                for j in 0..rank {
                    let (got, want) = (&got[j * d..(j + 1) * d], &want[j * d..(j + 1) * d]);
                    let cosine: f32 = got.iter().zip(want).map(|(a, b)| a * b).sum();
                    let within = if kind == "exact" { 1e-5 } else { 0.05 };
                    assert!((cosine - 1.0).abs() < within, "{kind} {r} {module} {j}: {cosine}");
                }
            }
        }
    }
}
