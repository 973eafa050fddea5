//! One pool of threads: rayon's.

use std::cell::Cell;

use rayon::prelude::*;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every operation on this thread only: for work that is itself one of several
/// pieces running side by side, so that pieces neither wait for nor take over each other's work.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    f()
}

/// Threads an operation may use: one within [`alone`], else all of the current pool. Results never
/// depend on it.
pub fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Calls `f` with every task: on this thread within [`alone`], else on all of the pool's.
pub fn for_each<T: Send>(tasks: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if tasks.len() <= 1 || count() == 1 {
        return tasks.into_iter().for_each(f);
    }
    tasks.into_par_iter().for_each(f);
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
