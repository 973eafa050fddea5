//! Matrix products at every level of vector instructions against plain sums in f64.

use half::bf16;
use luthier_core::Seed;
use luthier_kernels::{
    blocks::Blocks,
    gemm::{Output, Product, Term, View, product},
    num::{Numbers, Precision, narrow},
    quant::GgmlType,
    simd::{Level, best},
    threads,
};

fn random(name: &str, n: usize) -> Vec<f32> {
    let mut rng = Seed(11).split(name).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn levels() -> impl Iterator<Item = Level> {
    [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16]
        .into_iter()
        .filter(|level| *level <= best())
}

fn halves(x: &[f32]) -> Vec<bf16> {
    let mut y = vec![bf16::ZERO; x.len()];
    narrow(x, &mut y);
    y
}

/// Entries of a left operand, of a right one, and the width that is summed over.
type Factors<'a> = (&'a dyn Fn(usize, usize) -> f32, &'a dyn Fn(usize, usize) -> f32, usize);

/// Largest difference to sums in f64 of the numbers as `precision` sees them.
fn error(
    precision: Precision,
    (m, n): (usize, usize),
    products: &[Factors],
    before: f64,
    c: &[f32],
) -> f64 {
    let seen = |x: f32| match precision {
        Precision::F32 => f64::from(x),
        Precision::Bf16 => bf16::from_f32(x).to_f64(),
    };
    let mut worst = 0f64;
    for i in 0..m {
        for j in 0..n {
            let sum =
                |(a, b, k): &Factors| (0..*k).map(|p| seen(a(i, p)) * seen(b(p, j))).sum::<f64>();
            let want = before + products.iter().map(sum).sum::<f64>();
            worst = worst.max((want - f64::from(c[i * n + j])).abs());
        }
    }
    worst
}

#[test]
fn every_level_orientation_and_edge() {
    let sizes = [
        (1, 1, 1, 0),
        (5, 7, 9, 3),
        (13, 33, 35, 16),
        (64, 64, 64, 1),
        (31, 50, 1602, 6),
        (9, 37, 96, 0),
        (27, 40, 801, 17),
        (390, 20, 5, 2),
    ];
    for (m, n, k, k2) in sizes {
        let (a, b) = (random("a", m * k), random("b", k * n));
        let (a2, b2) = (random("a2", m * k2), random("b2", k2 * n));
        let (ha, hb) = (halves(&a), halves(&b));
        let (ra, rb): (Vec<f32>, Vec<f32>) =
            (ha.iter().map(|x| x.to_f32()).collect(), hb.iter().map(|x| x.to_f32()).collect());
        for case in 0..8 {
            let (turn_a, turn_b, held) = (case & 1 == 1, case & 2 == 2, case & 4 == 4);
            let (na, nb): (Numbers, Numbers) = match held {
                true => (Numbers::Bf16(&ha), Numbers::Bf16(&hb)),
                false => (Numbers::F32(&a), Numbers::F32(&b)),
            };
            let va = if turn_a { View::rows(na, m).t() } else { View::rows(na, k) };
            let vb = if turn_b { View::rows(nb, k).t() } else { View::rows(nb, n) };
            let (fa, fb) = if held { (&ra, &rb) } else { (&a, &b) };
            let get_a = |i: usize, p: usize| if turn_a { fa[p * m + i] } else { fa[i * k + p] };
            let get_b = |p: usize, j: usize| if turn_b { fb[j * k + p] } else { fb[p * n + j] };
            let get_a2 = |i: usize, p: usize| a2[i * k2 + p];
            let get_b2 = |p: usize, j: usize| b2[p * n + j];
            let terms = [
                Term { a: va, b: vb, k },
                Term { a: View::rows(&a2, k2), b: View::rows(&b2, n), k: k2 },
            ];
            let add = case % 3 == 0;
            let output = if add { Output::Add } else { Output::Set };
            for precision in [Precision::F32, Precision::Bf16] {
                for level in levels() {
                    let mut c = vec![1f32; m * n];
                    Product { precision, m, n, terms: &terms, output }.run_at(level, &mut c, n);
                    let products: [Factors; 2] = [(&get_a, &get_b, k), (&get_a2, &get_b2, k2)];
                    let worst = error(precision, (m, n), &products, f64::from(u8::from(add)), &c);
                    // f32 sums of k products of unit variance.
                    let limit = 2e-6 * ((k + k2) as f64).sqrt() + 1e-6;
                    assert!(
                        worst < limit * 8.0,
                        "{level:?} {precision:?} {m}×{n}×{k}+{k2}, case {case}: off by {worst:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn quantised_rows_are_multiplied_as_their_numbers() {
    let (m, o, i) = (9, 45, 96);
    let bytes: Vec<u8> = (0..o * i / 32 * 20)
        .map(|at| match at % 20 {
            // Halves with a small exponent, so that scales are ordinary numbers.
            1 | 3 => 0x24 | (at % 3) as u8,
            _ => (at * 37 % 251) as u8,
        })
        .collect();
    let blocks = Blocks::new(GgmlType::Q4_1, bytes, o, i).unwrap();
    let mut w = vec![0f32; o * i];
    blocks.read(0, &mut w);
    let (x, dy) = (random("x", m * i), random("dy", m * o));
    for precision in [Precision::F32, Precision::Bf16] {
        let view = View::rows(Numbers::Blocks(&blocks), i);
        let mut y = vec![0f32; m * o];
        let term = Term { a: View::rows(&x, i), b: view.t(), k: i };
        product(precision, m, o, &[term], Output::Set, &mut y, o);
        let (get_x, get_w) = (|r: usize, p: usize| x[r * i + p], |p: usize, c: usize| w[c * i + p]);
        assert!(error(precision, (m, o), &[(&get_x, &get_w, i)], 0.0, &y) < 1e-4);
        let mut dx = vec![0f32; m * i];
        let term = Term { a: View::rows(&dy, o), b: view, k: o };
        product(precision, m, i, &[term], Output::Set, &mut dx, i);
        let (get_dy, get_w) =
            (|r: usize, p: usize| dy[r * o + p], |p: usize, c: usize| w[p * i + c]);
        assert!(error(precision, (m, i), &[(&get_dy, &get_w, o)], 0.0, &dx) < 1e-4);
    }
}

#[test]
fn rows_do_not_depend_on_their_company_or_on_threads() {
    let (m, n, k) = (130, 70, 900);
    let (a, b) = (random("a", m * k), random("b", n * k));
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |rows: usize, from: usize| {
            let term = Term { a: View::rows(&a, k).from(from, 0), b: View::rows(&b, k).t(), k };
            let mut c = vec![0f32; rows * n];
            product(precision, rows, n, &[term], Output::Set, &mut c, n);
            c
        };
        let all = threads::alone(|| run(m, 0));
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| run(m, 0)), all);
        }
        assert_eq!(run(13, 100), all[100 * n..113 * n]);
    }
}

#[test]
fn not_a_number_stays_one() {
    let (mut a, b) = (random("a", 2 * 40), random("b", 40 * 3));
    a[50] = f32::NAN;
    for precision in [Precision::F32, Precision::Bf16] {
        for level in levels() {
            let mut c = vec![0f32; 6];
            let term = Term { a: View::rows(&a, 40), b: View::rows(&b, 3), k: 40 };
            let terms = &[term];
            Product { precision, m: 2, n: 3, terms, output: Output::Set }.run_at(level, &mut c, 3);
            assert!(c[..3].iter().all(|x| x.is_finite()) && c[3..].iter().all(|x| x.is_nan()));
        }
    }
}
