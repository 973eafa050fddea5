//! The forward and the backward pass over flat numbers.
//!
//! `gelu(x) = x · σ(x (C₁ + C₃ x²))`, the tanh form; `LN(h) = ĥ · w + b`, `ĥ = (h − mean) / √(var + ε)`.

use luthier_kernels::{
    gemm::{Output, Term, View, product},
    math::exp,
    num::Precision,
};

use super::{BLOCK, FRONT, Shape, Weights};

/// torch's ε of a layer norm.
const EPSILON: f32 = 1e-5;
/// 2 √(2/π).
const C1: f32 = 1.595_769;
/// 0.044715 · 2 √(2/π).
const C3: f32 = 0.071_354_81;

/// What a forward pass leaves for the backward pass.
#[derive(Default)]
pub(super) struct Tape {
    blocks: Vec<Kept>,
    last: Normed,
}

struct Kept {
    norm: Normed,
    /// What the first map read.
    x_nd: Vec<f32>,
    /// What it gave.
    u_nf: Vec<f32>,
    /// What the second map read.
    g_nf: Vec<f32>,
}

/// A layer norm's `ĥ` and `1 / √(var + ε)`.
#[derive(Default)]
struct Normed {
    hat_nd: Vec<f32>,
    inverse_n: Vec<f32>,
}

/// What the heads read.
pub(super) fn forward(
    shape: &Shape,
    Weights(w): &Weights,
    pixels_nd: &[f32],
    mut tape: Option<&mut Tape>,
) -> Vec<f32> {
    let (d, f) = (shape.width, shape.hidden);
    let mut h_nd = linear(pixels_nd, &w[0], &w[1], shape.input);
    for block in 0..shape.blocks {
        let [gain, shift, up, up_bias, down, down_bias] = of_block(w, block);
        let (norm, x_nd) = normalise(&h_nd, gain, shift, d);
        let u_nf = linear(&x_nd, up, up_bias, d);
        let g_nf: Vec<f32> = u_nf.iter().map(|x| gelu(*x)).collect();
        add_linear(&g_nf, down, down_bias, f, &mut h_nd);
        if let Some(tape) = &mut tape {
            tape.blocks.push(Kept { norm, x_nd, u_nf, g_nf });
        }
    }
    let end = FRONT + BLOCK * shape.blocks;
    let (last, z_nd) = normalise(&h_nd, &w[end], &w[end + 1], d);
    if let Some(tape) = tape {
        tape.last = last;
    }
    z_nd
}

/// The gradients of everything below the heads, into `found`.
pub(super) fn backward(
    shape: &Shape,
    Weights(w): &Weights,
    pixels_nd: &[f32],
    tape: &Tape,
    dz_nd: &[f32],
    Weights(found): &mut Weights,
) {
    let (d, f) = (shape.width, shape.hidden);
    let end = FRONT + BLOCK * shape.blocks;
    let mut dh_nd = vec![0f32; dz_nd.len()];
    let (dw, db) = tape.last.backward(dz_nd, &w[end], d, &mut dh_nd);
    (found[end], found[end + 1]) = (dw, db);
    for (block, kept) in tape.blocks.iter().enumerate().rev() {
        let at = FRONT + BLOCK * block;
        let [gain, _, up, _, down, _] = of_block(w, block);
        (found[at + 4], found[at + 5]) = weight_gradient(&dh_nd, &kept.g_nf, d, f);
        let mut du_nf = vec![0f32; kept.u_nf.len()];
        add_input_gradient(&dh_nd, down, f, &mut du_nf);
        du_nf.iter_mut().zip(&kept.u_nf).for_each(|(du, u)| *du *= gelu_slope(*u));
        (found[at + 2], found[at + 3]) = weight_gradient(&du_nf, &kept.x_nd, f, d);
        let mut dx_nd = vec![0f32; dh_nd.len()];
        add_input_gradient(&du_nf, up, d, &mut dx_nd);
        (found[at], found[at + 1]) = kept.norm.backward(&dx_nd, gain, d, &mut dh_nd);
    }
    (found[0], found[1]) = weight_gradient(&dh_nd, pixels_nd, d, shape.input);
}

fn of_block(w: &[Vec<f32>], block: usize) -> [&[f32]; BLOCK] {
    std::array::from_fn(|i| &w[FRONT + BLOCK * block + i][..])
}

/// `x wᵀ + b`, for `x` of width `i`.
pub(super) fn linear(x_ni: &[f32], w_oi: &[f32], b_o: &[f32], i: usize) -> Vec<f32> {
    let mut y_no = vec![0f32; x_ni.len() / i * b_o.len()];
    add_linear(x_ni, w_oi, b_o, i, &mut y_no);
    y_no
}

fn add_linear(x_ni: &[f32], w_oi: &[f32], b_o: &[f32], i: usize, y_no: &mut [f32]) {
    let (n, o) = (x_ni.len() / i, b_o.len());
    for row in y_no.chunks_exact_mut(o) {
        row.iter_mut().zip(b_o).for_each(|(y, b)| *y += b);
    }
    let term = Term { a: View::rows(x_ni, i), b: View::rows(w_oi, i).t(), k: i };
    product(Precision::F32, n, o, &[term], Output::Add, y_no, o);
}

/// Adds `dy w`, for `w` with rows of width `i`.
pub(super) fn add_input_gradient(dy_no: &[f32], w_oi: &[f32], i: usize, dx_ni: &mut [f32]) {
    let (n, o) = (dx_ni.len() / i, w_oi.len() / i);
    let term = Term { a: View::rows(dy_no, o), b: View::rows(w_oi, i), k: o };
    product(Precision::F32, n, i, &[term], Output::Add, dx_ni, i);
}

/// `dyᵀ x`, and the sums of `dy` over the images.
pub(super) fn weight_gradient(
    dy_no: &[f32],
    x_ni: &[f32],
    o: usize,
    i: usize,
) -> (Vec<f32>, Vec<f32>) {
    let mut dw_oi = vec![0f32; o * i];
    let term = Term { a: View::rows(dy_no, o).t(), b: View::rows(x_ni, i), k: dy_no.len() / o };
    product(Precision::F32, o, i, &[term], Output::Set, &mut dw_oi, i);
    let mut db_o = vec![0f32; o];
    for row in dy_no.chunks_exact(o) {
        db_o.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
    }
    (dw_oi, db_o)
}

fn normalise(h_nd: &[f32], gain: &[f32], shift: &[f32], d: usize) -> (Normed, Vec<f32>) {
    let n = h_nd.len() / d;
    let mut hat_nd = Vec::with_capacity(h_nd.len());
    let mut x_nd = Vec::with_capacity(h_nd.len());
    let mut inverse_n = Vec::with_capacity(n);
    for row in h_nd.chunks_exact(d) {
        let mean = row.iter().sum::<f32>() / d as f32;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / d as f32;
        let inverse = 1.0 / (variance + EPSILON).sqrt();
        inverse_n.push(inverse);
        hat_nd.extend(row.iter().map(|x| (x - mean) * inverse));
    }
    for row in hat_nd.chunks_exact(d) {
        x_nd.extend(row.iter().zip(gain).zip(shift).map(|((x, w), b)| x * w + b));
    }
    (Normed { hat_nd, inverse_n }, x_nd)
}

impl Normed {
    /// Adds the gradient of the input to `dh_nd`; gives those of gain and shift.
    fn backward(
        &self,
        dy_nd: &[f32],
        gain: &[f32],
        d: usize,
        dh_nd: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let (mut dgain, mut dshift) = (vec![0f32; d], vec![0f32; d]);
        let rows = dy_nd.chunks_exact(d).zip(self.hat_nd.chunks_exact(d)).zip(&self.inverse_n);
        for (((dy, hat), inverse), dh) in rows.zip(dh_nd.chunks_exact_mut(d)) {
            let (mut mean, mut along) = (0f32, 0f32);
            for i in 0..d {
                dgain[i] += dy[i] * hat[i];
                dshift[i] += dy[i];
                mean += dy[i] * gain[i];
                along += dy[i] * gain[i] * hat[i];
            }
            (mean, along) = (mean / d as f32, along / d as f32);
            for i in 0..d {
                dh[i] += inverse * (dy[i] * gain[i] - mean - hat[i] * along);
            }
        }
        (dgain, dshift)
    }
}

#[inline(always)]
fn gate(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x * (C1 + C3 * x * x)))
}

fn gelu(x: f32) -> f32 {
    x * gate(x)
}

fn gelu_slope(x: f32) -> f32 {
    let p = gate(x);
    p + x * p * (1.0 - p) * (C1 + 3.0 * C3 * x * x)
}
