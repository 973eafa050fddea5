//! How much of a pass tuning contributes (TuCo; Nuti et al. 2025, paper 27).
//!
//! Blocks of both models read the tuned model's stream, and what they add is taken apart at the last
//! token: `p ← p + (base_l(h) − h)`, `f ← f + (tuned_l(h) − base_l(h))`, `h ← tuned_l(h)`; then
//! `TuCo = ‖f‖₁ / (‖p‖₁ + ‖f‖₁)`. The norms are taken of the sums, so what one block adds and the next
//! takes away counts nothing; embedding, final norm and head have no part in it. For comparison,
//! `OutputCo = ‖h_tuned − h_base‖₁ / (‖h_base‖₁ + ‖h_tuned − h_base‖₁)` of the last streams of two
//! passes, each on its own.
//!
//! **Departures**: (1) both models' blocks start from the tuned model's embedding, also where the
//! embeddings differ; (2) the norm is the definition's, L1, which the paper's pseudo-code leaves open.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use luthier_core::{Batch, Ctx, Error, Policy, Result, Row, Rows, batch::pack};
use luthier_kernels::threads;

/// Tokens of a pass.
const PASS: usize = 4096;

/// What base and tuning add to the stream of a prompt's last token.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// The stream as it begins: the tuned model's embedding.
    pub start_d: Vec<f64>,
    /// What the base's blocks add, summed over blocks.
    pub base_d: Vec<f64>,
    /// What the tuned blocks add beyond that, summed over blocks.
    pub tuning_d: Vec<f64>,
    /// The largest share of the tuning at any depth.
    pub beta: f64,
}

impl Contribution {
    /// The share of the tuning, between 0 and 1.
    pub fn tuco(&self) -> f64 {
        share(&self.tuning_d, &self.base_d)
    }

    /// The share of the base.
    pub fn preco(&self) -> f64 {
        1.0 - self.tuco()
    }
}

/// `‖part‖₁ / (‖rest‖₁ + ‖part‖₁)`; 0 where there is nothing.
fn share(part: &[f64], rest: &[f64]) -> f64 {
    let norm = |x: &[f64]| x.iter().map(|x| x.abs()).sum::<f64>();
    let (part, rest) = (norm(part), norm(rest));
    if part + rest > 0.0 { part / (rest + part) } else { 0.0 }
}

/// The contributions to each prompt's last token.
pub fn contributions(
    base: &Policy,
    tuned: &Policy,
    prompts: &[Vec<u32>],
) -> Result<Vec<Contribution>> {
    each_pass(base, tuned, prompts, contributions_of_pass)
}

/// OutputCo of each prompt's last token, for which every model follows a stream of its own.
pub fn output_contributions(
    base: &Policy,
    tuned: &Policy,
    prompts: &[Vec<u32>],
) -> Result<Vec<f64>> {
    each_pass(base, tuned, prompts, |base, tuned, batch| {
        let ends = |policy: &Policy| -> Result<Vec<Vec<f64>>> {
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            last(&policy.hidden(&mut ctx)?, &batch.rows)
        };
        let one = |(base, tuned): (Vec<f64>, Vec<f64>)| {
            let difference: Vec<f64> = tuned.iter().zip(&base).map(|(t, b)| t - b).collect();
            share(&difference, &base)
        };
        Ok(ends(base)?.into_iter().zip(ends(tuned)?).map(one).collect())
    })
}

fn each_pass<T>(
    base: &Policy,
    tuned: &Policy,
    prompts: &[Vec<u32>],
    of_pass: impl Fn(&Policy, &Policy, &Batch) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    check(base, tuned)?;
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::input(format!("prompt {}", empty + 1), "has no token"));
    }
    let rows: Vec<Row> = prompts.iter().map(|ids| read_only(ids)).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut found = Vec::with_capacity(rows.len());
    for pass in pack(&all, |row| rows[row].len(), PASS) {
        let batch = Batch::from_rows(pass.iter().map(|row| &rows[*row]));
        batch.check_vocab(tuned.model.vocab())?;
        found.extend(threads::together(|| of_pass(base, tuned, &batch))?);
    }
    Ok(found)
}

/// A row that is read to its end, and of which nothing is asked.
fn read_only(ids: &[u32]) -> Row {
    let n = ids.len();
    Row { ids: ids.to_vec(), targets: vec![0; n], weights: vec![0.0; n], ..Row::default() }
}

fn check(base: &Policy, tuned: &Policy) -> Result<()> {
    let shape = |policy: &Policy| (policy.model.n_layers(), policy.model.width());
    let ((layers, width), (tuned_layers, tuned_width)) = (shape(base), shape(tuned));
    if (layers, width) != (tuned_layers, tuned_width) {
        let what = format!(
            "has {layers} blocks of width {width}, the tuned model {tuned_layers} of {tuned_width}"
        );
        return Err(Error::input("the base", what)
            .hint("it must be the model that the tuned one was made of"));
    }
    Ok(())
}

fn contributions_of_pass(
    base: &Policy,
    tuned: &Policy,
    batch: &Batch,
) -> Result<Vec<Contribution>> {
    let mut base_ctx = Ctx::new(&base.hooks, batch.rows.clone(), &batch.ids_n);
    let mut tuned_ctx = Ctx::new(&tuned.hooks, batch.rows.clone(), &batch.ids_n);
    let mut h_nd = tuned.model.embed(&batch.ids_n, &mut tuned_ctx)?.detach();
    let begin = |start_d: Vec<f64>| Contribution {
        base_d: vec![0.0; start_d.len()],
        tuning_d: vec![0.0; start_d.len()],
        start_d,
        beta: 0.0,
    };
    let mut all: Vec<Contribution> = last(&h_nd, &batch.rows)?.into_iter().map(begin).collect();
    for layer in 0..tuned.model.n_layers() {
        let before = last(&h_nd, &batch.rows)?;
        let plain = last(&base.model.forward(layer, h_nd.clone(), &mut base_ctx)?, &batch.rows)?;
        h_nd = tuned.model.forward(layer, h_nd, &mut tuned_ctx)?;
        let after = last(&h_nd, &batch.rows)?;
        for (row, found) in all.iter_mut().enumerate() {
            let streams = before[row].iter().zip(&plain[row]).zip(&after[row]);
            let sums = found.base_d.iter_mut().zip(&mut found.tuning_d);
            for ((p, f), ((before, plain), after)) in sums.zip(streams) {
                *p += plain - before;
                *f += after - plain;
            }
            found.beta = found.beta.max(share(&found.tuning_d, &found.base_d));
        }
    }
    Ok(all)
}

/// The last token of every row.
fn last(h_nd: &Tensor, rows: &Arc<Rows>) -> Result<Vec<Vec<f64>>> {
    let (_n, _d) = h_nd.dims2()?;
    let last_b: Vec<u32> = rows.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
    let index = Tensor::from_slice(&last_b, last_b.len(), h_nd.device())?;
    Ok(h_nd.index_select(&index, 0)?.to_dtype(DType::F64)?.to_vec2::<f64>()?)
}

#[cfg(test)]
mod tests {
    use luthier_core::{Hooks, Seed};
    use luthier_testkit::{Fake, Shape};

    use super::*;

    fn fake(seed: u64) -> Policy {
        Policy::plain(Arc::new(Fake::new(Shape { layers: 3, ..Shape::default() }, Seed(seed))))
    }

    fn prompts() -> Vec<Vec<u32>> {
        vec![vec![3, 1, 4, 1], vec![5], vec![9, 2, 6]]
    }

    fn contribution(tuning: &[f64], base: &[f64]) -> Contribution {
        let start_d = vec![0.0; base.len()];
        Contribution { start_d, base_d: base.to_vec(), tuning_d: tuning.to_vec(), beta: 0.0 }
    }

    #[test]
    fn the_published_vectors_have_a_third() {
        let found = contribution(&[1.0, -1.0], &[3.0, -1.0]);
        assert!((found.tuco() - 1.0 / 3.0).abs() < 1e-12);
        assert!((found.tuco() + found.preco() - 1.0).abs() < 1e-12);
        let larger = contribution(&[-4.0, 4.0], &[-12.0, 4.0]);
        assert!((larger.tuco() - found.tuco()).abs() < 1e-12);
        assert_eq!(contribution(&[0.0], &[0.0]).tuco(), 0.0);
    }

    #[test]
    fn a_model_contributes_nothing_to_itself_and_the_parts_add_up() {
        let (base, tuned) = (fake(1), fake(2));
        for found in contributions(&base, &base, &prompts()).unwrap() {
            assert_eq!((found.tuco(), found.beta), (0.0, 0.0));
        }
        assert_eq!(output_contributions(&base, &base, &prompts()).unwrap(), [0.0; 3]);
        let all = contributions(&base, &tuned, &prompts()).unwrap();
        for (ids, found) in prompts().iter().zip(&all) {
            let mut ctx = Ctx::new(&tuned.hooks, Arc::new(Rows::single(ids.len())), ids);
            let h_nd = tuned.hidden(&mut ctx).unwrap().to_vec2::<f32>().unwrap();
            let parts = found.start_d.iter().zip(&found.base_d).zip(&found.tuning_d);
            for (((start, p), f), end) in parts.zip(&h_nd[ids.len() - 1]) {
                assert!((start + p + f - f64::from(*end)).abs() < 1e-5);
            }
            assert!(found.tuco() > 0.0 && found.tuco() < 1.0 && found.beta >= found.tuco());
        }
        // Another trajectory of the base is another number.
        let outputs = output_contributions(&base, &tuned, &prompts()).unwrap();
        assert!(all.iter().zip(outputs).all(|(a, b)| (a.tuco() - b).abs() > 1e-3));
    }

    /// Adds a constant to the stream.
    struct Shift(f64);

    impl luthier_core::Hook for Shift {
        fn after(&self, _at: &luthier_core::At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
            Ok((y + self.0)?)
        }
    }

    /// Makes nothing of its input.
    struct Nothing;

    impl luthier_core::Hook for Nothing {
        fn after(&self, _at: &luthier_core::At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
            Ok(y.zeros_like()?)
        }
    }

    #[test]
    fn what_a_later_block_takes_back_does_not_count() {
        let model = fake(4).model;
        let bind = |hooks: &mut Hooks, site: &str, hook: Arc<dyn luthier_core::Hook>| {
            hooks.bind(model.sites().get(site).unwrap().id, hook);
        };
        // Blocks that add constants.
        let mut base_hooks = Hooks::none();
        for layer in 0..3 {
            for site in ["attn.v", "mlp.down"] {
                bind(&mut base_hooks, &format!("layers.{layer}.{site}"), Arc::new(Nothing));
            }
        }
        bind(&mut base_hooks, "layers.0.mlp.down", Arc::new(Shift(1.0)));
        let mut tuned_hooks = base_hooks.clone();
        bind(&mut tuned_hooks, "layers.0.mlp.down", Arc::new(Shift(0.5)));
        bind(&mut tuned_hooks, "layers.1.mlp.down", Arc::new(Shift(-0.5)));
        let policy = |hooks: &Hooks| Policy { model: model.clone(), hooks: hooks.clone() };
        let (base, tuned) = (policy(&base_hooks), policy(&tuned_hooks));
        let all = contributions(&base, &tuned, &prompts()).unwrap();
        for found in &all {
            assert!(found.tuco() < 1e-6 && (found.beta - 1.0 / 3.0).abs() < 1e-6, "{found:?}");
        }
        // The final norm has no part in it.
        bind(&mut tuned_hooks, "final_norm", Arc::new(Shift(3.0)));
        assert_eq!(contributions(&base, &policy(&tuned_hooks), &prompts()).unwrap(), all);
    }

    #[test]
    fn models_of_other_shapes_are_refused() {
        let wide = Shape { width: 8, layers: 3, ..Shape::default() };
        let wide = Policy::plain(Arc::new(Fake::new(wide, Seed(1))));
        let error = contributions(&wide, &fake(1), &prompts()).unwrap_err();
        assert!(error.to_string().starts_with("the base: has 3 blocks of width 8"), "{error}");
        assert!(contributions(&fake(1), &fake(2), &[vec![1], vec![]]).is_err());
    }
}
