//! Agreement of two phrasings through the whole trainer: its gradients are those of the paper's loss in
//! plain tensor operations, and these are those of finite differences.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Batch, Ctx, Model, Param, Policy, Rng, Row, Seed};
use luthier_loss::{Align, AlignOn, Objective, apart::naive_apart};
use luthier_model::{Decoder, Precision, Source};
use luthier_params::{Bound, Params};
use luthier_testkit::{Fake, Shape, assert_close, assert_gradients, golden};
use luthier_train::{
    evaluate::evaluate,
    run::passes,
    step::{Data, Step},
    sum::Gradients,
};

/// Of both models.
const VOCAB: usize = 96;

fn models() -> [Arc<dyn Model>; 2] {
    let source = Source::open(&golden::golden("models/llama")).unwrap();
    let decoder = Decoder::load(&source, Precision::F32, |_, _| ()).unwrap();
    assert_eq!(decoder.vocab(), VOCAB);
    // A block reads one token back: so many that virtual tokens reach the answers.
    let shape = Shape { vocab: VOCAB, tied: true, layers: 8, ..Shape::default() };
    [Arc::new(decoder), Arc::new(Fake::new(shape, Seed(11)))]
}

fn bound(model: &Arc<dyn Model>, form: &str) -> Bound {
    toml::from_str::<Params>(form).unwrap().bind(model, Seed(5)).unwrap()
}

fn tokens(rng: &mut Rng, n: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(VOCAB) as u32).collect()
}

/// A prompt and an answer of which one token counts half.
fn row(prompt: &[u32], answer: &[u32], example: usize) -> Row {
    let mut weights = vec![0.0; prompt.len()];
    weights.extend(vec![1.0; answer.len()]);
    weights[prompt.len()] = 0.5;
    Row::from_tokens(&[prompt, answer].concat(), &weights, example)
}

/// Three pairs of prompts of other lengths with one answer.
fn pairs(bound: &Bound) -> Vec<Row> {
    let mut rng = Seed(3).rng();
    let mut rows = Vec::new();
    for (example, n) in [1, 4, 2].into_iter().enumerate() {
        let answer = tokens(&mut rng, n);
        for length in [3 + example, 6 - example] {
            rows.push(row(&tokens(&mut rng, length), &answer, example));
        }
    }
    rows.into_iter().map(|row| row.behind(bound.policy.hooks.virtual_tokens)).collect()
}

/// Loss and gradients by the trainer, with passes of at most so many tokens.
fn trained(
    bound: &Bound,
    align: &Align,
    rows: &[Row],
    micro: usize,
    keep: bool,
) -> (f64, Gradients) {
    let all: Vec<usize> = (0..rows.len()).collect();
    let passes = passes(&all, rows, micro, align.unit().rows());
    let step = Step {
        policy: &bound.policy,
        params: &bound.params,
        objective: align,
        teacher: None,
        keep,
    };
    let describe = &|i: usize| format!("row {i}");
    let data = Data { number: 1, passes: &passes, noise: Seed(0), describe };
    let found = step.gradients(&data, Gradients::new()).unwrap();
    (found.loss, found.gradients)
}

/// The last residual stream with its graph.
fn hidden(policy: &Policy, batch: &Batch) -> Tensor {
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    let mut h_nd = policy.model.embed(&batch.ids_n, &mut ctx).unwrap();
    for layer in 0..policy.model.n_layers() {
        h_nd = policy.model.block(layer, h_nd, &mut ctx).unwrap();
    }
    h_nd
}

/// The twin: the paper's loss in plain tensor operations; `reference` is the constant it agrees with.
struct Twin<'a> {
    bound: &'a Bound,
    align: &'a Align,
    batch: &'a Batch,
    reference: Tensor,
}

impl<'a> Twin<'a> {
    fn new(bound: &'a Bound, align: &'a Align, batch: &'a Batch) -> Self {
        let zero = Tensor::new(0f32, &candle_core::Device::Cpu).unwrap();
        let mut twin = Twin { bound, align, batch, reference: zero };
        twin.reference = twin.compared(0).detach();
        twin
    }

    /// Tokens that predict targets, of the references (0) or the paraphrases (1).
    fn index(&self, of: usize) -> Vec<Vec<u32>> {
        let batch = self.batch;
        let in_row = |row: usize| {
            let trained = batch.rows.range(row).filter(|i| batch.weights_n[*i] != 0.0);
            trained.map(|i| i as u32).collect()
        };
        (of..batch.rows.b()).step_by(2).map(in_row).collect()
    }

    fn pick(&self, of: &Tensor, index: &[u32]) -> Tensor {
        of.index_select(&Tensor::new(index, of.device()).unwrap(), 0).unwrap()
    }

    fn logits(&self, of: usize) -> Tensor {
        let Policy { model, hooks } = &self.bound.policy;
        let h_nd = hidden(&self.bound.policy, self.batch);
        let mut ctx = Ctx::new(hooks, self.batch.rows.clone(), &self.batch.ids_n);
        let logits_nv = model.unembed(&h_nd, &mut ctx).unwrap();
        self.pick(&logits_nv, &self.index(of).concat())
    }

    fn compared(&self, of: usize) -> Tensor {
        match self.align.align_on {
            AlignOn::Logits => self.logits(of),
            AlignOn::Hidden => {
                let firsts: Vec<u32> = self.index(of).iter().map(|row| row[0]).collect();
                self.pick(&hidden(&self.bound.policy, self.batch), &firsts)
            }
        }
    }

    fn loss(&self) -> luthier_core::Result<Tensor> {
        let (lambda, index) = (self.align.lambda_kl, self.index(1));
        let flat = index.concat();
        let targets: Vec<u32> = flat.iter().map(|i| self.batch.targets_n[*i as usize]).collect();
        let weight = |i: &u32| self.batch.weights_n[*i as usize];
        let weights: Vec<f32> = flat.iter().map(weight).collect();
        let total: f32 = weights.iter().sum();
        let weights_m = Tensor::new(weights.as_slice(), self.reference.device())?;
        let logits_mv = self.logits(1);
        let of_targets = match self.align.align_on {
            AlignOn::Logits => self.reference.clone(),
            AlignOn::Hidden => logits_mv.detach(),
        };
        let both_m2 = naive_apart(&logits_mv, &targets, &of_targets)?;
        let column = |i: usize| both_m2.narrow(1, i, 1)?.squeeze(1);
        let nll = (column(0)? * &weights_m)?.sum_all()?;
        let agreement = match self.align.align_on {
            AlignOn::Logits => (column(1)? * &weights_m)?.sum_all()?,
            AlignOn::Hidden => {
                let (a, b) = (&self.reference, self.compared(1));
                let length = |x: &Tensor| x.sqr()?.sum(1)?.sqrt();
                let cosine_p = ((a * &b)?.sum(1)? / (length(a)? * length(&b)?)?)?;
                let of_pair = |row: &Vec<u32>| row.iter().map(weight).sum::<f32>();
                let weights: Vec<f32> = index.iter().map(of_pair).collect();
                let weights_p = Tensor::new(weights.as_slice(), a.device())?;
                ((1.0 - cosine_p)? * weights_p)?.sum_all()?
            }
        };
        Ok((((nll * (1.0 - lambda))? + (agreement * lambda)?)? / f64::from(total))?)
    }
}

const FORMS: [&str; 3] = ["[prompt]\nn_virtual = 3\n", "[prompt]\nkind = \"prefix\"\n", "[full]\n"];

#[test]
fn the_trainers_gradients_are_those_of_the_papers_loss() {
    for (m, model) in models().iter().enumerate() {
        for form in FORMS {
            if m == 1 && form.contains("prefix") {
                continue; // It has no keys.
            }
            for align_on in [AlignOn::Logits, AlignOn::Hidden] {
                let (bound, align) = (bound(model, form), Align { lambda_kl: 0.7, align_on });
                let rows = pairs(&bound);
                let batch = Batch::from_rows(&rows);
                let twin = Twin::new(&bound, &align, &batch);
                let want = twin.loss().unwrap();
                let grads = want.backward().unwrap();
                let want = f64::from(want.to_scalar::<f32>().unwrap());
                for (micro, keep) in [(10_000, true), (1, true), (40, false)] {
                    let (loss, gradients) = trained(&bound, &align, &rows, micro, keep);
                    let at = format!("model {m}, {form:?}, {align_on:?}, {micro} tokens");
                    assert!(largest(&gradients) > 1e-3, "{at}: nothing is learned");
                    assert!((loss - want).abs() < 1e-5 * want, "{at}: {loss} {want}");
                    for Param { name, var, .. } in &bound.params {
                        match (gradients.get(name), grads.get(var.as_tensor())) {
                            (Some(got), Some(want)) => {
                                assert_close(&format!("{at}: {name}"), got, want, 2e-4, 2e-7);
                            }
                            (got, want) => assert!(got.is_none() && want.is_none(), "{at}: {name}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_papers_loss_agrees_with_finite_differences_where_the_reference_is_a_constant() {
    let [_, fake] = models();
    for align_on in [AlignOn::Logits, AlignOn::Hidden] {
        let (bound, align) = (bound(&fake, FORMS[0]), Align { lambda_kl: 0.7, align_on });
        let rows = pairs(&bound);
        let batch = Batch::from_rows(&rows);
        let twin = Twin::new(&bound, &align, &batch);
        let vars = [bound.params[0].var.clone()];
        assert!(largest(&trained(&bound, &align, &rows, 10_000, true).1) > 1e-3);
        assert_gradients(&format!("align {align_on:?}"), &vars, |_| twin.loss());
    }
}

fn largest(gradients: &Gradients) -> f32 {
    let all = gradients.values().flat_map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    all.fold(0.0, |most, g| most.max(g.abs()))
}

#[test]
fn a_phrasing_that_is_the_reference_leaves_nothing_to_learn_from_agreement() {
    for model in models() {
        let bound = bound(&model, FORMS[0]);
        let own: Vec<Row> = pairs(&bound).into_iter().skip(1).step_by(2).collect();
        let rows: Vec<Row> = own.into_iter().flat_map(|row| [row.clone(), row]).collect();
        let run = |lambda_kl| {
            trained(&bound, &Align { lambda_kl, align_on: AlignOn::Logits }, &rows, 10_000, true)
        };
        let ((loss, nothing), (_, something)) = (run(1.0), run(0.0));
        assert!(loss.abs() < 1e-6, "{loss}");
        let (nothing, something) = (largest(&nothing), largest(&something));
        assert!(nothing < 1e-5 * something, "{nothing} {something}");
    }
}

#[test]
fn an_evaluation_keeps_pairs_whole() {
    let [model, _] = models();
    let (bound, align) = (bound(&model, FORMS[0]), Align::default());
    let rows = pairs(&bound);
    let (want, _) = trained(&bound, &align, &rows, 10_000, true);
    for micro in [1, 40, 10_000] {
        let (loss, logs) = evaluate(&bound.policy, &align, None, &rows, micro).unwrap();
        assert!((loss - want).abs() < 1e-5 * want, "{micro}: {loss} {want}");
        let parts: Vec<&str> = logs.iter().map(|(name, _)| *name).collect();
        assert_eq!(parts, ["nll", "kl"]);
        assert!((0.2 * logs[0].1 + 0.8 * logs[1].1 - want).abs() < 1e-5 * want);
    }
}
