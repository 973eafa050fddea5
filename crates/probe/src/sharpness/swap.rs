//! Which layers of a tuned model do not bear to be alone.

use candle_core::Tensor;
use luthier_core::{Error, Result, StateDict};
use serde::Serialize;

/// A layer: its name, and which tensors belong to it.
pub type Layer<'a> = (String, Box<dyn Fn(&str) -> bool + Send + Sync + 'a>);

/// What a layer does by itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Swap {
    /// Its name.
    pub layer: String,
    /// The score of the base with this layer tuned, less the base's.
    pub forward: f64,
    /// The score of the tuned model with this layer put back, less the tuned model's.
    pub backward: f64,
    /// `‖Δ‖ / ‖base‖` of the layer: what can be said without data.
    pub moved: f64,
}

/// Swaps every layer by itself. `score` is better where it is larger: accuracy on data that are not
/// those of the tuning.
pub fn swaps(
    base: &StateDict,
    tuned: &StateDict,
    layers: &[Layer<'_>],
    score: &dyn Fn(&StateDict) -> Result<f64>,
) -> Result<Vec<Swap>> {
    let (before, after) = (score(base)?, score(tuned)?);
    let swap = |(name, layer): &Layer<'_>| {
        Ok(Swap {
            layer: name.clone(),
            forward: score(&exchanged(base, tuned, layer)?)? - before,
            backward: score(&exchanged(tuned, base, layer)?)? - after,
            moved: moved(base, tuned, layer)?,
        })
    };
    layers.iter().map(swap).collect()
}

/// The places of the `share` of layers, rounded up, whose tuned weights cost the base most; of equals
/// those that the tuned model gains most without.
pub fn stragglers(swaps: &[Swap], share: f64) -> Vec<usize> {
    let n = (share * swaps.len() as f64).ceil() as usize;
    let mut order: Vec<usize> = (0..swaps.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&swaps[*a], &swaps[*b]);
        a.forward.total_cmp(&b.forward).then(b.backward.total_cmp(&a.backward))
    });
    order.truncate(n);
    order
}

/// How far the loss rises above the straight line between its ends while `layer` goes from `base` to
/// `tuned` and all else is that of `around`: the largest of it over `steps + 1` points, at least 0.
pub fn barrier(
    around: &StateDict,
    (base, tuned): (&StateDict, &StateDict),
    layer: &dyn Fn(&str) -> bool,
    steps: u32,
    loss: &dyn Fn(&StateDict) -> Result<f64>,
) -> Result<f64> {
    if steps < 2 {
        return Err(Error::input("barrier", format!("expected 2 steps or more, got {steps}")));
    }
    let at = |step: u32| -> Result<f64> {
        let alpha = f64::from(step) / f64::from(steps);
        let mut state = around.clone();
        for (name, before) in base.iter().filter(|(name, _)| layer(name)) {
            let after = partner(tuned, name, before)?;
            let between = ((before * (1.0 - alpha))? + (after * alpha)?)?;
            state.insert(name, between);
        }
        loss(&state)
    };
    let losses: Vec<f64> = (0..=steps).map(at).collect::<Result<_>>()?;
    let (first, last) = (losses[0], losses[steps as usize]);
    let above = losses.iter().enumerate().map(|(step, loss)| {
        let alpha = step as f64 / f64::from(steps);
        loss - ((1.0 - alpha) * first + alpha * last)
    });
    Ok(above.fold(0.0, f64::max))
}

/// `to` with `layer` as `from` has it.
fn exchanged(
    to: &StateDict,
    from: &StateDict,
    layer: &(dyn Fn(&str) -> bool + Send + Sync),
) -> Result<StateDict> {
    let mut state = to.clone();
    for (name, own) in to.iter().filter(|(name, _)| layer(name)) {
        state.insert(name, partner(from, name, own)?.clone());
    }
    Ok(state)
}

fn moved(
    base: &StateDict,
    tuned: &StateDict,
    layer: &(dyn Fn(&str) -> bool + Send + Sync),
) -> Result<f64> {
    let (mut delta, mut norm) = (0.0, 0.0);
    for (name, before) in base.iter().filter(|(name, _)| layer(name)) {
        delta += squares(&(partner(tuned, name, before)? - before)?)?;
        norm += squares(before)?;
    }
    Ok((delta / norm).sqrt())
}

fn squares(tensor: &Tensor) -> Result<f64> {
    let numbers: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    Ok(numbers.iter().map(|x| f64::from(*x).powi(2)).sum())
}

fn partner<'a>(state: &'a StateDict, name: &str, like: &Tensor) -> Result<&'a Tensor> {
    let got = state.get(name).map(Tensor::dims);
    state.get(name).filter(|tensor| tensor.dims() == like.dims()).ok_or_else(|| {
        Error::input(name, format!("expected shape {:?} in both models, got {got:?}", like.dims()))
    })
}
