//! How far a policy gets in some tasks, from chance (0) to the expert (1).

use candle_core::D;
use luthier_core::{Batch, Ctx, Head, Logits, Policy, Result, Row, Seed};
use luthier_kernels::threads;

use super::world::{ACTION, ACTIONS, Mass, STEPS, Task, any_action, middle};
use crate::stats::mean;

/// States of one pass.
const PASS: usize = 256;

/// Episodes that are driven again and again, and what chance and the expert make of them.
pub struct Exam {
    tasks: Vec<Task>,
    starts: Vec<Mass>,
    chance: Vec<f64>,
    expert: Vec<f64>,
}

/// The task of a mass, and the mass.
type Driven = (usize, Mass);

/// What masses do next.
type Act<'a> = dyn FnMut(&[Driven]) -> Result<Vec<[f64; 2]>> + 'a;

/// The mean return of each task where `act` drives all episodes side by side.
fn drive(tasks: &[Task], starts: &[Mass], act: &mut Act) -> Result<Vec<f64>> {
    let of_task = |task: usize| starts.iter().map(move |start| (task, *start));
    let mut driven: Vec<Driven> = (0..tasks.len()).flat_map(of_task).collect();
    let mut returns = vec![0.0; tasks.len()];
    for _ in 0..STEPS {
        let actions = act(&driven)?;
        for ((task, mass), action) in driven.iter_mut().zip(actions) {
            returns[*task] += tasks[*task].step(mass, action) / starts.len() as f64;
        }
    }
    Ok(returns)
}

impl Exam {
    /// The same starts for all tasks.
    pub fn new(tasks: Vec<Task>, episodes: usize, seed: Seed) -> Result<Self> {
        let mut rng = seed.split("starts").rng();
        let starts: Vec<Mass> = (0..episodes).map(|_| Mass::draw(&mut rng)).collect();
        let mut rng = seed.split("chance").rng();
        let chance = drive(&tasks, &starts, &mut |driven: &[Driven]| {
            Ok(driven.iter().map(|_| any_action(&mut rng)).collect())
        })?;
        let expert = drive(&tasks, &starts, &mut |driven: &[Driven]| {
            Ok(driven.iter().map(|(task, mass)| tasks[*task].expert(mass)).collect())
        })?;
        Ok(Exam { tasks, starts, chance, expert })
    }

    /// The mean over the tasks of the return on the way from chance to the expert.
    pub fn score(&self, policy: &Policy) -> Result<f64> {
        let placeholders = policy.hooks.virtual_tokens;
        let returns = drive(&self.tasks, &self.starts, &mut |driven: &[Driven]| {
            let see = |(task, mass): &Driven| {
                self.tasks[*task].row(mass, [0.0; 2], 0).behind(placeholders)
            };
            let rows: Vec<Row> = driven.iter().map(see).collect();
            let mut actions = Vec::with_capacity(rows.len());
            for rows in rows.chunks(PASS) {
                let bins = threads::together(|| likeliest(policy, &Batch::from_rows(rows)))?;
                actions.extend(bins.chunks_exact(2).map(|of| [middle(of[0]), middle(of[1])]));
            }
            Ok(actions)
        })?;
        let scale = self.chance.iter().zip(&self.expert);
        let scores = returns.iter().zip(scale).map(|(r, (low, high))| (r - low) / (high - low));
        Ok(mean(&scores.collect::<Vec<f64>>()))
    }
}

/// The likeliest bin wherever an action is asked for.
fn likeliest(policy: &Policy, batch: &Batch) -> Result<Vec<u32>> {
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    // They say where the prompt ends, as in training.
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
    let logits_mv = head.logits(&batch.trained_m())?;
    let of_actions = logits_mv.narrow(1, ACTION as usize, ACTIONS)?.contiguous()?;
    Ok(of_actions.argmax(D::Minus1)?.to_vec1::<u32>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_0_and_the_expert_is_1() {
        let tasks: Vec<Task> = (0..3).map(|i| Task::draw(Seed(1).at(i))).collect();
        let exam = Exam::new(tasks.clone(), 10, Seed(2)).unwrap();
        for (chance, expert) in exam.chance.iter().zip(&exam.expert) {
            assert!(*chance < 2.0 * expert && *expert < 0.0, "{chance} {expert}");
        }
        // An expert of another task is lost in this one.
        let mut lost = |driven: &[Driven]| {
            Ok(driven.iter().map(|(task, mass)| tasks[(task + 1) % 3].expert(mass)).collect())
        };
        let returns = drive(&tasks, &exam.starts, &mut lost).unwrap();
        let worst = returns.iter().zip(&exam.expert).map(|(lost, expert)| lost / expert);
        assert!(worst.fold(0.0, f64::max) > 1.5);
    }
}
