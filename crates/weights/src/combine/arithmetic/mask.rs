//! What a mask keeps of a difference, decided before the last pass.

use luthier_core::{Error, Result};

use super::{Arithmetic, Mask, Term};
use crate::{
    method::Given,
    operands::{As, Cut, Draws, Piece, Work},
    select::{Ask, Edge, by_magnitude, edges},
};

/// What is kept of one difference.
#[derive(Clone, Copy)]
pub(super) enum Keep<'a> {
    /// All.
    All,
    /// The numbers of the second set that are not in the first.
    Between(Edge, Edge),
    /// Of every row, what ranks from the one share of it to the other; see [`ranks`].
    Rows(Term, bool),
    /// Each with this chance.
    Drawn(Draws<'a>, f64),
    /// Each with a chance from the first to the second, by its rank within its row.
    Ranked(Draws<'a>, f64, f64),
}

impl<'a> Keep<'a> {
    /// One for each input but the base.
    pub(super) fn of(how: &Arithmetic, work: &Work<'a>) -> Result<Vec<Keep<'a>>> {
        let (mask, terms, n) = (how.mask, &how.terms, work.len());
        let keep = |(i, term): (usize, &Term)| {
            let all = term.density >= 1.0 && (how.remove_first || term.gamma <= 0.0);
            if mask == Mask::None || all {
                return Keep::All;
            }
            match mask {
                _ if term.density <= 0.0 => Keep::Between(Edge::NONE, Edge::NONE),
                Mask::Random => Keep::Drawn(work.draws(i), term.density),
                Mask::MagPrune => {
                    let (low, high) = (term.density - term.epsilon, term.density + term.epsilon);
                    Keep::Ranked(work.draws(i), low, high)
                }
                Mask::Outliers if how.per_row => Keep::Rows(*term, how.remove_first),
                // Found below.
                Mask::None | Mask::Magnitude | Mask::Outliers => {
                    Keep::Between(Edge::NONE, Edge::ALL)
                }
            }
        };
        let mut keeps: Vec<Keep<'a>> = terms.iter().enumerate().map(keep).collect();
        let open = |keep: &Keep<'_>| matches!(keep, Keep::Between(_, to) if *to == Edge::ALL);
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
            Keep::Drawn(draws, chance) => {
                for (i, x) in delta.iter_mut().enumerate() {
                    if draws.at(piece.from + i) >= chance {
                        *x = 0.0;
                    }
                }
            }
            Keep::Ranked(draws, low, high) => {
                for (r, delta) in delta.chunks_mut(row.max(1)).enumerate() {
                    for (i, chance) in chances(delta, (low, high)) {
                        if draws.at(piece.from + r * row + i) >= chance {
                            delta[i] = 0.0;
                        }
                    }
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

/// Places of one row and the chance of each to be kept, which grows evenly from the smallest number to
/// the largest.
fn chances(delta: &[f32], (low, high): (f64, f64)) -> impl Iterator<Item = (usize, f64)> + use<> {
    let mut order: Vec<u64> = delta
        .iter()
        .enumerate()
        .map(|(i, x)| u64::from(by_magnitude(*x)) << 32 | i as u64)
        .collect();
    order.sort_unstable();
    let last = order.len() - 1;
    order.into_iter().enumerate().map(move |(rank, entry)| {
        // A number by itself is neither large nor small.
        let share = if last == 0 { 0.5 } else { rank as f64 / last as f64 };
        ((entry & u64::from(u32::MAX)) as usize, low + share * (high - low))
    })
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use luthier_core::StateDict;

    use super::chances;

    /// What mergekit hands to `torch.bernoulli` for each of two models.
    #[test]
    fn chances_are_those_of_mergekit() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/merges/drawn");
        let recorded = StateDict::load(&golden.join("expected.safetensors")).unwrap();
        let mut compared = 0;
        let of_della = |name: &str| name.starts_with("della") && name.ends_with("/chances");
        for (name, tensor) in recorded.iter().filter(|(name, _)| of_della(name)) {
            let of = |name: &str| recorded.get(name).unwrap().flatten_all().unwrap();
            let deltas: Vec<f32> = of(&name.replace("chances", "delta")).to_vec1().unwrap();
            let (row, middle) = (*tensor.dims().last().unwrap(), deltas.len() / 2);
            // The settings of the two models in the files.
            for (i, (density, epsilon)) in [(0.4, 0.15), (0.65, 0.2)].into_iter().enumerate() {
                let want: Vec<f32> = of(name).to_vec1().unwrap();
                let half = i * middle..(i + 1) * middle;
                let rows = deltas[half.clone()].chunks(row).zip(want[half].chunks(row));
                for (delta, want) in rows {
                    for (i, chance) in chances(delta, (density - epsilon, density + epsilon)) {
                        assert!((chance - f64::from(want[i])).abs() < 1e-6, "{name}: {i}");
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 1000, "{compared}");
    }
}
