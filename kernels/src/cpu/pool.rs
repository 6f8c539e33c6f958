//! A fixed set of threads that runs short parallel regions.
//!
//! A region is a number of tasks handed out one by one. The caller takes part and never waits for a thread that has not joined: on a busy
//! machine a worker that is not scheduled costs its help, not a stall. Workers spin for some tens of microseconds after a region, which
//! covers the gaps inside a model step, and then park.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::hint::spin_loop;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Turns of the spin loop before a thread parks: about 40 µs on Zen 3.
const SPINS: u32 = 2000;

/// Layout of [`Shared::state`]: workers inside the region, then flags, then the region's number.
const ACTIVE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const CALLER_PARKED: u64 = 1 << 17;
const SHUTDOWN: u64 = 1 << 18;
const REGION: u64 = 1 << 32;

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

#[derive(Clone, Copy)]
struct Job {
    /// The lifetime is a fiction: `run` does not return while a worker is inside the region.
    task: Task<'static>,
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    parked: Vec<AtomicBool>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spins: u32,
}

// SAFETY: `job` is written by the caller that holds `ThreadPool::turn` while no region is open and no worker is active, and read by
// workers only after they joined an open region (acquire on `state`).
unsafe impl Sync for Shared {}

thread_local! {
    /// Whether this thread is running a task: a nested region runs in place.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// What is behind the locks of this crate is valid after every statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes tasks until none is left. A panic is kept for the caller, and the tasks not yet begun are dropped.
    fn work(&self, job: Job) {
        let outer = IN_TASK.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    break;
                }
                (job.task)(task);
            }
        }));
        IN_TASK.set(outer);
        if let Err(payload) = result {
            self.next.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn worker(&self, index: usize) {
        let mut seen = 0;
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & SHUTDOWN != 0 {
                return;
            }
            if state & OPEN != 0 && state / REGION != seen {
                if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                    continue;
                }
                seen = state / REGION;
                spins = 0;
                // SAFETY: this worker is counted as active, so the job stays as it is until the decrement below.
                let job = unsafe { *self.job.get() };
                self.work(job.expect("an open region without a job is a bug"));
                let before = self.state.fetch_sub(1, Ordering::AcqRel);
                if before & ACTIVE == 1
                    && before & CALLER_PARKED != 0
                    && let Some(caller) = &*lock(&self.caller)
                {
                    caller.unpark();
                }
            } else if spins < self.spins {
                spins += 1;
                spin_loop();
            } else {
                // Announce, look again, then sleep: the caller publishes first and looks at `parked` second, so one of the two sees the other.
                self.parked[index].store(true, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                if state & SHUTDOWN == 0 && (state & OPEN == 0 || state / REGION == seen) {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
                spins = 0;
            }
        }
    }

    /// Waits until no worker is inside the (closed) region.
    fn wait_idle(&self) {
        for _ in 0..self.spins.max(100) {
            if self.state.load(Ordering::Acquire) & ACTIVE == 0 {
                return;
            }
            spin_loop();
        }
        *lock(&self.caller) = Some(std::thread::current());
        self.state.fetch_or(CALLER_PARKED, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) & ACTIVE != 0 {
            std::thread::park();
        }
        self.state.fetch_and(!CALLER_PARKED, Ordering::AcqRel);
    }
}

/// A fixed set of threads. The thread that calls [`ThreadPool::run`] is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose region is running: regions of several callers take turns.
    turn: Mutex<()>,
    line: Line,
}

/// Who waits for a [`Turn`], in the order they came.
#[derive(Default)]
struct Line {
    tickets: Mutex<Tickets>,
    moved: Condvar,
}

#[derive(Default)]
struct Tickets {
    next: u64,
    serving: u64,
}

/// The right to the pool's threads for a stretch of regions; given back when dropped.
pub struct Turn<'a>(&'a ThreadPool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.line.tickets).serving += 1;
        self.0.line.moved.notify_all();
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish()
    }
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller included. If the system refuses a thread, the pool has fewer.
    pub fn new(threads: NonZeroUsize) -> ThreadPool {
        let wanted = (threads.get() - 1).min(ACTIVE as usize - 1);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            parked: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            // More threads than cores: a spinning thread would keep a working one from its core.
            spins: if threads.get() > cores { 0 } else { SPINS },
        });
        let workers = (0..wanted)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("wick-cpu-{index}")).spawn(move || shared.worker(index)).ok()
            })
            .collect();
        ThreadPool { shared, workers, turn: Mutex::new(()), line: Line::default() }
    }

    /// Threads that take part in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Waits for this caller's turn, first come, first served, where several callers share the pool. Each region excludes the others anyway;
    /// who holds a turn over many regions in a row is not held up between them, and whoever waits is next, not whoever is quickest. A
    /// thread must not ask for a second turn while it has one.
    pub fn turn(&self) -> Turn<'_> {
        let mut tickets = lock(&self.line.tickets);
        let mine = tickets.next;
        tickets.next += 1;
        while tickets.serving != mine {
            tickets = self.line.moved.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    /// Whether somebody has a turn.
    pub fn is_taken(&self) -> bool {
        let tickets = lock(&self.line.tickets);
        tickets.next != tickets.serving
    }

    /// Runs `f(0)` to `f(tasks - 1)`, each once, on any thread and in any order, and returns when all are done. Regions of several callers
    /// take turns; a region begun inside a task runs on that task's thread.
    ///
    /// # Panics
    /// If a task panics, with its payload, once the running tasks have ended; tasks not yet begun are dropped. The pool stays usable.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(f);
            return;
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker uses the reference after `wait_idle`, which this function reaches on every path.
        let job = Job { task: unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(f) }, tasks };
        // SAFETY: this thread holds the turn, no region is open, and the last one was left by all workers.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        let state = shared.state.load(Ordering::Relaxed);
        let region = (state / REGION + 1) & u64::from(u32::MAX);
        shared.state.store((region * REGION) | OPEN, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked).take(tasks - 1) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.work(job);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        shared.wait_idle();
        let payload = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(SHUTDOWN, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker only panics through a bug in this file; there is nobody to tell during a drop.
            let _ = worker.join();
        }
    }
}
