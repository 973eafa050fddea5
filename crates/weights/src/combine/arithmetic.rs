//! Task arithmetic and all that grew from it: one formula, of which a published merge is a point.
//!
//! `base + λ · Σ wᵢ · rescale(maskᵢ ∘ δᵢ)`, the sum over the inputs that `resolve` lets speak, divided
//! by the sum of their weights with `normalize`. The table below has the points: Ilharco et al. 2022
//! (task arithmetic), Yadav et al. 2023 (TIES), Yu et al. 2023 (DARE), Davari & Belilovsky 2023
//! (Breadcrumbs, paper 74), Deep et al. 2024 (DELLA). **Departures**: (1) random masks are luthier's own
//! draws; (2) Breadcrumbs with `density + gamma > 1` drops fewer of the largest, as mergekit does; the
//! paper's code keeps fewer.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Loaded, Put, Work, add},
};

mod mask;

use mask::Keep;

/// Which numbers of a difference are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All.
    None,
    /// The largest.
    Magnitude,
    /// Each with the same chance.
    Random,
    /// The largest but for the very largest.
    Outliers,
    /// Each with a chance that grows with its rank within its row.
    MagPrune,
}

/// Which inputs speak where they disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// All.
    All,
    /// Those with the sign of the weighted sum.
    SignOfSum,
}

/// A published merge: its choice on every axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: &'static str,
    /// Which numbers are kept.
    pub mask: Mask,
    /// Who speaks.
    pub resolve: Resolve,
    /// Whether the sum is divided by the weights, unless a recipe says otherwise.
    pub normalize: bool,
    /// Whether what a mask leaves gets the length (of absolute values) it had, unless a recipe says
    /// otherwise.
    pub rescale: bool,
}

const fn point(
    name: &'static str,
    mask: Mask,
    resolve: Resolve,
    (normalize, rescale): (bool, bool),
) -> Point {
    Point { name, mask, resolve, normalize, rescale }
}

/// The published merges, with mergekit's defaults.
pub const TABLE: &[Point] = &[
    point("task_arithmetic", Mask::None, Resolve::All, (false, false)),
    point("ties", Mask::Magnitude, Resolve::SignOfSum, (true, false)),
    point("dare_linear", Mask::Random, Resolve::All, (false, true)),
    point("dare_ties", Mask::Random, Resolve::SignOfSum, (false, true)),
    point("breadcrumbs", Mask::Outliers, Resolve::All, (false, false)),
    point("breadcrumbs_ties", Mask::Outliers, Resolve::SignOfSum, (false, false)),
    point("della", Mask::MagPrune, Resolve::SignOfSum, (true, true)),
    point("della_linear", Mask::MagPrune, Resolve::All, (false, true)),
];

/// The settings of one input.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// Its weight.
    pub weight: f64,
    /// The share of numbers that is kept.
    pub density: f64,
    /// The share of the largest that is dropped (`outliers`).
    pub gamma: f64,
    /// How far chances reach to both sides of `density` (`magprune`).
    pub epsilon: f64,
}

/// A point with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Arithmetic {
    /// Which numbers are kept.
    pub mask: Mask,
    /// Who speaks.
    pub resolve: Resolve,
    /// Whether the sum is divided by the weights of those who speak.
    pub normalize: bool,
    /// Whether masked differences are stretched to the length they had.
    pub rescale: bool,
    /// A factor of everything that is added to the base.
    pub lambda: f64,
    /// Whether numbers are ranked within their row (`outliers`).
    pub per_row: bool,
    /// Whether the largest are dropped before the others are counted (`outliers`).
    pub remove_first: bool,
    /// One for each input but the base.
    pub terms: Vec<Term>,
}

impl Arithmetic {
    pub(crate) fn of(point: &Point, given: &Given) -> Result<Box<dyn Combine>> {
        let weight = given.numbers("weight");
        let density = given.within("density", 0.0..=1.0)?;
        let of = |key: &str| match given.numbers(key) {
            none if none.is_empty() => vec![0.0; weight.len()],
            some => some,
        };
        let (gamma, epsilon) = (of("gamma"), of("epsilon"));
        if point.mask == Mask::Outliers {
            given.within("gamma", 0.0..=1.0)?;
        }
        let terms = (0..weight.len()).map(|i| Term {
            weight: weight[i],
            density: density[i],
            gamma: gamma[i],
            epsilon: epsilon[i],
        });
        let arithmetic = Arithmetic {
            mask: point.mask,
            resolve: point.resolve,
            normalize: given.switch("normalize"),
            rescale: given.switch("rescale"),
            lambda: given.number("lambda"),
            per_row: given.number("per") == 1.0,
            remove_first: given.maybe("remove_first") != Some(0.0),
            terms: terms.collect(),
        };
        if point.mask == Mask::MagPrune {
            mask::check_chances(&arithmetic.terms, given)?;
        }
        Ok(Box::new(arithmetic))
    }

    /// Factors that give what is kept the length of the whole.
    fn stretches(&self, work: &Work<'_>, keeps: &[Keep<'_>]) -> Result<Vec<f32>> {
        if !self.rescale || keeps.iter().all(Keep::is_all) {
            return Ok(vec![1.0; keeps.len()]);
        }
        let pieces = work.gather(self.cut(), As::Deltas, |piece, loaded| {
            let sums = loaded.others.iter_mut().zip(keeps).map(|(delta, keep)| {
                let before = crate::operands::l1(delta);
                keep.apply(piece, work.row(), delta);
                (before, crate::operands::l1(delta))
            });
            Ok(sums.collect::<Vec<_>>())
        })?;
        let stretch = |i: usize| {
            let before: f64 = pieces.iter().map(|sums| sums[i].0).sum();
            let after: f64 = pieces.iter().map(|sums| sums[i].1).sum();
            // mergekit's limit for a length that cannot be divided by.
            if keeps[i].is_all() || before < 1e-7 || after < 1e-7 {
                return 1.0;
            }
            (before / after) as f32
        };
        Ok((0..keeps.len()).map(stretch).collect())
    }

    fn cut(&self) -> Cut {
        let rows = self.mask == Mask::MagPrune || self.mask == Mask::Outliers && self.per_row;
        if rows { Cut::Rows } else { Cut::Anywhere }
    }

    /// The sum of those who speak, over their weights if so asked, into `out`.
    fn sum(&self, loaded: &mut Loaded) {
        let Loaded { others, out, spare, more, .. } = loaded;
        if self.resolve == Resolve::All {
            others.iter().for_each(|delta| add(out, 1.0, delta));
            let total: f64 = self.terms.iter().map(|term| term.weight).sum();
            // mergekit's limit for weights that cannot be divided by.
            if self.normalize && total.abs() >= 1e-8 {
                out.iter_mut().for_each(|x| *x /= total as f32);
            }
            return;
        }
        // The plain sum, whose sign decides, and the weights of those with this sign.
        let (totals, weights) = (spare, more);
        for buffer in [&mut *totals, &mut *weights] {
            buffer.clear();
            buffer.resize(out.len(), 0.0);
        }
        others.iter().for_each(|delta| add(totals, 1.0, delta));
        for (delta, term) in others.iter().zip(&self.terms) {
            let weight = term.weight as f32;
            let sums = out.iter_mut().zip(weights.iter_mut());
            for ((y, w), (x, total)) in sums.zip(delta.iter().zip(totals.iter())) {
                let speaks = if *total >= 0.0 { *x > 0.0 } else { *x < 0.0 };
                *y += if speaks { *x } else { 0.0 };
                *w += if speaks { weight } else { 0.0 };
            }
        }
        if self.normalize {
            let pairs = out.iter_mut().zip(weights.iter());
            pairs.for_each(|(y, w)| *y /= if *w == 0.0 { 1.0 } else { *w });
        }
    }
}

impl Combine for Arithmetic {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let keeps = Keep::of(self, work)?;
        let stretches = self.stretches(work, &keeps)?;
        let lambda = self.lambda as f32;
        work.write(self.cut(), As::Deltas, put, |piece, loaded| {
            for (i, delta) in loaded.others.iter_mut().enumerate() {
                keeps[i].apply(piece, work.row(), delta);
                let (stretch, weight) = (stretches[i], self.terms[i].weight as f32);
                delta.iter_mut().for_each(|x| *x = *x * stretch * weight);
            }
            self.sum(loaded);
            let Loaded { base, out, .. } = loaded;
            out.iter_mut().zip(base).for_each(|(y, b)| *y = *b + lambda * *y);
            Ok(())
        })
    }
}
