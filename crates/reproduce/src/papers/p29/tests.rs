//! What the arms are, and that the probes count what they say.

use luthier_core::StateDict;
use luthier_params::{Moment, Trial};

use super::*;

const TINY: Sizes = Sizes {
    layers: 1,
    width: 16,
    heads: 2,
    kv_heads: 2,
    ffn: 24,
    vocab: motifs::VOCAB,
    tied: false,
};

fn sara(config: &mut Train) -> &mut Sara {
    config.params.sparse.as_mut().unwrap().sara.as_mut().unwrap()
}

#[test]
fn arms_differ_in_what_they_are_called_after_and_in_nothing_else() {
    let of = |arm| settings(arm, "3e-4", 5).unwrap();
    let mut base = of(SARA);
    assert_eq!((base.seed, base.max_steps, base.batch_size), (5, Some(STEPS), Some(16)));
    assert_eq!((sara(&mut base).density, sara(&mut base).progressive), (DENSITY, 0.5));
    let lambda = |config: &Train| config.update.nuclear.as_ref().map(|n| n.lambda);
    assert_eq!(
        (lambda(&base), lambda(&of(FREE)), lambda(&of(STRONG))),
        (Some(5e-4), None, Some(5e-3))
    );
    for arm in ARMS {
        let (mut one, params) = (of(arm), base.params.clone());
        if matches!(arm, SARA | FREE | STRONG) {
            assert_eq!(one.params, params, "{arm}");
        }
        one.update.nuclear = base.update.nuclear.clone();
        assert_eq!(Train { params, ..one }, base, "{arm}");
    }
}

#[test]
fn arms_learn_as_many_numbers_from_opposite_ends() {
    let small = Small::random(SIZES, Seed(1)).unwrap();
    let of = |arm| bind(&small, arm, &settings(arm, "3e-4", 5).unwrap()).unwrap();
    for arm in [SARA, RANDOM, LARGEST, LORA] {
        assert_eq!(of(arm).count(), 65_664, "{arm}");
    }
    assert_eq!(of(FULL).count(), small.parameters());
    // The greatest and the least size among the chosen entries.
    let extent = |bound: &Bound| {
        let chosen = |p: &Param| p.mask.as_ref().unwrap().gather(&numbers(p).unwrap());
        let sizes: Vec<f32> = bound.params.iter().flat_map(chosen).map(f32::abs).collect();
        let greatest = sizes.iter().copied().fold(0.0, f32::max);
        (sizes.into_iter().fold(f32::INFINITY, f32::min), greatest)
    };
    let ((_, low), (high, _)) = (extent(&of(SARA)), extent(&of(LARGEST)));
    // Of N(0, 0.02²), 14.8 % are within 0.187 deviations and as many beyond 1.446.
    assert!(
        (low / 0.02 - 0.187).abs() < 0.01 && (high / 0.02 - 1.446).abs() < 0.02,
        "{low} {high}"
    );
}

#[test]
fn the_smallest_are_set_to_0_and_no_others() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let half = zeroed(&small, 0.5).unwrap();
    let (mut zeros, mut all, mut kept, mut lost) = (0, 0, f32::INFINITY, 0f32);
    for (name, tensor) in half.weights.iter() {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (now, was) = (flat(tensor), flat(small.weights.get(name).unwrap()));
        if !name.contains("proj") {
            assert_eq!(now, was, "{name}");
            continue;
        }
        all += now.len();
        for (now, was) in now.iter().zip(&was) {
            if *now == 0.0 {
                (zeros, lost) = (zeros + 1, lost.max(was.abs()));
            } else {
                assert_eq!(now, was, "{name}");
                kept = kept.min(was.abs());
            }
        }
    }
    assert_eq!(2 * zeros, all);
    assert!(lost <= kept, "{lost} {kept}");
}

#[test]
fn with_every_entry_idle_it_is_dense_training() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path().into(), 1, false, &|_| ()).unwrap();
    let texts = Data::new(Seed(1)).dev;
    let train = |set: &dyn Fn(&mut Train)| {
        let mut config = settings(FREE, "1e-2", 5).unwrap();
        (config.max_steps, config.batch_size) = (Some(5), Some(4));
        set(&mut config);
        let bound = small.bind(&config).unwrap();
        lab.train(&bound, &texts, &config).unwrap();
        small.tuned(&bound).unwrap().weights.to_safetensors(&[]).unwrap()
    };
    let every = train(&|config| {
        (sara(config).threshold, sara(config).progressive) = (Some(1e9), 0.0);
    });
    let dense = train(&|config| {
        let full = Full { at: Sparse::default().at, ..Full::default() };
        config.params = Params { full: Some(full), ..Params::default() };
    });
    assert!(every == dense);
    assert!(every != small.weights.to_safetensors(&[]).unwrap());
}

/// There is nothing to try.
struct Nothing;

impl Trial for Nothing {
    fn rows(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    fn gradients(&mut self, _: &[Param]) -> Result<(f64, StateDict)> {
        Err(Error::failed("test", "was asked for gradients"))
    }

    fn step(&mut self, _: &[Param], _: &StateDict) -> Result<()> {
        Err(Error::failed("test", "was asked for a step"))
    }
}

#[test]
fn the_census_counts_what_the_form_chooses() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let mut bound = small.bind(&settings(SARA, "3e-4", 5).unwrap()).unwrap();
    let census = Census::take(&mut bound, 1).unwrap();
    let mut choice = bound.form.choice().unwrap().unwrap().1;
    let mut choose = |step| {
        let mut moment = Moment {
            round: 0,
            step,
            steps: 10,
            epoch_begins: false,
            seed: Seed(1),
            all: &bound,
            own: &bound.params,
            now: &bound.params,
            trial: &mut Nothing,
        };
        choice.choose(&mut moment).unwrap()
    };
    assert!(choose(0).is_none());
    assert_eq!(census.count().unwrap() as u64, bound.count());
    for (i, param) in bound.params.iter().enumerate() {
        // Some grow past the threshold, some change sign, some matrices stay.
        let by = Tensor::full(1.0 - i as f32, param.var.dims(), &Device::Cpu).unwrap();
        param.var.set(&(param.var.as_tensor() * by).unwrap()).unwrap();
    }
    let again: usize = choose(5).unwrap().params.iter().map(Param::count).sum();
    assert_eq!(census.count().unwrap(), again);
    assert!(again > 0 && (again as u64) < bound.count());

    // It is asked once: in the pass after the one it is told to wait for.
    let data = Data::new(Seed(1)).dev;
    for (pass, found) in [0, again, again].into_iter().enumerate() {
        measure::loss(&bound.policy, &data[..2]).unwrap();
        assert_eq!(census.idle.load(Ordering::Relaxed), found, "pass {pass}");
        if found > 0 {
            let ones = bound.params[0].var.ones_like().unwrap();
            bound.params[0].var.set(&ones).unwrap();
        }
    }
}

#[test]
fn the_effective_rank_is_that_of_the_change() {
    let small = Small::random(TINY, Seed(1)).unwrap();
    let bound = small.bind(&settings(SARA, "3e-4", 5).unwrap()).unwrap();
    let var = &bound.params[0].var;
    // Singular values 3 and 1 in one matrix: 4² over 10.
    let mut change = vec![0f32; 256];
    (change[0], change[17]) = (3.0, 1.0);
    let change = Tensor::from_vec(change, (16, 16), &Device::Cpu).unwrap();
    var.set(&(var.as_tensor() + change).unwrap()).unwrap();
    let rank = effective_rank(&small, &bound).unwrap();
    assert!((rank - 1.6).abs() < 1e-4, "{rank}");
}
