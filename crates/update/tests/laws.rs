//! The laws of updates.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use luthier_core::{Seed, StateDict};
use luthier_update::{METHODS, Schedules, Stepper, Update};

type Vars = Vec<(String, Var)>;

fn vars() -> Vars {
    let mut rng = Seed(1).rng();
    let shapes = [
        ("layers.0.attn.q.lora_A", (3, 5)),
        ("layers.0.attn.q.lora_B", (4, 3)),
        ("layers.1.mlp.up.lora_A", (150, 130)),
    ];
    let var = |(name, (rows, columns)): (&str, (usize, usize)), rng: &mut luthier_core::Rng| {
        let mut data: Vec<f32> = (0..rows * columns).map(|_| rng.normal() as f32).collect();
        data[0] = -0.0;
        (name.to_string(), Var::from_vec(data, (rows, columns), &Device::Cpu).unwrap())
    };
    shapes.into_iter().map(|s| var(s, &mut rng)).collect()
}

fn gradients(vars: &Vars, step: u64) -> BTreeMap<String, Tensor> {
    let of = |(name, var): &(String, Var)| {
        let mut rng = Seed(9).split(name).at(step).rng();
        let data: Vec<f32> = (0..var.elem_count()).map(|_| rng.normal() as f32).collect();
        (name.clone(), Tensor::from_vec(data, var.shape(), &Device::Cpu).unwrap())
    };
    vars.iter().map(of).collect()
}

fn step(stepper: &mut Stepper, vars: &Vars, step: u64) -> luthier_update::StepInfo {
    let grads = gradients(vars, step);
    stepper.step(&|name, _| grads.get(name).cloned()).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(vars: &Vars) -> Vec<u32> {
    vars.iter().flat_map(|(_, v)| values(v)).map(f32::to_bits).collect()
}

fn update(text: &str) -> Update {
    toml::from_str(text).unwrap()
}

/// One recipe for every row of `METHODS`, and a few that use more of an optimizer's state.
fn recipes() -> Vec<Update> {
    let plain = |name: &str| match name.strip_prefix("schedule.") {
        None => format!("[{name}]\nlearning_rate = 0.01\nweight_decay = 0.1"),
        Some(name) => {
            let own = match name {
                "cosine_with_min_lr" | "cosine_warmup_with_min_lr" => "min_lr_rate = 0.1",
                "reduce_lr_on_plateau" => "patience = 0\nthreshold = 0.5",
                "greedy" => "patience = 0\nsmooth = true",
                _ => "",
            };
            format!("[adamw]\nlearning_rate = 0.01\n[schedule.{name}]\n{own}")
        }
    };
    let more = ["[sgd]\nmomentum = 0.9\nnesterov = true\n[schedule.cosine]\nwarmup_steps = 3"];
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
            let mut vars = vars();
            let mut stepper = Stepper::new(&update, &vars, 8).unwrap();
            for t in 0..8 {
                if stop == Some(t) {
                    // Through a file, into fresh variables, as after a crash.
                    let dir = tempfile::tempdir().unwrap();
                    let path = dir.path().join("optimizer.safetensors");
                    stepper.state().unwrap().save(&path, &[]).unwrap();
                    let copies = vars.iter().map(|(n, v)| {
                        (n.clone(), Var::from_vec(values(v), v.shape(), &Device::Cpu).unwrap())
                    });
                    vars = copies.collect();
                    stepper = Stepper::new(&update, &vars, 8).unwrap();
                    stepper.load(StateDict::load(&path).unwrap()).unwrap();
                    assert_eq!(stepper.step_count(), t);
                }
                step(&mut stepper, &vars, t);
                stepper.observe(2.0 / (t as f64 + 1.1)).unwrap();
            }
            bits(&vars)
        };
        let whole = through(None);
        for stop in [1, 4, 7] {
            assert_eq!(whole, through(Some(stop)), "{update:?} stopped before step {stop}");
        }
    }
}

#[test]
fn counters_survive_a_file_at_any_size() {
    let vars = vars();
    let mut stepper = Stepper::new(&Update::default(), &vars, 1 << 40).unwrap();
    let mut state = stepper.state().unwrap();
    let mut limbs = state.remove("luthier.progress").unwrap().to_vec2::<f32>().unwrap();
    limbs[0] = vec![65535.0, 1.0, 2.0, 0.0];
    let (n, flat) = (limbs.len(), limbs.concat());
    state.insert("luthier.progress", Tensor::from_vec(flat, (n, 4), &Device::Cpu).unwrap());
    stepper.load(state).unwrap();
    assert_eq!(stepper.step_count(), (2 << 32) + (1 << 16) + 65535);
}

#[test]
fn a_rate_of_zero_changes_no_bit() {
    for optimizer in ["[adamw]", "[sgd]", "[sgd]\nmomentum = 0.9"] {
        let text = format!("{optimizer}\nlearning_rate = 0\nweight_decay = 0.5");
        let vars = vars();
        let before = bits(&vars);
        let mut stepper = Stepper::new(&update(&text), &vars, 4).unwrap();
        for t in 0..4 {
            step(&mut stepper, &vars, t);
        }
        assert_eq!(before, bits(&vars), "{optimizer}");
        // The first step of a warm-up has the factor 0 and is no different.
        let warm = format!("{optimizer}\nweight_decay = 0.5\n[schedule.linear]\nwarmup_steps = 2");
        let mut stepper = Stepper::new(&update(&warm), &vars, 4).unwrap();
        assert_eq!(step(&mut stepper, &vars, 0).learning_rate, 0.0);
        assert_eq!(before, bits(&vars), "{optimizer}");
        step(&mut stepper, &vars, 1);
        assert_ne!(before, bits(&vars), "{optimizer}");
    }
}

#[test]
fn threads_do_not_show() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let vars = vars();
            let mut stepper = Stepper::new(&Update::default(), &vars, 6).unwrap();
            let norms: Vec<u64> =
                (0..6).map(|t| step(&mut stepper, &vars, t).grad_norm.to_bits()).collect();
            (bits(&vars), norms)
        })
    };
    assert_eq!(run(1), run(4));
}

/// AdamW with clipping and groups in f64, written from the equations.
#[test]
fn a_naive_twin_agrees() {
    let text = "max_grad_norm = 0.5\n[adamw]\nlearning_rate = 0.01\nweight_decay = 0.1\n\
                [schedule.constant]\n[[groups]]\nat = \"layers.0.**\"\nlr_scale = 0.5\n\
                weight_decay = 0\n[[groups]]\nat = \"**\"\nlearning_rate = 0.03";
    let vars = vars();
    let mut stepper = Stepper::new(&update(text), &vars, 5).unwrap();
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let mut twin: Vec<Vec<f64>> = vars.iter().map(|(_, v)| wide(&values(v))).collect();
    let mut moments: Vec<[Vec<f64>; 2]> =
        twin.iter().map(|p| [vec![0.0; p.len()], vec![0.0; p.len()]]).collect();
    for t in 1..=5u64 {
        let info = step(&mut stepper, &vars, t);
        let grads = gradients(&vars, t);
        let all: Vec<Vec<f64>> = vars
            .iter()
            .map(|(n, _)| wide(&grads[n].flatten_all().unwrap().to_vec1::<f32>().unwrap()))
            .collect();
        let norm = all.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        assert!((info.grad_norm - norm).abs() < 1e-9 * norm && info.clipped && info.step == t);
        for (i, (name, _)) in vars.iter().enumerate() {
            let (lr, decay) = if name.starts_with("layers.0") { (0.005, 0.0) } else { (0.03, 0.1) };
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
    for ((name, var), twin) in vars.iter().zip(&twin) {
        let got = values(var);
        let apart = got.iter().zip(twin).map(|(a, b)| (f64::from(*a) - b).abs());
        assert!(apart.fold(0.0, f64::max) < 2e-6, "{name}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_anything_changes() {
    let vars = vars();
    let mut stepper = Stepper::new(&Update::default(), &vars, 5).unwrap();
    step(&mut stepper, &vars, 0);
    let (before, state) = (bits(&vars), stepper.state().unwrap());
    let mut grads = gradients(&vars, 1);
    let bad = Tensor::from_vec(vec![f32::NAN; 12], (4, 3), &Device::Cpu).unwrap();
    grads.insert("layers.0.attn.q.lora_B".into(), bad);
    let err = stepper.step(&|name, _| grads.get(name).cloned()).unwrap_err().to_string();
    assert!(err.contains("step 2") && err.contains("layers.0.attn.q.lora_B"), "{err}");
    assert_eq!(before, bits(&vars));
    let flat = |s: &StateDict| s.to_safetensors(&[]).unwrap();
    assert_eq!(flat(&state), flat(&stepper.state().unwrap()));
    // A gradient that never came is named too.
    grads.remove("layers.1.mlp.up.lora_A");
    let err = stepper.step(&|name, _| grads.get(name).cloned()).unwrap_err().to_string();
    assert!(err.contains("no gradient reached layers.1.mlp.up.lora_A"), "{err}");
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    let refused = [
        ("[adamw]\n[sgd]", "train.update: names 2 optimizers"),
        ("[schedule.linear]\n[schedule.cosine]", "train.update.schedule: names 2 schedules"),
        ("[adamw]\nbetas = [0.9, 1.0]", "train.update.adamw.betas"),
        ("[adamw]\nlearning_rate = -1", "train.update.adamw.learning_rate"),
        ("[sgd]\nnesterov = true", "train.update.sgd.nesterov"),
        ("max_grad_norm = -1", "train.update.max_grad_norm"),
        ("[schedule.linear]\nwarmup_steps = 1\nwarmup_ratio = 0.1", "train.update.schedule.linear"),
        ("[schedule.polynomial]\nlr_end = 1.0", "train.update.schedule.polynomial.lr_end"),
        ("[schedule.cosine_with_min_lr]", "exactly one of min_lr and min_lr_rate"),
        ("[schedule.greedy]\nmin_lr = 0.5", "train.update.schedule.greedy"),
        ("[[groups]]\nat = \"layers.7.**\"\nlr_scale = 2", "train.update.groups[0].at"),
        ("[[groups]]\nat = \"**\"", "train.update.groups[0]: changes nothing"),
        (
            "[[groups]]\nat = \"**\"\nlr_scale = 2\n[[groups]]\nat = \"layers.0.**\"\nlr_scale = 1",
            "train.update.groups[1].at: every variable",
        ),
    ];
    for (text, want) in refused {
        let err = Stepper::new(&update(text), &vars(), 5).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{text}\ngave: {err}");
        assert_eq!(err.exit_code(), 2, "{text}");
    }
    let typo = toml::from_str::<Update>("[schedule.cosin]").unwrap_err().to_string();
    assert!(typo.contains("cosin") && typo.contains("cosine"), "{typo}");
    assert!(toml::from_str::<Update>("[adamw]\nlr = 1").is_err());
}

#[test]
fn a_state_of_another_run_is_refused() {
    let vars = vars();
    let state = Stepper::new(&Update::default(), &vars, 5).unwrap().state().unwrap();
    let load = |vars: &Vars, text: &str, state: StateDict| {
        Stepper::new(&update(text), vars, 5).unwrap().load(state).unwrap_err().to_string()
    };
    let err = load(&vars, "[sgd]\nmomentum = 0.9", state.clone());
    assert!(err.contains("lora_A.momentum_buffer: missing"), "{err}");
    let fewer: Vars = vars[..2].to_vec();
    assert!(load(&fewer, "", state.clone()).contains("layers.1.mlp.up.lora_A.exp_avg"));
    let mut other = state;
    let wrong = Tensor::zeros((5, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    other.insert("layers.0.attn.q.lora_A.exp_avg", wrong);
    assert!(load(&vars, "", other).contains("expected [3, 5]"));
}

#[test]
fn a_plan_shows_what_nobody_wrote() {
    let update = Update::default().with_defaults();
    assert!(update.adamw.is_some() && update.schedule.linear.is_some());
    assert_eq!(Schedules::default().chosen().unwrap().0, "linear");
    let text = toml::to_string(&update).unwrap();
    assert_eq!(toml::from_str::<Update>(&text).unwrap(), update);
}
