//! What learns changes between two steps.

use super::*;

const ADAMW: &str = "max_grad_norm = 0\n[schedule.constant]\n[adamw]\nlearning_rate = 0.1\n";

fn vector(mask_: &[u32]) -> Param {
    param("w", &[0.0; 6], &[6]).masked(mask(mask_)).unwrap()
}

fn with(param: &Param, mask_: Option<&[u32]>) -> Param {
    let whole = Param::whole(&param.name, param.var.clone());
    match mask_ {
        None => whole,
        Some(positions) => whole.masked(mask(positions)).unwrap(),
    }
}

/// AdamW's movement at step `t` with these moments.
fn movement(t: i32, m: f64, v: f64) -> f64 {
    let (m, v) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
    -0.1 * m / (v.sqrt() + 1e-8)
}

#[test]
fn entries_that_stay_keep_their_memory() {
    // Paper 16: mask {0, 1, 2} with (a, b, c), then {1, 2, 5} has (b, c, 0).
    let old = vector(&[0, 1, 2]);
    let mut stepper = stepper(ADAMW, std::slice::from_ref(&old), &Start::steps(9));
    step(&mut stepper, &[("w", row(&[1.0, 2.0, -3.0]))]);
    close(&saved(&stepper, "w.exp_avg"), &[0.1, 0.2, -0.3]);
    stepper.rebind(&[with(&old, Some(&[1, 2, 5]))], true).unwrap();
    close(&saved(&stepper, "w.exp_avg"), &[0.2, -0.3, 0.0]);
    close(&saved(&stepper, "w.exp_avg_sq"), &[0.004, 0.009, 0.0]);
    assert_eq!(stepper.step_count(), 1);
    // The next step is the second for those that came too, and who left stays where it was.
    let before = values(&old);
    step(&mut stepper, &[("w", row(&[1.0, 1.0, 1.0]))]);
    let by: Vec<f32> = values(&old).iter().zip(&before).map(|(a, b)| a - b).collect();
    let second = |m: f64, v: f64| movement(2, 0.9 * m + 0.1, 0.999 * v + 0.001);
    let want = [0.0, second(0.2, 0.004), second(-0.3, 0.009), 0.0, 0.0, second(0.0, 0.0)];
    close(&by, &want);
    // Whoever comes back has been forgotten.
    stepper.rebind(&[with(&old, Some(&[0, 5]))], true).unwrap();
    close(&saved(&stepper, "w.exp_avg"), &[0.0, 0.1]);
}

#[test]
fn all_memory_can_begin_anew() {
    // Paper 29: the state belongs to a new vector of parameters.
    let old = vector(&[0, 1, 2]);
    let mut stepper = stepper(ADAMW, std::slice::from_ref(&old), &Start::steps(9));
    for _ in 0..3 {
        step(&mut stepper, &[("w", row(&[1.0, 2.0, -3.0]))]);
    }
    let before = values(&old);
    for mask in [&[1, 2][..], &[1, 2]] {
        stepper.rebind(&[with(&old, Some(mask))], false).unwrap();
        assert_eq!(saved(&stepper, "w.exp_avg"), [0.0, 0.0]);
    }
    // A first step of Adam goes by the learning rate.
    let saved = stepper.state().unwrap();
    assert_eq!(step(&mut stepper, &[("w", row(&[7.0, -0.01]))]).step, 4);
    let by: Vec<f32> = values(&old).iter().zip(&before).map(|(a, b)| a - b).collect();
    close(&by, &[0.0, -0.1, 0.1, 0.0, 0.0, 0.0]);
    // A resumed run knows that too.
    let copy = [param("w", &before, &[6]).masked(mask(&[1, 2])).unwrap()];
    let mut again = super::stepper(ADAMW, &copy, &Start::steps(9));
    again.load(saved).unwrap();
    step(&mut again, &[("w", row(&[7.0, -0.01]))]);
    assert_eq!(values(&copy[0]), values(&old));
}

#[test]
fn variables_come_and_go_by_name() {
    let [a, b, c] = ["a", "b", "c"].map(|name| param(name, &[0.0; 2], &[1, 2]));
    let mut stepper = stepper(ADAMW, &[a.clone(), b.clone()], &Start::steps(9));
    let grad = |x: f32| row(&[x, x]).reshape((1, 2)).unwrap();
    step(&mut stepper, &[("a", grad(1.0)), ("b", grad(2.0))]);
    stepper.rebind(&[c.clone(), b.clone()], true).unwrap();
    close(&saved(&stepper, "b.exp_avg"), &[0.2, 0.2]);
    close(&saved(&stepper, "c.exp_avg"), &[0.0, 0.0]);
    assert!(stepper.state().unwrap().get("a.exp_avg").is_none());
    let before = values(&a);
    step(&mut stepper, &[("b", grad(1.0)), ("c", grad(1.0))]);
    assert_eq!(values(&a), before);
    // From the whole to some entries and back.
    stepper.rebind(&[with(&b, Some(&[1]))], true).unwrap();
    close(&saved(&stepper, "b.exp_avg"), &[0.28]);
    stepper.rebind(&[with(&b, None)], true).unwrap();
    close(&saved(&stepper, "b.exp_avg"), &[0.0, 0.28]);
    assert!(stepper.rebind(&[], true).is_err());
}

#[test]
fn origins_and_averages_follow_whatever_the_optimizer_does() {
    for keep in [true, false] {
        let table = "[l2_sp]\nalpha = 1\n[ema]\ndecay = 0.5\nwarmup = false";
        let old = vector(&[0, 1, 2]);
        let mut stepper =
            stepper(&format!("{PLAIN}{table}"), std::slice::from_ref(&old), &Start::steps(9));
        step(&mut stepper, &[("w", row(&[-4.0, -8.0, -16.0]))]);
        stepper.rebind(&[with(&old, Some(&[1, 2, 5]))], keep).unwrap();
        assert_eq!(saved(&stepper, "w.origin"), [0.0, 0.0, 0.0]);
        assert_eq!(saved(&stepper, "w.ema"), [4.0, 8.0, 0.0]);
        stepper.rebind(&[with(&old, Some(&[0, 1]))], keep).unwrap();
        // Entry 0 had left, and begins again where it is.
        assert_eq!(saved(&stepper, "w.origin"), [4.0, 0.0]);
        assert_eq!(saved(&stepper, "w.ema"), [4.0, 4.0]);
        step(&mut stepper, &[("w", row(&[0.0, 0.0]))]);
        assert_eq!(values(&old)[..3], [4.0, 0.0, 16.0]);
    }
}

#[test]
fn memory_of_many_numbers_at_once_cannot_follow() {
    let big = |n: usize| param("w", &vec![1.0; 2 * n], &[2, n]);
    for (text, n, follows) in [
        ("[adamw_8bit]", 2500, false),
        ("[adamw_8bit]", 10, true),
        ("[adafactor]", 10, false),
        ("[schedule_free_adamw]", 10, true),
        ("[lion]", 10, true),
    ] {
        let old = big(n);
        let mut stepper = stepper(text, std::slice::from_ref(&old), &Start::steps(9));
        step(&mut stepper, &[("w", row(&vec![1.0; 2 * n]).reshape((2, n)).unwrap())]);
        // The same entries always can.
        stepper.rebind(std::slice::from_ref(&old), true).unwrap();
        let before = stepper.state().unwrap().to_safetensors(&[]).unwrap();
        let outcome = stepper.rebind(&[with(&old, Some(&[1, 2, 5]))], true);
        assert_eq!(outcome.is_ok(), follows, "{text} {n}");
        if let Err(err) = outcome {
            assert!(err.to_string().contains("cannot follow other entries of w"), "{err}");
            assert_eq!(before, stepper.state().unwrap().to_safetensors(&[]).unwrap());
        }
        stepper.rebind(&[with(&old, Some(&[1, 2, 5]))], false).unwrap();
        step(&mut stepper, &[("w", row(&[1.0, 1.0, 1.0]))]);
    }
}

#[test]
fn a_trial_step_is_a_first_step_that_the_optimizer_does_not_notice() {
    let params = [param("a", &[1.0, 2.0], &[2]), vector(&[1, 4])];
    let text = format!("{ADAMW}weight_decay = 0.5\n[[groups]]\nat = \"a\"\nlr_scale = 0.5");
    let mut stepper = stepper(&text, &params, &Start::steps(9));
    step(&mut stepper, &[("a", row(&[1.0, 1.0])), ("w", row(&[1.0, 1.0]))]);
    let (state, before) = (stepper.state().unwrap(), params.each_ref().map(values));
    let grads = [("a", row(&[5.0, -5.0])), ("w", row(&[-0.1, 9.0]))];
    let of = |name: &str| grads.iter().find(|(n, _)| *n == name).map(|(_, g)| g.clone());
    stepper.first_step(&params, 0.02, &|name, _| of(name)).unwrap();
    let by = |i: usize| -> Vec<f32> {
        values(&params[i]).iter().zip(&before[i]).map(|(a, b)| a - b).collect()
    };
    close(&by(0), &[-0.01, 0.01]);
    close(&by(1), &[0.0, 0.02, 0.0, 0.0, -0.02, 0.0]);
    let flat = |s: &StateDict| s.to_safetensors(&[]).unwrap();
    assert_eq!(flat(&state), flat(&stepper.state().unwrap()));
}
