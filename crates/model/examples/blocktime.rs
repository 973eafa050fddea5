use std::{sync::Arc, time::Instant};
use candle_core::{Device, Tensor, Var};
use luthier_core::*;
use luthier_kernels::{attention, gemm::*, norm, pool::*, rope, swiglu, threads, Heads};
use luthier_model::{Decoder, Precision, Source};
struct Low(LowRank);
impl Hook for Low { fn low_rank(&self) -> Option<LowRank> { Some(self.0.clone()) } }
fn rnd(n: usize, s: u64) -> Vec<f32> { let mut r = Seed(s).rng(); (0..n).map(|_| r.normal() as f32).collect() }
fn time(what: &str, mut f: impl FnMut()) -> f64 {
    for _ in 0..2 { f(); }
    let mut best = f64::MAX;
    let mut all = vec![];
    for _ in 0..7 { let t = Instant::now(); f(); let s = t.elapsed().as_secs_f64()*1e3; best = best.min(s); all.push(s); }
    all.sort_by(|a,b| a.total_cmp(b));
    println!("{what:32} best {best:8.3} ms  median {:8.3}", all[3]);
    best
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let precision = if args[2] == "f32" { Precision::F32 } else { Precision::Bf16 };
    let lens: Vec<usize> = args[3].split(',').map(|x| x.parse().unwrap()).collect();
    let source = Source::open(args[1].as_ref()).unwrap();
    let model = Decoder::load(&source, precision, |_, _| ()).unwrap();
    let mut hooks = Hooks::none();
    for s in model.sites().iter().filter(|s| s.layer.is_some() && s.linear().is_some()) {
        let (i, o) = s.linear().unwrap();
        let v = |d: [usize; 2]| Var::from_tensor(&Tensor::from_vec(rnd(d[0]*d[1], 3), &d[..], &Device::Cpu).unwrap()).unwrap();
        hooks.bind(s.id, Arc::new(Low(LowRank { a_ri: v([16, i]), b_or: v([o, 16]), scale: 0.1, dropout: 0.0 })));
    }
    let rows = Arc::new(Rows::new(&lens, |_| 0));
    let (n, d) = (rows.n(), model.width());
    let h = Tensor::from_vec(rnd(n*d, 1), (n, d), &Device::Cpu).unwrap();
    let body = || {
        let mut ctx = Ctx::new(&hooks, rows.clone(), &[]);
        let f = time("forward", || { model.forward(1, h.clone(), &mut ctx).unwrap(); });
        let mut ctx = Ctx::new(&hooks, rows.clone(), &[]);
        let t = time("tape", || { model.tape(1, &h, true, &mut ctx).unwrap(); });
        let tb = time("tape + backward", || {
            let (_, tape) = model.tape(1, &h, true, &mut ctx).unwrap().unwrap();
            tape.unwrap().backward(&h, true, &mut |_, _| Ok(())).unwrap();
        });
        if std::env::var("LOOP").is_ok() { for _ in 0..150 { let (_, tape) = model.tape(1, &h, true, &mut ctx).unwrap().unwrap(); tape.unwrap().backward(&h, true, &mut |_, _| Ok(())).unwrap(); } return; }
        let c = model.config();
        let (f_, q, k) = (c.ffn, c.q_width(), c.kv_width());
        let lin = 2.0 * n as f64 * (d*q*2 + 2*d*k + 3*d*f_) as f64 / 1e6;
        println!("linear flops/pass {:.2} GF; rates: forward {:.0} tape {:.0} bwd {:.0} GF/s", lin/1e3, lin/f, lin/t, lin/(tb-t));
        let x = rnd(n*f_, 5); let y = rnd(n*f_, 6);
        let kx = Kept::copy(precision, &x); let ky = Kept::copy(precision, &y);
        let w = rnd(d, 8);
        time("kept copy f", || { Kept::copy(precision, &x); });
        time("swiglu fwd", || { swiglu::kept(precision, kx.numbers(), ky.numbers()); });
        time("swiglu bwd", || { swiglu::backward(precision, kx.numbers(), ky.numbers(), &x); });
        time("norm fwd", || { norm::kept(precision, (&x[..n*d]).into(), &w, 1e-5); });
        let mut dx = vec![0f32; n*d];
        time("norm bwd", || { norm::backward((&x[..n*d]).into(), &w, 1e-5, &y[..n*d], Output::Add, &mut dx); });
        time("copy h", || { std::hint::black_box(x[..n*d].to_vec()); });
        let heads = Heads { h: c.heads, k: c.kv_heads, e: c.head_dim, window: None, precision };
        let (qs, ks, vs) = (Kept::copy(precision, &x[..n*q]), Kept::copy(precision, &x[..n*k]), Kept::copy(precision, &y[..n*k]));
        let mut z = vec![0f32; n*q]; let mut lse = vec![0f32; n*c.heads];
        let fl: f64 = lens.iter().map(|l| (*l as f64)*(*l as f64)*q as f64*2.0).sum::<f64>()/1e6;
        let a = time("attention fwd", || attention::forward(heads, &rows, qs.numbers(), ks.numbers(), vs.numbers(), &mut z, &mut lse));
        let zs = Kept::copy(precision, &z);
        let (mut dq, mut dk, mut dv) = (vec![0f32; n*q], vec![0f32; n*k], vec![0f32; n*k]);
        let b = time("attention bwd", || attention::backward(heads, &rows, attention::Inputs { q: qs.numbers(), k: ks.numbers(), v: vs.numbers(), z: zs.numbers(), lse: &lse }, &y[..n*q], &mut dq, &mut dk, &mut dv));
        println!("attention rates (causal flops) {:.0} {:.0} GF/s", fl/a, 2.5*fl/b);
        let table = luthier_kernels::Rotation::new(vec![0.1; c.head_dim/2], 1.0).table(&rows.positions_n);
        time("rope q", || rope::turn_heads(&mut dq, &table, c.head_dim, false));
        let wt = rnd(d*f_, 9); let wk = Kept::copy(precision, &wt);
        let mut out = vec![0f32; n*f_];
        let t = time("product up-like", || product(precision, n, f_, &[Term { a: View::rows(kx.numbers(), d), b: View::rows(wk.numbers(), d).t(), k: d }], Output::Set, &mut out, f_));
        println!("   {:.0} GF/s", 2.0*(n*d*f_) as f64/1e6/t);
        let aw = Kept::copy(precision, &wt[..32*d]);
        time("t = x A (r=32)", || product(precision, n, 32, &[Term { a: View::rows(kx.numbers(), d), b: View::rows(aw.numbers(), d).t(), k: d }], Output::Set, &mut out, 32));
        time("dt = dy B (r=16, o=f)", || product(precision, n, 16, &[Term { a: View::rows(kx.numbers(), f_), b: View::rows(wk.numbers(), 16), k: f_ }], Output::Set, &mut out, 16));
        let ts = Kept::copy(precision, &x[..n*16]);
        time("dB = dyT t (f x 16)", || product(precision, f_, 16, &[Term { a: View::rows(kx.numbers(), f_).t(), b: View::rows(ts.numbers(), 16), k: n }], Output::Set, &mut out, 16));
        time("dA = dtT x (16 x d)", || product(precision, 16, d, &[Term { a: View::rows(ts.numbers(), 16).t(), b: View::rows(kx.numbers(), d), k: n }], Output::Set, &mut out, d));
    };
    if args.len() > 4 { threads::alone(body) } else { body() }
}
