//! Products with few rows of activations: time per call and how fast the weights are read.

use std::{hint::black_box, time::Instant};

use half::bf16;
use luthier_kernels::{
    blocks::{Blocks, Kernel, few_rows_by},
    few::few_rows,
    num::{Numbers, Precision},
    quant::GgmlType,
};

fn noise(n: usize) -> impl Iterator<Item = u32> {
    let mut state = 0x9e37_79b9u32;
    (0..n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

/// Blocks whose scales are ordinary numbers: the upper byte of each half float is tamed.
fn blocks(ty: GgmlType, o: usize, i: usize) -> Blocks {
    let bytes = ty.bytes_for(o * i).expect("whole blocks");
    let bytes = noise(bytes).map(|x| (x >> 8) as u8 & 0x3f).collect();
    Blocks::new(ty, bytes, o, i).expect("sizes match")
}

/// The fastest and the middle of many calls, in microseconds.
fn time(mut f: impl FnMut()) -> (f64, f64) {
    let (begin, mut all) = (Instant::now(), Vec::new());
    while all.len() < 9 || begin.elapsed().as_secs_f64() < 0.25 {
        let at = Instant::now();
        f();
        all.push(at.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    (all[0], all[all.len() / 2])
}

fn line(name: &str, o: usize, i: usize, n: usize, bytes: usize, (best, middle): (f64, f64)) {
    let (speed, flops) = (bytes as f64 / best / 1e3, 2.0 * (o * i * n) as f64 / best / 1e3);
    println!(
        "{name:12} {o:6} × {i:5}  n {n}  best {best:9.1} µs  middle {middle:9.1} µs  {speed:6.1} GB/s  {flops:6.0} GFLOP/s"
    );
}

fn main() {
    const SHAPES: [(usize, usize); 5] =
        [(192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576)];
    const K_SHAPES: [(usize, usize); 2] = [(2048, 2048), (8192, 2048)];
    let threads = rayon::current_num_threads();
    println!("{threads} threads, integer kernels: {}", Kernel::here());
    let run = |name: &str, w: Numbers, bytes: usize, (o, i): (usize, usize), precision| {
        for n in [1, 8] {
            let x: Vec<f32> = noise(n * i).map(|x| x as f32 / 2e9 - 1.0).collect();
            let mut y = vec![0f32; n * o];
            let call = || few_rows(precision, black_box(&x), n, w, o, i, &mut y);
            line(name, o, i, n, bytes, time(call));
        }
    };
    for ty in [GgmlType::Q4_1, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K] {
        let shapes = if ty.block_elements() == 256 { &K_SHAPES[..] } else { &SHAPES[..] };
        for (o, i) in shapes.iter().copied() {
            let w = blocks(ty, o, i);
            run(&ty.name(), Numbers::Blocks(&w), w.size(), (o, i), Precision::Bf16);
        }
    }
    for (o, i) in SHAPES {
        let w: Vec<f32> = noise(o * i).map(|x| x as f32 / 4e9).collect();
        run("F32", Numbers::F32(&w), o * i * 4, (o, i), Precision::F32);
        let w: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        run("BF16", Numbers::Bf16(&w), o * i * 2, (o, i), Precision::Bf16);
    }
    println!("by expanding rows to f32:");
    for (ty, (o, i)) in [
        (GgmlType::Q4_1, SHAPES[2]),
        (GgmlType::Q8_0, SHAPES[2]),
        (GgmlType::Q4_K, K_SHAPES[0]),
        (GgmlType::Q6_K, K_SHAPES[0]),
        (GgmlType::Q3_K, K_SHAPES[0]),
    ] {
        let w = blocks(ty, o, i);
        for n in [1, 8] {
            let x: Vec<f32> = noise(n * i).map(|x| x as f32 / 2e9 - 1.0).collect();
            let mut y = vec![0f32; n * o];
            let call = || few_rows_by(None, &w, black_box(&x), n, &mut y);
            line(&ty.name(), o, i, n, w.size(), time(call));
        }
    }
    println!("expanding 2048 numbers to f32, one thread:");
    for ty in GgmlType::all() {
        let w = blocks(ty, 1, 2048);
        let mut out = vec![0f32; 2048];
        let (best, _) = time(|| (0..100).for_each(|_| black_box(&w).read(0, &mut out)));
        println!("{:12} {:6.2} numbers per ns", ty.name(), 2048.0 * 100.0 / best / 1e3);
    }
}
