use std::sync::Arc;
use std::time::Instant;
use luthier_core::*;
use luthier_model::*;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let rows: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let len: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let keep = std::env::args().nth(4).unwrap() == "keep";
    let trained: usize = std::env::args().nth(5).unwrap().parse().unwrap();
    let t = Instant::now();
    let source = Source::open(std::path::Path::new(&path)).unwrap();
    let model: Arc<dyn Model> = Arc::new(Decoder::load(&source, |_, _| ()).unwrap());
    eprintln!("load {:?} rss {:?}", t.elapsed(), luthier_train::log::rss());
    let params = luthier_params::Params::default();
    let bound = params.bind(&model, Seed(1)).unwrap();
    eprintln!("vars {}", bound.vars.iter().map(|(_, v)| v.elem_count()).sum::<usize>());
    let mut rng = Seed(2).rng();
    let rows: Vec<Row> = (0..rows).map(|_| { let toks: Vec<u32> = (0..=len).map(|_| rng.below(49000) as u32).collect();
        let w: Vec<f32> = (0..=len).map(|i| if i > len - trained { 1.0 } else { 0.0 }).collect(); Row::from_tokens(&toks, &w, 0) }).collect();
    let batch = Batch::from_rows(&rows);
    let obj = luthier_loss::Loss::default();
    for _ in 0..3 {
        let t = Instant::now();
        let mut g = Default::default();
        let s = luthier_train::forward_backward(&bound.policy, &bound.vars, obj.objective().unwrap(), &batch, keep, None, 1.0, &mut g).unwrap();
        let e = t.elapsed().as_secs_f64();
        eprintln!("sum {} in {e:.3}s = {:.0} tok/s rss {:?}", s.sum, batch.n() as f64 / e, luthier_train::log::rss());
    }
}
