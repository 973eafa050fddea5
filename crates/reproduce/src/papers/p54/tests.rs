use luthier_params::Pool;

use super::*;

fn pool(config: &mut Train) -> &mut Pool {
    config.params.pool.as_mut().unwrap()
}

#[test]
fn arms_differ_in_what_they_are_called_after_alone() {
    let of = |arm| settings(arm, 3, 2).unwrap();
    let l2m = of(L2M);
    assert_eq!((l2m.seed, l2m.max_steps, l2m.batch_size), (32, Some(400), Some(32)));
    let mut uncounted = of(UNCOUNTED);
    assert!(!std::mem::replace(&mut pool(&mut uncounted).count_penalty, true));
    assert_eq!(uncounted, l2m);
    let mut one = of(ONE);
    assert_eq!(std::mem::replace(&mut pool(&mut one).size, OLD + FREE), 1);
    assert_eq!(one, l2m);
    // The same settings; a task's number says whose they are.
    assert_eq!(of(ORACLE), of(ONE));
    assert_eq!((set_of(ORACLE, 3), set_of(ONE, 3), set_of(PROMPTS, 3)), (3, 0, 3));
    let mut full = of(FULL);
    assert!(full.params.full.is_some() && full.update.groups.is_empty());
    full.params = l2m.params.clone();
    full.update.groups = l2m.update.groups.clone();
    assert_eq!(full, l2m);
    let prompts = of(PROMPTS);
    let steps = |config: &Train| (config.seed, config.max_steps, config.batch_size, config.epochs);
    assert_eq!(steps(&prompts), steps(&l2m));
    assert_eq!(prompts.params.prompt.unwrap().n_virtual, 5);
}

/// Six steps on two new worlds, over a model that has learned nothing.
#[test]
fn protected_entries_rest_and_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path().into(), 1, true, &|_| ()).unwrap();
    let base = Small::random(SIZES, Seed(1)).unwrap();
    let tasks: Vec<Task> = (0..OLD as u64).map(|i| Task::draw(Seed(2).at(i))).collect();
    let rows: Vec<Vec<Row>> = tasks.iter().map(|task| task.episodes(3, Seed(3))).collect();
    let embed = Embedding::of(&base).unwrap();
    let keys: Vec<Vec<f64>> = rows.iter().map(|rows| embed.key(rows)).collect();
    let exam = Exam::new(tasks, 1, Seed(4)).unwrap();
    let old = Old { base, embed, keys, exam, score: 1.0 };
    for arm in [L2M, UNCOUNTED] {
        let mut config = settings(arm, 1, 0).unwrap();
        config.max_steps = Some(3);
        let (before, bound) = (old.base.bind(&config).unwrap(), old.base.bind(&config).unwrap());
        old.protect(&before).unwrap();
        old.protect(&bound).unwrap();
        let mut counted: Vec<Vec<f64>> = Vec::new();
        for i in 0..2 {
            let before = numbers(&bound, "pool.counts").unwrap();
            let stage = Stage::new(Seed(5).at(i)).unwrap();
            lab.train(&bound, &stage.rows, &config).unwrap();
            let after = numbers(&bound, "pool.counts").unwrap();
            counted.push(after.iter().zip(&before).map(|(after, before)| after - before).collect());
        }
        let still = |e: usize| {
            let marks = [format!(".pool_{e}."), format!("pool.{e}.key")];
            let bits = |bound: &Bound| -> Vec<u32> {
                let own = bound.params.iter().filter(|p| marks.iter().any(|m| p.name.contains(m)));
                let numbers =
                    own.flat_map(|p| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                numbers.map(f32::to_bits).collect()
            };
            bits(&before) == bits(&bound)
        };
        let rest = (0..OLD).all(still);
        assert_eq!(rest, arm == L2M, "{arm}");
        let used = |e: usize| counted.iter().any(|rows| rows[e] > 0.0);
        assert_eq!((0..OLD).any(used), arm != L2M, "{arm}: {counted:?}");
        let rows = |world: usize| counted[world].iter().sum::<f64>();
        assert_eq!((rows(0), rows(1)), (96.0, 96.0));
        let shared = (0..OLD + FREE).any(|e| counted.iter().all(|rows| rows[e] > 0.0));
        assert!(arm != L2M || !shared, "{counted:?}");
    }
    // The key of a world is the nearest to most of its states, here and in the pool itself.
    let keys: Vec<Vec<f64>> = old.keys.iter().map(|key| unit(key)).collect();
    for (world, rows) in rows.iter().enumerate() {
        let found = rows.iter().filter(|row| old.embed.nearest(row, &keys) == world).count();
        assert!(2 * found > rows.len(), "world {world}: {found} of {}", rows.len());
    }
}

#[test]
fn an_entry_is_a_world_s_own_where_no_other_learned() {
    let with = |pairs: &[(usize, f64)]| {
        let mut rows = vec![0.0; OLD + FREE];
        pairs.iter().for_each(|(e, n)| rows[*e] = *n);
        rows
    };
    // The first has one of its own and one of an old world, the second shares with the third.
    let counted = [with(&[(OLD, 5.0), (0, 1.0)]), with(&[(OLD + 1, 5.0)]), with(&[(OLD + 1, 2.0)])];
    let own = |world| -> Vec<usize> {
        let all = alone(&counted, world).into_iter().enumerate();
        all.filter(|(_, own)| *own).map(|(e, _)| e).collect()
    };
    assert_eq!((own(0), own(1), own(2)), (vec![OLD], vec![], vec![]));
    assert_eq!(unit(&[3.0, 4.0]), [0.6, 0.8]);
}
