//! AdamW with averages in 8 bits (Dettmers et al. 2022), as bitsandbytes has it: blocks of 256, each
//! with its largest size, and codes for numbers of −1 to 1 that lie denser towards 0.
//!
//! `m = code₁ · max₁`, `v = code₂ · max₂`, then AdamW's step with `m ← β₁ m + (1 − β₁) g`, then
//! `max ← max |·|` of the block and `code ←` the code nearest to the number over `max`.
//! Code books (Dettmers 2016): for `i` in 0..7 the middles of `2ⁱ` equal parts of 0.1..1, times
//! `10^(i − 6)`, of either sign, and 0 and 1; for `v`, which has no sign, of `2^(i + 1)` parts.
//! **Departures**: (1) the nearest code is found exactly, as by bitsandbytes' plain torch operations:
//! its CPU library rounds to one of 65536 even steps first, and its CUDA kernel keeps the sign of
//! `m`; (2) a learning rate of 0 leaves parameters bit-equal.

use std::sync::LazyLock;

use luthier_core::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Data, Move, Of, Optimizer, Plan,
    adam::{self, Moments},
};
use crate::pass;

/// bitsandbytes' block size.
const BLOCK: usize = 256;
/// Blocks per task, [`pass::CHUNK`] elements.
const TASK: usize = pass::CHUNK / BLOCK;

/// `[train.update.adamw_8bit]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW8Bit {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Memory of the mean and of the mean square.
    pub betas: [f64; 2],
    /// Added to the root, outside of it.
    pub eps: f64,
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
    /// Smaller variables keep their averages in f32.
    pub min_8bit_size: usize,
}

impl Default for AdamW8Bit {
    fn default() -> Self {
        let (learning_rate, betas, eps, weight_decay) = (2e-4, [0.9, 0.999], 1e-8, 0.0);
        AdamW8Bit { learning_rate, betas, eps, weight_decay, min_8bit_size: 4096 }
    }
}

impl Optimizer for AdamW8Bit {
    fn plan(&self, at: &str) -> Result<Plan> {
        let plan = adam::plan(at, self.learning_rate, self.weight_decay, self.betas, self.eps)?;
        let state = vec![
            ("state1", Of::Codes(self.min_8bit_size)),
            ("state2", Of::Codes(self.min_8bit_size)),
            ("absmax1", Of::Blocks(BLOCK)),
            ("absmax2", Of::Blocks(BLOCK)),
        ];
        Ok(Plan { state, ..plan })
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let rule = Rule::new(self, now);
        let [m, v, max1, max2] = state else { unreachable!("four buffers are planned") };
        let (Data::U8(m), Data::U8(v)) = (&mut *m, &mut *v) else {
            return pass::elementwise(param, grad, &mut state[..2], |param, grad, state| {
                let [m, v] = state else { unreachable!("two buffers were given") };
                rule.step(param, grad, m, v);
            });
        };
        let blocks = param
            .par_chunks_mut(BLOCK)
            .zip(grad.par_chunks(BLOCK))
            .zip(m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)))
            .zip(max1.numbers().par_iter_mut().zip(max2.numbers()));
        blocks.with_min_len(TASK).for_each(|(((param, grad), (m, v)), (max1, max2))| {
            let mut wide = [[0f32; BLOCK]; 2];
            let [wide_m, wide_v] = wide.each_mut().map(|wide| &mut wide[..param.len()]);
            SIGNED.read(m, *max1, wide_m);
            UNSIGNED.read(v, *max2, wide_v);
            rule.step(param, grad, wide_m, wide_v);
            *max1 = SIGNED.write(wide_m, m);
            *max2 = UNSIGNED.write(wide_v, v);
        });
    }
}

/// One step with averages in f32, rounded as bitsandbytes rounds it on a CPU.
struct Rule {
    moments: Moments,
    old: [f32; 2],
    new: [f32; 2],
    keep: f32,
    grad_scale: f32,
    still: bool,
}

impl Rule {
    fn new(of: &AdamW8Bit, now: &Move) -> Self {
        Rule {
            moments: Moments::new(of.betas, of.eps, true, now),
            old: of.betas.map(|beta| beta as f32),
            new: of.betas.map(|beta| (1.0 - beta) as f32),
            keep: (1.0 - now.learning_rate * now.weight_decay) as f32,
            grad_scale: now.grad_scale,
            still: now.learning_rate == 0.0,
        }
    }

    fn step(&self, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * self.grad_scale;
            *m = *m * self.old[0] + self.new[0] * g;
            *v = *v * self.old[1] + self.new[1] * g * g;
            let moved = *p * self.keep - self.moments.change(*m, *v);
            *p = if self.still { *p } else { moved };
        }
    }
}

static SIGNED: LazyLock<Book> = LazyLock::new(|| Book::new(true));
static UNSIGNED: LazyLock<Book> = LazyLock::new(|| Book::new(false));

/// Numbers of ascending size, and where to look for the nearest.
struct Book {
    codes: [f32; 256],
    /// The largest number that is not nearer to the next code.
    edges: [f32; 256],
    /// By the upper half of a number's bits: the lowest code that is nearest to such a number.
    lowest: Vec<u8>,
}

impl Book {
    fn new(signed: bool) -> Self {
        let mut codes = vec![0.0, 1.0];
        for i in 0..7 {
            let (parts, unit) = (1 << (i + i32::from(!signed)), 10f64.powi(i - 6) as f32);
            // In torch's order of operations, so that the codes have its bits.
            let edge = |k: i32| edge(k, parts);
            let middles = (0..parts).map(|k| unit * ((edge(k) + edge(k + 1)) / 2.0));
            codes.extend(middles.clone());
            codes.extend(middles.filter(|_| signed).map(|x| -x));
        }
        codes.sort_by(f32::total_cmp);
        let codes: [f32; 256] = codes.try_into().expect("2 and twice 127 codes");
        let edge = |i: usize| codes.get(i + 1).map_or(f32::INFINITY, |next| last(codes[i], *next));
        let edges = std::array::from_fn(edge);
        let least = |upper: u16| {
            let ends = [0, 0xffff].map(|lower| f32::from_bits((u32::from(upper) << 16) | lower));
            ends[0].min(ends[1])
        };
        let lowest = |upper: u16| edges.partition_point(|edge| *edge < least(upper)) as u8;
        Book { lowest: (0..=u16::MAX).map(lowest).collect(), codes, edges }
    }

    fn read(&self, codes: &[u8], max: f32, numbers: &mut [f32]) {
        numbers.iter_mut().zip(codes).for_each(|(x, c)| *x = self.codes[usize::from(*c)] * max);
    }

    /// Returns the largest size, in units of which the codes are.
    fn write(&self, numbers: &[f32], codes: &mut [u8]) -> f32 {
        // Sizes are in the order of their bits, of which a maximum needs no branch.
        let max = numbers.iter().fold(0, |max, x| x.abs().to_bits().max(max));
        let max = f32::from_bits(max);
        let unit = 1.0 / max;
        let code = |x: &f32| if max == 0.0 { 0 } else { self.nearest((x * unit).clamp(-1.0, 1.0)) };
        codes.iter_mut().zip(numbers).for_each(|(c, x)| *c = code(x));
        max
    }

    /// The lower of two that are as near. Numbers with the same upper bits have at most one edge
    /// among them.
    #[inline(always)]
    fn nearest(&self, x: f32) -> u8 {
        let lowest = self.lowest[(x.to_bits() >> 16) as usize];
        lowest + u8::from(self.edges[usize::from(lowest)] < x)
    }
}

/// The largest number that is not nearer to `high` than to `low`, by differences in f32.
fn last(low: f32, high: f32) -> f32 {
    let near = |x: f32| x - low <= high - x;
    let mut x = (low + high) / 2.0;
    while !near(x) {
        x = x.next_down();
    }
    while near(x.next_up()) {
        x = x.next_up();
    }
    x
}

/// Edge `k` of `parts` equal parts of 0.1 to 1, from the nearer end and rounded once, as torch's
/// `linspace` has it.
fn edge(k: i32, parts: i32) -> f32 {
    let step = f64::from((1.0 - 0.1f32) / parts as f32);
    match k < (parts + 1) / 2 {
        true => (f64::from(0.1f32) + step * f64::from(k)) as f32,
        false => (1.0 - step * f64::from(parts - k)) as f32,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use luthier_core::{Seed, StateDict};

    use super::*;

    #[test]
    fn code_books_are_those_of_bitsandbytes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let golden = root.join("../../tests/golden/optimizers.safetensors");
        let golden = StateDict::load(&golden).unwrap();
        for (name, book) in [("codes.signed", &*SIGNED), ("codes.unsigned", &*UNSIGNED)] {
            let want = golden.get(name).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(book.codes.as_slice(), want, "{name}");
        }
    }

    #[test]
    fn the_nearest_code_is_found() {
        let mut rng = Seed(3).rng();
        for book in [&*SIGNED, &*UNSIGNED] {
            let drawn = (0..20_000).map(|i| {
                let x = rng.normal() as f32 * 10f32.powi(-(i % 8));
                x.clamp(book.codes[0].min(0.0), 1.0)
            });
            // Ends of all runs of numbers with the same upper bits, too.
            let ends = (0..=u16::MAX).flat_map(|upper| {
                [0, 0xffff].map(|lower| f32::from_bits((u32::from(upper) << 16) | lower))
            });
            let ends = ends.filter(|x| (book.codes[0].min(0.0)..=1.0).contains(x));
            for x in drawn.chain(book.codes).chain(ends) {
                let far = |c: &f32| (x - c).abs();
                let want = book.codes.iter().map(far).fold(f32::MAX, f32::min);
                let got = far(&book.codes[usize::from(book.nearest(x))]);
                assert_eq!(got, want, "{x}");
            }
            let mut codes = [7; 3];
            assert_eq!(book.write(&[0.0; 3], &mut codes), 0.0);
            assert_eq!(codes, [0; 3]);
        }
    }

    #[test]
    fn a_full_block_and_a_rest_keep_their_own_sizes() {
        let n = BLOCK + 3;
        let now = Move { t: 1, learning_rate: 0.1, weight_decay: 0.0, grad_scale: 1.0 };
        let optimizer = AdamW8Bit { min_8bit_size: 0, ..AdamW8Bit::default() };
        let grad: Vec<f32> = (0..n).map(|i| if i < BLOCK { 1e4 } else { 1e-4 }).collect();
        let mut param = vec![0.0; n];
        let plan = optimizer.plan("adamw_8bit").unwrap();
        let mut state: Vec<_> = plan.state.iter().map(|(_, of)| of.begin(&[n], &param)).collect();
        optimizer.apply(&now, &[n], &mut param, &grad, &mut state);
        assert_eq!(state[0], Data::U8(vec![255; n]));
        assert!(state[2].numbers()[0] > 999.0 && state[2].numbers()[1] < 1.1e-5);
        assert!(param.iter().all(|p| (p + 0.1).abs() < 1e-4));
    }
}
