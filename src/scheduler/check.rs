//! Invariants of the scheduler, for tests and for an engine that wants to look when it is idle.
use std::collections::HashMap;

use super::sequence::Place;
use super::{Scheduler, SeqId};
use crate::kv::{BlockId, KvManager};

/// A running sequence as the checks see it.
#[derive(Debug, Clone, Copy)]
pub struct RunningView<'a> {
    pub id: SeqId,
    pub blocks: &'a [BlockId],
    pub tokens: &'a [u32],
    pub computed: usize,
    /// Blocks that are shared or may be: the leading ones of the table.
    pub published: usize,
}

impl Scheduler {
    /// The running sequences, oldest first.
    #[doc(hidden)]
    pub fn running_views(&self) -> impl Iterator<Item = RunningView<'_>> {
        self.running.iter().map(|(_, id)| {
            let seq = &self.seqs[id];
            RunningView {
                id: *id,
                blocks: seq.table.as_slice(),
                tokens: &seq.tokens,
                computed: seq.computed,
                published: seq.published,
            }
        })
    }

    /// The blocks and the prefix cache.
    #[doc(hidden)]
    #[must_use]
    pub fn kv(&self) -> &KvManager {
        &self.kv
    }

    /// Checks what must hold between any two calls. O(blocks + sequences).
    ///
    /// # Errors
    /// The first invariant found broken: that is a bug in the scheduler.
    pub fn check_invariants(&self) -> Result<(), String> {
        let pool = self.kv.pool();
        let mut refs = vec![0; pool.total()];
        for view in self.running_views() {
            for block in view.blocks {
                refs[block.index()] += 1;
            }
        }
        for (index, &count) in (0..).zip(&refs) {
            let held = pool.ref_count(BlockId(index));
            ensure(held == count, || format!("block {index} has {held} references but stands in {count} tables"))?;
        }
        self.kv.check_eviction_order()?;
        let mut free = 0;
        for block in pool.free_order() {
            free += 1;
            ensure(refs[block.index()] == 0, || format!("{block:?} is free and in a table"))?;
        }
        let unused = refs.iter().filter(|&&count| count == 0).count();
        ensure(free == unused && free == pool.free_len(), || format!("{free} blocks are free, {unused} are unused"))?;

        let owners: HashMap<_, _> = self.pending.iter().collect();
        for (hash, owner) in &owners {
            let seq = self.seqs.get(owner).filter(|s| s.place == Place::Running);
            let computes = seq.is_some_and(|s| s.hashes[s.published..].contains(hash));
            ensure(computes, || format!("nobody computes {hash:?}"))?;
        }
        let mut waiters = HashMap::new();
        for (owner, waiter) in self.pending.all_waiters() {
            let waits = owners.get(&waiter.hash) == Some(&owner);
            ensure(waits, || format!("{waiter:?} waits for {owner:?}, which does not compute its block"))?;
            waiters.insert(waiter.id, waiter.hash);
        }
        let mut places = [0; 3];
        for seq in self.seqs.values() {
            let running = self.running.contains(&(seq.age, seq.id));
            let parked = waiters.get(&seq.id).copied();
            let (kind, fits) = match seq.place {
                Place::Queued => (0, !running && parked.is_none() && seq.table.is_empty()),
                Place::Parked(hash) => (1, !running && parked == Some(hash) && seq.table.is_empty()),
                Place::Running => (2, running && parked.is_none()),
            };
            places[kind] += 1;
            ensure(fits, || format!("{:?} is not where it says: {:?}", seq.id, seq.place))?;
            ensure(seq.computed + seq.in_flight <= seq.tokens.len(), || format!("{:?} computes the unknown", seq.id))?;
            let needed = self.kv.blocks_for(seq.tokens.len());
            let fits = seq.in_flight > 0 || seq.table.len() <= needed;
            ensure(fits, || format!("{:?} holds {} blocks and needs {needed}", seq.id, seq.table.len()))?;
        }
        let counted = [self.queue.len(), waiters.len(), self.running.len()];
        ensure(places == counted, || format!("queued, parked and running are {places:?}, counted {counted:?}"))?;
        for (tenant, running) in self.queue.running_counts() {
            let seen = self.running.iter().filter(|(_, id)| self.seqs[id].tenant == tenant).count();
            ensure(seen == running, || format!("tenant {tenant} runs {seen} sequences, counted {running}"))?;
        }
        ensure(self.running.is_sorted(), || "running sequences are not in order of age".to_owned())?;
        let blocked = self.blocked.is_none_or(|id| self.seqs.get(&id).is_some_and(|s| s.place == Place::Queued));
        ensure(blocked, || "the blocked sequence does not wait".to_owned())
    }
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}
