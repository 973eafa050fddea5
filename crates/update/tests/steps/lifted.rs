//! Two-pass steps on `f(x, y) = x² / 2 + 2 y²`, whose gradient is `(x, 4 y)`.

use super::*;

fn gradient(param: &Param) -> Tensor {
    let at = values(param);
    row(&[at[0], 4.0 * at[1]])
}

/// Where the second pass is, and where the step ends.
fn two_passes(table: &str, at: [f32; 2]) -> [Vec<f32>; 2] {
    let params = [param("w", &at, &[2])];
    let text =
        format!("max_grad_norm = 0\n[schedule.constant]\n[sgd]\nlearning_rate = 0.1\n{table}");
    let mut stepper = stepper(&text, &params, &Start::steps(4));
    assert!(stepper.two_passes());
    let first = gradient(&params[0]);
    stepper.ascend(&|_, _| Some(first.clone())).unwrap();
    let (above, second) = (values(&params[0]), gradient(&params[0]));
    let err = stepper.step(&|_, _| Some(second.clone())).unwrap_err().to_string();
    assert!(err.starts_with("step 1: the weights are lifted"), "{err}");
    stepper.descend().unwrap();
    assert_eq!(values(&params[0]).map_bits(), at.to_vec().map_bits());
    stepper.step(&|_, _| Some(second.clone())).unwrap();
    [above, values(&params[0])]
}

trait MapBits {
    fn map_bits(self) -> Vec<u32>;
}

impl MapBits for Vec<f32> {
    fn map_bits(self) -> Vec<u32> {
        self.into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn the_second_gradient_is_taken_uphill() {
    // g = (1, 4), ‖g‖ = √17.
    let (dx, dy) = (0.1 / 17f64.sqrt(), 0.4 / 17f64.sqrt());
    let [above, after] = two_passes("[sam]\nrho = 0.1", [1.0, 1.0]);
    close(&above, &[1.0 + dx, 1.0 + dy]);
    close(&after, &[1.0 - 0.1 * (1.0 + dx), 1.0 - 0.4 * (1.0 + dy)]);
}

#[test]
fn an_adaptive_step_uphill_is_in_units_of_the_weights() {
    // g = (1, −8), T = (1.01, 2.01), T g = (1.01, −16.08) of norm 16.111688,
    // T² g = (1.0201, −32.3208).
    let [above, after] = two_passes("[sam]\nrho = 0.5\nadaptive = true", [1.0, -2.0]);
    let (dx, dy) = (0.5 * 1.0201 / 16.111_688, -0.5 * 32.3208 / 16.111_688);
    close(&above, &[1.0 + dx, -2.0 + dy]);
    close(&after, &[1.0 - 0.1 * (1.0 + dx), -2.0 - 0.4 * (-2.0 + dy)]);
}

#[test]
fn only_what_learns_is_lifted_and_a_gradient_of_nothing_lifts_nothing() {
    let params = [param("w", &[1.0, 2.0, 3.0], &[3]).masked(mask(&[0, 2])).unwrap()];
    let mut stepper = stepper(&format!("{PLAIN}[sam]\nrho = 1"), &params, &Start::steps(4));
    stepper.ascend(&|_, _| Some(row(&[3.0, 4.0]))).unwrap();
    close(&values(&params[0]), &[1.6, 2.0, 3.8]);
    stepper.descend().unwrap();
    stepper.ascend(&|_, _| Some(row(&[0.0, 0.0]))).unwrap();
    assert_eq!(values(&params[0]), [1.0, 2.0, 3.0]);
    assert!(stepper.ascend(&|_, _| Some(row(&[0.0, 0.0]))).is_err());
    assert!(stepper.exchange().is_err() && stepper.state().is_err());
    assert!(stepper.rebind(&params, true).is_err());
    stepper.descend().unwrap();
    assert!(stepper.descend().is_err());
}

#[test]
fn a_step_of_one_pass_cannot_be_lifted() {
    let params = [param("w", &[1.0], &[1])];
    let mut stepper = stepper(PLAIN, &params, &Start::steps(4));
    assert!(!stepper.two_passes());
    let err = stepper.ascend(&|_, _| Some(row(&[1.0]))).unwrap_err().to_string();
    assert!(err.starts_with("train.update.sam: is not named"), "{err}");
}
