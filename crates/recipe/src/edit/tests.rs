//! The unit facts of MEND, on a model small enough to do it by hand.

use candle_core::{Device, Tensor};
use luthier_core::{Batch, Ctx, Param, Rows, Seed, StateDict};
use luthier_testkit::{Fake, Shape};

use super::{
    factors::{trained_stream, trained_targets},
    *,
};

fn policy() -> Policy {
    Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(1))))
}

fn mend() -> Mend {
    let at = Some("layers.*.mlp.{up,down}".into());
    Mend { at, rank: 5, edit_lr: 0.02, lr: 1e-2, lr_lr: 1e-3, ..Mend::default() }
}

fn row(ids: &[u32], answer: u32) -> Row {
    let tokens = [ids, &[answer]].concat();
    let weights: Vec<f32> =
        (0..tokens.len()).map(|i| f32::from(u8::from(i + 1 == tokens.len()))).collect();
    Row::from_tokens(&tokens, &weights, 0)
}

fn edits() -> Vec<Row> {
    vec![row(&[3, 1, 4], 2), row(&[5, 9], 7)]
}

fn episode() -> Episode {
    let rephrases = vec![row(&[4, 4, 1], 2), row(&[8, 9], 7)];
    let locality = vec![row(&[1, 2], 3), row(&[6, 6, 6, 1], 0), row(&[11], 12)];
    Episode { edits: edits(), rephrases, locality }
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(got: &[f32], want: &[f32], within: f32) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= within * (1.0 + w.abs()), "{g} {w}");
    }
}

/// Weights and their gradients of the mean loss of `rows`, with the weights as variables.
fn gradients(rows: &[Row]) -> (f64, Vec<(Tensor, Tensor)>) {
    let policy = policy();
    let sites = mend().sites(policy.model.as_ref()).unwrap();
    let ids: Vec<_> = sites.iter().map(|site| site.id).collect();
    let (model, vars) = policy.model.learn(&ids).unwrap();
    let batch = Batch::from_rows(rows);
    let logits = Policy::plain(model).logits(&batch.ids_n, batch.rows.clone()).unwrap();
    let index = Tensor::new(batch.trained_m(), &Device::Cpu).unwrap();
    let logits = logits.index_select(&index, 0).unwrap();
    let logp = luthier_core::model::gather_logp(&logits, &trained_targets(&batch)).unwrap();
    let loss = logp.mean_all().unwrap().neg().unwrap();
    let store = loss.backward().unwrap();
    let weights = vars.iter().filter(|(name, _)| name.ends_with(".weight"));
    let pair = |(_, var): &(String, candle_core::Var)| {
        (var.as_detached_tensor(), store.get(var.as_tensor()).unwrap().clone())
    };
    (f64::from(loss.to_scalar::<f32>().unwrap()), weights.map(pair).collect())
}

#[test]
fn the_factors_multiply_out_to_the_gradient() {
    let policy = policy();
    let sites = mend().sites(policy.model.as_ref()).unwrap();
    let names: Vec<&str> = sites.iter().map(|site| site.name.as_str()).collect();
    assert_eq!(
        names,
        ["layers.0.mlp.up", "layers.0.mlp.down", "layers.1.mlp.up", "layers.1.mlp.down"]
    );
    let (loss, found) = factors(&policy, &sites, &edits()).unwrap();
    let (want, gradients) = gradients(&edits());
    assert!((loss - want).abs() < 1e-5);
    for (Factors { x_ti, delta_to }, (_, gradient)) in found.iter().zip(&gradients) {
        let product = delta_to.t().unwrap().matmul(x_ti).unwrap();
        close(&flat(&product), &flat(gradient), 1e-5);
    }
    // The last block is read at the answers alone, the first also where the last looks back.
    let tokens: Vec<usize> = found.iter().map(|f| f.x_ti.dims()[0]).collect();
    assert_eq!(tokens, [4, 4, 2, 2]);
}

#[test]
fn without_norms_the_first_edit_is_a_step_of_gradient_descent() {
    let policy = policy();
    let mend = Mend { norm: false, ..mend() };
    let editor = Editor::new(policy.model.as_ref(), &mend).unwrap();
    let (_, edited) = edit(&policy, &editor, &edits()).unwrap();
    let (_, gradients) = gradients(&edits());
    let sites = mend.sites(policy.model.as_ref()).unwrap();
    for (site, (weight, gradient)) in sites.iter().zip(&gradients) {
        let plain = policy.model.affine(site.id).unwrap();
        let sites = policy.model.sites();
        let folded = edited.hooks.fold(sites, site.id, plain.clone()).unwrap().unwrap();
        let want = (weight - (gradient * 0.02).unwrap()).unwrap();
        close(&flat(&folded.w_oi), &flat(&want), 1e-5);
        assert_eq!(folded.b_o.is_some(), plain.b_o.is_some());
    }
    // It goes down, and a sign in place of the other goes up.
    let loss = |policy: &Policy| factors(policy, &sites, &edits()).unwrap().0;
    let up = Mend { edit_lr: -0.02, ..mend.clone() };
    let up = Editor::new(policy.model.as_ref(), &up).unwrap();
    let (before, raised) = edit(&policy, &up, &edits()).unwrap();
    assert!(loss(&edited) < before && before < loss(&raised));
    // Folded and bound are the same model; a second edit starts from the first.
    let low = edited.hooks.get(sites[0].id)[0].low_rank().unwrap();
    assert_eq!((low.a_ri.dims(), low.b_or.dims()), (&[4, 6][..], &[10, 4][..]));
    let (second, twice) = edit(&edited, &editor, &edits()).unwrap();
    assert!((second - loss(&edited)).abs() < 1e-5);
    assert!(loss(&twice) < second);
    let [one, other] = [0, 1].map(|i| edit(&policy, &editor, &edits()[i..=i]).unwrap().1);
    let deltas = |policy: &Policy| {
        let plain = policy.model.affine(sites[3].id).unwrap();
        let folded = policy.hooks.fold(policy.model.sites(), sites[3].id, plain.clone());
        (folded.unwrap().unwrap().w_oi - plain.w_oi).unwrap()
    };
    // The mean over both facts' tokens.
    let both = ((deltas(&one) + deltas(&other)).unwrap() * 0.5).unwrap();
    close(&flat(&deltas(&edited)), &flat(&both), 1e-5);
}

#[test]
fn an_editor_has_as_many_numbers_as_published() {
    let shape = Shape { vocab: 5, width: 768, inner: 3072, layers: 3, tied: false };
    let model = Fake::new(shape, Seed(1));
    let mend = Mend { at: Some("layers.*.mlp.{up,down}".into()), ..Mend::default() };
    let editor = Editor::new(&model, &mend).unwrap();
    let count: usize = editor.params().iter().map(|p| p.var.elem_count()).sum();
    assert_eq!(count, 59_089_920 + 6);
}

#[test]
fn no_edit_leaves_no_drift_and_the_loss_of_the_unedited_model() {
    let policy = policy();
    let mend = Mend { norm: false, edit_lr: 0.0, cedit: 0.3, ..mend() };
    let editor = Editor::new(policy.model.as_ref(), &mend).unwrap();
    let sites = mend.sites(policy.model.as_ref()).unwrap();
    let (_, found) = factors(&policy, &sites, &edits()).unwrap();
    let (loss, rephrased, drift) = learn::loss(&policy, &editor, &found, &episode()).unwrap();
    let (want, _) = gradients(&episode().rephrases);
    assert!(drift.abs() < 1e-6 && (rephrased - want).abs() < 1e-5);
    let loss = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((loss - 0.3 * want).abs() < 1e-5);
}

#[test]
fn gradients_reach_the_networks_from_their_beginning_on_and_are_slopes() {
    let policy = policy();
    let mend = Mend { norm: false, edit_lr: 0.5, cedit: 1.0, ..mend() };
    let sites = mend.sites(policy.model.as_ref()).unwrap();
    let (_, found) = factors(&policy, &sites, &edits()).unwrap();
    let editor = Editor::new(policy.model.as_ref(), &mend).unwrap();
    let params = editor.params();
    let value = || learn::loss(&policy, &editor, &found, &episode()).map(|(loss, ..)| loss);
    let store = value().unwrap().backward().unwrap();
    for Param { name, var, .. } in &params {
        let gradient = store.get(var.as_tensor());
        let size = gradient.map_or(0.0, |g| flat(g).iter().map(|x| x.abs()).sum::<f32>());
        // V and the scales act through U, which is 0 yet.
        let idle = name.ends_with(".v") || name.ends_with(".scale");
        assert_eq!(size > 0.0, !idle, "{name}: {size}");
    }
    // Away from the beginning, where nothing stands at a kink, by differences.
    for Param { name, var, .. } in &params {
        let mut rng = Seed(7).split(name).rng();
        let before = flat(var.as_tensor());
        let moved: Vec<f32> = before.iter().map(|x| x + 0.3 * rng.normal() as f32).collect();
        var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let store = value().unwrap().backward().unwrap();
    let number = || f64::from(value().unwrap().to_scalar::<f32>().unwrap());
    let mut checked = 0;
    for Param { name, var, .. } in &params {
        let gradient = flat(store.get(var.as_tensor()).unwrap());
        let steepest =
            (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
        let at = steepest.unwrap();
        if gradient[at].abs() < 1e-2 {
            continue;
        }
        let before = flat(var.as_tensor());
        let with = |by: f32| {
            let mut moved = before.clone();
            moved[at] += by;
            var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
            number()
        };
        let h = 2e-3;
        let slope = (with(h) - with(-h)) / f64::from(2.0 * h);
        with(0.0);
        let got = f64::from(gradient[at]);
        assert!((got - slope).abs() < 0.05 * got.abs() + 2e-3, "{name}: {got} {slope}");
        checked += 1;
    }
    assert!(checked >= 10, "{checked}");
}

#[test]
fn a_trained_editor_is_kept_and_its_statistics_are_frozen() {
    let policy = policy();
    let editor = Editor::new(policy.model.as_ref(), &Mend { accumulate_bs: 2, ..mend() }).unwrap();
    let untrained = edit(&policy, &editor, &edits()).err().unwrap().to_string();
    assert!(untrained.contains("statistics are of 0 tokens"), "{untrained}");
    let start: Vec<Vec<f32>> = editor.params().iter().map(|p| flat(p.var.as_tensor())).collect();
    let mut learner = Learner::new(editor).unwrap();
    let mut judged = Vec::new();
    for _ in 0..30 {
        judged.push(learner.episode(&policy, &episode()).unwrap());
    }
    assert!(judged.iter().all(|judged| judged.counts && judged.drift >= -1e-6));
    assert!(judged[29].rephrased < judged[0].rephrased, "{judged:?}");
    let editor = learner.finish();
    let now: Vec<Vec<f32>> = editor.params().iter().map(|p| flat(p.var.as_tensor())).collect();
    assert_ne!(start, now);

    let logits = |editor: &Editor| {
        let (_, edited) = edit(&policy, editor, &edits()).unwrap();
        flat(&edited.logits(&[1, 5, 2], Arc::new(Rows::single(3))).unwrap())
    };
    let first = logits(&editor);
    assert_eq!(logits(&editor), first);
    let dir = tempfile::tempdir().unwrap();
    editor.save(dir.path(), "this one").unwrap();
    let again = Editor::load(dir.path(), policy.model.as_ref(), "this one").unwrap();
    close(&logits(&again), &first, 1e-5);
    let other = Editor::load(dir.path(), policy.model.as_ref(), "another").err().unwrap();
    assert!(other.to_string().contains("was trained for the model this one"), "{other}");
    let path = dir.path().join(WEIGHTS);
    let mut state = StateDict::load(&path).unwrap();
    state.remove("layers.0.mlp.up.alpha").unwrap();
    state.save(&path, &[]).unwrap();
    let broken = Editor::load(dir.path(), policy.model.as_ref(), "this one").err().unwrap();
    assert!(broken.to_string().contains("layers.0.mlp.up.alpha: is missing"), "{broken}");
}

#[test]
fn what_is_bound_below_is_run_without_a_graph_and_changes_nothing() {
    let policy = policy();
    let batch = Batch::from_rows(&edits());
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    let stream = trained_stream(policy.model.as_ref(), &batch, &mut ctx).unwrap();
    let logits = policy.model.unembed(&stream, &mut ctx).unwrap();
    let all = policy.logits(&batch.ids_n, batch.rows.clone()).unwrap();
    let index = Tensor::new(batch.trained_m(), &Device::Cpu).unwrap();
    close(&flat(&logits), &flat(&all.index_select(&index, 0).unwrap()), 1e-6);
}

#[test]
fn settings_without_a_meaning_are_refused_by_name() {
    let model = policy().model;
    let refused = |mend: Mend, key: &str| {
        let error = Editor::new(model.as_ref(), &mend).err().unwrap().to_string();
        assert!(error.starts_with(key), "{error}");
    };
    refused(Mend { rank: 0, ..mend() }, "edit.rank");
    refused(Mend { cloc: -1.0, ..mend() }, "edit.cloc");
    refused(Mend { edit_lr: f64::NAN, ..mend() }, "edit.edit_lr");
    refused(Mend { at: Some("logits".into()), ..mend() }, "edit.at: names logits");
    refused(Mend { at: Some("layers.*.mlp.upp".into()), ..mend() }, "edit.at");
}
