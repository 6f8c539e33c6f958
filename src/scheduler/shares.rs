//! Slots between tenants.
//!
//! A tenant may use all slots while nobody else wants them. When one with fewer than its share (all slots, divided by the
//! tenants that have anything here) waits and no slot is free, a sequence of the tenant with the most makes way: it is
//! computed again later, mostly from the prefix cache. Three rules keep that from going back and forth: a free slot that
//! a tenant below its share waits for is not given to one above it; one sequence makes way per step; and only one that
//! has run for [`RUN_MIN`] steps, so that each gets on in between. The oldest of all stays, whatever happens.
use super::plan::Plan;
use super::{Scheduler, SeqId};

/// Steps that a sequence runs before it makes way (again).
const RUN_MIN: u64 = 16;

impl Scheduler {
    /// Frees a slot for a tenant that waits for its share. O(tenants + running sequences).
    pub(super) fn share_slots(&mut self, plan: &mut Plan) {
        let full = self.running.len() >= self.config.running_max;
        if !full || !self.may_overtake() {
            return;
        }
        let Some(tenant) = self.queue.tenant_to_yield(self.config.running_max) else { return };
        let others = self.running.iter().skip(1).rev().map(|&(_, id)| id);
        let yields = others.into_iter().find(|id| self.may_yield(*id, tenant));
        if let Some(id) = yields {
            plan.preempted.push(id);
            self.counters.yields += 1;
            self.make_wait(id, false);
        }
    }

    fn may_yield(&self, id: SeqId, tenant: u64) -> bool {
        let seq = &self.seqs[&id];
        seq.tenant == tenant && seq.in_flight == 0 && self.steps - seq.admitted_in >= RUN_MIN
    }
}
