//! Sequences that hold no blocks, and which of them is next.
//!
//! Preempted sequences go first, oldest first. The others wait in one queue per tenant. Between tenants the one that was
//! served the fewest tokens is next. Within a tenant two rules share the tokens: the shortest prompt, so that a short one
//! never waits behind a 30,000-token one, and the oldest, so that no prompt is overtaken for ever. Each gets half of them:
//! if they took turns pick by pick instead, a short prompt of 20 tokens would pay for a whole portion of the oldest one's,
//! and a few of them in every step would leave nothing for a prompt between the two.
use std::collections::{BTreeMap, BTreeSet};

use super::SeqId;
use super::sequence::Sequence;

#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    /// Ordered, so that nothing depends on a hash map's iteration order.
    tenants: BTreeMap<u64, Tenant>,
    preempted: BTreeSet<(u64, SeqId)>,
    waiting: usize,
    picks: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    by_age: BTreeSet<(u64, SeqId)>,
    by_length: BTreeSet<(usize, u64, SeqId)>,
    /// Sequences anywhere in the scheduler; the tenant is forgotten with its last one.
    live: usize,
    running: usize,
    /// Tokens computed for it, comparable between tenants only.
    served: u64,
    last_pick: u64,
    /// How far the shortest are ahead of the oldest (see [`Pick`]), for picks among running prompts only, among waiting
    /// ones only, and among both. Separately: with one number, two kinds of picks that take turns could each see one rule
    /// only, and starve somebody.
    leads: [i64; 3],
}

/// Whose turn it is within a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Shortest,
    Oldest,
}

/// A prompt that could get tokens in this step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub id: SeqId,
    pub tenant: u64,
    pub age: u64,
    /// Tokens to compute (for a waiting one: expected).
    pub length: usize,
    /// Age and length by which it is ordered: its own, or those of an older or a shorter prompt that waits for its blocks.
    pub rank: (u64, usize),
}

/// A pick and the turn it was made in. The turn ends by [`WaitQueue::end_turn`] or [`WaitQueue::pass_turn`]; with neither,
/// the next pick of this kind is made under the same rule.
#[derive(Debug)]
pub(super) struct Pick {
    pub candidate: Candidate,
    rule: Rule,
    kind: usize,
}

/// Places among the running sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    /// Those that may be given away now.
    pub free: usize,
    pub all: usize,
}

/// [`Pick::kind`]: among running prompts, among waiting ones, among both.
const RUNNING: usize = 0;
const WAITING: usize = 1;
const BOTH: usize = 2;
/// A pick counts as at least this share of a portion, so that many tiny prompts in a row do not hold up the oldest.
const PICK_SHARE_MIN: usize = 4;

impl WaitQueue {
    pub fn join(&mut self, tenant: u64) {
        self.tenants.entry(tenant).or_default().live += 1;
    }

    pub fn leave(&mut self, tenant: u64) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.live -= 1;
            if t.live == 0 {
                self.tenants.remove(&tenant);
            }
        }
    }

    pub fn start_running(&mut self, tenant: u64) {
        self.tenants.entry(tenant).or_default().running += 1;
    }

    pub fn stop_running(&mut self, tenant: u64) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.running -= 1;
        }
    }

    /// Slots that a tenant may count on when others want them too.
    pub fn share(&self, slots: usize) -> usize {
        (slots / self.tenants.len().max(1)).max(1)
    }

    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// The shortest prompt that waits, of the tenant served least among those with less than their share of `slots`.
    pub fn first_below_share(&self, slots: usize) -> Option<SeqId> {
        if self.tenants.len() < 2 {
            return None;
        }
        let share = self.share(slots);
        let waiting = self.tenants.values().filter(|t| t.running < share && !t.by_length.is_empty());
        let least = waiting.min_by_key(|t| (t.served, t.last_pick))?;
        least.by_length.first().map(|&(_, _, id)| id)
    }

    /// Queues a sequence.
    pub fn insert(&mut self, seq: &Sequence) {
        self.waiting += 1;
        if seq.preempted {
            self.preempted.insert((seq.age, seq.id));
        } else {
            let tenant = self.tenants.entry(seq.tenant).or_default();
            tenant.by_age.insert((seq.age, seq.id));
            tenant.by_length.insert((seq.estimate, seq.age, seq.id));
        }
    }

    pub fn remove(&mut self, seq: &Sequence) {
        self.waiting -= 1;
        self.preempted.remove(&(seq.age, seq.id));
        if let Some(tenant) = self.tenants.get_mut(&seq.tenant) {
            tenant.by_age.remove(&(seq.age, seq.id));
            tenant.by_length.remove(&(seq.estimate, seq.age, seq.id));
        }
    }

    /// Running sequences per tenant, for the checks of invariants.
    pub fn running_counts(&self) -> impl Iterator<Item = (u64, usize)> {
        self.tenants.iter().map(|(&id, t)| (id, t.running))
    }

    /// Sequences in the queue (parked ones are not).
    pub fn len(&self) -> usize {
        self.waiting
    }

    pub fn first_preempted(&self) -> Option<SeqId> {
        self.preempted.first().map(|&(_, id)| id)
    }

    /// A tenant was given tokens of a step.
    pub fn charge(&mut self, tenant: u64, tokens: usize) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.served += tokens as u64;
        }
    }

    /// Lets no tenant save up more than `lag_max` tokens of advantage while it asks for little or nothing. Raising those
    /// behind (rather than lowering those ahead) keeps the order of all others. O(tenants).
    pub fn limit_lag(&mut self, lag_max: u64) {
        let most = self.tenants.values().map(|t| t.served).max().unwrap_or(0);
        for tenant in self.tenants.values_mut() {
            tenant.served = tenant.served.max(most.saturating_sub(lag_max));
        }
    }

    /// Picks the next prompt to get tokens, among `running` ones and, as far as there are `slots`, the waiting ones that
    /// were not `refused` in this step. O(running + tenants).
    pub fn pick(&mut self, running: &[Candidate], slots: Slots, refused: &[SeqId]) -> Option<Pick> {
        // The slots that tenants below their share wait for are theirs.
        let share = self.share(slots.all);
        let wanted = |t: &Tenant| share.saturating_sub(t.running).min(t.by_age.len());
        let reserved: usize = self.tenants.values().map(wanted).sum();
        let admits = |t: &Tenant| {
            slots.free > if t.running < share { 0 } else { reserved }
                && t.by_age.iter().any(|(_, id)| !refused.contains(id))
        };
        let with_running = running.iter().filter_map(|c| self.tenants.get_key_value(&c.tenant));
        let with_waiting = self.tenants.iter().filter(|(_, t)| admits(t));
        let order = |(&id, t): (&u64, &Tenant)| (t.served, t.last_pick, id);
        let (_, _, id) = with_running.chain(with_waiting).map(order).min()?;
        let tenant = self.tenants.get_mut(&id)?;

        self.picks += 1;
        tenant.last_pick = self.picks;
        let mut mine = running.iter().filter(|c| c.tenant == id).copied().peekable();
        let waits = admits(tenant);
        let kind = match (mine.peek().is_some(), waits) {
            (true, false) => RUNNING,
            (false, _) => WAITING,
            (true, true) => BOTH,
        };
        let rule = if tenant.leads[kind] > 0 { Rule::Oldest } else { Rule::Shortest };
        let waiting = waits.then(|| tenant.first_waiting(id, rule, refused)).flatten();
        let key = |c: &Candidate| if rule == Rule::Oldest { (c.rank.0, 0) } else { (c.rank.1 as u64, c.rank.0) };
        let candidate = mine.chain(waiting).min_by_key(key)?;
        Some(Pick { candidate, rule, kind })
    }

    /// The picked prompt was given `tokens`, of at most `portion`: they count for the rule that picked it. Where only
    /// waiting prompts were to choose from, the rules take turns pick by pick: what is given away then is a place.
    pub fn end_turn(&mut self, pick: &Pick, tokens: usize, portion: usize) {
        if tokens == 0 || pick.kind == WAITING {
            return self.pass_turn(pick);
        }
        if let Some(t) = self.tenants.get_mut(&pick.candidate.tenant) {
            let cost = tokens.max(portion / PICK_SHARE_MIN) as i64;
            t.leads[pick.kind] += if pick.rule == Rule::Shortest { cost } else { -cost };
        }
    }

    /// The picked prompt got nothing: the other rule is next.
    pub fn pass_turn(&mut self, pick: &Pick) {
        if let Some(t) = self.tenants.get_mut(&pick.candidate.tenant) {
            let lead = &mut t.leads[pick.kind];
            *lead = if pick.rule == Rule::Shortest { (*lead).max(1) } else { (*lead).min(0) };
        }
    }
}

impl Tenant {
    fn first_waiting(&self, tenant: u64, rule: Rule, refused: &[SeqId]) -> Option<Candidate> {
        match rule {
            Rule::Shortest => {
                let mut allowed = self.by_length.iter().filter(|(_, _, id)| !refused.contains(id));
                allowed.next().map(|&(length, age, id)| Candidate { id, tenant, age, length, rank: (age, length) })
            }
            Rule::Oldest => {
                let mut allowed = self.by_age.iter().filter(|(_, id)| !refused.contains(id));
                // The length plays no part under this rule.
                allowed.next().map(|&(age, id)| Candidate { id, tenant, age, length: 0, rank: (age, 0) })
            }
        }
    }
}
