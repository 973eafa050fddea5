//! Speed of matrix products at the shapes of a 135M model and at 2048³: `cargo bench --bench gemm`.
//!
//! `--json` prints one line per shape for `benches/compare.py`.

use std::time::Instant;

use luthier_core::Seed;
use luthier_kernels::{
    gemm::{Output, Term, View, product},
    num::{Held, Precision, hold},
    simd, threads,
};

/// Middle of seven runs of at least 20 ms, in seconds per call.
fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let begun = Instant::now();
    f();
    let calls = (0.02 / begun.elapsed().as_secs_f64()).ceil().max(1.0) as usize;
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let begun = Instant::now();
            (0..calls).for_each(|_| f());
            begun.elapsed().as_secs_f64() / calls as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let mut shapes = vec![(2048, 2048, 2048)];
    for m in [256, 2048] {
        shapes.extend([(m, 576, 576), (m, 1536, 576), (m, 576, 1536)]);
    }
    let random = |n: usize| -> Vec<f32> {
        let mut rng = Seed(n as u64).rng();
        (0..n).map(|_| rng.normal() as f32).collect()
    };
    if !json {
        println!("{:?}, {} threads; GFLOP/s, sums of both cores", simd::level(), threads::count());
    }
    for (m, n, k) in shapes {
        let (x, dy, w) = (random(m * k), random(m * n), random(n * k));
        for precision in [Precision::F32, Precision::Bf16] {
            let mut held = Held::default();
            hold(&mut held, precision, &w);
            let (mut y, mut dx) = (vec![0f32; m * n], vec![0f32; m * k]);
            let w = View::rows(&held, k);
            let fwd = Term { a: View::rows(&x, k), b: w.t(), k };
            let bwd = Term { a: View::rows(&dy, n), b: w, k: n };
            let fwd = seconds(|| product(precision, m, n, &[fwd], Output::Set, &mut y, n));
            let bwd = seconds(|| product(precision, m, k, &[bwd], Output::Set, &mut dx, k));
            let work = 2e-9 * (m * n * k) as f64;
            let name = if precision == Precision::F32 { "f32" } else { "bf16" };
            for (op, seconds) in [("fwd", fwd), ("dx", bwd)] {
                let gflops = work / seconds;
                match json {
                    true => println!(
                        "{{\"op\":\"{op}\",\"m\":{m},\"n\":{n},\"k\":{k},\"precision\":\"{name}\",\"gflops\":{gflops:.1}}}"
                    ),
                    false => println!("{op:3} {m:5} × {n:5} × {k:5}  {name:4} {gflops:7.0}"),
                }
            }
        }
    }
}
