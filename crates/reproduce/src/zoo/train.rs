//! How nets of the zoo are trained: by the optimizers and schedules of `luthier_update`.

use candle_core::Var;
use luthier_core::{Param, Result, Rng, Seed, StateDict};
use luthier_kernels::threads;
use luthier_update::{
    AdamW, Schedules, Start, Stepper, Update,
    schedule::{Constant, Cosine},
};
use std::sync::Mutex;

use super::{
    digits::Images,
    net::{Asked, Shape, one_hot},
};

/// AdamW as torch has it (decay for every tensor, no limit to gradients).
pub fn adamw(learning_rate: f64, weight_decay: f64, schedule: Schedules) -> Update {
    Update {
        max_grad_norm: 0.0,
        decay_norms_and_biases: true,
        adamw: Some(AdamW { learning_rate, weight_decay, ..AdamW::default() }),
        schedule,
        ..Update::default()
    }
}

/// Half a cosine wave after so many steps of warm-up.
pub fn cosine(warmup_steps: u64) -> Schedules {
    Schedules { cosine: Some(Cosine { warmup_steps, ..Cosine::default() }), ..Schedules::default() }
}

/// No change.
pub fn constant() -> Schedules {
    Schedules { constant: Some(Constant::default()), ..Schedules::default() }
}

/// Moves all of `start` for `steps` steps along what `gradient` gives for a step, from 0, and the
/// numbers of now; `after` sees the numbers after so many steps.
pub fn descend(
    update: &Update,
    steps: u64,
    start: &StateDict,
    mut gradient: impl FnMut(u64, &StateDict) -> Result<StateDict>,
    mut after: impl FnMut(u64, &StateDict) -> Result<()>,
) -> Result<StateDict> {
    let param = |(name, tensor)| Ok(Param::whole(name, Var::from_tensor(tensor)?));
    let params: Vec<Param> = start.iter().map(param).collect::<Result<_>>()?;
    let mut stepper = Stepper::new(update, &params, &Start::steps(steps))?;
    // Steps change the numbers where they lie, so this always holds those of now.
    let now: StateDict =
        params.iter().map(|p| (p.name.clone(), p.var.as_detached_tensor())).collect();
    for step in 0..steps {
        let gradients = gradient(step, &now)?;
        stepper.step(&|name, _| gradients.get(name).cloned())?;
        after(step + 1, &now)?;
    }
    copy(&now)
}

/// The same numbers in memory of their own.
pub fn copy(state: &StateDict) -> Result<StateDict> {
    state.iter().map(|(name, tensor)| Ok((name.to_string(), tensor.copy()?))).collect()
}

/// `state` with the tensors of `by` in place of its own.
pub fn with(state: &StateDict, by: &StateDict) -> StateDict {
    let mut all = state.clone();
    by.iter().for_each(|(name, tensor)| all.insert(name, tensor.clone()));
    all
}

/// The tensors of `state` that `chosen` names.
pub fn part(state: &StateDict, chosen: &dyn Fn(&str) -> bool) -> StateDict {
    let named = state.iter().filter(|(name, _)| chosen(name));
    named.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
}

/// What a net is trained on, and how long.
pub struct Course<'a> {
    /// The net.
    pub shape: &'a Shape,
    /// What it sees.
    pub images: &'a Images,
    /// The questions, which are also the heads that answer them.
    pub questions: &'a [usize],
    /// Steps.
    pub steps: u64,
    /// Images of a step, drawn with replacement.
    pub batch: usize,
    /// The share of an answer that is spread over all answers.
    pub smoothing: f64,
    /// Mixup's `a`: a batch is mixed with itself in another order, by a share from Beta(a, a).
    pub mixup: f64,
    /// Of the draws.
    pub seed: Seed,
}

impl Course<'_> {
    /// `start` after the course; only tensors that `learns` names move.
    pub fn run(
        &self,
        update: &Update,
        start: &StateDict,
        learns: &dyn Fn(&str) -> bool,
    ) -> Result<StateDict> {
        self.watched(update, start, learns, &mut |_, _| Ok(()))
    }

    /// The same; `after` sees the whole net after so many steps.
    pub fn watched(
        &self,
        update: &Update,
        start: &StateDict,
        learns: &dyn Fn(&str) -> bool,
        after: &mut dyn FnMut(u64, &StateDict) -> Result<()>,
    ) -> Result<StateDict> {
        let asked = |name: &str| {
            let of = |q: &usize| name.starts_with(&format!("heads.{q}."));
            !super::net::is_head(name) || self.questions.iter().any(of)
        };
        let learns = |name: &str| learns(name) && asked(name);
        let gradient = |step: u64, now: &StateDict| {
            let (pixels_nd, asked) = self.draw(step);
            let all = with(start, now);
            Ok(self.shape.gradient(&all, &pixels_nd, &asked, &learns)?.1)
        };
        let learned = part(start, &learns);
        let watch = |step: u64, now: &StateDict| after(step, &with(start, now));
        Ok(with(start, &descend(update, self.steps, &learned, gradient, watch)?))
    }

    /// The images of a step and what is asked of them.
    pub fn draw(&self, step: u64) -> (Vec<f32>, Vec<Asked>) {
        let mut rng = self.seed.at(step).rng();
        let chosen: Vec<usize> = (0..self.batch).map(|_| rng.below(self.images.len())).collect();
        let mut pixels: Vec<f32> =
            chosen.iter().flat_map(|i| self.images.image(*i).iter().copied()).collect();
        let mut asked: Vec<Asked> =
            self.questions.iter().map(|q| self.asked(*q, &chosen)).collect();
        if self.mixup > 0.0 {
            let share = beta(self.mixup, &mut rng) as f32;
            let mut order: Vec<usize> = (0..self.batch).collect();
            rng.shuffle(&mut order);
            pixels = mixed(&pixels, self.images.width, &order, share);
            for Asked { head, wanted_nc } in &mut asked {
                *wanted_nc = mixed(wanted_nc, self.shape.heads[*head], &order, share);
            }
        }
        (pixels, asked)
    }

    fn asked(&self, question: usize, chosen: &[usize]) -> Asked {
        let classes = self.shape.heads[question];
        let answers: Vec<u32> = chosen.iter().map(|i| self.images.answers[question][*i]).collect();
        let mut wanted_nc = one_hot(&answers, classes);
        let (keep, spread) = (1.0 - self.smoothing, self.smoothing / classes as f64);
        wanted_nc.iter_mut().for_each(|x| *x = *x * keep as f32 + spread as f32);
        Asked { head: question, wanted_nc }
    }
}

/// Rows with `1 − share` of those that stand where `order` says.
fn mixed(rows: &[f32], width: usize, order: &[usize], share: f32) -> Vec<f32> {
    let pairs = rows.chunks_exact(width).zip(order);
    let row = |(row, other): (&[f32], &usize)| {
        let other = &rows[other * width..][..width];
        let mix = |(x, y): (&f32, &f32)| share * x + (1.0 - share) * y;
        row.iter().zip(other).map(mix).collect::<Vec<f32>>()
    };
    pairs.flat_map(row).collect()
}

/// A draw from Beta(a, a) by Jöhnk's rejection, which is quick for `a` up to 1.
fn beta(a: f64, rng: &mut Rng) -> f64 {
    loop {
        let (x, y) = (rng.uniform().powf(1.0 / a), rng.uniform().powf(1.0 / a));
        let sum = x + y;
        if sum > 0.0 && sum <= 1.0 {
            return x / sum;
        }
    }
}

/// What `f` makes of every item, side by side, each on one thread.
pub fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    f: impl Fn(&T) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    let slots: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let tasks: Vec<(&T, &Mutex<Option<Result<R>>>)> = items.iter().zip(&slots).collect();
    threads::for_each(tasks, |(item, slot)| {
        let made = threads::alone(|| f(item));
        *slot.lock().unwrap_or_else(|e| e.into_inner()) = Some(made);
    });
    let made = slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(|e| e.into_inner()));
    made.map(|made| made.expect("every task fills its slot")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::{digits::domain, net::is_head};

    fn shape() -> Shape {
        Shape { input: 144, width: 16, hidden: 24, blocks: 2, heads: vec![10] }
    }

    #[test]
    fn a_net_learns_and_what_rests_rests() {
        let (shape, images) = (shape(), domain(0, 400, Seed(1)));
        let course = Course {
            shape: &shape,
            images: &images,
            questions: &[0],
            steps: 60,
            batch: 32,
            smoothing: 0.0,
            mixup: 0.0,
            seed: Seed(2),
        };
        let update = adamw(5e-3, 0.01, cosine(5));
        let start = shape.random(Seed(3)).unwrap();
        let body = |name: &str| !is_head(name);
        let all = [true, false]
            .map(|heads| course.run(&update, &start, &|name| heads || body(name)).unwrap());
        let before = shape.accuracies(&start, &images, &[0]).unwrap()[0];
        for tuned in &all {
            let after = shape.accuracies(tuned, &images, &[0]).unwrap()[0];
            assert!(after > before + 0.3, "{before} {after}");
        }
        let numbers = |state: &StateDict, name: &str| {
            state.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(numbers(&all[1], "heads.0.weight"), numbers(&start, "heads.0.weight"));
        assert_ne!(numbers(&all[0], "heads.0.weight"), numbers(&start, "heads.0.weight"));
        // Beside others, on one thread, it comes to the same bits.
        let seeds = [2, 9, 2];
        let again = side_by_side(&seeds, |seed| {
            let course = Course { seed: Seed(*seed), ..course_of(&shape, &images) };
            course.run(&update, &start, &|_| true)
        });
        let again = again.unwrap();
        assert_eq!(numbers(&again[0], "input.weight"), numbers(&all[0], "input.weight"));
        assert_eq!(numbers(&again[2], "input.weight"), numbers(&all[0], "input.weight"));
        assert_ne!(numbers(&again[1], "input.weight"), numbers(&all[0], "input.weight"));
    }

    fn course_of<'a>(shape: &'a Shape, images: &'a Images) -> Course<'a> {
        let (smoothing, mixup, seed) = (0.0, 0.0, Seed(0));
        Course { shape, images, questions: &[0], steps: 60, batch: 32, smoothing, mixup, seed }
    }

    #[test]
    fn wishes_are_smoothed_and_mixed() {
        let (shape, images) = (shape(), domain(0, 50, Seed(1)));
        let course = Course { smoothing: 0.1, ..course_of(&shape, &images) };
        let (_, asked) = course.draw(0);
        let row = &asked[0].wanted_nc[..10];
        let most = row.iter().copied().fold(0.0, f32::max);
        assert!((most - 0.91).abs() < 1e-6 && (row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let course = Course { mixup: 0.4, ..course_of(&shape, &images) };
        let (pixels, asked) = course.draw(3);
        assert_eq!(pixels.len(), 32 * 144);
        let rows: Vec<&[f32]> = asked[0].wanted_nc.chunks_exact(10).collect();
        assert!(rows.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        assert!(rows.iter().any(|row| row.iter().filter(|x| **x > 0.0).count() == 2));
        assert_eq!(mixed(&[1.0, 2.0, 3.0, 4.0], 2, &[1, 1], 0.25), [2.5, 3.5, 3.0, 4.0]);
    }

    #[test]
    fn shares_have_the_moments_of_their_distribution() {
        // Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
        let mut rng = Seed(6).rng();
        let all: Vec<f64> = (0..20_000).map(|_| beta(0.4, &mut rng)).collect();
        let mean = all.iter().sum::<f64>() / 2e4;
        let variance = all.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 2e4;
        assert!(
            (mean - 0.5).abs() < 0.01 && (variance - 1.0 / 7.2).abs() < 0.003,
            "{mean} {variance}"
        );
    }
}
