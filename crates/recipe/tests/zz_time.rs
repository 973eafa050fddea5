use std::{collections::BTreeMap, time::Instant};
use luthier_core::{Batch, Row};
use luthier_probe::Components;
#[test]
fn time() {
    let opened = luthier_recipe::open("/tmp/pb/base", luthier_recipe::Precision::Auto).unwrap();
    let mut text = String::new();
    for e in std::fs::read_dir("/work/shared/papers").unwrap() {
        text += &std::fs::read_to_string(e.unwrap().path()).unwrap();
    }
    let ids = opened.tokenizer.encode(&text).unwrap();
    let env = |k: &str, d: usize| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let (rows, len) = (env("ROWS", 4), env("LEN", 128));
    let rowsv: Vec<Row> = ids.chunks_exact(len + 1).map(|c| Row::from_tokens(c, &vec![1.0; len + 1], 0)).collect();
    let batches: Vec<Batch> = rowsv.chunks_exact(rows).map(Batch::from_rows).take(64).collect();
    let r = env("R", 8);
    let mut wanted = BTreeMap::new();
    let mut order = Vec::new();
    for s in opened.model.sites().iter().filter(|s| s.linear().is_some() && s.layer.is_some()) {
        wanted.insert(s.name.clone(), 2 * r);
        order.push(s.name.clone());
    }
    let begun = Instant::now();
    let allot = |ratios: &BTreeMap<String, Vec<f64>>| {
        let mut all: Vec<(f64, &String)> = order.iter().flat_map(|s| ratios[s].iter().map(move |x| (*x, s))).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut ranks: BTreeMap<String, usize> = order.iter().map(|s| (s.clone(), 0)).collect();
        for (_, s) in all.iter().take(r * order.len()) { *ranks.get_mut(*s).unwrap() += 1; }
        eprintln!("allot at {:.1} s", begun.elapsed().as_secs_f64());
        ranks
    };
    let settings = Components { svd_batches_max: env("MAX", 8), ..Components::default() };
    let policy = luthier_core::Policy::plain(opened.model.clone());
    let found = settings.find(&policy, &batches, &wanted, &allot).unwrap();
    eprintln!("batches {} of {}, unconverged {}, groups {}, {:.1} s", found.batches, batches.len(), found.unconverged.len(), found.groups.len(), begun.elapsed().as_secs_f64());
}
