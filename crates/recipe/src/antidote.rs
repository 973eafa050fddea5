//! Weights that matter most on chosen data, set to 0 (Antidote; Huang et al. 2025, paper 04): what a few
//! harmful examples did to an aligned model is taken out after tuning, whatever the tuning was.
//!
//! The tuned model reads the data once; every factor of a LoRA is a linear map of its own (A reads the
//! site's input, B reads `x Aᵀ`), scored by [`luthier_probe::wanda`]; of every output row the share
//! `dense_ratio` with the largest scores becomes 0: `w ← w ∘ (1 − marks)`. All scores are those of the
//! model as it was. The base is never touched, so `dense_ratio = 1` gives it back. Without an adapter
//! the queries, keys and values of the model itself are pruned.
//!
//! **Departures**: (1) the original's outlier weights per layer and its scores by gradients, which its
//! results do not use, are not there.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use luthier_core::{
    Affine, At, Batch, Ctx, Error, Hook, Hooks, Param, Policy, Result, Row, Seed, SiteInfo,
    batch::pack,
};
use luthier_kernels::threads;
use luthier_params::Bound;
use luthier_probe::wanda::{self, InputNorms, Scope};
use serde::{Deserialize, Serialize};

/// Tokens of a pass.
const PASS: usize = 4096;

/// What is pruned, and by which score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Antidote {
    /// Share of every row that becomes 0.
    pub dense_ratio: f64,
    /// What a weight is judged by.
    pub score: Score,
    /// Within what the largest are looked for.
    pub per: Scope,
    /// Sites; without it all of an adapter, or queries, keys and values of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Of random scores.
    pub seed: u64,
}

/// What a weight is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Its size times the norm of its inputs on the data.
    #[default]
    Wanda,
    /// Its size.
    Magnitude,
    /// Chance: the control.
    Random,
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Its name.
    pub name: String,
    /// Numbers in it.
    pub numbers: usize,
    /// Of these, set to 0 now.
    pub pruned: usize,
}

impl Default for Antidote {
    fn default() -> Self {
        let (score, per) = (Score::Wanda, Scope::Row);
        Antidote { dense_ratio: 0.1, score, per, at: None, seed: 0 }
    }
}

/// A matrix of a site that is replaced by its pruned self.
struct Replaced {
    w_oi: Tensor,
    b_o: Option<Tensor>,
}

impl Hook for Replaced {
    fn after(&self, _at: &At, x: &Tensor, _y: Tensor) -> Result<Tensor> {
        let y_no = x.to_dtype(DType::F32)?.matmul(&self.w_oi.t()?)?;
        Ok(match &self.b_o {
            Some(b_o) => y_no.broadcast_add(b_o)?,
            None => y_no,
        })
    }

    fn fold(&self, _site: &SiteInfo, _lin: &Affine) -> Result<Option<Affine>> {
        Ok(Some(Affine { w_oi: self.w_oi.clone(), b_o: self.b_o.clone() }))
    }
}

impl Antidote {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.dense_ratio) {
            return Ok(());
        }
        let what = format!("expected a share between 0 and 1, got {}", self.dense_ratio);
        Err(Error::input("antidote.dense_ratio", what))
    }

    /// Prunes the factors of a LoRA in place. `rows` are read whole, prompts and answers alike.
    pub fn adapter(&self, bound: &Bound, rows: &[Row]) -> Result<Vec<Pruned>> {
        self.check()?;
        let sites = bound.policy.model.sites();
        let mut chosen: Vec<(&SiteInfo, &Param, &Param)> = Vec::new();
        for param in &bound.params {
            let Some((site, part)) = split(sites, &param.name) else {
                let what =
                    "is no factor of a LoRA at a linear map, which is all that can be pruned";
                return Err(Error::input(&param.name, what)
                    .hint("luthier adapter convert makes a plain LoRA of most adapters"));
            };
            if part == "lora_A" {
                let b = format!("{}.lora_B", site.name);
                let other = bound.params.iter().find(|p| p.name == b);
                chosen.push((site, param, other.ok_or_else(|| Error::failed(&b, "is missing"))?));
            }
        }
        if let Some(glob) = &self.at {
            let named = sites.find("antidote.at", glob, |site| {
                chosen.iter().any(|(adapted, _, _)| adapted.id == site.id)
            })?;
            chosen.retain(|(site, _, _)| named.iter().any(|named| named.id == site.id));
        }
        let norms: Vec<Arc<InputNorms>> = chosen
            .iter()
            .map(|(_, a, _)| Ok(Arc::new(InputNorms::behind(a.var.as_detached_tensor().copy()?))))
            .collect::<Result<_>>()?;
        let hooks = chosen.iter().map(|(site, _, _)| *site).zip(&norms);
        self.read(&bound.policy, hooks, rows)?;
        let mut done = Vec::new();
        for ((_, a, b), norms) in chosen.iter().zip(&norms) {
            let squares = match self.score {
                Score::Wanda => Some((norms.squares()?, norms.narrow_squares()?)),
                _ => None,
            };
            let (of_a, of_b) = squares.unzip();
            for (param, squares) in [(a, of_a), (b, of_b)] {
                let weight = param.var.as_tensor();
                let (pruned, tensor) = self.prune(&param.name, weight, squares.as_deref())?;
                param.var.set(&tensor)?;
                done.push(pruned);
            }
        }
        Ok(done)
    }

    /// The model with matrices of its own pruned.
    pub fn model(&self, policy: &Policy, rows: &[Row]) -> Result<(Policy, Vec<Pruned>)> {
        self.check()?;
        let sites = policy.model.sites();
        let glob = self.at.as_deref().unwrap_or("layers.*.attn.{q,k,v}");
        let chosen = sites.find("antidote.at", glob, |site| site.linear().is_some())?;
        if let Some(site) = chosen.iter().find(|site| policy.hooks.watched(site.id)) {
            return Err(Error::input(&site.name, "an adapter is bound here")
                .hint("prune the adapter, or fold it into the model first"));
        }
        let norms: Vec<Arc<InputNorms>> = chosen.iter().map(|_| Arc::default()).collect();
        self.read(policy, chosen.iter().copied().zip(&norms), rows)?;
        let (mut hooks, mut done) = (policy.hooks.clone(), Vec::new());
        for (site, norms) in chosen.iter().zip(&norms) {
            let Affine { w_oi, b_o } = policy.model.affine(site.id)?;
            let squares = match self.score {
                Score::Wanda => Some(norms.squares()?),
                _ => None,
            };
            let (pruned, w_oi) = self.prune(&site.name, &w_oi, squares.as_deref())?;
            hooks.bind(site.id, Arc::new(Replaced { w_oi, b_o }));
            done.push(pruned);
        }
        Ok((Policy { model: policy.model.clone(), hooks }, done))
    }

    /// Lets the policy read all rows while `hooks` watch, if their norms are asked for.
    fn read<'a>(
        &self,
        policy: &Policy,
        watch: impl Iterator<Item = (&'a SiteInfo, &'a Arc<InputNorms>)>,
        rows: &[Row],
    ) -> Result<()> {
        if self.score != Score::Wanda {
            return Ok(());
        }
        if rows.is_empty() {
            return Err(Error::input("antidote", "there is no row to score weights by")
                .hint("name data, or judge by magnitude"));
        }
        let mut hooks = Hooks::none();
        watch.for_each(|(site, norms)| hooks.bind(site.id, norms.clone()));
        let hooks = policy.hooks.clone().and(&hooks);
        let policy = Policy { model: policy.model.clone(), hooks };
        let whole: Vec<Row> = rows.iter().map(whole).collect();
        let all: Vec<usize> = (0..whole.len()).collect();
        for pass in pack(&all, |row| whole[row].len(), PASS) {
            let batch = Batch::from_rows(pass.iter().map(|row| &whole[*row]));
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            threads::together(|| policy.hidden(&mut ctx))?;
        }
        Ok(())
    }

    /// A matrix with its marked numbers at 0.
    fn prune(&self, name: &str, w: &Tensor, squares: Option<&[f64]>) -> Result<(Pruned, Tensor)> {
        let (o, i) = w.dims2()?;
        let scores = match self.score {
            Score::Random => wanda::random(o * i, Seed(self.seed).split("antidote").split(name)),
            _ => wanda::scores(w, squares)?,
        };
        let marked = wanda::largest(&scores, i, self.dense_ratio, self.per);
        let mut numbers = w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let harmful = numbers.iter_mut().zip(&marked).filter(|(_, marked)| **marked);
        harmful.for_each(|(number, _)| *number = 0.0);
        let pruned = marked.iter().filter(|marked| **marked).count();
        let about = Pruned { name: name.to_string(), numbers: o * i, pruned };
        Ok((about, Tensor::from_vec(numbers, (o, i), &Device::Cpu)?))
    }
}

/// The linear site of a LoRA's factor, and which factor it is.
fn split<'s>(sites: &'s luthier_core::SiteMap, name: &str) -> Option<(&'s SiteInfo, &'static str)> {
    let parts = ["lora_A", "lora_B"];
    let (site, part) = name.rsplit_once('.')?;
    let part = parts.into_iter().find(|known| *known == part)?;
    sites.get(site).filter(|site| site.linear().is_some()).map(|site| (site, part))
}

/// A row that is read through its last target.
fn whole(row: &Row) -> Row {
    let mut ids = row.ids.clone();
    ids.extend(row.targets.last());
    let n = ids.len();
    Row { ids, targets: vec![0; n], weights: vec![0.0; n], example: row.example, ..Row::default() }
}

#[cfg(test)]
mod tests {
    use luthier_core::Rows;
    use luthier_params::{Lora, Params};
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
            let numbers: Vec<f32> =
                (0..param.var.elem_count()).map(|_| rng.normal() as f32).collect();
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
        let (tuned, base) =
            (logits(&bound.policy), logits(&Policy::plain(bound.policy.model.clone())));
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
}
