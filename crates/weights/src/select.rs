//! Exactly the k largest of a tensor that nobody holds.
//!
//! Every number becomes a key of 32 bits that sorts as it does. Two counts over the pieces, by the
//! upper and by the lower half of the bits, find the k-th largest key; numbers that equal it are
//! taken from the front. Where few share the upper half of the k-th, a list of them replaces the second
//! count; where many equal it, a third pass finds the last one that is taken.

use luthier_core::Result;

use crate::operands::{As, Cut, Loaded, Piece, Work};

/// Where a set of the largest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Larger keys belong to the set, smaller ones do not.
    key: u32,
    /// Of the equal ones, those at positions before this.
    before: usize,
}

impl Edge {
    /// The empty set.
    pub const NONE: Edge = Edge { key: u32::MAX, before: 0 };
    /// The set of all.
    pub const ALL: Edge = Edge { key: 0, before: usize::MAX };

    /// Whether the number with `key` at position `at` belongs to the set.
    pub fn holds(&self, key: u32, at: usize) -> bool {
        key > self.key || key == self.key && at < self.before
    }

    /// The smallest key whose numbers at all positions of a piece belong to the set, none of a smaller
    /// key do; `None` where the set ends within the piece.
    pub fn limit(&self, piece: Piece) -> Option<u32> {
        match () {
            _ if piece.from + piece.len <= self.before => Some(self.key),
            // No number has the largest key of all, so it may stand for the empty set.
            _ if piece.from >= self.before => Some(self.key.saturating_add(1)),
            _ => None,
        }
    }

    /// The smallest key of a set that is not empty.
    pub fn key(&self) -> u32 {
        self.key
    }
}

/// A key that sorts by absolute value.
pub fn by_magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A key that sorts as numbers do.
pub fn by_value(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The number of a key made by [`by_value`].
pub fn value_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

/// Asks for the set of the `k` largest of the `column`-th quantity.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Which quantity.
    pub column: usize,
    /// How many.
    pub k: usize,
}

/// Tables of counts by half of a key's bits.
type Counts = Vec<Vec<u64>>;

const HALF: usize = 1 << 16;

/// The edges of the asked sets. `keys` computes the keys of a piece, one vector per quantity; pieces
/// are cut as `cut` says, and hold what `what` says.
pub fn edges(
    work: &Work<'_>,
    (cut, what): (Cut, As),
    asks: &[Ask],
    keys: impl Fn(Piece, &mut Loaded, &mut [Vec<u32>]) -> Result<()> + Sync,
) -> Result<Vec<Edge>> {
    let n = work.len();
    let open: Vec<usize> = (0..asks.len()).filter(|i| (1..=n).contains(&asks[*i].k)).collect();
    let simple = |ask: &Ask| if ask.k == 0 { Edge::NONE } else { Edge::ALL };
    let mut found: Vec<Edge> = asks.iter().map(simple).collect();
    if open.is_empty() {
        return Ok(found);
    }
    let columns = asks.iter().map(|ask| ask.column + 1).max().unwrap_or(0);
    let search = Search { work, pieces: (cut, what), columns, keys };
    let upper = search.count(columns, |table| table, |_, key| Some((key >> 16) as usize))?;
    let column = |table: usize| asks[open[table]].column;
    let halves: Vec<(usize, usize)> =
        (0..open.len()).map(|table| last(&upper[column(table)], asks[open[table]].k)).collect();
    // Usually few numbers share the upper half of the k-th: they are listed and sorted.
    let most = (n / 64).max(HALF) as u64;
    let few = (0..open.len()).all(|table| upper[column(table)][halves[table].0] <= most);
    let edges = match few {
        true => search.list(&halves, column)?,
        false => search.by_lower_half(&halves, column)?,
    };
    open.iter().zip(edges).for_each(|(i, edge)| found[*i] = edge);
    Ok(found)
}

/// What the passes of one search share.
struct Search<'a, K> {
    work: &'a Work<'a>,
    pieces: (Cut, As),
    columns: usize,
    keys: K,
}

impl<K: Fn(Piece, &mut Loaded, &mut [Vec<u32>]) -> Result<()> + Sync> Search<'_, K> {
    /// The keys of a piece, in memory that was used before.
    fn keys<T>(
        &self,
        piece: Piece,
        loaded: &mut Loaded,
        visit: impl FnOnce(&[Vec<u32>]) -> T,
    ) -> Result<T> {
        let mut held = std::mem::take(&mut loaded.keys);
        held.resize(self.columns, Vec::new());
        held.iter_mut().for_each(Vec::clear);
        (self.keys)(piece, loaded, &mut held)?;
        let visited = visit(&held);
        loaded.keys = held;
        Ok(visited)
    }

    /// Counts, in `tables` tables, the entries that keys of a table's column fall into.
    fn count(
        &self,
        tables: usize,
        column: impl Fn(usize) -> usize + Sync,
        entry: impl Fn(usize, u32) -> Option<usize> + Sync,
    ) -> Result<Counts> {
        let visit = |counts: &mut Counts, piece: Piece, loaded: &mut Loaded| -> Result<()> {
            self.keys(piece, loaded, |held| {
                for (table, counts) in counts.iter_mut().enumerate() {
                    let entries = held[column(table)].iter().filter_map(|key| entry(table, *key));
                    entries.for_each(|i| counts[i] += 1);
                }
            })
        };
        // Counts do not care for an order.
        self.work.tally(
            self.pieces,
            || vec![vec![0; HALF]; tables],
            visit,
            |mut a: Counts, b: Counts| {
                let all = a.iter_mut().flatten().zip(b.iter().flatten());
                all.for_each(|(a, b)| *a += b);
                a
            },
        )
    }

    /// The edges by a list of all keys with the right upper half.
    fn list(
        &self,
        halves: &[(usize, usize)],
        column: impl Fn(usize) -> usize + Sync,
    ) -> Result<Vec<Edge>> {
        let (cut, what) = self.pieces;
        let lists = self.work.gather(cut, what, |piece, loaded| {
            self.keys(piece, loaded, |held| {
                let of = |(table, (half, _)): (usize, &(usize, usize))| {
                    let keys = held[column(table)].iter().enumerate();
                    let here = keys.filter(|(_, key)| (**key >> 16) as usize == *half);
                    here.map(|(i, key)| (*key, piece.from + i)).collect::<Vec<_>>()
                };
                halves.iter().enumerate().map(of).collect::<Vec<_>>()
            })
        })?;
        let edge = |(table, (_, left)): (usize, &(usize, usize))| {
            let mut all: Vec<(u32, usize)> =
                lists.iter().flat_map(|list| list[table].iter().copied()).collect();
            let order = |a: &(u32, usize), b: &(u32, usize)| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
            let (_, (key, at), _) = all.select_nth_unstable_by(left - 1, order);
            Edge { key: *key, before: *at + 1 }
        };
        Ok(halves.iter().enumerate().map(edge).collect())
    }

    /// The edges by a second count, for tensors of which a large part is nearly equal.
    fn by_lower_half(
        &self,
        halves: &[(usize, usize)],
        column: impl Fn(usize) -> usize + Sync,
    ) -> Result<Vec<Edge>> {
        let lower = self.count(halves.len(), &column, |table, key| {
            let here = (key >> 16) as usize == halves[table].0;
            here.then_some(key as usize & (HALF - 1))
        })?;
        let mut edges = Vec::new();
        for (table, (half, left)) in halves.iter().enumerate() {
            let (low, left) = last(&lower[table], *left);
            let key = (half << 16 | low) as u32;
            let all = left as u64 == lower[table][low];
            let before = match all {
                true => usize::MAX,
                false => self.nth_equal(column(table), key, left)?,
            };
            edges.push(Edge { key, before });
        }
        Ok(edges)
    }

    /// One past the position of the `n`-th number whose key is `key`.
    fn nth_equal(&self, column: usize, key: u32, n: usize) -> Result<usize> {
        let (cut, what) = self.pieces;
        let counts = self.work.gather(cut, what, |piece, loaded| {
            let count = |held: &[Vec<u32>]| held[column].iter().filter(|k| **k == key).count();
            Ok((piece, self.keys(piece, loaded, count)?))
        })?;
        let mut left = n;
        for (piece, count) in counts {
            if count < left {
                left -= count;
                continue;
            }
            let place = self.work.visit(piece, what, |loaded| {
                self.keys(piece, loaded, |held| {
                    let equal = held[column].iter().enumerate().filter(|(_, k)| **k == key);
                    equal.map(|(i, _)| i).nth(left - 1)
                })
            })?;
            return Ok(place.map_or(usize::MAX, |i| piece.from + i + 1));
        }
        Ok(usize::MAX)
    }
}

/// From the top: the entry in which the `k`-th lies, and how many of it are needed.
fn last(counts: &[u64], k: usize) -> (usize, usize) {
    let mut left = k as u64;
    for (i, count) in counts.iter().enumerate().rev() {
        if *count >= left {
            return (i, left as usize);
        }
        left -= count;
    }
    // Not reached while k is at most the sum of counts.
    (0, left as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_numbers_do() {
        let numbers = [f32::NEG_INFINITY, -3.0, -1e-40, 0.0, 1e-40, 0.5, 2.0, f32::INFINITY];
        for pair in numbers.windows(2) {
            assert!(by_value(pair[0]) < by_value(pair[1]), "{pair:?}");
        }
        for x in numbers {
            assert_eq!(value_of(by_value(x)), x);
        }
        assert!(by_magnitude(-3.0) > by_magnitude(2.0));
        assert_eq!(by_magnitude(-0.0), by_magnitude(0.0));
    }

    #[test]
    fn the_kth_from_the_top_is_found_in_counts() {
        let counts = [5, 0, 2, 1];
        assert_eq!(last(&counts, 1), (3, 1));
        assert_eq!(last(&counts, 2), (2, 1));
        assert_eq!(last(&counts, 3), (2, 2));
        assert_eq!(last(&counts, 4), (0, 1));
        assert_eq!(last(&counts, 8), (0, 5));
    }
}
