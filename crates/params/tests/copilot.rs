//! A copilot sees what was there before a token and nothing after, and is what was saved.

use candle_core::{Device, Tensor};
use luthier_core::Seed;
use luthier_params::copilot::{Copilot, HEAD, Sizes, States};
use luthier_testkit::{assert_gradients, random};

const SIZES: Sizes = Sizes { layers: 4, width: 8, heads: 2, vocab: 6, pilot_width: 5 };
const N: usize = 7;
/// Positions of targets: two turns.
const AT: [u32; 4] = [2, 3, 5, 6];

fn copilot() -> Copilot {
    let copilot = Copilot::new(SIZES, Seed(1)).unwrap();
    let head = copilot.params().into_iter().find(|p| p.name == HEAD).unwrap();
    head.var.set(&random((6, 8), 1.0, Seed(2))).unwrap();
    copilot
}

fn corrections(copilot: &Copilot, errors: &Tensor, pooled: &[Tensor; 2]) -> Vec<Vec<f32>> {
    let aligned = copilot.align(pooled).unwrap();
    let hidden = copilot.hidden(&copilot.read(errors).unwrap(), &aligned, &AT).unwrap();
    copilot.correct(&hidden).unwrap().to_vec2().unwrap()
}

/// The same with row `row` made another one.
fn changed(t: &Tensor, row: usize) -> Tensor {
    let mut rows = t.to_vec2::<f32>().unwrap();
    rows[row].iter_mut().for_each(|x| *x += 1.0);
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn nothing_that_comes_later_reaches_a_correction() {
    let (copilot, errors) = (copilot(), random((4, 6), 1.0, Seed(3)));
    let pooled = [random((N, 5), 1.0, Seed(4)), random((N, 5), 1.0, Seed(5))];
    let before = corrections(&copilot, &errors, &pooled);
    for position in 0..N {
        for half in 0..2 {
            let mut other = pooled.clone();
            other[half] = changed(&pooled[half], position);
            let now = corrections(&copilot, &errors, &other);
            for (k, at) in AT.iter().enumerate() {
                let same = now[k] == before[k];
                assert_eq!(same, (*at as usize) < position, "half {half}, {position}, place {k}");
            }
        }
    }
    for place in 0..4 {
        let now = corrections(&copilot, &changed(&errors, place), &pooled);
        for k in 0..4 {
            // The error at 3 is not read by the place at 5, for there is a gap, nor by any after it.
            let reads = place == 0 && k > 0 || place == 2 && k == 3;
            assert_eq!(now[k] != before[k], reads, "error {place}, place {k}");
        }
    }
}

#[test]
fn its_gradients_are_slopes() {
    let (copilot, errors) = (copilot(), random((4, 6), 1.0, Seed(3)));
    let pooled = [random((N, 5), 1.0, Seed(4)), random((N, 5), 1.0, Seed(5))];
    let vars: Vec<_> = copilot.params().into_iter().map(|p| p.var).collect();
    assert_gradients("copilot", &vars, |_| {
        let aligned = copilot.align(&pooled)?;
        let hidden = copilot.hidden(&copilot.read(&errors)?, &aligned, &AT)?;
        let gap = (copilot.correct(&hidden)? - &errors)?;
        Ok(gap.sqr()?.sum(1)?.mean_all()?.sqrt()?)
    });
}

#[test]
fn streams_are_pooled_over_blocks_and_the_embedding_is_kept_apart() {
    let all: Vec<Tensor> = (0..4).map(|i| random((N, 5), 1.0, Seed(10 + i))).collect();
    let mut states = States::default();
    all.iter().for_each(|h| states.take(h).unwrap());
    let [x, mean] = states.pooled().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&x), flat(&all[0]));
    for (i, got) in flat(&mean).into_iter().enumerate() {
        let want = all[1..].iter().map(|h| flat(h)[i]).sum::<f32>() / 3.0;
        assert!((got - want).abs() < 1e-6);
    }
    let mut none = States::default();
    none.take(&all[0]).unwrap();
    assert!(none.pooled().is_err());
}

#[test]
fn what_was_saved_corrects_the_same_and_what_was_not_is_refused() {
    let (copilot, errors) = (copilot(), random((4, 6), 1.0, Seed(3)));
    let pooled = [random((N, 5), 1.0, Seed(4)), random((N, 5), 1.0, Seed(5))];
    let dir = tempfile::tempdir().unwrap();
    let missing = Copilot::open(dir.path()).err().unwrap();
    assert!(missing.to_string().contains("is no copilot") && missing.exit_code() == 2, "{missing}");
    copilot.save(dir.path(), "base", 0.7).unwrap();
    let (again, config) = Copilot::open(dir.path()).unwrap();
    assert_eq!((config.base.as_str(), config.lambda, config.sizes), ("base", 0.7, SIZES));
    let of = |copilot: &Copilot| corrections(copilot, &errors, &pooled);
    assert_eq!(of(&again), of(&copilot));
    let other = Copilot::new(Sizes { vocab: 9, ..SIZES }, Seed(1)).unwrap();
    let error = other.load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("copilot.safetensors: `head.weight`: expected [9, 8]"), "{error}");
    // What has learned nothing corrects nothing.
    let fresh = of(&Copilot::new(SIZES, Seed(1)).unwrap());
    assert!(fresh.iter().flatten().all(|f| *f == 0.0));
}
