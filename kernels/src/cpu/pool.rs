//! A fixed set of threads that runs short parallel regions.
//!
//! A region has items, of which each thread has a share; who has done its own takes from the others'. The caller takes part and never
//! waits for a thread that has not joined: on a busy machine a worker that is not scheduled costs its help, not a stall. Workers spin
//! for some tens of microseconds after a region, which covers the gaps inside a model step, and then park.
//!
//! A model's step has hundreds of regions of a few microseconds, and a cache line takes a tenth of one from core to core. So nothing is
//! handed to and fro: the caller posts a region in one line, which workers read, and each worker says in a line of its own that it has
//! joined, what is taken of its share, and that it has left.

mod shares;

pub(crate) use shares::Items;
use shares::Taken;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::hint::spin_loop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Turns of the spin loop before a thread parks: about 40 µs on Zen 3.
const SPINS: u32 = 2000;

/// Turns after which the caller has seen what a worker said last.
const SETTLED: u32 = 8;

/// Layout of [`Post::word`]: flags, then the region's threads, then its number.
const OPEN: u64 = 1;
const SHUTDOWN: u64 = 2;
const LANES: u64 = 1 << 2;
const LANES_MAX: u64 = (1 << 16) - 1;
const REGION: u64 = 1 << 18;

/// Layout of [`Lane::state`]: whether the worker is inside a region, then the region's number.
const INSIDE: u64 = 1;
const STATE_REGION: u64 = 2;

/// What a thread does in a region: given its number and the region's, it takes items until none is left.
type Task<'a> = &'a (dyn Fn(usize, u64) + Sync + 'a);

/// What the caller tells the workers, in lines that only it writes while regions follow upon each other.
#[repr(align(128))]
struct Post {
    word: AtomicU64,
    /// The lifetime is a fiction: a region does not end while a worker is inside.
    task: UnsafeCell<Option<Task<'static>>>,
    /// The caller is parked until the workers have left.
    caller_waits: AtomicBool,
    /// A task has panicked.
    panicked: AtomicBool,
}

/// What a thread tells the others, in lines that only it writes while there is something left of its share. The caller's is the first.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Lane {
    state: AtomicU64,
    taken: Taken,
}

struct Shared {
    post: Post,
    lanes: Vec<Lane>,
    parked: Vec<AtomicBool>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spins: u32,
}

// SAFETY: `task` is written by the caller that holds `ThreadPool::turn` while no worker is inside a region, and read by workers inside.
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
    /// Does a thread's part of a region. A panic is kept for the caller, and the items not yet taken are dropped.
    fn work(&self, task: Task<'_>, lane: usize, region: u64) {
        let outer = IN_TASK.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| task(lane, region)));
        IN_TASK.set(outer);
        if let Err(payload) = result {
            self.lanes.iter().for_each(|lane| lane.taken.drop_rest(region));
            lock(&self.panic).get_or_insert(payload);
            self.post.panicked.store(true, Ordering::Release);
        }
    }

    fn worker(&self, index: usize) {
        let (lane, mut seen, mut spins) = (index + 1, 0, 0);
        loop {
            let word = self.post.word.load(Ordering::SeqCst);
            let region = word / REGION;
            if word & SHUTDOWN != 0 {
                return;
            }
            if word & OPEN != 0 && region != seen && (lane as u64) < (word / LANES) & LANES_MAX {
                (seen, spins) = (region, 0);
                self.join(word, lane, region);
            } else if spins < self.spins {
                spins += 1;
                if spins == SETTLED {
                    // The caller has read that this worker has left, by now: the line is taken back before it is needed.
                    let state = &self.lanes[lane].state;
                    state.store(state.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                spin_loop();
            } else {
                // Announce, look again, then sleep. The caller posts first and looks at `parked` second, but may still be about to post when
                // it looks: then it does this region alone, and sees the flag in the next.
                self.parked[index].store(true, Ordering::SeqCst);
                if self.post.word.load(Ordering::SeqCst) == word {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
                spins = 0;
            }
        }
    }

    /// Takes part in a region that was open a moment ago.
    fn join(&self, word: u64, lane: usize, region: u64) {
        let state = &self.lanes[lane].state;
        // Announce, then look again: the caller closes first and looks at `state` second, so one of the two sees the other.
        state.store((region * STATE_REGION) | INSIDE, Ordering::SeqCst);
        if self.post.word.load(Ordering::SeqCst) == word {
            // SAFETY: the caller waits until this worker has left, and posts nothing else before.
            let task = unsafe { *self.post.task.get() };
            self.work(task.expect("an open region without a task is a bug"), lane, region);
        }
        state.store(region * STATE_REGION, Ordering::SeqCst);
        if self.post.caller_waits.load(Ordering::SeqCst)
            && let Some(caller) = &*lock(&self.caller)
        {
            caller.unpark();
        }
    }

    /// Closes a region of `lanes` threads for those that have not joined, and waits until the others have left.
    fn close(&self, lanes: usize, region: u64) {
        let workers = &self.lanes[1..lanes];
        let joined = |lane: &Lane| lane.state.load(Ordering::SeqCst) / STATE_REGION == region;
        if !workers.iter().all(joined) {
            self.post.word.fetch_and(!OPEN, Ordering::SeqCst);
        }
        let inside = |lane: &Lane| lane.state.load(Ordering::SeqCst) == (region * STATE_REGION) | INSIDE;
        for _ in 0..self.spins.max(100) {
            if !workers.iter().any(inside) {
                return;
            }
            spin_loop();
        }
        *lock(&self.caller) = Some(std::thread::current());
        self.post.caller_waits.store(true, Ordering::SeqCst);
        while workers.iter().any(inside) {
            std::thread::park();
        }
        self.post.caller_waits.store(false, Ordering::SeqCst);
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
        let wanted = (threads.get() - 1).min(LANES_MAX as usize - 1);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shared = Arc::new(Shared {
            post: Post {
                word: AtomicU64::new(0),
                task: UnsafeCell::new(None),
                caller_waits: AtomicBool::new(false),
                panicked: AtomicBool::new(false),
            },
            lanes: (0..=wanted).map(|_| Lane::default()).collect(),
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
        self.for_each(tasks, |_, task| f(task));
    }

    /// Runs `body(lane, item)` for each of `0..items`, once, where `lane` is the thread's number. Each thread has its own share, in order:
    /// what follows upon another in memory, and the same part of the items in one region as in the next. When it has done its own it takes
    /// from the others'.
    ///
    /// What a body holds by value lies side by side for the other threads; each reference that they must follow, to what this one
    /// has just written, costs a way between cores.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub(crate) fn for_each(&self, items: usize, body: impl Fn(usize, usize) + Sync) {
        let lanes = self.lanes(items);
        if lanes <= 1 {
            (0..items).for_each(|item| body(0, item));
            return;
        }
        let share = move |lane| items * lane / lanes..items * (lane + 1) / lanes;
        self.share_out(lanes, share, move |lane, items| {
            while let Some(item) = items.take() {
                body(lane, item);
            }
        });
    }

    /// The threads that a region of `items` items is for: one where another region is running around it.
    pub(crate) fn lanes(&self, items: usize) -> usize {
        if IN_TASK.get() { 1 } else { self.threads().min(items) }
    }

    /// Runs `body(lane, items)` on up to `lanes` threads, as many as [`Self::lanes`] says at most: each takes items until none is left, all of
    /// its `share` first. A thread that comes too late has no part in it. Without lanes there is nothing to do.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub(crate) fn share_out<S: Fn(usize) -> Range<usize> + Copy + Sync>(
        &self,
        lanes: usize,
        share: S,
        body: impl Fn(usize, &Items<'_, S>) + Sync,
    ) {
        if lanes == 0 {
            return;
        }
        if lanes == 1 {
            let own = Lane::default();
            own.taken.begin(1);
            return body(0, &Items { lanes: &[own], region: 1, lane: 0, begun: Cell::new(true), share });
        }
        let all = &self.shared.lanes[..lanes];
        self.region(lanes, &move |lane, region| {
            body(lane, &Items { lanes: all, region, lane, begun: Cell::new(lane == 0), share });
        });
    }

    fn region(&self, lanes: usize, task: Task<'_>) {
        let turn = lock(&self.turn);
        let (shared, post) = (&*self.shared, &self.shared.post);
        // SAFETY: only the lifetime changes. No worker uses the reference after `close`, which this function reaches on every path.
        let posted = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: this thread holds the turn, and the last region was left by all workers.
        unsafe { *post.task.get() = Some(posted) };
        let region = shares::after(post.word.load(Ordering::Relaxed) / REGION);
        shared.lanes[0].taken.begin(region);
        // Not waited for: this thread begins with its share while the line is on its way.
        post.word.store((region * REGION) | (lanes as u64 * LANES) | OPEN, Ordering::Release);
        for (worker, parked) in self.workers.iter().zip(&shared.parked).take(lanes - 1) {
            if parked.load(Ordering::Relaxed) {
                worker.thread().unpark();
            }
        }
        shared.work(task, 0, region);
        shared.close(lanes, region);
        // Looked at first: to write would take the line from the workers.
        let payload = post.panicked.load(Ordering::Acquire).then(|| {
            post.panicked.store(false, Ordering::Relaxed);
            lock(&shared.panic).take()
        });
        drop(turn);
        if let Some(payload) = payload.flatten() {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.post.word.fetch_or(SHUTDOWN, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker only panics through a bug in this file; there is nobody to tell during a drop.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn every_item_is_done_once_whoever_has_it() {
        for (threads, items) in [1, 2, 3, 8].into_iter().flat_map(|t| [0, 1, 2, 5, 97].map(|items| (t, items))) {
            let pool = pool(threads);
            let done: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(items, |lane, item| {
                assert!(lane < threads);
                done[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{items} items on {threads} threads");
        }
    }

    #[test]
    fn a_thread_that_is_held_up_keeps_nothing_but_the_item_it_has() {
        // Whoever takes the first item waits until all others are done: they must be the other thread's.
        let (pool, items) = (pool(2), 20);
        let others = AtomicUsize::new(0);
        pool.for_each(items, |_, item| {
            if item == 0 {
                while others.load(Ordering::Acquire) < items - 1 {
                    std::thread::yield_now();
                }
            } else {
                others.fetch_add(1, Ordering::Release);
            }
        });
        assert_eq!(others.into_inner(), items - 1);
    }
}
