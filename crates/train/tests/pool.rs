//! Task after task on one pool: who is avoided, what is counted and kept, and what stays to the bit.

use std::path::Path;

use luthier_core::{Result, Row, Seed, StateDict};
use luthier_params::{Bound, form::pool::penalties, own, peft};
use luthier_train::{Job, Train, checkpoint};
use luthier_update::Update;

mod job;

use job::{bytes, job, killed_after, model};

const SIZE: usize = 16;

/// A pool whose every variable would move if weight decay were not for chosen entries alone.
fn bound(more: &str) -> Bound {
    job::bound(&format!("[pool]\nsize = {SIZE}\nr = 2\n{more}"))
}

fn config() -> Train {
    let update: Update =
        toml::from_str("[adamw]\nlearning_rate = 1e-2\nweight_decay = 0.1\n").unwrap();
    Train { update, epochs: 2.0, save_steps: 1, ..Train::default() }
}

/// Six rows for each of two tasks, which have no token in common.
fn rows() -> Vec<Row> {
    let row = |i: usize| {
        let mut rng = Seed(3).at(i as u64).rng();
        let first = if i < 6 { 0 } else { 48 };
        let tokens: Vec<u32> = (0..9).map(|_| first + rng.below(6) as u32).collect();
        Row::from_tokens(&tokens, &[1.0; 9], i)
    };
    (0..12).map(row).collect()
}

/// Rounds of three steps, repeated in two epochs; round `i` reads the rows of `tasks[i]`.
fn run(bound: &Bound, tasks: &[usize], out: &Path, resume: bool) {
    let rows = rows();
    let config = config();
    let order = |round: usize, _| {
        (0..3).map(|s| 6 * tasks[round] + 2 * s).map(|i| vec![i, i + 1]).collect()
    };
    let job = job(bound, &config, &rows, &order, out);
    luthier_train::run(&Job { rounds: tasks.len(), resume, ..job }).unwrap();
}

fn alone(bound: &Bound, task: usize) {
    run(bound, &[task], tempfile::tempdir().unwrap().path(), false);
}

fn numbers(bound: &Bound, name: &str) -> Vec<f32> {
    bound.var(name).unwrap().to_vec1().unwrap()
}

/// The numbers of everything an entry has.
fn entry(bound: &Bound, e: usize) -> Vec<f32> {
    let marks = [format!(".pool_{e}."), format!("pool.{e}.key")];
    let own = bound.params.iter().filter(|p| marks.iter().any(|mark| p.name.contains(mark)));
    own.flat_map(|p| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

/// Whether each entry has had rows between two moments, and moved; both must be the same.
fn moved(before: &Bound, after: &Bound) -> Vec<bool> {
    let counts = [before, after].map(|bound| numbers(bound, "pool.counts"));
    let one = |e: usize| {
        let had_rows = counts[0][e] != counts[1][e];
        let same =
            entry(before, e).iter().zip(&entry(after, e)).all(|(a, b)| a.to_bits() == b.to_bits());
        assert_eq!(had_rows, !same, "entry {e}");
        had_rows
    };
    (0..SIZE).map(one).collect()
}

/// The same variables apart from the first ones, as a second run gets them from the files of the first.
fn saved_and_continued(first: &Bound, more: &str) -> Bound {
    let dir = tempfile::tempdir().unwrap();
    let exact = |name: &str| -> Result<Vec<f32>> { panic!("{name} is no weight of the base") };
    own::save(dir.path(), first, &peft::Base::default(), &exact).unwrap();
    let saved = own::load(dir.path(), &model("llama"), None, None).unwrap();
    let second = bound(more);
    checkpoint::restore(&second.params, &checkpoint::snapshot(&saved.params), dir.path()).unwrap();
    second
}

#[test]
fn a_second_task_leaves_the_entries_of_the_first() {
    let (start, first) = (bound(""), bound(""));
    alone(&first, 0);
    assert_eq!(numbers(&first, "pool.penalties"), [0.0; SIZE], "nothing is barred in a first task");
    assert_eq!(numbers(&first, "pool.counts").iter().sum::<f32>(), 12.0);
    let of_first = moved(&start, &first);

    let (before, second) = (saved_and_continued(&first, ""), saved_and_continued(&first, ""));
    alone(&second, 1);
    let shares: Vec<f64> =
        numbers(&first, "pool.counts").iter().map(|n| f64::from(*n) / 12.0).collect();
    // Taken once, at the beginning of the task, of what the first one counted.
    for (got, want) in numbers(&second, "pool.penalties").iter().zip(penalties(&shares)) {
        assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{got} {want}");
    }
    assert_eq!(numbers(&second, "pool.counts").iter().sum::<f32>(), 24.0);
    let of_second = moved(&before, &second);
    assert!(of_first.contains(&true) && of_second.contains(&true));
    assert!(!of_first.iter().zip(&of_second).any(|(a, b)| *a && *b), "{of_first:?} {of_second:?}");

    // The same task again would do with the same entries, were it not for the penalty.
    let (before, again) = (saved_and_continued(&first, ""), saved_and_continued(&first, ""));
    alone(&again, 0);
    assert!(!of_first.iter().zip(moved(&before, &again)).any(|(a, b)| *a && b));
    let free = "count_penalty = false";
    let (before, again) = (saved_and_continued(&first, free), saved_and_continued(&first, free));
    alone(&again, 0);
    assert_eq!(numbers(&again, "pool.penalties"), [0.0; SIZE]);
    assert!(of_first.iter().zip(moved(&before, &again)).any(|(a, b)| *a && b));
}

#[test]
fn rounds_are_tasks_and_resume_to_the_bit() {
    let (whole, out) = (bound(""), tempfile::tempdir().unwrap());
    run(&whole, &[0, 1], out.path(), false);
    let apart = bound("");
    alone(&apart, 0);
    let of_first = numbers(&apart, "pool.counts");
    let after: Vec<f32> = numbers(&whole, "pool.counts");
    assert_eq!((of_first.iter().sum::<f32>(), after.iter().sum::<f32>()), (12.0, 24.0));
    for (first, after) in of_first.iter().zip(&after) {
        assert!(
            *first == 0.0 || first == after,
            "the second round came back: {of_first:?} {after:?}"
        );
    }
    for at in [1, 5, 6, 7, 11] {
        let (killed, out) = (bound(""), tempfile::tempdir().unwrap());
        run(&killed, &[0, 1], out.path(), false);
        killed_after(at, out.path());
        let resumed = bound("");
        run(&resumed, &[0, 1], out.path(), true);
        assert!(bytes(&resumed) == bytes(&whole), "resumed at step {at}: another pool");
    }
}

#[test]
fn without_a_pull_keys_stay_to_the_bit() {
    for (pull, still) in [("pull_coef = 0.0", true), ("pull_coef = 0.5", false)] {
        let (before, after) = (bound(pull), bound(pull));
        alone(&after, 0);
        let keys = |bound: &Bound| -> StateDict {
            let keys = bound.params.iter().filter(|p| p.name.ends_with(".key"));
            keys.map(|p| (p.name.clone(), p.var.as_detached_tensor())).collect()
        };
        let same =
            keys(&before).to_safetensors(&[]).unwrap() == keys(&after).to_safetensors(&[]).unwrap();
        assert_eq!(same, still, "{pull}");
        assert!(bytes(&before) != bytes(&after));
    }
}
