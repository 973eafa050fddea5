//! Arms side by side: every arm makes a step before any makes the next, so that whatever else the
//! machine does slows all of them alike. A step is the engine's own, part by part.

use std::time::Instant;

use luthier_core::{Result, Row, Seed};
use luthier_params::{Bound, Handover};
use luthier_train::{
    Gradients, Step, Train,
    course::{Course, Place},
    run::passes,
    step::Data,
};
use luthier_update::{Start, Stepper};
use tracing::subscriber::{NoSubscriber, with_default};

use crate::{lab::order, stats::mean};

/// First steps of an arm that do not count: memory is taken, caches fill.
const WARM: usize = 5;

/// An arm with what it has done so far.
pub struct Arm<'a> {
    bound: &'a Bound,
    config: &'a Train,
    start: Start<'a>,
    course: Course<'a>,
    stepper: Stepper,
    gradients: Gradients,
    /// The names of what learned, epoch by epoch.
    pub learned: Vec<Vec<String>>,
    /// Seconds of each choice and of each step.
    choices: Vec<f64>,
    steps: Vec<f64>,
}

/// Runs arms that share seed, epochs and rows of a step to their end.
pub fn run<'a>(arms: &[(&'a Bound, &'a Train)], rows: &[Row]) -> Result<Vec<Arm<'a>>> {
    let Some((_, config)) = arms.first() else { return Ok(Vec::new()) };
    let plan = order(rows, config)?;
    let epochs: Vec<_> = (0..config.epochs as usize).map(|epoch| plan.epoch(epoch)).collect();
    let steps: u64 = epochs.iter().map(|epoch| epoch.len() as u64).sum();
    let new = |(bound, config): &(&'a Bound, &'a Train)| Arm::new(bound, config, steps);
    let mut all: Vec<Arm> = arms.iter().map(new).collect::<Result<_>>()?;
    let mut place = Place { round: 0, step: 0, steps, epoch_begins: true };
    for epoch in epochs {
        for (i, step) in epoch.iter().enumerate() {
            place.epoch_begins = i == 0;
            all.iter_mut().try_for_each(|arm| arm.step(rows, step, place))?;
            place.step += 1;
        }
    }
    Ok(all)
}

impl<'a> Arm<'a> {
    fn new(bound: &'a Bound, config: &'a Train, steps: u64) -> Result<Self> {
        let seed = Seed(config.seed);
        let n_layers = bound.policy.model.n_layers();
        let start = Start { seed, n_layers, ..Start::steps(steps) };
        let course = Course::new(bound, seed.split("course"))?;
        let stepper = Stepper::new(&config.update, &course.params, &start)?;
        let (learned, gradients) = (Vec::new(), Gradients::new());
        let (choices, steps) = (Vec::new(), Vec::new());
        Ok(Arm { bound, config, start, course, stepper, gradients, learned, choices, steps })
    }

    fn step(&mut self, rows: &[Row], chosen: &[usize], place: Place) -> Result<()> {
        let (bound, config, number) = (self.bound, self.config, place.step + 1);
        let begun = Instant::now();
        let objective = config.loss.objective()?;
        let passes = passes(chosen, rows, config.micro_tokens(), objective.unit().rows());
        let data = Data {
            number,
            passes: &passes,
            noise: Seed(config.seed).split("noise").at(number),
            describe: &|example| format!("row {example}"),
        };
        let all = Step {
            policy: &bound.policy,
            params: &bound.params,
            objective: objective.as_ref(),
            teacher: None,
            keep: true,
        };
        let rate = match self.stepper.learning_rate()? {
            0.0 => config.update.check()?.learning_rate,
            rate => rate,
        };
        let (course, stepper) = (&mut self.course, &self.stepper);
        // What a form says once to a person, it would say here a hundred times.
        let choose = || course.choose(place, &all, &data, rate, stepper);
        let handover = with_default(NoSubscriber::new(), choose)?;
        match handover {
            Some(_) if place.step == 0 => {
                let params = &self.course.params;
                self.stepper = Stepper::new(&config.update, params, &self.start)?;
            }
            Some(handover) => {
                self.stepper.rebind(&self.course.params, handover == Handover::Keep)?;
            }
            None => {}
        }
        let choosing = begun.elapsed().as_secs_f64();
        if handover.is_some() {
            self.choices.push(choosing);
        }
        if place.epoch_begins {
            self.learned.push(self.course.params.iter().map(|p| p.name.clone()).collect());
        }
        let step = Step { policy: &self.course.policy, params: &self.course.params, ..all };
        step.run(&data, &mut self.gradients, &mut self.stepper)?;
        let beside = if handover.is_some() { choosing } else { 0.0 };
        self.steps.push(begun.elapsed().as_secs_f64() - beside);
        Ok(())
    }

    /// Of a step once the first are made, with its part of the time that choosing took.
    pub fn milliseconds(&self) -> f64 {
        let choices = self.choices.iter().sum::<f64>() / self.steps.len() as f64;
        1e3 * (mean(&self.steps[WARM.min(self.steps.len() - 1)..]) + choices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lab, Sizes, Small, measure, recipe};

    #[test]
    fn an_arm_ends_where_the_engine_ends() {
        let sizes =
            Sizes { layers: 2, width: 16, heads: 2, kv_heads: 2, ffn: 24, vocab: 12, tied: false };
        let small = Small::random(sizes, Seed(3)).unwrap();
        let rows: Vec<Row> = (0..22)
            .map(|i| measure::row(&[i % 7, 3, i % 5], &[(i + 1) % 12, i % 11], i as usize))
            .collect();
        let set = ["batch_size=4", "epochs=2", "learning_rate=1e-2", "train.seed=5"];
        let config = recipe("recipes/full/green.toml", &set).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::at(dir.path().into(), 1, false, &|_| ()).unwrap();
        let (engine, ours) = (small.bind(&config).unwrap(), small.bind(&config).unwrap());
        let steps = lab.train(&engine, &rows, &config).unwrap().steps;
        let arms = run(&[(&ours, &config)], &rows).unwrap();
        assert_eq!((steps, arms[0].steps.len(), arms[0].choices.len()), (12, 12, 2));
        assert!(arms[0].learned.iter().all(|l| !l.is_empty() && l.len() < ours.params.len()));
        for (engine, ours) in engine.params.iter().zip(&ours.params) {
            let numbers = |var: &candle_core::Var| -> Vec<f32> {
                var.flatten_all().unwrap().to_vec1().unwrap()
            };
            assert!(numbers(&engine.var) == numbers(&ours.var), "{}", ours.name);
        }
    }
}
