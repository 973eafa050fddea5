//! What is known of a plan only once all its tensors have been looked at: the edge of the largest
//! changes in a whole model, and the factor of LiNeS that follows from norms.

use luthier_core::{Error, Result, Seed};
use luthier_weights::{Config, Cutoffs, Given, Lines, Norms, Work, combine::Passthrough};

use super::{Plan, Planned};
use crate::merge::{beside::Files, models::Models, read::Tensors, tokens::Vocabulary};

/// Fills in what takes all tensors to know.
pub(in crate::merge) fn settle(
    plan: &mut Plan,
    config: &Config,
    (models, files): (&Models, &Files),
    vocabulary: Option<&Vocabulary>,
    seed: Seed,
) -> Result<()> {
    if let Some(shares) = shares(plan, config)? {
        let mut cutoffs = Cutoffs::new(&shares);
        for second in [false, true] {
            for planned in plan.tensors.iter().filter(|planned| counts(&planned.given)) {
                let inputs = Tensors::of(planned, models, files, vocabulary)?;
                cutoffs.count(&Work::new(&inputs, seed))?;
            }
            if !second {
                cutoffs.narrow();
            }
        }
        let edges: Vec<Option<f64>> = cutoffs.edges().iter().map(|e| Some(f64::from(*e))).collect();
        for planned in &mut plan.tensors {
            planned.given.each.push(("edge", edges.clone()));
            planned.combine = config.spec.combine(&planned.given)?;
        }
    }
    let Some(lines) = config.lines else { return Ok(()) };
    let alpha = match lines.alpha {
        Some(alpha) => alpha,
        None => {
            let mut norms = Norms::default();
            for planned in &plan.tensors {
                based(config, planned)?;
                let inputs = Tensors::of(planned, models, files, vocabulary)?;
                let work = Work::new(&inputs, seed.split(&planned.name));
                if !work.is_empty() {
                    norms.count(&work, planned.combine.as_ref())?;
                }
            }
            norms.alpha(plan.tensors.first().map_or(1, |planned| planned.given.inputs.len()))
        }
    };
    for planned in &mut plan.tensors {
        based(config, planned)?;
        let factor = lines.factor(alpha, planned.place);
        let none = Box::new(Passthrough { scale: None });
        let inner = std::mem::replace(&mut planned.combine, none);
        planned.combine = Box::new(Lines { inner, factor });
    }
    Ok(())
}

fn based(config: &Config, planned: &Planned) -> Result<()> {
    let at = || format!("{}: lines", config.file);
    if planned.base.is_none() {
        let what = "scales what a merge changes of a base, and there is none";
        return Err(Error::input(at(), what).hint("add `base_model: …`"));
    }
    if config.spec.beside.is_some() {
        let what = format!("cannot be put on top of {}", config.spec.name);
        return Err(Error::input(at(), what));
    }
    Ok(())
}

fn counts(given: &Given) -> bool {
    given.switch("include")
}

/// The shares of a graft by size, one for each model; `None` where nothing is grafted by size.
fn shares(plan: &Plan, config: &Config) -> Result<Option<Vec<f64>>> {
    if config.spec.name != "graft" {
        return Ok(None);
    }
    let of = |given: &Given| -> Vec<f64> {
        given.maybe_numbers("top").into_iter().map(|top| top.unwrap_or(0.0)).collect()
    };
    let mut counted = plan.tensors.iter().map(|p| &p.given).filter(|given| counts(given));
    let Some(first) = counted.next() else { return Ok(None) };
    let shares = of(first);
    if counted.any(|given| of(given) != shares || given.inputs != first.inputs) {
        let what = "is one share of all tensors together: it cannot depend on depth or name";
        return Err(Error::input(format!("{}: top", config.file), what)
            .hint("`include` says which tensors count"));
    }
    Ok(shares.iter().any(|share| *share > 0.0).then_some(shares))
}
