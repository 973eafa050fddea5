//! The laws of updates.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use luthier_core::{Mask, Param, Rng, Seed, StateDict};
use luthier_update::{METHODS, Schedules, Start, StepInfo, Stepper, Update};

type Params = Vec<Param>;

fn drawn(name: &str, (rows, columns): (usize, usize), rng: &mut Rng) -> Param {
    let mut data: Vec<f32> = (0..rows * columns).map(|_| rng.normal() as f32).collect();
    data[0] = -0.0;
    Param::whole(name, Var::from_vec(data, (rows, columns), &Device::Cpu).unwrap())
}

fn whole() -> Params {
    let mut rng = Seed(1).rng();
    let shapes = [
        ("layers.0.attn.q.lora_A", (3, 5)),
        ("layers.0.attn.q.lora_B", (4, 3)),
        ("layers.1.mlp.up.lora_A", (150, 130)),
    ];
    shapes.into_iter().map(|(name, shape)| drawn(name, shape, &mut rng)).collect()
}

/// The same, and a matrix of which every other entry or so learns.
fn params() -> Params {
    let mut rng = Seed(2).rng();
    let name = "model.layers.1.mlp.down_proj.weight";
    let last = drawn(name, (100, 90), &mut rng);
    let chosen = (0..9000).filter(|_| rng.uniform() < 0.5).collect();
    let last = last.masked(Mask::new(chosen).unwrap()).unwrap();
    whole().into_iter().chain([last]).collect()
}

/// What the gradient of a variable looks like.
fn dims(param: &Param) -> Vec<usize> {
    param.mask.as_ref().map_or(param.var.dims().to_vec(), |mask| vec![mask.len()])
}

fn gradients(params: &Params, step: u64) -> BTreeMap<String, Tensor> {
    let of = |param: &Param| {
        let mut rng = Seed(9).split(&param.name).at(step).rng();
        let data: Vec<f32> = (0..param.count()).map(|_| rng.normal() as f32).collect();
        (param.name.clone(), Tensor::from_vec(data, dims(param), &Device::Cpu).unwrap())
    };
    params.iter().map(of).collect()
}

fn step(stepper: &mut Stepper, params: &Params, step: u64) -> StepInfo {
    if stepper.two_passes() {
        let grads = gradients(params, step + 1000);
        stepper.ascend(&|name, _| grads.get(name).cloned()).unwrap();
        stepper.descend().unwrap();
    }
    let grads = gradients(params, step);
    stepper.step(&|name, _| grads.get(name).cloned()).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(params: &Params) -> Vec<u32> {
    params.iter().flat_map(|p| values(&p.var)).map(f32::to_bits).collect()
}

fn update(text: &str) -> Update {
    toml::from_str(text).unwrap()
}

fn fisher(params: &Params) -> StateDict {
    let of = |param: &Param| {
        let mut rng = Seed(7).split(&param.name).rng();
        let data: Vec<f32> = (0..param.var.elem_count()).map(|_| rng.uniform() as f32).collect();
        (param.name.clone(), Tensor::from_vec(data, param.var.dims(), &Device::Cpu).unwrap())
    };
    params.iter().map(of).collect()
}

fn stepper(update: &Update, params: &Params, total_steps: u64) -> Stepper {
    let fisher = fisher(params);
    let start = Start {
        total_steps,
        seed: Seed(3),
        model_params: 1000,
        n_layers: 2,
        fisher: Some(&fisher),
    };
    Stepper::new(update, params, &start).unwrap()
}

/// One recipe for every row of `METHODS`, and a few that use more of an optimizer's state.
fn recipes() -> Vec<Update> {
    let adamw = "[adamw]\nlearning_rate = 0.01\nweight_decay = 0.1";
    let plain = |name: &str| match name {
        "adamw"
        | "adam"
        | "sgd"
        | "adafactor"
        | "lion"
        | "muon"
        | "schedule_free_adamw"
        | "adamw_8bit" => format!("[{name}]\nlearning_rate = 0.01\nweight_decay = 0.1"),
        "l1" | "l2_sp" | "noise" | "sam" => format!("[{name}]\n{adamw}"),
        "ewc" => format!("[ewc]\nlambda = 0.3\nfisher = \"somewhere\"\n{adamw}"),
        "nuclear" => format!("[nuclear]\nlambda = 0.1\n{adamw}"),
        "ema" => format!("[ema]\nupdate_after_step = 2\n{adamw}"),
        "swa" => format!("[swa]\nstart = 0.4\nevery = 2\n{adamw}"),
        "clip" => format!("clip = \"layer\"\nmax_grad_norm = 0.3\n{adamw}"),
        "layer_decay" => format!("layer_decay = 0.7\n{adamw}"),
        "loraplus_lr_ratio" => format!("loraplus_lr_ratio = 4\n{adamw}"),
        other => {
            let schedule = other.strip_prefix("schedule.").expect("a row without a recipe here");
            let own = match schedule {
                "cosine_with_min_lr" | "cosine_warmup_with_min_lr" => "min_lr_rate = 0.1",
                "reduce_lr_on_plateau" => "patience = 0\nthreshold = 0.5",
                "greedy" => "patience = 0\nsmooth = true",
                _ => "",
            };
            format!("[adamw]\nlearning_rate = 0.01\n[schedule.{schedule}]\n{own}")
        }
    };
    let more = [
        "[sgd]\nmomentum = 0.9\nnesterov = true\n[schedule.cosine]\nwarmup_steps = 3",
        "[adafactor]\nbeta1 = 0.9\n[schedule.constant]",
        "clip = \"value\"\nmax_grad_value = 0.5\n[sgd]\nmomentum = 0.5\n[nuclear]\n\
         rank_sample = \"all\"\n[noise]\n[sam]\nadaptive = true\n[swa]\nstart = 0.0",
    ];
    METHODS
        .iter()
        .map(|m| plain(m.name))
        .chain(more.map(String::from))
        .map(|r| update(&r))
        .collect()
}

#[test]
fn a_resumed_run_is_the_same_run() {
    for update in recipes() {
        let through = |stop: Option<u64>| {
            let mut params = params();
            let mut run = stepper(&update, &params, 8);
            for t in 0..8 {
                if stop == Some(t) {
                    // As for the files that others read, which must not show.
                    run.exchange().unwrap();
                    run.exchange().unwrap();
                    // Through a file, into fresh variables, as after a crash.
                    let dir = tempfile::tempdir().unwrap();
                    let path = dir.path().join("optimizer.safetensors");
                    run.state().unwrap().save(&path, &[]).unwrap();
                    for param in &mut params {
                        let copy = (values(&param.var), param.var.dims());
                        param.var = Var::from_vec(copy.0, copy.1, &Device::Cpu).unwrap();
                    }
                    run = stepper(&update, &params, 8);
                    run.load(StateDict::load(&path).unwrap()).unwrap();
                    assert_eq!(run.step_count(), t);
                }
                step(&mut run, &params, t);
                run.observe(2.0 / (t as f64 + 1.1)).unwrap();
            }
            let trained = bits(&params);
            run.exchange().unwrap();
            (trained, bits(&params))
        };
        let whole = through(None);
        for stop in [1, 4, 7] {
            assert!(whole == through(Some(stop)), "{update:?} stopped before step {stop}");
        }
    }
}

#[test]
fn counters_survive_a_file_at_any_size() {
    let params = whole();
    let mut run = stepper(&Update::default(), &params, 1 << 40);
    let mut state = run.state().unwrap();
    let mut limbs = state.remove("luthier.progress").unwrap().to_vec2::<f32>().unwrap();
    limbs[0] = vec![65535.0, 1.0, 2.0, 0.0];
    let (n, flat) = (limbs.len(), limbs.concat());
    state.insert("luthier.progress", Tensor::from_vec(flat, (n, 4), &Device::Cpu).unwrap());
    run.load(state).unwrap();
    assert_eq!(run.step_count(), (2 << 32) + (1 << 16) + 65535);
}

#[test]
fn a_rate_of_zero_changes_no_bit() {
    for optimizer in [
        "[adamw]",
        "[adam]",
        "[sgd]",
        "[sgd]\nmomentum = 0.9",
        "[adafactor]",
        "[lion]",
        "[muon]\nadamw_learning_rate = 0",
        "[schedule_free_adamw]",
        "[adamw_8bit]",
    ] {
        let text = format!("{optimizer}\nlearning_rate = 0\nweight_decay = 0.5");
        let params = whole();
        let before = bits(&params);
        let mut run = stepper(&update(&text), &params, 4);
        for t in 0..4 {
            step(&mut run, &params, t);
        }
        assert_eq!(before, bits(&params), "{optimizer}");
        // The first step of a warm-up has the factor 0 and is no different.
        let warm = format!("{optimizer}\nweight_decay = 0.5\n[schedule.linear]\nwarmup_steps = 2");
        let mut run = stepper(&update(&warm), &params, 4);
        assert_eq!(step(&mut run, &params, 0).learning_rate, 0.0);
        assert_eq!(before, bits(&params), "{optimizer}");
        step(&mut run, &params, 1);
        assert_ne!(before, bits(&params), "{optimizer}");
    }
}

#[test]
fn threads_do_not_show() {
    for update in recipes() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let params = params();
                let mut run = stepper(&update, &params, 3);
                let norms: Vec<u64> =
                    (0..3).map(|t| step(&mut run, &params, t).grad_norm.to_bits()).collect();
                run.exchange().unwrap();
                (bits(&params), norms)
            })
        };
        assert!(run(1) == run(4), "{update:?}");
    }
}

/// AdamW with clipping and groups in f64, written from the equations.
#[test]
fn a_naive_twin_agrees() {
    let text = "max_grad_norm = 0.5\n[adamw]\nlearning_rate = 0.01\nweight_decay = 0.1\n\
                [schedule.constant]\n[[groups]]\nat = \"layers.0.**\"\nlr_scale = 0.5\n\
                weight_decay = 0\n[[groups]]\nat = \"**\"\nlearning_rate = 0.03";
    let params = whole();
    let mut run = stepper(&update(text), &params, 5);
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let mut twin: Vec<Vec<f64>> = params.iter().map(|p| wide(&values(&p.var))).collect();
    let mut moments: Vec<[Vec<f64>; 2]> =
        twin.iter().map(|p| [vec![0.0; p.len()], vec![0.0; p.len()]]).collect();
    for t in 1..=5u64 {
        let info = step(&mut run, &params, t);
        let grads = gradients(&params, t);
        let all: Vec<Vec<f64>> = params
            .iter()
            .map(|p| wide(&grads[&p.name].flatten_all().unwrap().to_vec1::<f32>().unwrap()))
            .collect();
        let norm = all.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        assert!((info.grad_norm - norm).abs() < 1e-9 * norm && info.clipped && info.step == t);
        for (i, param) in params.iter().enumerate() {
            let first = param.name.starts_with("layers.0");
            let (lr, decay) = if first { (0.005, 0.0) } else { (0.03, 0.1) };
            for (j, p) in twin[i].iter_mut().enumerate() {
                let g = all[i][j] * 0.5 / norm;
                let [m, v] = &mut moments[i];
                m[j] = 0.9 * m[j] + 0.1 * g;
                v[j] = 0.999 * v[j] + 0.001 * g * g;
                let m = m[j] / (1.0 - 0.9f64.powi(t as i32));
                let v = v[j] / (1.0 - 0.999f64.powi(t as i32));
                *p = *p * (1.0 - lr * decay) - lr * m / (v.sqrt() + 1e-8);
            }
        }
    }
    for (Param { name, var, .. }, twin) in params.iter().zip(&twin) {
        let got = values(var);
        let apart = got.iter().zip(twin).map(|(a, b)| (f64::from(*a) - b).abs());
        assert!(apart.fold(0.0, f64::max) < 2e-6, "{name}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_anything_changes() {
    let params = whole();
    let mut run = stepper(&Update::default(), &params, 5);
    step(&mut run, &params, 0);
    let (before, state) = (bits(&params), run.state().unwrap());
    let mut grads = gradients(&params, 1);
    let bad = Tensor::from_vec(vec![f32::NAN; 12], (4, 3), &Device::Cpu).unwrap();
    grads.insert("layers.0.attn.q.lora_B".into(), bad);
    let err = run.step(&|name, _| grads.get(name).cloned()).unwrap_err().to_string();
    assert!(err.contains("step 2") && err.contains("layers.0.attn.q.lora_B"), "{err}");
    assert_eq!(before, bits(&params));
    let flat = |s: &StateDict| s.to_safetensors(&[]).unwrap();
    assert_eq!(flat(&state), flat(&run.state().unwrap()));
    // A gradient that never came is named too.
    grads.remove("layers.1.mlp.up.lora_A");
    let err = run.step(&|name, _| grads.get(name).cloned()).unwrap_err().to_string();
    assert!(err.contains("no gradient reached layers.1.mlp.up.lora_A"), "{err}");
}

#[test]
fn a_state_of_another_run_is_refused() {
    let params = whole();
    let state = stepper(&Update::default(), &params, 5).state().unwrap();
    let load = |params: &Params, text: &str, state: StateDict| {
        stepper(&update(text), params, 5).load(state).unwrap_err().to_string()
    };
    let err = load(&params, "[sgd]\nmomentum = 0.9", state.clone());
    assert!(err.contains("lora_A.momentum_buffer: missing"), "{err}");
    let fewer: Params = params[..2].to_vec();
    assert!(load(&fewer, "", state.clone()).contains("layers.1.mlp.up.lora_A.exp_avg"));
    let mut other = state;
    let wrong = Tensor::zeros((5, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    other.insert("layers.0.attn.q.lora_A.exp_avg", wrong);
    assert!(load(&params, "", other).contains("expected [3, 5]"));
}

#[test]
fn a_state_for_other_entries_is_refused() {
    let (params, mut others) = (params(), params());
    let state = stepper(&Update::default(), &params, 5).state().unwrap();
    let mask = others[3].mask.take().unwrap();
    let shifted = mask.positions().iter().map(|i| 8999 - i).rev().collect();
    others[3].mask = Some(Mask::new(shifted).unwrap());
    assert_eq!(others[3].count(), params[3].count());
    let err = stepper(&Update::default(), &others, 5).load(state).unwrap_err().to_string();
    assert!(err.contains("other entries were learning"), "{err}");
}

#[test]
fn an_evaluation_does_not_show() {
    for update in recipes() {
        let run = |evaluates: bool| {
            let params = params();
            let mut run = stepper(&update, &params, 5);
            for t in 0..5 {
                step(&mut run, &params, t);
                if evaluates {
                    run.exchange().unwrap();
                    assert!(run.state().is_err());
                    run.exchange().unwrap();
                }
            }
            bits(&params)
        };
        assert!(run(true) == run(false), "{update:?}");
    }
}

#[test]
fn a_schedule_free_rule_has_a_constant_schedule_unless_one_is_named() {
    let named = |text: &str| {
        let schedule = update(text).with_defaults().schedule;
        schedule.chosen().unwrap().0
    };
    assert_eq!(named("[schedule_free_adamw]"), "constant");
    assert_eq!(named("[schedule_free_adamw]\n[schedule.cosine]"), "cosine");
}

#[test]
fn a_plan_shows_what_nobody_wrote() {
    let update = Update::default().with_defaults();
    assert!(update.adamw.is_some() && update.schedule.linear.is_some());
    assert_eq!(Schedules::default().chosen().unwrap().0, "linear");
    let text = toml::to_string(&update).unwrap();
    assert_eq!(toml::from_str::<Update>(&text).unwrap(), update);
}
