//! Running averages. The weight is the number of steps made, so that averages are plain to see.

use super::*;

/// The average after every step, and the weights after the last.
fn averages(table: &str, steps: u64) -> Vec<f32> {
    let params = [param("w", &[0.0], &[1])];
    let mut stepper = stepper(&format!("{PLAIN}{table}"), &params, &Start::steps(steps));
    let mut seen = Vec::new();
    for t in 1..=steps {
        step(&mut stepper, &[("w", row(&[-1.0]))]);
        stepper.exchange().unwrap();
        seen.extend(values(&params[0]));
        stepper.exchange().unwrap();
        assert_eq!(values(&params[0]), [t as f32]);
    }
    seen
}

#[test]
fn an_exponential_average_keeps_its_share() {
    close(&averages("[ema]\ndecay = 0.5\nwarmup = false", 3), &[0.5, 1.25, 2.125]);
    // From the weights of the second step on.
    let late = "[ema]\ndecay = 0.5\nwarmup = false\nupdate_after_step = 2";
    close(&averages(late, 4), &[1.0, 2.0, 2.5, 3.25]);
}

#[test]
fn a_warmed_up_average_keeps_less_at_first() {
    // Shares 1/10, 2/11, 3/12, 4/13.
    let fourth = 2.7 * 4.0 / 13.0 + 4.0 * 9.0 / 13.0;
    close(&averages("[ema]", 4), &[0.9, 1.8, 2.7, fourth]);
    close(&averages("[ema]\ndecay = 0.125", 2), &[0.9, 0.9 * 0.125 + 2.0 * 0.875]);
}

#[test]
fn a_mean_of_the_end_of_a_run_is_a_plain_mean() {
    let table = "[swa]\nstart = 0.5\nevery = 2";
    // The third and the fifth of six steps; until then the weights themselves.
    close(&averages(table, 6), &[1.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
    close(&averages("[swa]\nstart = 0", 4), &[1.0, 1.5, 2.0, 2.5]);
}

#[test]
fn only_what_learns_is_averaged() {
    let params = [param("w", &[0.0, 7.0, 0.0], &[3]).masked(mask(&[0, 2])).unwrap()];
    let mut stepper =
        stepper(&format!("{PLAIN}[ema]\ndecay = 0.5\nwarmup = false"), &params, &Start::steps(4));
    step(&mut stepper, &[("w", row(&[-2.0, 4.0]))]);
    assert_eq!(saved(&stepper, "w.ema"), [1.0, -2.0]);
    stepper.exchange().unwrap();
    assert_eq!(values(&params[0]), [1.0, 7.0, -2.0]);
    let err = stepper.step(&|_, _| None).unwrap_err().to_string();
    assert!(err.starts_with("step 2: the weights are exchanged"), "{err}");
}
