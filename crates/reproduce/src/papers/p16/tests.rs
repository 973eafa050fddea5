//! What the arms are, and what the method is at its ends.

use luthier_params::{
    Bound,
    form::sparse::{Lift, Sparse, lift::Score},
};

use super::*;

const TINY: Sizes = Sizes {
    layers: 1,
    width: 16,
    heads: 2,
    kv_heads: 2,
    ffn: 24,
    vocab: numbers::VOCAB,
    tied: false,
};

fn rule(config: &mut Train) -> &mut Lift {
    config.params.sparse.as_mut().unwrap().lift.as_mut().unwrap()
}

/// Six steps of LIFT on a tiny decoder, with other settings.
fn tiny(small: &Small, set: impl FnOnce(&mut Train)) -> (Train, Bound) {
    let mut config = settings(LIFT, "1e-2", 5).unwrap();
    (config.max_steps, config.batch_size) = (Some(6), Some(4));
    set(&mut config);
    let bound = small.bind(&config).unwrap();
    (config, bound)
}

#[test]
fn arms_differ_in_what_learns_and_in_nothing_else() {
    let of = |arm| settings(arm, "3e-4", 5).unwrap();
    let mut lift = of(LIFT);
    assert_eq!((lift.seed, lift.max_steps, lift.batch_size), (5, Some(STEPS), Some(16)));
    for arm in ARMS {
        assert_eq!(Train { params: lift.params.clone(), ..of(arm) }, lift, "{arm}");
    }
    for (arm, score) in [(MAGNITUDE, Score::Magnitude), (RANDOM, Score::Random)] {
        let mut one = of(arm);
        assert_eq!(std::mem::take(&mut rule(&mut one).score), score);
        assert_eq!(rule(&mut one), rule(&mut lift), "{arm}");
    }
    assert_eq!((rule(&mut lift).filter_rank, rule(&mut lift).update_interval), (16, 120));
}

#[test]
fn memory_is_for_what_learns() {
    let base = Small::random(SIZES, Seed(1)).unwrap();
    let of = |arm| Held::of(&base, arm).unwrap();
    let (lift, full) = (of(LIFT), of(FULL));
    let blocks = 4 * (4 * 128 * 128 + 3 * 128 * 344);
    assert_eq!(lift.learned, 4 * 4 * (4 * 256 + 3 * 472));
    assert!((lift.learned as f64 / f64::from(blocks) - 0.05).abs() < 0.001);
    assert_eq!((lift.optimizer, lift.gradients), (2 * lift.learned, lift.learned));
    assert_eq!((lift.positions, of(LORA).positions), (lift.learned, 0));
    for arm in [MAGNITUDE, RANDOM, LORA] {
        assert_eq!(Held { positions: lift.positions, ..of(arm) }, lift, "{arm}");
    }
    assert_eq!(full.learned as u64, base.parameters());
    assert_eq!((full.optimizer, full.gradients), (2 * full.learned, full.learned));
}

#[test]
fn without_rank_reduction_the_choice_is_that_of_magnitude() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let masks = |rank, score| {
        let (_, bound) = tiny(&small, |config| {
            (rule(config).budget_rank, rule(config).filter_rank) = (1, rank);
            rule(config).score = score;
        });
        bound.params.iter().map(|p| mask(p).unwrap().clone()).collect::<Vec<Mask>>()
    };
    let magnitude = masks(4, Score::Magnitude);
    assert_eq!(masks(16, Score::LraMagnitude), magnitude);
    assert_ne!(masks(4, Score::LraMagnitude), magnitude);
}

#[test]
fn a_budget_for_everything_is_dense_training() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path().into(), 1, false, &|_| ()).unwrap();
    let rows = Data::new(Seed(1)).dev;
    let train = |(config, bound): (Train, Bound)| {
        lab.train(&bound, &rows, &config).unwrap();
        small.tuned(&bound).unwrap().weights.to_safetensors(&[]).unwrap()
    };
    let every = train(tiny(&small, |config| {
        // Chosen anew after every other step: nothing may be forgotten on the way.
        (rule(config).budget_rank, rule(config).update_interval) = (64, 2);
    }));
    let dense = train(tiny(&small, |config| {
        let full = Full { at: Sparse::default().at, ..Full::default() };
        config.params = Params { full: Some(full), ..Params::default() };
    }));
    assert!(every == dense);
    assert!(every != small.weights.to_safetensors(&[]).unwrap());
}
