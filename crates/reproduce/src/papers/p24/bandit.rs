//! A bandit with contexts: one choice of a hundred, by a small net, given through the objectives of
//! `luthier_loss`.

use candle_core::{D, Device, Tensor, Var};
use luthier_core::{Batch, Error, Result, Rng, Row, Seed, StateDict};
use luthier_loss::{Given, Objective, Seen, Totals};

/// Choices, and numbers of a context.
pub const ACTIONS: usize = 100;
const CONTEXT: usize = 100;
/// Widths of the linear maps: a norm stands behind the first, ReLU behind all but the last.
const WIDTHS: [usize; 5] = [CONTEXT, 50, 256, 256, ACTIONS];

/// Contexts row by row, uniform between 0 and 1.
pub fn contexts(n: usize, rng: &mut Rng) -> Result<Tensor> {
    let numbers: Vec<f32> = (0..n * CONTEXT).map(|_| rng.uniform() as f32).collect();
    Ok(Tensor::from_vec(numbers, (n, CONTEXT), &Device::Cpu)?)
}

/// A net as torch begins it.
pub fn net(seed: Seed) -> Result<StateDict> {
    let mut state = StateDict::default();
    for (layer, widths) in WIDTHS.windows(2).enumerate() {
        let (i, o) = (widths[0], widths[1]);
        let bound = 1.0 / (i as f64).sqrt();
        for (part, n) in [("weight", i * o), ("bias", o)] {
            let mut rng = seed.split(part).at(layer as u64).rng();
            let numbers: Vec<f32> =
                (0..n).map(|_| ((2.0 * rng.uniform() - 1.0) * bound) as f32).collect();
            let dims = if part == "weight" { vec![o, i] } else { vec![o] };
            state.insert(format!("{layer}.{part}"), Tensor::from_vec(numbers, dims, &Device::Cpu)?);
        }
    }
    state.insert("norm.weight", Tensor::ones(WIDTHS[1], candle_core::DType::F32, &Device::Cpu)?);
    state.insert("norm.bias", Tensor::zeros(WIDTHS[1], candle_core::DType::F32, &Device::Cpu)?);
    Ok(state)
}

/// What a net says of contexts, `(k, actions)`.
pub fn logits(net: &StateDict, contexts: &Tensor) -> Result<Tensor> {
    let get = |name: &str| net.get(name).ok_or_else(|| Error::failed(name, "the net lacks it"));
    let mut x = contexts.clone();
    for layer in 0..WIDTHS.len() - 1 {
        let weight = get(&format!("{layer}.weight"))?;
        x = x.matmul(&weight.t()?)?.broadcast_add(get(&format!("{layer}.bias"))?)?;
        if layer == 0 {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
            x = centred.broadcast_div(&deviation)?;
            x = x.broadcast_mul(get("norm.weight")?)?.broadcast_add(get("norm.bias")?)?;
        }
        if layer + 2 < WIDTHS.len() {
            x = x.relu()?;
        }
    }
    Ok(x)
}

/// The logarithm of how likely each action is in each context.
pub fn logps(net: &StateDict, contexts: &Tensor) -> Result<Vec<Vec<f64>>> {
    let rows: Vec<Vec<f32>> = logits(net, contexts)?.to_vec2()?;
    let log_softmax = |row: Vec<f32>| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let z: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        row.iter().map(|x| f64::from(x - top) - z.ln()).collect()
    };
    Ok(rows.into_iter().map(log_softmax).collect())
}

/// How likely each action is in each context.
pub fn likelihoods(net: &StateDict, contexts: &Tensor) -> Result<Vec<Vec<f64>>> {
    let exp = |row: Vec<f64>| row.into_iter().map(f64::exp).collect();
    Ok(logps(net, contexts)?.into_iter().map(exp).collect())
}

/// The choice of an action in a context, as a row of one token.
pub fn choice(context: usize, action: usize, reference: f64) -> Row {
    Row {
        ids: vec![0],
        targets: vec![action as u32],
        weights: vec![1.0],
        example: context,
        reference,
        ..Row::default()
    }
}

/// The gradient of a scalar made of a net's logits, by variable.
pub fn gradient(
    net: &StateDict,
    contexts: &Tensor,
    loss: impl FnOnce(Tensor) -> Result<Tensor>,
) -> Result<StateDict> {
    let vars: Vec<(String, Var)> = net
        .iter()
        .map(|(name, tensor)| Ok((name.to_string(), Var::from_tensor(tensor)?)))
        .collect::<Result<_>>()?;
    let learned: StateDict =
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let grads = loss(logits(&learned, contexts)?)?.backward()?;
    let found = |(name, var): &(String, Var)| Some((name.clone(), grads.get(var)?.clone()));
    Ok(vars.iter().filter_map(found).collect())
}

/// The gradient of an objective over choices, as a training step takes it.
pub fn objective_gradient(
    net: &StateDict,
    contexts: &Tensor,
    objective: &dyn Objective,
    rows: &[Row],
) -> Result<StateDict> {
    let batch = Batch::from_rows(rows);
    let by = objective.normaliser(&[&batch]);
    let step = Totals { by, ..Totals::of([&batch]) };
    let of: Vec<u32> = rows.iter().map(|row| row.example as u32).collect();
    gradient(net, contexts, |logits_ka| {
        let index = Tensor::from_slice(&of, of.len(), &Device::Cpu)?;
        let mut given = Given(logits_ka.index_select(&index, 0)?);
        let seen = Seen { out: &mut given, teacher: None, batch: &batch, step: &step };
        Ok((objective.terms(seen)?.sum / by)?)
    })
}
