//! Head and embedding table without a graph against their graphs: values and every gradient.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor, Var};
use luthier_core::{At, Ctx, Gradient, Hook, Hooks, Model, Result, Rows, Seed, SiteId};
use luthier_model::{Decoder, Precision, Source};
use luthier_testkit::{self as testkit, assert_close, assert_same_bits, golden};

const TOKENS: usize = 150;

fn random(name: &str, dims: &[usize]) -> Tensor {
    testkit::random(dims, 1.0, Seed(5).split(name))
}

type Gradients = BTreeMap<String, Tensor>;

/// A model of which the sites with these names learn.
struct Case {
    model: Arc<dyn Model>,
    vars: Vec<(String, Var)>,
    hooks: Hooks,
    rows: Arc<Rows>,
}

impl Case {
    fn new(name: &str, learned: &[&str]) -> Self {
        let source = Source::open(&golden::golden(format!("models/{name}"))).unwrap();
        let decoder = Decoder::load(&source, Precision::F32, |_, _| ()).unwrap();
        let sites: Vec<SiteId> =
            learned.iter().map(|name| decoder.sites().get(name).unwrap().id).collect();
        let (model, vars) = decoder.learn(&sites).unwrap();
        Case { model, vars, hooks: Hooks::none(), rows: Arc::new(Rows::new(&[TOKENS], |_| 0)) }
    }

    fn ctx(&self) -> Ctx<'_> {
        Ctx::new(&self.hooks, self.rows.clone(), &[])
    }

    fn ids(&self) -> Vec<u32> {
        (0..TOKENS).map(|i| ((i * i * 7 + 3) % self.model.vocab()) as u32).collect()
    }

    fn store(&self, y: &Tensor, dy: &Tensor) -> (candle_core::backprop::GradStore, Gradients) {
        let store = (y * dy).unwrap().sum_all().unwrap().backward().unwrap();
        let found = self.vars.iter().filter_map(|(n, v)| Some((n.clone(), store.get(v)?.clone())));
        let found = found.collect();
        (store, found)
    }

    /// Calls `pull` with a place for gradients.
    fn found<R>(&self, pull: impl FnOnce(&mut luthier_core::Found) -> Result<R>) -> (R, Gradients) {
        let mut all = Gradients::new();
        let mut found = |var: &Tensor, gradient| {
            let is = |(_, v): &&(String, Var)| v.as_tensor().id() == var.id();
            let (name, _) = self.vars.iter().find(is).unwrap();
            let gradient = match gradient {
                Gradient::Dense(gradient) => gradient,
                Gradient::Into(add) => {
                    // What is there already stays.
                    let mut sum = vec![1f32; var.elem_count()];
                    add(&mut sum)?;
                    (Tensor::from_vec(sum, var.shape().clone(), &Device::Cpu)? - 1.0)?
                }
            };
            assert!(all.insert(name.clone(), gradient).is_none(), "{name}: found twice");
            Ok(())
        };
        let done = pull(&mut found).unwrap();
        (done, all)
    }

    fn check(&self, what: &str, got: &Gradients, want: &Gradients) {
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
        for (name, got) in got {
            // Half an ulp of the 1 that the sum began with.
            assert_close(&format!("{what}: {name}"), got, &want[name], 2e-5, 2e-7);
        }
    }
}

#[test]
fn log_probabilities_and_their_gradients() {
    let parts: &[&[&str]] = &[&[], &["logits"], &["final_norm"], &["logits", "final_norm"]];
    for name in ["llama", "llama-tied-llama3"] {
        for learned in parts {
            let what = format!("{name}, {learned:?} learned");
            let case = Case::new(name, learned);
            let (h_md, g_m) = (random("h", &[TOKENS, case.model.width()]), random("g", &[TOKENS]));
            let leaf = Var::from_tensor(&h_md).unwrap();
            let want = case.model.logp(leaf.as_tensor(), &case.ids(), &mut case.ctx()).unwrap();
            let (store, want_found) = case.store(&want, &g_m);
            let tape = |below| {
                let mut ctx = case.ctx();
                case.model.logp_tape(&h_md, &case.ids(), below, &mut ctx).unwrap().unwrap()
            };
            let (got, pulled) = tape(true);
            assert_same_bits(&what, &got, &want.detach());
            let (dh, found) = case.found(|f| pulled.unwrap().backward(&g_m, true, f));
            assert_close(&what, &dh.unwrap(), store.get(&leaf).unwrap(), 2e-5, 1e-7);
            case.check(&what, &found, &want_found);
            // Nothing below learns: no gradient of the input, and no tape where nothing learns.
            let Some(pulled) = tape(false).1 else {
                assert!(learned.is_empty(), "{what}");
                continue;
            };
            let (dh, found) = case.found(|f| pulled.backward(&g_m, false, f));
            assert!(dh.is_none() && !learned.is_empty(), "{what}");
            case.check(&what, &found, &want_found);
        }
    }
}

#[test]
fn rows_of_the_table() {
    for name in ["llama", "llama-tied-llama3"] {
        let case = Case::new(name, &["embed"]);
        let (ids, dh_nd) = (case.ids(), random("dh", &[TOKENS, case.model.width()]));
        let h_nd = case.model.embed(&ids, &mut case.ctx()).unwrap();
        let (_, want) = case.store(&h_nd, &dh_nd);
        let pull = |f: &mut luthier_core::Found| {
            case.model.embed_backward(&ids, &dh_nd, &mut case.ctx(), f)
        };
        let (done, found) = case.found(pull);
        assert!(done);
        case.check(name, &found, &want);
        let frozen = Case::new(name, &[]);
        let (done, _) =
            frozen.found(|f| frozen.model.embed_backward(&ids, &dh_nd, &mut frozen.ctx(), f));
        assert!(!done);
    }
}

/// A hook that does nothing but does not say so.
struct Opaque;

impl Hook for Opaque {
    fn before(&self, _at: &At, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}

#[test]
fn hooks_and_a_bias_get_the_graph() {
    for site in ["logits", "final_norm", "embed"] {
        let mut case = Case::new("llama", &["embed"]);
        case.hooks.bind(case.model.sites().get(site).unwrap().id, Arc::new(Opaque));
        let h_md = random("h", &[TOKENS, case.model.width()]);
        let taped = case.model.logp_tape(&h_md, &case.ids(), true, &mut case.ctx()).unwrap();
        assert_eq!(taped.is_none(), site != "embed", "{site}");
        let pull = |f: &mut luthier_core::Found| {
            case.model.embed_backward(&case.ids(), &h_md, &mut case.ctx(), f)
        };
        assert_eq!(case.found(pull).0, site != "embed", "{site}");
    }
}
