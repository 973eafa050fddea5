//! Speed of matrix products at the shapes of a 135M model and at 2048³: `cargo bench --bench gemm`.
//!
//! `--json` prints one line per shape for `benches/compare.py`, `--quantised` compares formats.

use std::time::Instant;

use luthier_core::Seed;
use luthier_kernels::{
    blocks::Blocks,
    gemm::{Output, Term, View, product},
    nf4::Nf4,
    num::{Held, Numbers, Precision, hold},
    quant::GgmlType,
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

/// GFLOP/s of `x wᵀ` and `dy w` for `m` rows.
fn both(w: Numbers, precision: Precision, (m, n, k): (usize, usize, usize)) -> [f64; 2] {
    let (x, dy) = (random(m * k), random(m * n));
    let (mut y, mut dx) = (vec![0f32; m * n], vec![0f32; m * k]);
    let w = View::rows(w, k);
    let fwd = Term { a: View::rows(&x, k), b: w.t(), k };
    let bwd = Term { a: View::rows(&dy, n), b: w, k: n };
    let fwd = seconds(|| product(precision, m, n, &[fwd], Output::Set, &mut y, n));
    let bwd = seconds(|| product(precision, m, k, &[bwd], Output::Set, &mut dx, k));
    [fwd, bwd].map(|seconds| 2e-9 * (m * n * k) as f64 / seconds)
}

fn random(n: usize) -> Vec<f32> {
    let mut rng = Seed(n as u64).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Weights as they are held for training beside them: expanded, as files have them, in NF4.
fn quantised() {
    println!("{:10} {:>20} {:>12} {:>12}", "weights", "m × n × k", "fwd GFLOP/s", "dx");
    for (m, n, k) in [(512, 1536, 576), (512, 576, 1536), (2048, 2048, 2048)] {
        let w = random(n * k);
        let mut held = Held::default();
        hold(&mut held, Precision::Bf16, &w);
        let line = |name: &str, w: Numbers| {
            let [fwd, dx] = both(w, Precision::Bf16, (m, n, k));
            println!("{name:10} {:>20} {fwd:12.0} {dx:12.0}", format!("{m} × {n} × {k}"));
        };
        line("BF16", (&held).into());
        use GgmlType::*;
        for ty in [Q8_0, Q4_0, Q4_1, Q5_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K] {
            // Bytes that are small numbers where they are half floats.
            let Some(bytes) = ty.bytes_for(n * k).filter(|_| ty.bytes_for(k).is_some()) else {
                continue;
            };
            let bytes = (0..bytes).map(|i| (i * 37 % 47) as u8).collect();
            let blocks = Blocks::new(ty, bytes, n, k).expect("sizes match");
            line(&blocks.name(), Numbers::Blocks(&blocks));
        }
        for double in [false, true] {
            let blocks = Blocks::nf4(Nf4::quantise(&w, double), n, k).expect("sizes match");
            line(if double { "NF4 double" } else { "NF4" }, Numbers::Blocks(&blocks));
        }
    }
}

fn main() {
    if std::env::args().any(|a| a == "--quantised") {
        return quantised();
    }
    let json = std::env::args().any(|a| a == "--json");
    let mut shapes = vec![(2048, 2048, 2048)];
    for m in [256, 2048] {
        shapes.extend([(m, 576, 576), (m, 1536, 576), (m, 576, 1536)]);
    }
    if !json {
        println!("{:?}, {} threads; GFLOP/s, sums of both cores", simd::level(), threads::count());
    }
    for (m, n, k) in shapes {
        let w = random(n * k);
        for precision in [Precision::F32, Precision::Bf16] {
            let mut held = Held::default();
            hold(&mut held, precision, &w);
            let [fwd, bwd] = both((&held).into(), precision, (m, n, k));
            let name = if precision == Precision::F32 { "f32" } else { "bf16" };
            for (op, gflops) in [("fwd", fwd), ("dx", bwd)] {
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
