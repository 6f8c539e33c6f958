//! The thread pool: every task once, panics reach the caller, regions inside and beside regions.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use wick_kernels::ThreadPool;

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).unwrap())
}

/// Runs a region and checks that each task ran once.
fn check(pool: &ThreadPool, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|i| {
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
}

#[test]
fn each_task_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for round in 0..2000 {
            check(&pool, round % 17);
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_survives() {
    for threads in [1, 2, 4] {
        let pool = pool(threads);
        for bad in [0, 3, 9] {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|i| assert!(i != bad, "task {i} fails"))));
            let payload = result.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {bad} fails"));
            check(&pool, 50);
        }
    }
}

#[test]
fn a_region_inside_a_task_runs_in_place() {
    let pool = pool(3);
    let count = AtomicUsize::new(0);
    pool.run(6, &|_| {
        pool.run(7, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.load(Ordering::Relaxed), 42);
}

#[test]
fn callers_take_turns() {
    let pool = pool(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..500 {
                    check(&pool, round % 9);
                }
            });
        }
    });
}

#[test]
fn pools_come_and_go() {
    for _ in 0..50 {
        check(&pool(4), 5);
    }
}

#[test]
fn turns_come_in_the_order_they_were_asked_for() {
    let pool = pool(2);
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let turn = pool.turn();
        for i in 0..4 {
            let (pool, order) = (&pool, &order);
            scope.spawn(move || {
                let _turn = pool.turn();
                check(pool, 10);
                order.lock().unwrap().push(i);
            });
            // It waits in line before the next one comes.
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        check(&pool, 10);
        assert!(order.lock().unwrap().is_empty(), "a turn excludes the others");
        drop(turn);
    });
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
}
