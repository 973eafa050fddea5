//! The theory of why averages are better out of distribution (Lin et al. 2024, paper 48).
//!
//! A model has features that are always right (invariant) and others that point, each with chance `p`,
//! to a class drawn from all `K`, and else to the right one (spurious). It answers with the class that
//! gets most votes; of equals each is as likely. Two models share some features. An average in output
//! space hears a shared feature twice; one in weight space, `¼ (w̄ + w̃)ᵀ (Φ̄ + Φ̃) x` of two-layer linear
//! models, four times as loud as an own one. Noise is neglected.

use luthier_core::{Error, Result, Seed};

/// Outcomes that are counted one by one; above it, draw.
const COUNTABLE: u64 = 20_000_000;

/// Where two models are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// The outputs.
    Outputs,
    /// The weights.
    Weights,
}

/// Features of two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Invariant features of each, the shared ones among them.
    pub invariant: [usize; 2],
    /// Spurious features of each, the shared ones among them.
    pub spurious: [usize; 2],
    /// Invariant features of both.
    pub shared_invariant: usize,
    /// Spurious features of both.
    pub shared_spurious: usize,
    /// How loud the second model is.
    pub scale: f64,
}

/// Who votes.
#[derive(Clone, Debug, PartialEq)]
pub struct Votes {
    /// Classes.
    pub classes: usize,
    /// The chance that a spurious feature points anywhere.
    pub p: f64,
    /// Votes of all invariant features together.
    pub sure: f64,
    /// Votes of each spurious feature.
    pub spurious: Vec<f64>,
}

impl Pair {
    /// The first model by itself.
    pub fn first(&self, classes: usize, p: f64) -> Votes {
        let (sure, spurious) = (self.invariant[0] as f64, vec![1.0; self.spurious[0]]);
        Votes { classes, p, sure, spurious }
    }

    /// The votes in an average of both.
    pub fn average(&self, of: Average, classes: usize, p: f64) -> Result<Votes> {
        let shared =
            [(self.invariant, self.shared_invariant), (self.spurious, self.shared_spurious)];
        if shared.iter().any(|(own, shared)| own[0] < *shared || own[1] < *shared) {
            return Err(Error::input("votes", "more features are shared than one of them has"));
        }
        // Own features of the first model, of the second, shared ones. Weights multiply across the
        // two models, so a shared feature meets all four combinations.
        let loud = match of {
            Average::Outputs => [1.0, self.scale, 1.0 + self.scale],
            Average::Weights => [1.0, self.scale, (1.0 + self.scale) * 2.0],
        };
        let counts = |own: [usize; 2], shared: usize| [own[0] - shared, own[1] - shared, shared];
        let sure = counts(self.invariant, self.shared_invariant);
        let spurious = counts(self.spurious, self.shared_spurious);
        let voices = spurious.iter().zip(loud).flat_map(|(n, loud)| vec![loud; *n]);
        Ok(Votes {
            classes,
            p,
            sure: sure.iter().zip(loud).map(|(n, loud)| *n as f64 * loud).sum(),
            spurious: voices.collect(),
        })
    }
}

impl Votes {
    /// What the right class can count on: `(1 − p) Σ spurious + sure`.
    pub fn score(&self) -> f64 {
        (1.0 - self.p) * self.spurious.iter().sum::<f64>() + self.sure
    }

    /// The root of the summed squares of the spurious votes; accuracy grows with score over spread.
    pub fn spread(&self) -> f64 {
        self.spurious.iter().map(|vote| vote * vote).sum::<f64>().sqrt()
    }

    /// The chance of a right answer, every outcome counted.
    pub fn accuracy(&self) -> Result<f64> {
        self.check()?;
        let outcomes = (self.classes as u64).checked_pow(self.spurious.len() as u32);
        if outcomes.is_none_or(|n| n > COUNTABLE) {
            let what = format!("{} features of {} classes", self.spurious.len(), self.classes);
            return Err(Error::input("votes", format!("{what} are too many to count"))
                .hint("draw them: Votes::drawn"));
        }
        let mut tally = vec![0.0; self.classes];
        tally[0] = self.sure;
        Ok(self.count(0, &mut tally))
    }

    /// The chance of a right answer from feature `at` on, given the votes so far. Class 0 is right.
    fn count(&self, at: usize, tally: &mut [f64]) -> f64 {
        let Some(vote) = self.spurious.get(at) else { return right(tally) };
        let stray = self.p / self.classes as f64;
        let mut sum = 0.0;
        for class in 0..self.classes {
            let chance = if class == 0 { 1.0 - self.p + stray } else { stray };
            if chance > 0.0 {
                tally[class] += vote;
                sum += chance * self.count(at + 1, tally);
                tally[class] -= vote;
            }
        }
        sum
    }

    /// The same from `draws` random outcomes.
    pub fn drawn(&self, draws: usize, seed: Seed) -> Result<f64> {
        self.check()?;
        let mut rng = seed.rng();
        let mut sum = 0.0;
        for _ in 0..draws {
            let mut tally = vec![0.0; self.classes];
            tally[0] = self.sure;
            for vote in &self.spurious {
                let stray = rng.uniform() < self.p;
                tally[if stray { rng.below(self.classes) } else { 0 }] += vote;
            }
            sum += right(&tally);
        }
        Ok(sum / draws as f64)
    }

    fn check(&self) -> Result<()> {
        if self.classes < 2 || !(0.0..=1.0).contains(&self.p) {
            let what = format!("expected two classes or more and a chance, got {self:?}");
            return Err(Error::input("votes", what));
        }
        Ok(())
    }
}

/// The chance that class 0 is answered: 1 over the number of those with as many votes, 0 if any has
/// more.
fn right(tally: &[f64]) -> f64 {
    // Votes are sums of a few weights: what differs by rounding alone is equal.
    let near = 1e-9 * tally.iter().map(|votes| votes.abs()).fold(1.0, f64::max);
    if tally[1..].iter().any(|votes| *votes > tally[0] + near) {
        return 0.0;
    }
    let level = tally[1..].iter().filter(|votes| **votes >= tally[0] - near).count();
    1.0 / (1 + level) as f64
}
