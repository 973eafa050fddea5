//! Threads that wait awake for the tasks of one leader.

use std::{
    cell::UnsafeCell,
    hint,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Set in [`Team::state`] while there may be tasks left.
const OPEN: usize = 1 << (usize::BITS - 1);
/// Looks at the state before the processor is offered to others: some twenty microseconds.
const PATIENCE: usize = 2000;

/// A cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Counter(AtomicUsize);

/// A leader and those who serve it.
pub(super) struct Team {
    /// How many servers are at work on the current job, and whether more may join.
    state: AtomicUsize,
    /// How many tasks of each member's share of the current job are taken.
    taken: Vec<Counter>,
    /// Written by the leader while nobody is at work and the job is not open.
    job: UnsafeCell<Option<Job>>,
    over: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `job` is written only while the state is zero and read only by servers that have entered
// an open state; the compare-exchange that enters pairs with the store that opened it.
unsafe impl Sync for Team {}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// Ends a team's service when dropped.
pub(super) struct Ends<'a>(&'a Team);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// A flag that is down again when this is dropped.
pub(super) struct Taken(&'static AtomicBool);

impl Taken {
    /// Raises the flag, if nobody else has.
    pub(super) fn new(flag: &'static AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::Acquire)).then(|| Taken(flag))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Team {
    pub(super) fn ends(&self) -> Ends<'_> {
        Ends(self)
    }

    /// A leader and `others`.
    pub(super) fn new(others: usize) -> Self {
        Team {
            state: AtomicUsize::new(0),
            taken: (0..=others).map(|_| Counter::default()).collect(),
            job: UnsafeCell::new(None),
            over: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Works on the leader's jobs until the end, as member `me` (the leader is 0).
    pub(super) fn serve(&self, me: usize) {
        let mut looks = 0usize;
        while !self.over.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Relaxed);
            if state & OPEN != 0 && self.enter(state) {
                // SAFETY: the job is not written while somebody is inside.
                if let Some(job) = unsafe { *self.job.get() } {
                    // SAFETY: the leader waits until everybody is out.
                    self.work(me, unsafe { &*job.run }, job.tasks);
                }
                self.state.fetch_sub(1, Ordering::Release);
                looks = 0;
            }
            wait(&mut looks);
        }
    }

    fn enter(&self, state: usize) -> bool {
        let (entered, failed) = (Ordering::Acquire, Ordering::Relaxed);
        self.state.compare_exchange(state, state + 1, entered, failed).is_ok()
    }

    /// Takes tasks until there are none. Each member begins with a share of neighbouring tasks, the
    /// same part of every job: what it wrote in one is in its cache in the next. A panic is kept for
    /// the leader, and ends the job.
    fn work(&self, me: usize, run: &(dyn Fn(usize) + Sync), tasks: usize) {
        let members = self.taken.len();
        let all = catch_unwind(AssertUnwindSafe(|| {
            for member in (me..members).chain(0..me) {
                let share = tasks * member / members..tasks * (member + 1) / members;
                loop {
                    let task = self.taken[member].0.fetch_add(1, Ordering::Relaxed);
                    if task >= share.len() {
                        break;
                    }
                    run(share.start + task);
                }
            }
        }));
        if let Err(panic) = all {
            self.taken.iter().for_each(|taken| taken.0.store(tasks, Ordering::Relaxed));
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// Calls `f` with every task, here and on the threads that serve.
    pub(super) fn share<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Sync) {
        let tasks: Vec<UnsafeCell<ManuallyDrop<T>>> =
            tasks.into_iter().map(|task| UnsafeCell::new(ManuallyDrop::new(task))).collect();
        let tasks = Tasks(tasks);
        let run = |i: usize| {
            let Tasks(tasks) = &tasks;
            // SAFETY: every index is taken by one thread, once.
            f(unsafe { ManuallyDrop::take(&mut *tasks[i].get()) });
        };
        self.lead(&run, tasks.0.len());
    }

    fn lead(&self, run: &(dyn Fn(usize) + Sync), tasks: usize) {
        // SAFETY: only the lifetime is forgotten; nobody is at work once this function returns.
        let forever = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(run)
        };
        self.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        // SAFETY: the state is zero: nobody is inside, and nobody enters before it is open.
        unsafe { *self.job.get() = Some(Job { run: forever, tasks }) };
        self.state.store(OPEN, Ordering::Release);
        self.work(0, run, tasks);
        self.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) != 0 {
            wait(&mut looks);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Tasks that several threads take from.
struct Tasks<T>(Vec<UnsafeCell<ManuallyDrop<T>>>);

// SAFETY: each task goes to one thread, see `Team::share`.
unsafe impl<T: Send> Sync for Tasks<T> {}

fn wait(looks: &mut usize) {
    *looks += 1;
    match *looks < PATIENCE {
        true => hint::spin_loop(),
        false => thread::yield_now(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::{TEAM, for_each, together};

    /// There is one team at a time: tests that want it take turns.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn turn() -> std::sync::MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_task_is_done_once_at_any_number_of_threads() {
        let _turn = turn();
        for threads in [1, 2, 5] {
            pool(threads).install(|| {
                together(|| {
                    for round in 0..2000u64 {
                        let sum = AtomicU64::new(0);
                        for_each((0..round % 40).collect(), |x: u64| {
                            sum.fetch_add(x, std::sync::atomic::Ordering::Relaxed);
                        });
                        let n = round % 40;
                        assert_eq!(sum.into_inner(), n * n.saturating_sub(1) / 2);
                    }
                });
            });
        }
    }

    #[test]
    fn tasks_run_at_the_same_time_and_there_is_one_team() {
        let _turn = turn();
        pool(2).install(|| {
            together(|| {
                let team = TEAM.get();
                assert!(!team.is_null());
                for _ in 0..100 {
                    // Each task waits for the other to begin; a second team is not needed for that.
                    let both = std::sync::Barrier::new(2);
                    together(|| {
                        assert_eq!(TEAM.get(), team);
                        for_each(vec![(); 2], |()| {
                            both.wait();
                        });
                    });
                }
            });
            assert!(TEAM.get().is_null());
        });
    }

    #[test]
    fn a_panic_reaches_the_leader_and_ends_the_team() {
        let _turn = turn();
        let caught = std::panic::catch_unwind(|| {
            pool(3).install(|| together(|| for_each((0..100).collect(), |i: i32| assert!(i != 57))))
        });
        assert!(caught.is_err());
        assert_eq!(pool(3).install(|| together(|| 7)), 7);
    }
}
