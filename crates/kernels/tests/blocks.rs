//! Products with a few rows against dequantised weights and sums in f64.

use half::bf16;
use luthier_kernels::{
    blocks::{Blocks, Kernel, few_rows, few_rows_by},
    few::{few_rows as any_few_rows, few_rows_at},
    num::{Numbers, Precision},
    quant::{GgmlType, dequantize_serial},
    simd::{self, Level},
    threads,
};

fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut next = noise(seed);
    (0..n).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// Where a block's half floats lie.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => &[],
        GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
    }
}

/// Random bytes, with scales between `scale / 2` and `scale` of either sign.
fn random(ty: GgmlType, o: usize, i: usize, scale: f32, seed: u64) -> Blocks {
    let mut next = noise(seed);
    let mut bytes: Vec<u8> =
        (0..ty.bytes_for(o * i).unwrap()).map(|_| (next() >> 33) as u8).collect();
    for block in bytes.chunks_mut(ty.block_bytes()) {
        for at in halves(ty) {
            let part = 0.5 + (next() >> 40) as f32 / (1u64 << 25) as f32;
            let signed = if next() >> 50 & 1 == 1 { -part } else { part };
            let stored = half::f16::from_f32(signed * scale);
            block[*at..at + 2].copy_from_slice(&stored.to_le_bytes());
        }
    }
    if ty.block_elements() == 1 {
        let plain = uniform(seed, o * i).into_iter().map(|x| x * scale);
        bytes = match ty {
            GgmlType::F32 => plain.flat_map(f32::to_le_bytes).collect(),
            GgmlType::F16 => plain.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            _ => plain.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
    }
    Blocks::new(ty, bytes, o, i).unwrap()
}

fn dense(blocks: &Blocks) -> Vec<f32> {
    let (o, i) = blocks.dims();
    let mut w = vec![0f32; o * i];
    for (r, w) in w.chunks_mut(i).enumerate() {
        dequantize_serial(blocks.ty().unwrap(), blocks.row(r).unwrap(), w);
    }
    w
}

/// The product in f64, and the sum of its terms' magnitudes.
fn naive(w: &[f32], x: &[f32], n: usize, o: usize, i: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for a in 0..n {
        for r in 0..o {
            let terms = (0..i).map(|k| f64::from(w[r * i + k]) * f64::from(x[a * i + k]));
            out.push(terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs())));
        }
    }
    out
}

#[track_caller]
fn close(got: &[f32], want: &[(f64, f64)], relative: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    for (k, (got, (want, size))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= relative * size + 1e-30, "{what}, {k}: {got}, expected {want} ± {size}");
    }
}

/// Half a unit in bf16's last place.
const BF16: f64 = 1.0 / 512.0;

#[test]
fn every_format_multiplies_as_its_expanded_weights_do() {
    for (t, ty) in GgmlType::all().enumerate() {
        let widths: &[usize] =
            if ty.block_elements() == 256 { &[256, 1280] } else { &[32, 96, 576] };
        for (n, i) in (1..=9).flat_map(|n| widths.iter().map(move |i| (n, *i))) {
            let o = [1, 2, 3, 5, 13, 66][(n + i) % 6];
            let blocks = random(ty, o, i, 0.03, (t * 100 + n) as u64 + 1);
            let (w, x) = (dense(&blocks), uniform(n as u64 + 7, n * i));
            let want = naive(&w, &x, n, o, i);
            let what = format!("{ty:?} n {n} o {o} i {i}");
            let mut y = vec![f32::NAN; n * o];
            few_rows(Precision::F32, &blocks, &x, n, &mut y);
            close(&y, &want, 1e-5, &format!("{what} f32"));
            y.fill(f32::NAN);
            few_rows(Precision::Bf16, &blocks, &x, n, &mut y);
            close(&y, &want, BF16, &format!("{what} fast"));
            y.fill(f32::NAN);
            any_few_rows(Precision::Bf16, &x, n, Numbers::Blocks(&blocks), o, i, &mut y);
            close(&y, &want, BF16, &format!("{what} any"));
        }
    }
}

/// Rounding all activations to bf16 and multiplying exactly is what the integers must beat: in the
/// root of the mean square over many products, for even activations and for ones with an outlier.
#[test]
fn sixteen_bit_activations_err_less_than_bf16() {
    for ty in GgmlType::all().filter(|ty| Kernel::of(*ty).is_some()) {
        for outlier in [1.0, 30.0, 1000.0] {
            let (n, o, i) = (4, 64, 512);
            let blocks = random(ty, o, i, 0.02, 3);
            let w = dense(&blocks);
            let mut x = uniform(5, n * i);
            x.iter_mut().step_by(131).for_each(|x| *x *= outlier);
            let want = naive(&w, &x, n, o, i);
            let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let by_bf16 = naive(&w, &rounded, n, o, i);
            let mut y = vec![0f32; n * o];
            few_rows_by(Kernel::of(ty).filter(|_| Kernel::here()), &blocks, &x, n, &mut y);
            let square = |error: f64| error * error;
            let ours: f64 = y.iter().zip(&want).map(|(y, w)| square(f64::from(*y) - w.0)).sum();
            let theirs: f64 = by_bf16.iter().zip(&want).map(|(y, w)| square(y.0 - w.0)).sum();
            println!("{ty:?} outlier {outlier}: error {:.2e} of bf16's", (ours / theirs).sqrt());
            assert!(ours < theirs / 16.0, "{ty:?} outlier {outlier}: {ours:e} {theirs:e}");
        }
    }
}

#[test]
fn large_scales_tiny_and_empty_activations_and_infinities_come_through() {
    for ty in GgmlType::all().filter(|ty| Kernel::of(*ty).is_some()) {
        let (n, o, i) = (3, 5, 256);
        let blocks = random(ty, o, i, 60_000.0, 11);
        let w = dense(&blocks);
        let mut x = uniform(13, n * i);
        // One row of very large numbers, one of tiny ones, one with a block of zeros.
        x[..i].iter_mut().for_each(|x| *x *= 1e25);
        x[i..2 * i].iter_mut().for_each(|x| *x *= 1e-20);
        x[2 * i + 32..2 * i + 64].fill(0.0);
        let want = naive(&w, &x, n, o, i);
        let mut y = vec![f32::NAN; n * o];
        few_rows(Precision::Bf16, &blocks, &x, n, &mut y);
        close(&y, &want, BF16, &format!("{ty:?}"));
        x[i + 7] = f32::INFINITY;
        x[2 * i + 70] = f32::NAN;
        few_rows(Precision::Bf16, &blocks, &x, n, &mut y);
        close(&y[..o], &want[..o], BF16, &format!("{ty:?} beside"));
        assert!(y[o..].iter().all(|y| !y.is_finite()), "{ty:?}: {y:?}");
    }
}

#[test]
fn a_row_is_the_same_alone_beside_others_and_at_any_number_of_threads() {
    for ty in [GgmlType::Q8_0, GgmlType::Q4_1, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q3_K] {
        let (n, o, i) = (15, 307, 1024);
        let blocks = random(ty, o, i, 0.03, 17);
        let w = dense(&blocks);
        let halved: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        let x = uniform(19, n * i);
        for numbers in [Numbers::Blocks(&blocks), Numbers::F32(&w), Numbers::Bf16(&halved)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let run = |x: &[f32]| {
                    let n = x.len() / i;
                    let mut y = vec![0f32; n * o];
                    any_few_rows(precision, x, n, numbers, o, i, &mut y);
                    y
                };
                let all = threads::alone(|| run(&x));
                for count in [1, 2, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
                    assert!(pool.install(|| run(&x)) == all, "{ty:?} {precision:?} {count}");
                }
                for (a, x) in x.chunks(i).enumerate() {
                    assert!(run(x) == all[a * o..(a + 1) * o], "{ty:?} {precision:?} row {a}");
                }
            }
        }
    }
}

#[test]
fn plain_weights_at_every_level() {
    let levels = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
    for level in levels.into_iter().filter(|l| *l <= simd::best()) {
        for (n, o, i) in [(1, 7, 1), (2, 3, 17), (3, 5, 31), (5, 9, 64), (8, 11, 100), (15, 6, 257)]
        {
            let (w, x) = (uniform(n as u64, o * i), uniform(o as u64 + 50, n * i));
            let halved: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let rounded = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let (w_r, x_r): (Vec<f32>, Vec<f32>) = (rounded(&w), rounded(&x));
            for (numbers, precision, w, x_used) in [
                (Numbers::F32(&w), Precision::F32, &w, &x),
                (Numbers::F32(&w), Precision::Bf16, &w, &x),
                (Numbers::Bf16(&halved), Precision::F32, &w_r, &x),
                (Numbers::Bf16(&halved), Precision::Bf16, &w_r, &x_r),
            ] {
                let mut y = vec![f32::NAN; n * o];
                few_rows_at(level, precision, &x, n, numbers, o, i, &mut y);
                let want = naive(w, x_used, n, o, i);
                close(&y, &want, 2e-6, &format!("{level:?} {precision:?} {n} {o} {i}"));
            }
        }
    }
}

#[test]
fn nothing_times_something_is_nothing() {
    let blocks = Blocks::new(GgmlType::Q4_1, vec![0; 40], 2, 32).unwrap();
    few_rows(Precision::Bf16, &blocks, &[], 0, &mut []);
    let mut y = [1f32; 2];
    any_few_rows(Precision::Bf16, &[], 1, Numbers::F32(&[]), 2, 0, &mut y);
    assert_eq!(y, [0.0; 2]);
}

#[test]
fn any_range_is_read_alike_and_narrowed() {
    for ty in GgmlType::all() {
        let blocks = random(ty, 3, 1024, 0.05, 23);
        let w = dense(&blocks);
        let mut next = noise(29);
        for _ in 0..60 {
            let at = next() as usize % w.len();
            let len = next() as usize % (w.len() - at + 1);
            let mut out = vec![f32::NAN; len];
            blocks.read(at, &mut out);
            assert!(out == w[at..at + len], "{ty:?} {at} {len}");
            let mut narrow = vec![bf16::NAN; len];
            blocks.read_bf16(at, &mut narrow);
            let alike = |(a, b): (&bf16, &f32)| a.to_bits() == bf16::from_f32(*b).to_bits();
            assert!(narrow.iter().zip(&out).all(alike), "{ty:?} {at} {len}");
        }
    }
}
