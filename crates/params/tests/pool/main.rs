//! The pool of modulators: who is chosen, who learns, and that decoding keeps its choice.

#[allow(dead_code, reason = "every test file uses a part of it")]
#[path = "../whole/mod.rs"]
mod whole;

mod learning;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Cache, Ctx, Model, Policy, Rows, Seed, SiteKind, SiteMap, StateDict};
use luthier_params::{Bound, Lora, Params, Pool, Scope, form::pool::Modulator};
use luthier_testkit::{Fake, Shape, assert_close, assert_same_bits};
use whole::{Bare, SMALL, Whole, apart::assert_apart, logits, noise, shake};

const TEXTS: [&[u32]; 4] = [&[3, 1, 4, 1, 5], &[9], &[2, 6, 5], &[12, 11, 12, 10]];

fn all() -> (Vec<u32>, Arc<Rows>) {
    let lengths: Vec<usize> = TEXTS.iter().map(|t| t.len()).collect();
    (TEXTS.concat(), Arc::new(Rows::new(&lengths, |_| 0)))
}

fn model() -> Arc<dyn Model> {
    Arc::new(Whole::random(SMALL))
}

fn fake() -> Arc<dyn Model> {
    Arc::new(Fake::new(Shape::default(), Seed(11)))
}

/// Alpha differs from the rank: a wrong scale must show.
fn small() -> Pool {
    Pool { size: 4, r: 2, alpha: 7.0, ..Pool::default() }
}

fn ia3() -> Pool {
    Pool { modulator: Modulator::Ia3, ..small() }
}

fn pool(pool: Pool) -> Params {
    Params { pool: Some(pool), ..Params::default() }
}

/// The mean of the embeddings of some tokens.
fn query(model: &Arc<dyn Model>, ids: &[u32]) -> Tensor {
    let table = model.affine(model.sites().get("embed").unwrap().id).unwrap().w_oi;
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    table.index_select(&ids, 0).unwrap().mean(0).unwrap()
}

/// Makes entry `e` the nearest to `ids`, whatever its length.
fn aim(bound: &Bound, e: usize, ids: &[u32]) {
    let key = (query(&bound.policy.model, ids) * (0.5 + e as f64)).unwrap();
    bound.var(&format!("pool.{e}.key")).unwrap().set(&key).unwrap();
}

/// Entries 2, 0, 3, 2 for the four texts.
fn aimed(form: Pool, model: &Arc<dyn Model>) -> Bound {
    let bound = pool(form).bind(model, Seed(1)).unwrap();
    shake(&bound);
    for (text, entry) in [(0, 2), (1, 0), (2, 3)] {
        aim(&bound, entry, TEXTS[text]);
    }
    // Between the two that share an entry, and far from what is left.
    let both = (query(model, TEXTS[0]) + query(model, TEXTS[3])).unwrap();
    bound.var("pool.2.key").unwrap().set(&both).unwrap();
    bound.var("pool.1.key").unwrap().set(&both.neg().unwrap()).unwrap();
    bound
}

/// The adapter that always does what one entry does.
fn entry_alone(bound: &Bound, e: usize, at: &str) -> Bound {
    let form = Lora { r: 2, alpha: 7.0, at: at.into(), ..Lora::default() };
    let mark = format!(".pool_{e}.");
    let own = bound.params.iter().filter(|p| p.name.contains(&mark));
    let values: StateDict =
        own.map(|p| (p.name.replace(&mark, "."), p.var.copy().unwrap())).collect();
    let params = Params { lora: Some(form), ..Params::default() };
    params.bind_in(&bound.policy.model, Scope::given(values)).unwrap()
}

#[test]
fn every_row_goes_through_the_entry_nearest_to_it() {
    let at = "layers.*.attn.{q,v}";
    let bound = aimed(Pool { at: Some(at.into()), ..small() }, &model());
    let (ids, rows) = all();
    let got = logits(&bound.policy, &ids, &rows);
    for (row, entry) in [(0, 2), (1, 0), (2, 3), (3, 2)] {
        let range = rows.range(row);
        let single = Arc::new(Rows::single(range.len()));
        let want = logits(&entry_alone(&bound, entry, at).policy, TEXTS[row], &single);
        let got = got.narrow(0, range.start, range.len()).unwrap();
        assert_close(&format!("row {row}"), &got, &want, 1e-5, 1e-6);
        let alone = logits(&bound.policy, TEXTS[row], &single);
        assert_close(&format!("row {row} alone"), &alone, &want, 1e-5, 1e-6);
        let plain = logits(&Policy::plain(model()), TEXTS[row], &single);
        let apart = (plain - want).unwrap().abs().unwrap().max_all().unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() > 0.05);
    }
}

/// As published, an MLP's modulator reads the output it is added to.
#[test]
fn in_the_mlp_the_output_is_read() {
    let form = Pool { size: 1, at: Some("layers.0.mlp.gate".into()), ..small() };
    let bound = pool(form).bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    let sites = bound.policy.model.sites();
    let site = sites.get("layers.0.mlp.gate").unwrap();
    let rows = Arc::new(Rows::single(5));
    let mut ctx = Ctx::new(&bound.policy.hooks, rows, TEXTS[0]);
    bound.policy.model.embed(TEXTS[0], &mut ctx).unwrap();
    let (x, u) = (noise("x", &[5, 8], 0.0, 1.0), noise("u", &[5, 12], 0.0, 1.0));
    let got = ctx.through(sites, site.id, &x, |_| Ok(u.clone())).unwrap();
    let var = |part: &str| bound.var(&format!("layers.0.mlp.gate.pool_0.{part}")).unwrap();
    let z = u.matmul(&var("lora_A").t().unwrap()).unwrap();
    let add = (z.matmul(&var("lora_B").t().unwrap()).unwrap() * 3.5).unwrap();
    assert_close("gate", &got, &(u + add).unwrap(), 1e-5, 1e-6);
}

#[test]
fn factors_scale_the_tokens_of_their_rows() {
    let bound = aimed(Pool { at: Some("layers.0.mlp.act".into()), ..ia3() }, &model());
    let (ids, rows) = all();
    let sites = bound.policy.model.sites();
    let site = sites.get("layers.0.mlp.act").unwrap();
    let mut ctx = Ctx::new(&bound.policy.hooks, rows.clone(), &ids);
    bound.policy.model.embed(&ids, &mut ctx).unwrap();
    let y = noise("y", &[ids.len(), 12], 0.0, 1.0);
    let got = ctx.watch(sites, site.id, y.clone()).unwrap();
    for (row, entry) in [(0, 2), (1, 0), (2, 3), (3, 2)] {
        let (from, len) = (rows.range(row).start, rows.range(row).len());
        let factor = bound.var(&format!("layers.0.mlp.act.pool_{entry}.ia3_l")).unwrap();
        let want = y.narrow(0, from, len).unwrap().broadcast_mul(factor).unwrap();
        assert_same_bits("act", &got.narrow(0, from, len).unwrap(), &want);
    }
}

#[test]
fn the_start_changes_nothing_whatever_is_chosen() {
    let (ids, rows) = all();
    let plain = logits(&Policy::plain(model()), &ids, &rows);
    for (form, seed) in [(small(), 1), (small(), 2), (ia3(), 1), (ia3(), 2)] {
        let bound = pool(form).bind(&model(), Seed(seed)).unwrap();
        assert_same_bits("start", &logits(&bound.policy, &ids, &rows), &plain);
    }
}

/// Decoding sees a prompt once; what is generated must not change the choice.
#[test]
fn a_sequence_keeps_its_entry() {
    let model = fake();
    let form = Pool { at: Some("layers.*.attn.v".into()), ..small() };
    let bound = pool(form).bind(&model, Seed(1)).unwrap();
    shake(&bound);
    let (prompt, answer): (&[u32], &[u32]) = (&[3, 1, 4], &[7, 7, 7, 7]);
    let text = [prompt, answer].concat();
    aim(&bound, 1, prompt);
    // Other tokens, and all of them, would choose another entry.
    aim(&bound, 3, answer);
    let whole = (query(&model, &text) * 2.0).unwrap();
    bound.var("pool.0.key").unwrap().set(&whole).unwrap();

    let mut weights = vec![0.0; text.len()];
    // The prompt's last token is the first that is trained.
    weights[2..].fill(1.0);
    let mut ctx = Ctx::new(&bound.policy.hooks, Arc::new(Rows::single(text.len())), &text);
    ctx.weights_n = Some(&weights);
    let want = bound.policy.hidden(&mut ctx).unwrap();
    let alone = entry_alone(&bound, 1, "layers.*.attn.v");
    let mut ctx = Ctx::new(&alone.policy.hooks, Arc::new(Rows::single(text.len())), &text);
    assert_close("entry 1", &want, &alone.policy.hidden(&mut ctx).unwrap(), 1e-6, 1e-6);

    // Beside another sequence in another slot, and forked half-way.
    let mut cache = Cache::new(3, model.n_layers());
    let mut step = |slots: Vec<usize>, ids: &[u32], lengths: &[usize], from: usize| {
        cache.select(slots);
        let rows = Arc::new(Rows::new(lengths, |_| from));
        let mut ctx = Ctx::new(&bound.policy.hooks, rows, ids);
        ctx.cache = Some(&mut cache);
        bound.policy.hidden(&mut ctx).unwrap()
    };
    let ids = [answer[..3].to_vec(), prompt.to_vec()].concat();
    let first = step(vec![2, 1], &ids, &[3, 3], 0);
    assert_close(
        "prompt",
        &first.narrow(0, 3, 3).unwrap(),
        &want.narrow(0, 0, 3).unwrap(),
        1e-6,
        1e-6,
    );
    for t in 3..5 {
        let h = step(vec![1], &text[t..t + 1], &[1], t);
        assert_close("token", &h, &want.narrow(0, t, 1).unwrap(), 1e-6, 1e-6);
    }
    cache.fork(1, 0);
    cache.clear(1);
    cache.select(vec![0]);
    let rows = Arc::new(Rows::new(&[2], |_| 5));
    let mut ctx = Ctx::new(&bound.policy.hooks, rows, &text[5..]);
    ctx.cache = Some(&mut cache);
    let h = bound.policy.hidden(&mut ctx).unwrap();
    assert_close("fork", &h, &want.narrow(0, 5, 2).unwrap(), 1e-6, 1e-6);
}

#[test]
fn what_is_far_from_every_key_is_not_modulated() {
    let bound = aimed(Pool { min_cosine: Some(0.999), ..small() }, &model());
    let (ids, rows) = all();
    let (got, plain) =
        (logits(&bound.policy, &ids, &rows), logits(&Policy::plain(model()), &ids, &rows));
    let row = |t: &Tensor, i: usize| t.narrow(0, rows.range(i).start, rows.range(i).len()).unwrap();
    for (i, near) in [(0, false), (1, true), (2, true), (3, false)] {
        let apart = (row(&got, i) - row(&plain, i)).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(apart.to_scalar::<f32>().unwrap() > 1e-3, near, "row {i}");
    }
    let nothing = aimed(Pool { min_cosine: Some(1.0), size: 4, ..ia3() }, &model());
    let far = [14, 15, 16];
    let single = Arc::new(Rows::single(3));
    let plain = logits(&Policy::plain(model()), &far, &single);
    assert_same_bits("far", &logits(&nothing.policy, &far, &single), &plain);
}

#[test]
fn passes_side_by_side_do_not_mix() {
    let bound = aimed(small(), &model());
    assert_apart(|i| {
        let text = TEXTS[i % 4].repeat(1 + i / 4);
        logits(&bound.policy, &text, &Arc::new(Rows::single(text.len())))
    });
}

#[test]
fn the_published_numbers_of_parameters() {
    let (d, mut sites) = (768, SiteMap::default());
    sites.add("embed", SiteKind::Embed { v: 11, d }, None, None);
    for l in 0..6 {
        for (part, o) in [("attn.q", d), ("attn.k", d), ("attn.v", d), ("mlp.gate", 4 * d)] {
            let kind = SiteKind::Linear { i: d, o, bias: true };
            sites.add(format!("layers.{l}.{part}"), kind, Some(l), None);
        }
    }
    let model: Arc<dyn Model> = Arc::new(Bare { sites, layers: 6, width: d });
    let count =
        |size| pool(Pool { size, ..Pool::default() }).bind(&model, Seed(1)).unwrap().count();
    assert_eq!(count(1), 442_368 + 768);
    assert_eq!(count(3), 3 * (442_368 + 768));
    assert_eq!((30 * 442_368, 30 * 768), (13_271_040, 23_040));
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    for (text, want) in [
        ("size = 0", "train.params.pool.size: expected a number from 1 up"),
        ("r = 5", "train.params.pool.r: layers.0.attn.v: expected a rank from 1 to 4, got 5"),
        ("r = 2\nalpha = 0", "train.params.pool.alpha"),
        ("r = 2\npull_coef = -1", "train.params.pool.pull_coef"),
        ("r = 2\nmin_cosine = 2", "train.params.pool.min_cosine"),
        ("r = 2\nat = \"**.resid_post\"", "train.params.pool.at"),
        ("modulator = \"ia3\"\nat = \"**.pattern\"", "train.params.pool.at"),
    ] {
        let params: Params = toml::from_str(&format!("[pool]\n{text}")).unwrap();
        let error = params.bind(&model(), Seed(1)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{text}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let bound = pool(small()).bind(&model(), Seed(1)).unwrap();
    let h = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
    let mut ctx = Ctx::new(&bound.policy.hooks, Arc::new(Rows::single(2)), &[1, 2]);
    let error = model().block(0, h, &mut ctx).unwrap_err().to_string();
    assert!(error.contains("layers.0.attn.q: the pool has chosen no entry"), "{error}");
    let text = "[pool]\nsize = 10\nmodulator = \"ia3\"\nat = \"layers.*.attn.k\"\nmin_cosine = 0.1";
    let params: Params = toml::from_str(text).unwrap();
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
}
