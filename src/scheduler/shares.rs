//! Slots and memory between tenants.
//!
//! A tenant may use all slots and all blocks while nobody else wants them. When one waits that has fewer than its share
//! (all of them, divided by the tenants that have anything here) and cannot be admitted, sequences of the tenant with the
//! most make way for it: they are computed again later, mostly from the prefix cache. What keeps that from going back and
//! forth:
//!
//! - a free slot that a tenant below its share waits for is not given to one above it;
//! - one sequence is let in per step, and nobody makes way unless it can be;
//! - a sequence makes way only when it got on since the last time, by [`RUN_MIN`] steps and tokens; the oldest never does;
//! - those who were refused or preempted before are overtaken by as many tokens as they have themselves, in all their
//!   life: counted anew after each preemption, a sequence that is preempted again and again would starve.
use std::collections::BTreeMap;

use super::plan::Plan;
use super::sequence::Sequence;
use super::{Scheduler, SeqId};

/// Steps that a sequence runs, and tokens that it gets on, before it makes way (again).
const RUN_MIN: u64 = 16;

/// What a tenant's running sequences hold.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    slots: usize,
    /// Entries of their block tables: a block that two of them share counts twice.
    blocks: usize,
}

impl Scheduler {
    /// Lets one sequence in whose tenant has less than its share, if others have to make way for it.
    /// O(tenants + running sequences + their blocks).
    pub(super) fn share_out(&mut self, plan: &mut Plan) {
        let slots = self.config.running_max;
        let Some(id) = self.queue.first_below_share(slots) else { return };
        let (tenant, needed) = (self.seqs[&id].tenant, self.kv.blocks_for(self.seqs[&id].tokens.len()));
        let mut free = self.free_slots();
        let mut blocks = self.kv.pool().free_len().saturating_sub(self.promised());
        if free > 0 && blocks >= needed && self.may_overtake() || !self.may_overtake_for_share(id) {
            // The queue admits it, or others would wait for ever.
            return;
        }
        let mut held = self.held();
        let shares = Held { slots: self.queue.share(slots), blocks: self.share_of_blocks() };
        let within = held.get(&tenant).map_or(0, |h| h.blocks) + needed <= shares.blocks;
        let mut yielding: Vec<SeqId> = Vec::new();
        while free == 0 || blocks < needed {
            let most = if free == 0 {
                held.iter().map(|(&id, h)| (h.slots, id)).max().filter(|&(slots, _)| slots > shares.slots)
            } else {
                held.iter().map(|(&id, h)| (h.blocks, id)).max().filter(|&(blocks, _)| within && blocks > shares.blocks)
            };
            let Some((_, from)) = most else { return };
            let mut others = self.running.iter().skip(1).rev().map(|(_, id)| &self.seqs[id]);
            let next = others.find(|seq| seq.tenant == from && !yielding.contains(&seq.id) && self.may_yield(seq));
            let (Some(seq), Some(held)) = (next, held.get_mut(&from)) else { return };
            held.slots -= 1;
            held.blocks -= seq.table.len();
            free += 1;
            let pool = self.kv.pool();
            blocks += seq.table.as_slice().iter().filter(|&&block| pool.ref_count(block) == 1).count();
            yielding.push(seq.id);
        }
        for id in yielding {
            plan.preempted.push(id);
            self.counters.yields += 1;
            self.make_wait(id, false);
        }
        let tokens = self.seqs[&id].tokens.len();
        for other in self.goes_before(id) {
            if let Some(other) = self.seqs.get_mut(&other) {
                other.overtaken += tokens;
            }
        }
        // It may be parked or, hardly ever, refused: then those who made way did so in vain, and come back.
        self.admit(id);
    }

    /// It ran for a while, and got further than before it last lost its blocks.
    fn may_yield(&self, seq: &Sequence) -> bool {
        seq.in_flight == 0
            && self.steps - seq.admitted_in >= RUN_MIN
            && seq.computed as u64 >= seq.lost_at as u64 + RUN_MIN
    }

    /// Those who are to be admitted before all that wait, but for `id` itself.
    fn goes_before(&self, id: SeqId) -> impl Iterator<Item = SeqId> + use<> {
        [self.blocked, self.queue.first_preempted()].into_iter().flatten().filter(move |&other| other != id)
    }

    /// Whether `id`, of a tenant below its share, may overtake those.
    fn may_overtake_for_share(&self, id: SeqId) -> bool {
        let mut before = self.goes_before(id).filter_map(|id| self.seqs.get(&id));
        before.all(|seq| seq.overtaken < seq.tokens.len())
    }

    fn share_of_blocks(&self) -> usize {
        self.config.num_blocks / self.queue.tenants().max(1)
    }

    fn held(&self) -> BTreeMap<u64, Held> {
        let mut held = BTreeMap::<u64, Held>::new();
        for seq in self.running.iter().map(|(_, id)| &self.seqs[id]) {
            let of = held.entry(seq.tenant).or_default();
            of.slots += 1;
            of.blocks += seq.table.len();
        }
        held
    }

    /// The sequence that loses its blocks when the one called `id` needs one: the youngest that is younger, first among
    /// those of tenants above their share of the blocks. A tenant above its share takes from nobody below, but for the
    /// oldest sequence of all, which always gets on.
    pub(super) fn youngest_to_preempt(&self, id: SeqId, age: u64) -> Option<SeqId> {
        let younger = || {
            let younger = self.running.iter().rev().take_while(move |(other, _)| *other > age);
            younger.map(|(_, id)| &self.seqs[id]).filter(|seq| seq.in_flight == 0)
        };
        if self.queue.tenants() > 1 {
            let (held, share) = (self.held(), self.share_of_blocks());
            let above = |tenant: u64| held.get(&tenant).is_some_and(|h| h.blocks > share);
            if let Some(seq) = younger().find(|seq| above(seq.tenant)) {
                return Some(seq.id);
            }
            let oldest = self.running.first().is_some_and(|&(_, first)| first == id);
            if !oldest && above(self.seqs[&id].tenant) {
                return None;
            }
        }
        younger().next().map(|seq| seq.id)
    }
}
