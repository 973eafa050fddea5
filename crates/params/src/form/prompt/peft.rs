//! PEFT's layout of virtual tokens: one tensor `prompt_embeddings`.
//!
//! PROMPT_TUNING: `(n_virtual, width)`, ours as it is. PREFIX_TUNING:
//! `(n_virtual, 2 · layers · kv width)`, in a row layer by layer keys, then values. PEFT puts them into
//! the cache, that is after rotation; real tokens follow at positions from `n_virtual`, so the prefix
//! has positions from 0, and ours, which stands before rotation, is turned back by them.

use candle_core::Tensor;
use luthier_core::{Error, Result, Rotary, StateDict};

use super::PrefixSites;

/// The tensor's name in PEFT's file.
pub const TENSOR: &str = "prompt_embeddings";

/// Our name of a learned prompt.
pub const PROMPT: &str = "embed.prompt";

/// Row `p` of `(n_virtual, heads · e)` rotated by the angles of position `p`, or back.
fn turned(rows_vw: &Tensor, by: Option<Rotary>, back: bool) -> Result<Tensor> {
    let Some(Rotary { inv_freq, factor }) = by else { return Ok(rows_vw.clone()) };
    let ((virtuals, width), half) = (rows_vw.dims2()?, inv_freq.len());
    if half == 0 || width % (2 * half) != 0 {
        let what = format!("{width} numbers are not heads of {}", 2 * half);
        return Err(Error::failed(TENSOR, what));
    }
    let mut all = rows_vw.flatten_all()?.to_vec1::<f32>()?;
    for (p, row) in all.chunks_exact_mut(width).enumerate() {
        for head in row.chunks_exact_mut(2 * half) {
            for (i, inv_freq) in inv_freq.iter().enumerate() {
                let (sin, cos) = (p as f32 * inv_freq).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                let (a, b, by) = match back {
                    false => (a * cos - b * sin, b * cos + a * sin, factor),
                    true => (a * cos + b * sin, b * cos - a * sin, 1.0 / factor),
                };
                (head[i], head[i + half]) = (a * by, b * by);
            }
        }
    }
    Ok(Tensor::from_vec(all, (virtuals, width), rows_vw.device())?)
}

/// PEFT's prefix under our names; `turn` says how a layer rotates keys, `None` that it does not.
pub fn prefix_from_peft<'a>(
    prompt_embeddings: &Tensor,
    layers: &[PrefixSites],
    turn: impl Fn(usize) -> Option<Rotary<'a>>,
) -> Result<StateDict> {
    let (_virtuals, width) = prompt_embeddings.dims2()?;
    let expected: usize = layers.iter().map(|at| 2 * at.width).sum();
    if width != expected {
        let what = format!("has {width} numbers per virtual token, this model needs {expected}");
        return Err(Error::input(TENSOR, what).hint("the prefix was trained on another base model"));
    }
    let (mut state, mut from) = (StateDict::default(), 0);
    for (l, at) in layers.iter().enumerate() {
        let k = prompt_embeddings.narrow(1, from, at.width)?.contiguous()?;
        let v = prompt_embeddings.narrow(1, from + at.width, at.width)?.contiguous()?;
        let k = turned(&k, turn(l), true)?;
        state.insert(format!("{}.prefix", at.k.name), k);
        state.insert(format!("{}.prefix", at.v.name), v);
        from += 2 * at.width;
    }
    Ok(state)
}

/// Our prefix as PEFT's tensor; `of` gives a variable by its name.
pub fn prefix_to_peft<'a>(
    of: impl Fn(&str) -> Option<Tensor>,
    layers: &[PrefixSites],
    turn: impl Fn(usize) -> Option<Rotary<'a>>,
) -> Result<Tensor> {
    let find = |name: String| of(&name).ok_or_else(|| Error::failed(name, "is missing"));
    let mut parts = Vec::with_capacity(2 * layers.len());
    for (l, at) in layers.iter().enumerate() {
        let k = find(format!("{}.prefix", at.k.name))?;
        parts.push(turned(&k, turn(l), false)?);
        parts.push(find(format!("{}.prefix", at.v.name))?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}
