//! The Fisher probe on a recipe's model, variables and data: what `ewc` holds on to.

use luthier_core::{Batch, Error, Result, Seed, StateDict};
use luthier_kernels::threads;
use luthier_loss::{Nll, Totals};
use luthier_probe::Fisher;
use luthier_train::{
    step::Step,
    sum::{Gradients, Sums},
};

use crate::training::Stage;

/// Fisher values of every variable that `stage` makes learnable, over so many of its training rows,
/// drawn with its seed; all of them when there are no more. `told` hears how many are done.
pub fn fisher(stage: &Stage, rows: usize, told: &dyn Fn(usize)) -> Result<(StateDict, usize)> {
    if rows == 0 {
        return Err(Error::input("rows", "expected at least 1, got 0"));
    }
    let (bound, all) = (&stage.bound, &stage.train.rows);
    let mut order: Vec<usize> = (0..all.len()).collect();
    Seed(stage.config.seed).split("fisher").rng().shuffle(&mut order);
    order.truncate(rows);
    // The likelihood, whatever the recipe minimises.
    let objective = Nll::default();
    let step = Step {
        policy: &bound.policy,
        params: &bound.params,
        objective: &objective,
        teacher: None,
        keep: stage.keep,
    };
    let (mut fisher, mut used) = (Fisher::default(), Gradients::new());
    for (done, row) in order.iter().enumerate() {
        let batch = Batch::from_rows([&all[*row]]);
        let (totals, mut sums) = (Totals::of([&batch]), Sums::new(&bound.params, used));
        threads::together(|| step.forward_backward(&batch, &totals, None, 1.0, &mut sums))?;
        used = sums.gradients();
        fisher.add(&whole(stage, &used)?)?;
        told(done + 1);
    }
    Ok((fisher.finish()?, order.len()))
}

/// The gradients of one row, with zeros where it has none: a token that it lacks, say.
fn whole(stage: &Stage, found: &Gradients) -> Result<StateDict> {
    let mut gradients = StateDict::default();
    for param in &stage.bound.params {
        let gradient = match found.get(&param.name) {
            Some(gradient) => gradient.clone(),
            None => param.var.zeros_like()?,
        };
        gradients.insert(param.name.clone(), gradient);
    }
    Ok(gradients)
}
