//! Large products with quantised weights against those with the same weights expanded, to the bit.

use half::bf16;
use luthier_core::Seed;
use luthier_kernels::{
    Frozen,
    blocks::{Blocks, few_rows},
    gemm::{Output, Product, Term, View},
    nf4::{BLOCK, CODE, DYNAMIC, NESTED, Nf4, roundtrip},
    num::{Held, Numbers, Precision, hold},
    quant::GgmlType,
    simd::{Level, best},
};

fn normal(name: &str, n: usize) -> Vec<f32> {
    let mut rng = Seed(3).split(name).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Random bytes whose half floats, wherever they lie, are small numbers: no byte is above 0x2f.
fn file(ty: GgmlType, o: usize, i: usize) -> Blocks {
    let mut rng = Seed(4).split(&ty.name()).rng();
    let bytes = (0..ty.bytes_for(o * i).unwrap()).map(|_| rng.below(0x30) as u8);
    Blocks::new(ty, bytes.collect(), o, i).unwrap()
}

fn nf4(o: usize, i: usize, double_quant: bool) -> Blocks {
    Blocks::nf4(Nf4::quantise(&normal("w", o * i), double_quant), o, i).unwrap()
}

fn all(o: usize, i: usize) -> impl Iterator<Item = Blocks> {
    let files = GgmlType::all().filter(move |ty| ty.bytes_for(i).is_some());
    files.map(move |ty| file(ty, o, i)).chain([false, true].map(|double| nf4(o, i, double)))
}

fn dense(blocks: &Blocks) -> Vec<f32> {
    let mut w = vec![0f32; blocks.len()];
    blocks.read(0, &mut w);
    w
}

fn levels() -> impl Iterator<Item = Level> {
    [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16]
        .into_iter()
        .filter(|level| *level <= best())
}

/// Forward `x wᵀ + t bᵀ` and backward `dy w + dt a`, as with a low-rank addition: its steps shift
/// the places at which the weight's are cut.
fn both_ways(
    w: Numbers,
    level: Level,
    precision: Precision,
    m: usize,
    o: usize,
    i: usize,
) -> [Vec<f32>; 2] {
    const R: usize = 6;
    let view = View::rows(w, i);
    let (x, dy) = (normal("x", m * i), normal("dy", m * o));
    let (a, b, t) = (normal("a", R * i), normal("b", o * R), normal("t", m * R));
    let run = |n: usize, terms: &[Term]| {
        let mut c = vec![f32::NAN; m * n];
        Product { precision, m, n, terms, output: Output::Set }.run_at(level, &mut c, n);
        c
    };
    let t = View::rows(&t, R);
    let forward = [
        Term { a: View::rows(&x, i), b: view.t(), k: i },
        Term { a: t, b: View::rows(&b, R).t(), k: R },
    ];
    let backward =
        [Term { a: View::rows(&dy, o), b: view, k: o }, Term { a: t, b: View::rows(&a, i), k: R }];
    [run(o, &forward), run(i, &backward)]
}

#[test]
fn quantised_weights_give_the_bits_of_their_expanded_ones_in_both_directions() {
    // Rows of 1 and 3 parts, odd widths of what is summed, several depths, ragged last panels.
    for (m, o, i) in [(11, 45, 256), (70, 771, 96), (401, 33, 288), (900, 70, 1024)] {
        for blocks in all(o, i) {
            let w = dense(&blocks);
            for precision in [Precision::F32, Precision::Bf16] {
                let mut held = Held::default();
                hold(&mut held, precision, &w);
                // Every level for the small sizes; the lesser ones are slow.
                for level in levels().filter(|level| *level == best() || m * o * i < 200_000) {
                    let got = both_ways(Numbers::Blocks(&blocks), level, precision, m, o, i);
                    let want = both_ways((&held).into(), level, precision, m, o, i);
                    let what = format!("{} {precision:?} {level:?} {m}×{o}×{i}", blocks.name());
                    assert!(got[0] == want[0], "{what} forward");
                    assert!(got[1] == want[1], "{what} backward");
                }
            }
        }
    }
}

#[test]
fn rows_of_nf4_need_not_fill_blocks() {
    for (o, i) in [(7, 33), (5, 50), (64, 1), (3, 130)] {
        let blocks = nf4(o, i, true);
        let w = dense(&blocks);
        for level in levels() {
            for m in [9, 40] {
                let got = both_ways(Numbers::Blocks(&blocks), level, Precision::F32, m, o, i);
                let want = both_ways(Numbers::F32(&w), level, Precision::F32, m, o, i);
                assert!(got == want, "{level:?} {m}×{o}×{i}");
            }
        }
    }
}

#[test]
fn a_few_rows_of_nf4_are_multiplied_in_f32() {
    let (n, o, i) = (3, 37, 70);
    let (blocks, x) = (nf4(o, i, false), normal("x", n * i));
    let w = dense(&blocks);
    for precision in [Precision::F32, Precision::Bf16] {
        let mut y = vec![f32::NAN; n * o];
        few_rows(precision, &blocks, &x, n, &mut y);
        for (j, y) in y.iter().enumerate() {
            let (x, w) = (&x[j / o * i..][..i], &w[j % o * i..][..i]);
            let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*y) - want).abs() < 2e-5, "{j}: {y} {want}");
        }
    }
}

#[test]
fn thirty_two_columns_are_those_of_the_rows() {
    for blocks in all(9, 512) {
        let w = dense(&blocks);
        // Aligned in every part of a large block, and not.
        for at in (0..512).step_by(32).chain([1, 31, 63, 200]) {
            for stride in [512, 1024, 480, 33] {
                let rows = ((w.len() - 32 - at) / stride + 1).min(9);
                let mut strip = vec![[f32::NAN; 32]; rows];
                blocks.strip(at, stride, &mut strip);
                for (r, got) in strip.iter().enumerate() {
                    let want = &w[at + r * stride..][..32];
                    assert!(got == want, "{} at {at}, row {r} of {stride}", blocks.name());
                }
            }
        }
    }
}

#[test]
fn any_range_of_nf4_is_read_alike_and_narrowed() {
    let n = 5000;
    for double in [false, true] {
        let blocks = nf4(1, n, double);
        let w = dense(&blocks);
        let mut rng = Seed(9).rng();
        for _ in 0..200 {
            let at = rng.below(n);
            let len = rng.below(n - at + 1);
            let mut out = vec![f32::NAN; len];
            blocks.read(at, &mut out);
            assert!(out == w[at..at + len], "{at} {len}");
            let mut narrow = vec![bf16::NAN; len];
            blocks.read_bf16(at, &mut narrow);
            assert!(narrow.iter().zip(&out).all(|(a, b)| *a == bf16::from_f32(*b)), "{at} {len}");
        }
    }
}

/// The nearest code by trying all of them.
fn naive(x: &[f32]) -> Vec<f32> {
    let block = |x: &[f32]| -> Vec<f32> {
        let scale = x.iter().fold(0f32, |top, x| top.max(x.abs()));
        let code = |x: &f32| {
            let apart = |code: &&f32| (x / scale - **code).abs();
            let nearest = CODE.iter().min_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap();
            nearest * scale
        };
        x.iter().map(code).collect()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

#[test]
fn every_number_gets_the_nearest_code_of_its_block() {
    for n in [1, 2, 63, 64, 65, 1000, 40_001] {
        let x = normal("x", n);
        assert!(roundtrip(&x) == naive(&x), "{n}");
    }
    // Codes are their own nearest, zeros stay zeros, and quantising again changes nothing.
    let codes: Vec<f32> = CODE.iter().map(|code| code * 0.37).collect();
    assert_eq!(roundtrip(&codes), codes);
    assert_eq!(roundtrip(&[0.0; 70]), [0.0; 70]);
    let once = roundtrip(&normal("x", 999));
    assert_eq!(roundtrip(&once), once);
    // What is no number shows, in its block alone.
    let mut x = normal("x", 3 * BLOCK);
    x[BLOCK + 5] = f32::NAN;
    x[BLOCK + 9] = f32::INFINITY;
    let y = roundtrip(&x);
    let finite: Vec<bool> = y.iter().map(|y| y.is_finite()).collect();
    assert!((0..y.len()).all(|j| finite[j] == (j / BLOCK != 1)));
}

#[test]
fn quantised_scales_are_within_their_steps() {
    // Scales of one size but for a few: their mean is taken off, what is left fills the codes.
    let n = (NESTED + 40) * BLOCK;
    let x: Vec<f32> = normal("x", n)
        .iter()
        .enumerate()
        .map(|(j, x)| x * (1.0 + (j / BLOCK % 7) as f32))
        .collect();
    let (plain, double) = (Nf4::quantise(&x, false), Nf4::quantise(&x, true));
    assert_eq!(plain.codes(), double.codes());
    let blocks = n / BLOCK;
    let mean = (0..blocks).map(|b| f64::from(plain.scale(b))).sum::<f64>() / blocks as f64;
    let off = |nf4: &Nf4, b: usize| f64::from(nf4.scale(b)) - mean;
    for part in [0..NESTED, NESTED..blocks] {
        let largest = part.clone().map(|b| off(&plain, b).abs()).fold(0.0, f64::max);
        for b in part {
            // Steps are at most 0.9 / 64 of the largest, but 1 has its neighbour at 0.993.
            let error = (off(&plain, b) - off(&double, b)).abs();
            assert!(error <= 0.0071 * largest, "block {b}: off by {error} of {largest}");
        }
    }
    assert!(DYNAMIC.windows(2).all(|w| w[0] < w[1]));
    assert_eq!(DYNAMIC.iter().filter(|code| **code < 0.0).count(), 127);
    // Scales that are all the same leave nothing to quantise.
    let same: Vec<f32> = (0..640).map(|j| if j % 64 == 0 { 2.0 } else { 0.5 }).collect();
    assert_eq!(Nf4::quantise(&same, true).to_vec(), roundtrip(&same));
}

#[test]
fn the_number_of_threads_does_not_show() {
    let x = normal("x", 100_003);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Nf4::quantise(&x, true).to_vec())
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}

#[test]
fn a_weight_says_how_many_bytes_it_takes() {
    let (o, i) = (40, 320);
    let n = o * i;
    let frozen = |precision| Frozen::new(normal("w", n), o, i, precision).unwrap();
    assert_eq!(frozen(Precision::F32).bytes(), 4 * n);
    assert_eq!(frozen(Precision::Bf16).bytes(), 2 * n);
    let of = |blocks| Frozen::quantised(blocks, Precision::Bf16).bytes();
    assert_eq!(of(file(GgmlType::Q4_0, o, i)), n / 32 * 18);
    // 200 scales.
    assert_eq!(of(nf4(o, i, false)), n / 2 + 200 * 4);
    assert_eq!(of(nf4(o, i, true)), n / 2 + 200 + 4 + 4);
    assert!(Blocks::nf4(Nf4::quantise(&normal("w", 10), true), 3, 4).is_err());
}
