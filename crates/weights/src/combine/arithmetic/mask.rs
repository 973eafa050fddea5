//! What a mask keeps of a difference, decided before the last pass.

use luthier_core::{Error, Result, Seed};

use super::{Arithmetic, Mask, Term};
use crate::{
    method::Given,
    operands::{As, Cut, Piece, Work},
    select::{Ask, Edge, by_magnitude, edges},
};

/// What is kept of one difference.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    /// All.
    All,
    /// The numbers of the second set that are not in the first.
    Between(Edge, Edge),
    /// Of every row, what ranks from the one share of it to the other; see [`ranks`].
    Rows(Term, bool),
    /// Each with this chance.
    Drawn(Seed, f64),
    /// Each with a chance from the first to the second, by its rank within its row.
    Ranked(Seed, f64, f64),
}

impl Keep {
    /// One for each input but the base.
    pub(super) fn of(how: &Arithmetic, work: &Work<'_>) -> Result<Vec<Keep>> {
        let (mask, terms, n) = (how.mask, &how.terms, work.len());
        let keep = |(i, term): (usize, &Term)| {
            let all = term.density >= 1.0 && (how.remove_first || term.gamma <= 0.0);
            if mask == Mask::None || all {
                return Keep::All;
            }
            match mask {
                _ if term.density <= 0.0 => Keep::Between(Edge::NONE, Edge::NONE),
                Mask::Random => Keep::Drawn(work.seed(i), term.density),
                Mask::MagPrune => {
                    let (low, high) = (term.density - term.epsilon, term.density + term.epsilon);
                    Keep::Ranked(work.seed(i), low, high)
                }
                Mask::Outliers if how.per_row => Keep::Rows(*term, how.remove_first),
                // Found below.
                Mask::None | Mask::Magnitude | Mask::Outliers => {
                    Keep::Between(Edge::NONE, Edge::ALL)
                }
            }
        };
        let mut keeps: Vec<Keep> = terms.iter().enumerate().map(keep).collect();
        let open = |keep: &Keep| matches!(keep, Keep::Between(_, to) if *to == Edge::ALL);
        let open: Vec<usize> = (0..keeps.len()).filter(|i| open(&keeps[*i])).collect();
        let asks: Vec<Ask> = open
            .iter()
            .flat_map(|i| {
                let (from, to) = ranks(mask, &terms[*i], how.remove_first, n);
                [Ask { column: *i, k: from }, Ask { column: *i, k: to }]
            })
            .collect();
        let found = edges(work, (Cut::Anywhere, As::Deltas), &asks, |_, loaded, keys| {
            for i in &open {
                if let Some(keys) = keys.get_mut(*i) {
                    keys.clear();
                    keys.extend(loaded.others[*i].iter().map(|x| by_magnitude(*x)));
                }
            }
            Ok(())
        })?;
        for (i, pair) in open.iter().zip(found.chunks(2)) {
            keeps[*i] = Keep::Between(pair[0], pair[1]);
        }
        Ok(keeps)
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self, Keep::All)
    }

    /// Sets to 0 what is not kept of a piece.
    pub(super) fn apply(&self, piece: Piece, row: usize, delta: &mut [f32]) {
        match *self {
            Keep::All => {}
            Keep::Between(first, second) => {
                if let (Some(high), Some(low)) = (first.limit(piece), second.limit(piece)) {
                    let kept = |x: f32| (low..high).contains(&by_magnitude(x));
                    delta.iter_mut().for_each(|x| *x = if kept(*x) { *x } else { 0.0 });
                    return;
                }
                for (i, x) in delta.iter_mut().enumerate() {
                    let (key, at) = (by_magnitude(*x), piece.from + i);
                    if first.holds(key, at) || !second.holds(key, at) {
                        *x = 0.0;
                    }
                }
            }
            Keep::Rows(term, remove_first) => {
                for delta in delta.chunks_mut(row.max(1)) {
                    crumbs(delta, ranks(Mask::Outliers, &term, remove_first, delta.len()));
                }
            }
            Keep::Drawn(seed, chance) => {
                for (i, x) in delta.iter_mut().enumerate() {
                    if !drawn(seed, piece.from + i, chance) {
                        *x = 0.0;
                    }
                }
            }
            Keep::Ranked(seed, low, high) => {
                for (r, delta) in delta.chunks_mut(row.max(1)).enumerate() {
                    prune(delta, seed, piece.from + r * row, (low, high));
                }
            }
        }
    }
}

/// From which rank, counted from the largest, to which numbers are kept.
fn ranks(mask: Mask, term: &Term, remove_first: bool, n: usize) -> (usize, usize) {
    let share = |share: f64| (share * n as f64) as usize;
    match mask {
        // The largest are counted, and the very largest of these dropped.
        Mask::Outliers if !remove_first => {
            let kept = share(term.density);
            (share(term.gamma).min(kept), kept)
        }
        Mask::Outliers => {
            // Where so many are asked for that the outliers are among them, fewer of these go.
            let (kept, top) = (share(term.density), share(term.gamma));
            let below = n.saturating_sub(kept).saturating_sub(top);
            (n - below - kept, n - below)
        }
        _ => (0, share(term.density).max(1)),
    }
}

/// Keeps of one row what ranks from the one place to the other, of equal numbers the first.
fn crumbs(delta: &mut [f32], (from, to): (usize, usize)) {
    let mut order: Vec<u64> = delta
        .iter()
        .enumerate()
        .map(|(i, x)| u64::from(!by_magnitude(*x)) << 32 | i as u64)
        .collect();
    order.sort_unstable();
    for (rank, entry) in order.into_iter().enumerate() {
        if !(from..to).contains(&rank) {
            delta[(entry & u64::from(u32::MAX)) as usize] = 0.0;
        }
    }
}

/// Whether the number at `at` wins a draw with `chance`; a draw belongs to a place, not to an order.
fn drawn(seed: Seed, at: usize, chance: f64) -> bool {
    let uniform = (seed.at(at as u64).0 >> 11) as f64 / (1u64 << 53) as f64;
    uniform < chance
}

/// Draws for one row, with a chance that grows evenly from the smallest number to the largest.
fn prune(delta: &mut [f32], seed: Seed, from: usize, (low, high): (f64, f64)) {
    let mut order: Vec<u64> = delta
        .iter()
        .enumerate()
        .map(|(i, x)| u64::from(by_magnitude(*x)) << 32 | i as u64)
        .collect();
    order.sort_unstable();
    let last = order.len() - 1;
    for (rank, entry) in order.into_iter().enumerate() {
        let i = (entry & u64::from(u32::MAX)) as usize;
        // A number by itself is neither large nor small.
        let share = if last == 0 { 0.5 } else { rank as f64 / last as f64 };
        if !drawn(seed, from + i, low + share * (high - low)) {
            delta[i] = 0.0;
        }
    }
}

/// Chances must lie within 0 and 1, both excluded.
pub(super) fn check_chances(terms: &[Term], given: &Given) -> Result<()> {
    for (i, Term { density, epsilon, .. }) in terms.iter().enumerate() {
        let inside = density - epsilon > 0.0 && density + epsilon < 1.0;
        if *density > 0.0 && *density < 1.0 && !inside {
            let what = format!(
                "density {density} ± epsilon {epsilon} must stay between 0 and 1, both excluded"
            );
            return Err(Error::input(given.at_other("epsilon", i), what)
                .hint("lower epsilon, or bring density nearer to 0.5"));
        }
    }
    Ok(())
}
