//! What two sequences have in common, as Python's `difflib.SequenceMatcher` finds it (Ratcliff and
//! Obershelp's longest runs first), and the edits between two texts (Levenshtein).
//!
//! **Departures** from `difflib`: elements that are frequent count like any other (`autojunk=False`),
//! for the operators and braces of a program are what it is about.

use std::{collections::HashMap, hash::Hash};

/// A run of `size` elements that begins at `a` in one sequence and at `b` in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Where it begins in the first.
    pub a: usize,
    /// Where it begins in the second.
    pub b: usize,
    /// How many elements.
    pub size: usize,
}

/// The runs that two sequences share, in order: longest first, then what lies on either side of it.
pub fn runs<T: Eq + Hash>(a: &[T], b: &[T]) -> Vec<Run> {
    let mut places: HashMap<&T, Vec<usize>> = HashMap::new();
    for (j, element) in b.iter().enumerate() {
        places.entry(element).or_default().push(j);
    }
    // Lengths of the runs that end at j of b and the element of a before, and at this one; 1-based.
    let mut lengths = [vec![0; b.len() + 1], vec![0; b.len() + 1]];
    let mut open = vec![(0..a.len(), 0..b.len())];
    let mut found = Vec::new();
    while let Some((of_a, of_b)) = open.pop() {
        let mut best = Run { a: of_a.start, b: of_b.start, size: 0 };
        for i in of_a.clone() {
            let [before, now] = &mut lengths;
            now[of_b.start..=of_b.end].fill(0);
            let all = places.get(&a[i]).map_or(&[][..], Vec::as_slice);
            for j in all.iter().copied().filter(|j| of_b.contains(j)) {
                let size = 1 + before[j];
                now[j + 1] = size;
                if size > best.size {
                    best = Run { a: i + 1 - size, b: j + 1 - size, size };
                }
            }
            lengths.swap(0, 1);
        }
        lengths[0][of_b.start..=of_b.end].fill(0);
        if best.size > 0 {
            found.push(best);
            open.push((of_a.start..best.a, of_b.start..best.b));
            open.push((best.a + best.size..of_a.end, best.b + best.size..of_b.end));
        }
    }
    found.sort_unstable();
    // Neighbours that touch in both are one.
    found.dedup_by(|next, run| {
        let touch = (run.a + run.size, run.b + run.size) == (next.a, next.b);
        run.size += if touch { next.size } else { 0 };
        touch
    });
    found
}

/// How alike two sequences are: twice what they share over what they have, from 0 to 1.
pub fn similarity<T: Eq + Hash>(a: &[T], b: &[T]) -> f64 {
    let shared: usize = runs(a, b).iter().map(|run| run.size).sum();
    match a.len() + b.len() {
        0 => 1.0,
        all => 2.0 * shared as f64 / all as f64,
    }
}

/// Most cells of the table of edits: texts of some 8000 characters each.
const CELLS: usize = 1 << 26;

/// Which elements of two sequences fewest edits change: substituted, or only there. `None` where
/// they are so long and so different that the table of edits would be too large.
pub fn changed<T: Eq>(a: &[T], b: &[T]) -> Option<[Vec<bool>; 2]> {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (&a[head..], &b[head..]);
    let tail = rest_a.iter().rev().zip(rest_b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (n, m) = (rest_a.len() - tail, rest_b.len() - tail);
    let width = m + 1;
    if (n + 1).checked_mul(width)? > CELLS {
        return None;
    }
    // The last step to each cell: both on, a alone, b alone. Two lines of costs are enough.
    let (mut steps, mut costs) = (vec![2u8; (n + 1) * width], (0..width).collect::<Vec<usize>>());
    for i in 1..=n {
        let mut diagonal = std::mem::replace(&mut costs[0], i);
        steps[i * width] = 1;
        for j in 1..=m {
            let both = diagonal + usize::from(rest_a[i - 1] != rest_b[j - 1]);
            diagonal = costs[j];
            let (alone_a, alone_b) = (costs[j] + 1, costs[j - 1] + 1);
            let least = both.min(alone_a).min(alone_b);
            costs[j] = least;
            steps[i * width + j] = if least == both {
                0
            } else if least == alone_a {
                1
            } else {
                2
            };
        }
    }
    let mut marks = [vec![false; a.len()], vec![false; b.len()]];
    let (mut i, mut j) = (n, m);
    while i > 0 || j > 0 {
        let step = steps[i * width + j];
        let (on_a, on_b) = (step != 2, step != 1);
        let same = step == 0 && rest_a[i - 1] == rest_b[j - 1];
        if on_a {
            i -= 1;
            marks[0][head + i] = !same;
        }
        if on_b {
            j -= 1;
            marks[1][head + j] = !same;
        }
    }
    Some(marks)
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    fn of(a: &str, b: &str) -> (Vec<(usize, usize, usize)>, f64) {
        let (a, b) = (chars(a), chars(b));
        let runs = runs(&a, &b).iter().map(|r| (r.a, r.b, r.size)).collect();
        (runs, similarity(&a, &b))
    }

    #[test]
    fn runs_and_similarities_are_those_of_difflib() {
        // SequenceMatcher(None, a, b, autojunk=False): get_matching_blocks and ratio of Python 3.11.
        for (a, b, runs, ratio) in DIFFLIB {
            let (found, similarity) = of(a, b);
            assert_eq!(found, *runs, "{a:?} {b:?}");
            assert!((similarity - ratio).abs() < 1e-12, "{a:?} {b:?}: {similarity}");
        }
        assert_eq!(similarity::<char>(&[], &[]), 1.0);
    }

    type Known = (&'static str, &'static str, &'static [(usize, usize, usize)], f64);

    const DIFFLIB: &[Known] = &[
        ("return a+b", "return a-b", &[(0, 0, 8), (9, 9, 1)], 0.9),
        ("abxcd", "abcd", &[(0, 0, 2), (3, 2, 2)], 0.8888888888888888),
        (
            "private Thread currentThread;",
            "private volatile Thread currentThread;",
            &[(0, 0, 6), (6, 15, 23)],
            0.8656716417910447,
        ),
        (
            "for i in range(n):\n    s += i",
            "for i in range(n + 1):\n    s = s - i\n    t",
            &[(0, 0, 16), (16, 20, 9), (26, 29, 2), (28, 35, 1)],
            0.7887323943661971,
        ),
        ("aaaa", "aa", &[(0, 0, 2)], 0.6666666666666666),
        ("", "abc", &[], 0.0),
        ("abcabcab", "cababcba", &[(0, 3, 3), (3, 7, 1)], 0.5),
        ("x = 1\ny = 2", "y = 2\nx = 1", &[(0, 6, 5)], 0.45454545454545453),
    ];

    #[test]
    fn edits_are_fewest_and_what_they_leave_is_the_same_in_both() {
        fn distance(a: &[char], b: &[char]) -> usize {
            match (a, b) {
                ([], rest) | (rest, []) => rest.len(),
                ([x, a @ ..], [y, b @ ..]) if x == y => distance(a, b),
                ([_, short_a @ ..], [_, short_b @ ..]) => {
                    let both = distance(short_a, short_b);
                    1 + both.min(distance(short_a, b)).min(distance(a, short_b))
                }
            }
        }
        let mut rng = Seed(25).rng();
        for _ in 0..300 {
            let mut text = |n: usize| -> Vec<char> {
                (0..rng.below(n)).map(|_| ['a', 'b', 'c'][rng.below(3)]).collect()
            };
            let (a, b) = (text(8), text(8));
            let [of_a, of_b] = changed(&a, &b).unwrap();
            let kept = |text: &[char], marks: &[bool]| -> Vec<char> {
                text.iter().zip(marks).filter(|(_, mark)| !**mark).map(|(c, _)| *c).collect()
            };
            assert_eq!(kept(&a, &of_a), kept(&b, &of_b), "{a:?} {b:?}");
            // Between two letters that stay, as many are changed as the longer side has.
            let gaps = |marks: &[bool]| -> Vec<usize> {
                marks.split(|mark| !mark).map(<[bool]>::len).collect()
            };
            let edits: usize = gaps(&of_a).iter().zip(gaps(&of_b)).map(|(x, y)| *x.max(&y)).sum();
            assert_eq!(edits, distance(&a, &b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn an_operator_is_all_that_changes() {
        let (a, b) = (chars("return a+b"), chars("return a-b"));
        let [of_a, of_b] = changed(&a, &b).unwrap();
        let marked = |marks: &[bool]| (0..marks.len()).filter(|i| marks[*i]).collect::<Vec<_>>();
        assert_eq!((marked(&of_a), marked(&of_b)), (vec![8], vec![8]));
        let [of_a, of_b] = changed(&chars("i <= n"), &chars("i < n")).unwrap();
        assert_eq!((marked(&of_a), marked(&of_b)), (vec![3], vec![]));
        let long: Vec<u32> = (0..20_000).collect();
        let other: Vec<u32> = long.iter().map(|x| x + 50_000).collect();
        assert!(changed(&long, &other).is_none() && changed(&long, &long).is_some());
    }
}
