use luthier_core::Rows;
use luthier_params::Lora;
use luthier_testkit::{Fake, Shape};

use super::*;

fn rows() -> Vec<Row> {
    let texts: [&[u32]; 3] = [&[1, 2, 3, 4], &[5, 6], &[7, 8, 9, 1, 1]];
    texts.iter().map(|ids| Row::from_tokens(ids, &vec![1.0; ids.len()], 0)).collect()
}

fn bound() -> Bound {
    let model: Arc<dyn luthier_core::Model> = Arc::new(Fake::new(Shape::default(), Seed(1)));
    let at = "layers.*.{attn.v,mlp.up}".into();
    let lora = Lora { r: 3, alpha: 2.0, at, ..Lora::default() };
    let bound = Params { lora: Some(lora), ..Params::default() }.bind(&model, Seed(2)).unwrap();
    for param in &bound.params {
        let mut rng = Seed(3).split(&param.name).rng();
        let numbers: Vec<f32> = (0..param.var.elem_count()).map(|_| rng.normal() as f32).collect();
        let tensor = Tensor::from_vec(numbers, param.var.dims(), &Device::Cpu).unwrap();
        param.var.set(&tensor).unwrap();
    }
    bound
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn logits(policy: &Policy) -> Vec<f32> {
    values(&policy.logits(&[1, 5, 2, 8], Arc::new(Rows::new(&[3, 1], |_| 0))).unwrap())
}

#[test]
fn all_of_it_is_the_base_and_none_of_it_the_tuned_model() {
    let bound = bound();
    let (tuned, base) = (logits(&bound.policy), logits(&Policy::plain(bound.policy.model.clone())));
    assert_ne!(tuned, base);
    let of = |dense_ratio| Antidote { dense_ratio, ..Antidote::default() };
    of(0.0).adapter(&bound, &rows()).unwrap();
    assert_eq!(logits(&bound.policy), tuned);
    let done = of(1.0).adapter(&bound, &rows()).unwrap();
    assert_eq!(logits(&bound.policy), base);
    assert_eq!(done.len(), 8);
    assert!(done.iter().all(|pruned| pruned.pruned == pruned.numbers));
}

#[test]
fn each_factor_is_judged_by_inputs_of_its_own() {
    let bound = bound();
    let site = "layers.1.attn.v";
    let var = |part: &str| values(bound.var(&format!("{site}.{part}")).unwrap().as_tensor());
    let (a, b) = (var("lora_A"), var("lora_B"));
    // The inputs of attn.v by hand: a hook that takes them away.
    struct Inputs(std::sync::Mutex<Vec<Vec<f32>>>);
    impl Hook for Inputs {
        fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
            self.0.lock().unwrap().extend(x.to_vec2::<f32>()?);
            Ok(y)
        }
    }
    let inputs = Arc::new(Inputs(Default::default()));
    let mut watched = bound.policy.clone();
    watched.hooks.bind(watched.model.sites().get(site).unwrap().id, inputs.clone());
    for text in [vec![1, 2, 3, 4], vec![5, 6], vec![7, 8, 9, 1, 1]] {
        watched.logits(&text, Arc::new(Rows::single(text.len()))).unwrap();
    }
    let x = inputs.0.lock().unwrap().clone();
    assert_eq!(x.len(), 11);
    let narrow = |x: &Vec<f32>| -> Vec<f32> {
        a.chunks(6).map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect()
    };
    let z: Vec<Vec<f32>> = x.iter().map(narrow).collect();
    let norm = |x: &[Vec<f32>], j: usize| -> f32 {
        (x.iter().map(|x| x[j] * x[j]).sum::<f32>() / 3.0).sqrt()
    };
    // The one largest of each row of 6, then of each row of 3, goes.
    let expect = |w: &[f32], i: usize, x: &[Vec<f32>]| -> Vec<f32> {
        let mut w = w.to_vec();
        for row in w.chunks_mut(i) {
            let score = |j: &usize| row[*j].abs() * norm(x, *j);
            let most = (0..i).max_by(|j, k| score(j).total_cmp(&score(k))).unwrap();
            row[most] = 0.0;
        }
        w
    };
    let (want_a, want_b) = (expect(&a, 6, &x), expect(&b, 3, &z));
    let how = Antidote { dense_ratio: 0.1, ..Antidote::default() };
    let done = how.adapter(&bound, &rows()).unwrap();
    assert_eq!((var("lora_A"), var("lora_B")), (want_a, want_b));
    let counts: Vec<usize> = done.iter().map(|p| p.pruned).collect();
    assert_eq!(counts, [3, 6, 3, 10, 3, 6, 3, 10]);
}

#[test]
fn slopes_are_those_of_the_likelihood() {
    let bound = bound();
    let name = "layers.0.mlp.up.lora_A";
    let var = bound.var(name).unwrap();
    let before = values(var.as_tensor());
    let set = |numbers: Vec<f32>| {
        var.set(&Tensor::from_vec(numbers, var.dims(), &Device::Cpu).unwrap()).unwrap();
    };
    let loss = |i: usize, by: f32| {
        let mut moved = before.clone();
        moved[i] += by;
        set(moved);
        let rows = rows();
        let found = luthier_probe::metric::nll(&bound.policy, [Batch::from_rows(&rows)]).unwrap();
        found.iter().map(|row| row.sum).sum::<f64>()
    };
    let score = |i: usize| f64::from(before[i]).abs() * (loss(i, 1e-2) - loss(i, -1e-2)).abs();
    let scores: Vec<f64> = (0..before.len()).map(score).collect();
    set(before.clone());
    let how = Antidote { score: Score::Grad, ..Antidote::default() };
    how.adapter(&bound, &rows()).unwrap();
    let after = values(var.as_tensor());
    // Of each row of six, one goes: what the likelihood hangs on most.
    for (row, scores) in scores.chunks(6).enumerate() {
        let most = (0..6).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
        for i in 0..6 {
            let at = 6 * row + i;
            assert_eq!(after[at], if i == most { 0.0 } else { before[at] }, "{row} {scores:?}");
        }
    }
    let policy = Policy::plain(bound.policy.model.clone());
    let of = |score| Antidote { score, at: Some("layers.*.attn.v".into()), ..how.clone() };
    let (pruned, done) = of(Score::Grad).model(&policy, &rows()).unwrap();
    assert_eq!(done.iter().map(|p| p.pruned).collect::<Vec<_>>(), [6, 6]);
    assert_ne!(logits(&pruned), logits(&of(Score::Wanda).model(&policy, &rows()).unwrap().0));
    assert!(of(Score::Grad).model(&policy, &[]).is_err());
}

#[test]
fn controls_ask_for_no_data_and_prune_as_much() {
    let count = |score, per| {
        let how = Antidote { dense_ratio: 0.4, score, per, ..Antidote::default() };
        let bound = bound();
        let done = how.adapter(&bound, &[]).unwrap();
        assert_ne!(logits(&bound.policy), logits(&super::tests::bound().policy));
        done.iter().map(|p| p.pruned).sum::<usize>()
    };
    assert_eq!(count(Score::Random, Scope::Row), count(Score::Magnitude, Scope::Row));
    assert!(count(Score::Magnitude, Scope::Tensor) > 0);
    let error = Antidote::default().adapter(&bound(), &[]).unwrap_err();
    assert!(error.to_string().contains("no row"), "{error}");
}

#[test]
fn a_model_is_pruned_at_its_own_matrices_and_folds_as_it_runs() {
    let policy = Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(1))));
    let how = |at: &str| Antidote { at: Some(at.into()), ..Antidote::default() };
    let (pruned, done) = how("layers.*.attn.v").model(&policy, &rows()).unwrap();
    assert_eq!(done.iter().map(|p| p.pruned).collect::<Vec<_>>(), [6, 6]);
    assert_ne!(logits(&pruned), logits(&policy));
    let site = policy.model.sites().get("layers.0.attn.v").unwrap();
    let before = policy.model.affine(site.id).unwrap();
    let after = pruned.hooks.fold(policy.model.sites(), site.id, before.clone()).unwrap();
    let (before, after) = (values(&before.w_oi), values(&after.unwrap().w_oi));
    let gone = before.iter().zip(&after).filter(|(b, a)| b != a);
    assert!(gone.clone().all(|(_, a)| *a == 0.0) && gone.count() == 6);
    let error = how("layers.*.attn.w").model(&policy, &rows()).err().unwrap();
    assert!(error.to_string().starts_with("antidote.at"), "{error}");
    let error = Antidote { dense_ratio: 1.5, ..how("**") }.model(&policy, &rows());
    assert!(error.err().unwrap().to_string().starts_with("antidote.dense_ratio"));
}
