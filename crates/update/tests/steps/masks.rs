//! Entries that learn, and entries that do not.

use luthier_core::Seed;

use super::*;

const OPTIMIZERS: [&str; 9] = [
    "[adamw]",
    "[adam]",
    "[sgd]",
    "[sgd]\nmomentum = 0.9",
    "[lion]",
    "[schedule_free_adamw]",
    "[adamw_8bit]",
    "[adafactor]",
    "[muon]",
];

fn numbers(name: &str, t: u64, n: usize) -> Vec<f32> {
    let mut rng = Seed(5).split(name).at(t).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn matrix(mask: Option<Mask>) -> Param {
    let param = param("w", &numbers("w", 0, 70 * 80), &[70, 80]);
    match mask {
        None => param,
        Some(mask) => param.masked(mask).unwrap(),
    }
}

/// The bits of the matrix after three steps with these gradients.
fn run(optimizer: &str, param: Param, decay: f64, grad: &dyn Fn(u64) -> Tensor) -> Vec<u32> {
    let text = format!("max_grad_norm = 0\n{optimizer}\nweight_decay = {decay}");
    let params = [param];
    let mut stepper = stepper(&text, &params, &Start::steps(4));
    for t in 0..3 {
        step(&mut stepper, &[("w", grad(t))]);
    }
    values(&params[0]).into_iter().map(f32::to_bits).collect()
}

fn whole(t: u64) -> Tensor {
    row(&numbers("g", t, 5600)).reshape((70, 80)).unwrap()
}

fn some() -> Mask {
    mask(&(0..5600).filter(|i| i % 3 != 1).collect::<Vec<u32>>())
}

#[test]
fn a_mask_of_everything_is_no_mask() {
    // Where rows and columns matter, a vector of chosen entries is something else.
    for optimizer in &OPTIMIZERS[..7] {
        let all = mask(&(0..5600).collect::<Vec<u32>>());
        let masked = run(optimizer, matrix(Some(all)), 0.1, &|t| whole(t).flatten_all().unwrap());
        assert!(masked == run(optimizer, matrix(None), 0.1, &whole), "{optimizer}");
    }
}

#[test]
fn a_mask_of_nothing_freezes() {
    for optimizer in OPTIMIZERS {
        let params = [matrix(Some(mask(&[]))), param("v", &[1.0, 2.0], &[2])];
        let before = values(&params[0]);
        let text = format!("{optimizer}\nweight_decay = 0.5\n[sam]");
        let mut stepper = stepper(&text, &params, &Start::steps(4));
        for _ in 0..2 {
            let grads = [("v", row(&[1.0, -1.0]))];
            stepper.ascend(&|name, _| (name == "v").then(|| row(&[1.0, -1.0]))).unwrap();
            stepper.descend().unwrap();
            step(&mut stepper, &grads);
            stepper.exchange().unwrap();
            stepper.exchange().unwrap();
        }
        assert_eq!(before, values(&params[0]), "{optimizer}");
        assert_ne!(values(&params[1]), [1.0, 2.0], "{optimizer}");
    }
}

#[test]
fn what_is_not_chosen_keeps_its_bits_and_no_memory() {
    for optimizer in OPTIMIZERS {
        let mask = some();
        let grad = |t| row(&mask.gather(&numbers("g", t, 5600)));
        let after = run(optimizer, matrix(Some(mask.clone())), 0.5, &grad);
        let before: Vec<u32> = values(&matrix(None)).into_iter().map(f32::to_bits).collect();
        let moved = |i: &usize| after[*i] != before[*i];
        let chosen = |i: &usize| mask.positions().binary_search(&(*i as u32)).is_ok();
        // One or two may have come back to where they were.
        assert!((0..5600).filter(moved).count() + 3 > mask.len(), "{optimizer}");
        assert!((0..5600).filter(moved).all(|i| chosen(&i)), "{optimizer}");
        let params = [matrix(Some(mask.clone()))];
        let state = stepper(optimizer, &params, &Start::steps(4)).state().unwrap();
        assert!(state.iter().all(|(_, t)| t.elem_count() <= mask.len().max(40)), "{optimizer}");
    }
}

#[test]
fn a_mask_is_a_gradient_of_nothing_elsewhere() {
    for optimizer in &OPTIMIZERS[..6] {
        let mask = some();
        let chosen = |t| mask.gather(&numbers("g", t, 5600));
        let elsewhere = |t| {
            let mut all = vec![0f32; 5600];
            mask.scatter(&chosen(t), &mut all);
            row(&all).reshape((70, 80)).unwrap()
        };
        let masked = run(optimizer, matrix(Some(mask.clone())), 0.0, &|t| row(&chosen(t)));
        assert!(masked == run(optimizer, matrix(None), 0.0, &elsewhere), "{optimizer}");
    }
}

#[test]
fn a_gradient_of_another_length_and_a_mask_beyond_the_end_are_refused() {
    let mut params = [matrix(Some(mask(&[1, 2])))];
    let mut stepper = stepper("", &params, &Start::steps(4));
    let err = stepper.step(&|_, _| Some(row(&[1.0, 2.0, 3.0]))).unwrap_err().to_string();
    assert!(err.starts_with("w: gradient has shape [3], expected [2]"), "{err}");
    params[0].mask = Some(mask(&[5600]));
    let err = Stepper::new(&update(""), &params, &Start::steps(4)).map(|_| ()).unwrap_err();
    assert!(err.to_string().starts_with("w: its mask has entry 5600"), "{err}");
}
