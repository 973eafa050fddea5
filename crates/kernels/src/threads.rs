//! One pool of threads: rayon's.

use std::{cell::Cell, ptr, sync::atomic::AtomicBool};

use rayon::prelude::*;

mod team;

use team::Team;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
    /// The team that this thread leads, for as long as [`together`] runs.
    static TEAM: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// Runs `f` with every operation on this thread only: for work that is itself one of several
/// pieces running side by side, so that pieces neither wait for nor take over each other's work.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(&ALONE, ALONE.replace(true));
    f()
}

/// Gives a thread-local cell its earlier value back.
struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy + 'static> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Runs `f` with the pool's threads at hand: they wait for its operations' tasks awake, so that a
/// task begins within a microsecond instead of the ten or more that waking a thread takes. For
/// long successions of small operations, as in generating token by token.
pub fn together<R>(f: impl FnOnce() -> R) -> R {
    /// There are no threads for two teams.
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let others = count() - 1;
    if others == 0 {
        return f();
    }
    let Some(_taken) = team::Taken::new(&TAKEN) else { return f() };
    let team = Team::new(others);
    rayon::in_place_scope(|scope| {
        for me in 1..=others {
            let team = &team;
            scope.spawn(move |_| alone(|| team.serve(me)));
        }
        // Dropped before the scope waits for its threads, also when `f` panics.
        let _end = team.ends();
        let _restore = Restore(&TEAM, TEAM.replace(&raw const team));
        f()
    })
}

/// Threads an operation may use: one within [`alone`], else all of the current pool. Results never
/// depend on it.
pub fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// How much work is worth another thread's attention, given how much takes as long as waking it.
pub(crate) fn least(waking: usize) -> usize {
    if TEAM.get().is_null() { waking } else { waking / 16 }
}

/// Calls `f` with every task: on this thread within [`alone`], else on all of the pool's.
pub fn for_each<T: Send>(tasks: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if tasks.len() <= 1 || count() == 1 {
        return tasks.into_iter().for_each(f);
    }
    let team = TEAM.get();
    if team.is_null() {
        return tasks.into_par_iter().for_each(f);
    }
    // SAFETY: `TEAM` is set only while `together` runs on this thread, to a team that lives there.
    let team = unsafe { &*team };
    alone(|| team.share(tasks, f));
}

/// Keeps candle from starting worker threads of its own, which wait by spinning and take the cores
/// from rayon's. Call it first thing in `main`; a value the user has set is left alone.
pub fn only_rayon() {
    const KEY: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(KEY).is_none() {
        // SAFETY: the environment may not change while another thread reads it; this runs at the
        // start of `main`, before any thread exists.
        unsafe { std::env::set_var(KEY, "1") };
    }
}
