//! The hand-made gradient against candle's, and an error that follows from the one before it.

use std::collections::BTreeMap;

use candle_core::Device;
use luthier_core::{Row, Seed, model::Piece};
use luthier_loss::copilot::distance;
use luthier_testkit::random;

use super::*;

const SIZES: Sizes = Sizes { layers: 4, width: 12, heads: 3, vocab: 7, pilot_width: 5 };

/// A copilot whose head is not 0, so that every variable has a gradient.
fn net(sizes: Sizes) -> Net {
    let net = Net::new(sizes, Seed(1)).unwrap();
    let head = net.params().into_iter().find(|p| p.name == HEAD).unwrap();
    head.var.set(&(random((sizes.vocab, sizes.width), 1.0, Seed(2)) * 0.3).unwrap()).unwrap();
    net
}

fn learner<'a>(net: &'a Net, learning_rate: f64) -> Learner<'a> {
    let adamw = AdamW { learning_rate, ..AdamW::default() };
    let update = Update { adamw: Some(adamw), ..Update::default() };
    Learner::new(&Copilot { lr_ratio: 1.0, eps: 1e-8, ..Copilot::default() }, net, &update, "base")
        .unwrap()
}

#[test]
fn what_is_pulled_back_by_hand_is_the_gradient_of_the_formula() {
    // More places than a piece holds, with a gap between two turns.
    let n = PIECE + 9;
    let at: Vec<u32> = (2..n as u32).filter(|t| !(40..44).contains(t)).collect();
    let net = net(SIZES);
    let pooled = [random((n, 5), 1.0, Seed(3)), random((n, 5), 1.0, Seed(4))];
    let logits = random((at.len(), 7), 1.0, Seed(5));
    let targets: Vec<u32> = at.iter().map(|t| t % 7).collect();
    let errors_mv = errors(&logits, &targets).unwrap();

    let mut learner = learner(&net, 1e-3);
    let by_hand = learner.row(&pooled, &at, &errors_mv).unwrap();
    let aligned = net.align(&pooled).unwrap();
    let hidden = net.hidden(&net.read(&errors_mv).unwrap(), &aligned, &at).unwrap();
    let naive = distance(&net.correct(&hidden).unwrap(), &errors_mv).unwrap();
    let value = f64::from(naive.to_scalar::<f32>().unwrap());
    assert!((by_hand - value).abs() < 1e-5 * value, "{by_hand} {value}");
    let store = naive.backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for Param { name, var, .. } in net.params() {
        let (got, want) = (flat(learner.sums.get(&name).unwrap()), flat(store.get(&var).unwrap()));
        let size = want.iter().map(|x| x * x).sum::<f32>().sqrt();
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(size > 0.0 && apart < 1e-4 * size, "{name}: {apart} of {size}");
    }
}

/// A pilot that finds all tokens equally likely.
struct Even(usize);

impl Logits for Even {
    fn logp(&mut self, _: &[u32], _: &[u32]) -> Result<Tensor> {
        Err(Error::failed("test", "no copilot asks for it"))
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        Ok(Tensor::zeros((index_m.len(), self.0), DType::F32, &Device::Cpu)?)
    }

    fn hidden(&mut self, _: &[u32]) -> Result<Tensor> {
        Err(Error::failed("test", "no copilot asks for it"))
    }

    fn sum(&mut self, _: usize, _: &mut Piece) -> Result<Tensor> {
        Err(Error::failed("test", "no copilot asks for it"))
    }
}

/// Targets of which every second follows from the one before it alone, and the others from nothing.
fn rows(seed: Seed) -> Batch {
    let mut rng = seed.rng();
    let mut row = |_| {
        let mut tokens = vec![0, 0];
        for _ in 0..5 {
            let drawn = rng.below(7);
            tokens.extend([drawn as u32, ((3 * drawn + 2) % 7) as u32]);
        }
        let weights: Vec<f32> = (0..tokens.len()).map(|i| f32::from(u8::from(i > 1))).collect();
        Row::from_tokens(&tokens, &weights, 0)
    };
    let rows: Vec<Row> = (0..8).map(&mut row).collect();
    Batch::from_rows(&rows)
}

fn show(learner: &mut Learner, batch: &Batch, seed: Seed) -> BTreeMap<&'static str, f64> {
    for stream in 0..3 {
        learner.stream(&random((batch.n(), 5), 1.0, seed.at(stream))).unwrap();
    }
    learner.end(batch, &mut Even(7)).unwrap();
    learner.step().unwrap().into_iter().collect()
}

#[test]
fn an_error_that_follows_from_the_one_before_is_learned_and_no_other() {
    let net = Net::new(SIZES, Seed(1)).unwrap();
    let mut learner = learner(&net, 1e-2);
    learner.begin(300, None).unwrap();
    let (mut first, mut last) = (BTreeMap::new(), BTreeMap::new());
    for step in 0..300 {
        let seed = Seed(11).at(step);
        last = show(&mut learner, &rows(seed.split("rows")), seed);
        if step == 0 {
            first = last.clone();
        }
    }
    // A copilot that has learned nothing corrects nothing: √(6/7) away, as the pilot is.
    let even = (6f64 / 7.0).sqrt();
    assert!(
        (first["copilot_loss"] - even).abs() < 1e-5 && (first["pilot_error"] - even).abs() < 1e-5
    );
    assert!(last["copilot_loss"] < 0.8 * even, "{last:?}");

    let batch = rows(Seed(99));
    let pooled = [random((batch.n(), 5), 1.0, Seed(7)), random((batch.n(), 5), 1.0, Seed(8))];
    let (mut follows, mut drawn) = (0.0, 0.0);
    for row in 0..batch.rows.b() {
        let range = batch.rows.range(row);
        let at: Vec<u32> = (1..range.len() as u32).collect();
        let targets = &batch.targets_n[range.start + 1..range.end];
        let logits = Tensor::zeros((at.len(), 7), DType::F32, &Device::Cpu).unwrap();
        let errors_mv = errors(&logits, targets).unwrap();
        let seen = |half: &Tensor| half.narrow(0, range.start, range.len()).unwrap();
        let aligned = net.align(&[seen(&pooled[0]), seen(&pooled[1])]).unwrap();
        let hidden = net.hidden(&net.read(&errors_mv).unwrap(), &aligned, &at).unwrap();
        let gap = (net.correct(&hidden).unwrap() - errors_mv).unwrap();
        let squares = gap.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        drawn += squares.iter().step_by(2).sum::<f32>() / 40.0;
        follows += squares.iter().skip(1).step_by(2).sum::<f32>() / 40.0;
    }
    assert!(follows < 0.15 && drawn > 0.7, "{follows} {drawn}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    for (text, key) in [
        ("layers = 1", "train.copilot.layers"),
        ("heads = 3\nwidth = 16", "train.copilot.heads"),
        ("lr_ratio = 0.0", "train.copilot.lr_ratio"),
        ("lambda = -0.5", "train.copilot.lambda"),
    ] {
        let error = toml::from_str::<Copilot>(text).unwrap().check().unwrap_err();
        assert!(error.to_string().starts_with(key) && error.exit_code() == 2, "{error}");
    }
    Copilot::default().check().unwrap();
}
