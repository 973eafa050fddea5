//! Named, splittable seeds: every random choice says what it is for.

/// A source of randomness with a name's worth of identity. Copy it, split it, never share state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

fn mix(mut z: u64) -> u64 {
    // SplitMix64's finaliser (Steele, Lea, Flood 2014).
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Seed {
    /// The seed for one purpose, independent of every other name.
    pub fn split(self, name: &str) -> Seed {
        // FNV-1a over the name, then mixed with the parent.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Seed(mix(self.0 ^ mix(hash)))
    }

    /// The seed for the `n`-th of a row of like things (steps, rows, elements).
    pub fn at(self, n: u64) -> Seed {
        Seed(mix(self.0.wrapping_add(mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15)))))
    }

    /// A generator that starts here.
    pub fn rng(self) -> Rng {
        Rng { state: self.0, spare: None }
    }
}

/// SplitMix64 with the few distributions luthier needs; the stream is part of the file format
/// (same recipe and seed, same bytes), so it does not come from a crate that may change it.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
    spare: Option<f64>,
}

impl Rng {
    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform integer below `n`; `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0) has no answer");
        // Multiply-shift; the bias is below n / 2^64.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box–Muller, both values used).
    pub fn normal(&mut self) -> f64 {
        if let Some(z) = self.spare.take() {
            return z;
        }
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(r * sin);
        r * cos
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_give_independent_streams() {
        let seed = Seed(42);
        assert_ne!(seed.split("dropout"), seed.split("order"));
        assert_ne!(seed.at(0), seed.at(1));
        assert_eq!(seed.split("order").at(3), Seed(42).split("order").at(3));
    }

    #[test]
    fn moments_are_those_of_the_named_distribution() {
        let mut rng = Seed(1).rng();
        let z: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = z.iter().sum::<f64>() / 2e4;
        let var = z.iter().map(|x| x * x).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "{mean} {var}");
        let u: f64 = (0..20_000).map(|_| rng.uniform()).sum::<f64>() / 2e4;
        assert!((u - 0.5).abs() < 0.01);
    }
}
