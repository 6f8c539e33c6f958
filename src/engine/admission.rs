//! What the handles and the engine thread share: who was admitted, how full the queue is, statistics, health.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::message::{EngineStats, GenerationRequest, GenerationStream, SeqEvent, SubmitError};
use super::{EngineInfo, QueueLimits, QueueLoad};
use crate::scheduler::SeqId;

/// Throughput is averaged with this half-life, in busy seconds.
const THROUGHPUT_HALF_LIFE_S: f64 = 10.0;
const RETRY_AFTER_MIN_S: f64 = 1.0;
const RETRY_AFTER_MAX_S: f64 = 60.0;

/// A sequence on its way to the engine thread.
pub(super) struct Admitted {
    pub(super) id: SeqId,
    pub(super) request: GenerationRequest,
    pub(super) events: mpsc::UnboundedSender<SeqEvent>,
    pub(super) submitted: Instant,
    pub(super) ticket: Ticket,
}

pub(super) struct Shared {
    pub(super) info: EngineInfo,
    state: Mutex<State>,
    /// True while nothing is admitted and unfinished, and every event of what was has been sent.
    idle: watch::Sender<bool>,
    failed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// Sequences admitted and not finished.
    unfinished: usize,
    /// Of those, the ones whose first chunk has not run.
    unstarted: usize,
    /// Prompt tokens of unfinished sequences that are not yet computed.
    pending_tokens: usize,
    /// What of both each tenant holds; only tenants with unfinished sequences.
    tenants: HashMap<u64, Held>,
    draining: bool,
    stopped: bool,
    throughput: Throughput,
    stats: EngineStats,
}

/// What of the queue somebody holds, or may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    sequences: usize,
    tokens: usize,
}

impl Shared {
    pub(super) fn new(info: EngineInfo) -> Self {
        Self { info, state: Mutex::default(), idle: watch::Sender::new(true), failed: watch::Sender::new(false) }
    }

    /// The state is plain numbers, valid after every statement, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits all of `requests`, which are valid, or none. `send` hands them to the engine thread and says whether it
    /// took them; it is called under the lock, so nothing is sent once [`Shared::stop`] has returned.
    pub(super) fn admit(
        self: &Arc<Self>,
        requests: Vec<GenerationRequest>,
        send: impl FnOnce(Vec<Admitted>) -> Result<(), Vec<Admitted>>,
    ) -> Result<Vec<GenerationStream>, SubmitError> {
        let tokens: usize = requests.iter().map(|r| r.prompt.len()).sum();
        let mut state = self.state();
        if state.stopped {
            return Err(SubmitError::Stopped);
        }
        if state.draining {
            return Err(SubmitError::Draining);
        }
        let tenant = requests.first().map_or(0, |request| request.tenant);
        let limits = &self.info.queue;
        if !state.has_room(limits, tenant, requests.len(), tokens) {
            return Err(SubmitError::QueueFull {
                waiting_sequences: state.unfinished,
                waiting_tokens: state.pending_tokens,
                retry_after: state.retry_after(limits, requests.len()),
            });
        }
        state.unfinished += requests.len();
        state.unstarted += requests.len();
        state.pending_tokens += tokens;
        self.idle.send_replace(false);

        let submitted = Instant::now();
        let (group, streams) = requests
            .into_iter()
            .map(|request| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let id = SeqId(state.next_id);
                state.next_id += 1;
                let (tenant, pending_tokens) = (request.tenant, request.prompt.len());
                let held = state.tenants.entry(tenant).or_default();
                held.sequences += 1;
                held.tokens += pending_tokens;
                let ticket = Ticket { shared: self.clone(), tenant, pending_tokens, started: false };
                (Admitted { id, request, events: sender, submitted, ticket }, GenerationStream { events: receiver })
            })
            .unzip();
        let outcome = send(group);
        // Dropping a refused group drops its tickets, which take the lock.
        drop(state);
        outcome.map(|()| streams).map_err(|_| SubmitError::Stopped)
    }

    pub(super) fn drain(&self) {
        self.state().draining = true;
    }

    /// The engine thread gives up: refuses everything from now on.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.failed.send_replace(true);
    }

    pub(super) fn is_healthy(&self) -> bool {
        !*self.failed.borrow()
    }

    pub(super) async fn failed(&self) {
        // The sender lives in `self`, so waiting can only end by the value.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Called by the engine thread when all events of finished sequences have been sent.
    pub(super) fn settle(&self) {
        let state = self.state();
        if state.unfinished == 0 {
            self.idle.send_replace(true);
        }
    }

    pub(super) async fn wait_idle(&self) {
        let _ = self.idle.subscribe().wait_for(|idle| *idle).await;
    }

    pub(super) fn stats(&self) -> EngineStats {
        let state = self.state();
        EngineStats { queued_sequences: state.unstarted, queued_tokens: state.pending_tokens, ..state.stats }
    }

    /// Prompt tokens not yet computed, over all admitted sequences.
    pub(super) fn pending_tokens(&self) -> usize {
        self.state().pending_tokens
    }

    pub(super) fn load(&self, tenant: u64) -> QueueLoad {
        let state = self.state();
        let limits = self.info.queue;
        let closed = state.stopped || state.draining;
        let room = if closed { Held::default() } else { state.room(&limits, tenant) };
        QueueLoad { limits, sequences_left: room.sequences, tokens_left: room.tokens, empty_in: state.empty_in() }
    }

    pub(super) fn is_busy(&self, sequences: usize) -> bool {
        let state = self.state();
        state.stats.gauges.waiting > 0 || state.unfinished + sequences > self.info.scheduler.running_max
    }

    /// Publishes the engine thread's numbers.
    pub(super) fn publish(&self, stats: EngineStats) {
        let mut state = self.state();
        let before = state.stats;
        state.stats = stats;
        let seconds = stats.busy_seconds - before.busy_seconds;
        if seconds > 0.0 {
            let tokens = stats.scheduler.computed_tokens - before.scheduler.computed_tokens;
            let ended = (stats.finished + stats.failed) - (before.finished + before.failed);
            state.throughput.add(tokens as f64, ended as f64, seconds);
        }
    }
}

impl State {
    /// A group that exceeds a bound all alone is let in when nothing else counts against that bound: it would never get
    /// in otherwise, and "try again later" would be a lie.
    fn has_room(&self, limits: &QueueLimits, tenant: u64, sequences: usize, tokens: usize) -> bool {
        let room = self.room(limits, tenant);
        let sequences_fit = self.unfinished == 0 || sequences <= room.sequences;
        let tokens_fit = self.pending_tokens == 0 || tokens <= room.tokens;
        sequences_fit && tokens_fit
    }

    /// What a tenant may still take: what all leave free, or what it lacks to its share, whichever is more.
    fn room(&self, limits: &QueueLimits, tenant: u64) -> Held {
        let held = self.tenants.get(&tenant).copied().unwrap_or_default();
        let tenants = self.tenants.len() + usize::from(!self.tenants.contains_key(&tenant));
        let left = |limit: usize, used: usize, share: usize, held: usize| {
            let hard = (2 * limit).saturating_sub(used);
            limit.saturating_sub(used).max(share.saturating_sub(held).min(hard))
        };
        // One prompt is not divided: a tenant that has none waiting is not refused because its own exceeds the share.
        let share_of_tokens = if held.tokens == 0 { limits.tokens_max } else { limits.tokens_max / (tenants + 1) };
        Held {
            sequences: left(
                limits.sequences_max,
                self.unfinished,
                (limits.sequences_max / (tenants + 1)).max(1),
                held.sequences,
            ),
            tokens: left(limits.tokens_max, self.pending_tokens, share_of_tokens, held.tokens),
        }
    }

    /// When `sequences` may find room: the waiting prompt tokens computed, and enough sequences ended, those included
    /// that are there beyond the bound.
    fn retry_after(&self, limits: &QueueLimits, sequences: usize) -> Duration {
        let beyond = self.unfinished.saturating_sub(limits.sequences_max);
        let known = self.time_for(self.pending_tokens, beyond.saturating_add(sequences)).unwrap_or(0.0);
        Duration::from_secs_f64(known.clamp(RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S).ceil())
    }

    /// When all that is admitted now will have ended; `None` while no throughput is known.
    fn empty_in(&self) -> Option<Duration> {
        if self.unfinished == 0 {
            return Some(Duration::ZERO);
        }
        // An estimate beyond what a duration holds says as much as none.
        Duration::try_from_secs_f64(self.time_for(self.pending_tokens, self.unfinished)?).ok()
    }

    /// Seconds until `tokens` are computed and `ends` sequences have ended, by what is known of the recent throughput.
    fn time_for(&self, tokens: usize, ends: usize) -> Option<f64> {
        let compute = tokens as f64 / self.throughput.tokens_per_second();
        let ends = ends as f64 / self.throughput.ends_per_second();
        [compute, ends].into_iter().filter(|s| s.is_finite()).reduce(f64::max)
    }
}

/// Exponentially decaying sums over busy time.
#[derive(Default)]
struct Throughput {
    tokens: f64,
    ends: f64,
    seconds: f64,
}

impl Throughput {
    fn add(&mut self, tokens: f64, ends: f64, seconds: f64) {
        let decay = (-seconds / THROUGHPUT_HALF_LIFE_S).exp2();
        self.tokens = self.tokens * decay + tokens;
        self.ends = self.ends * decay + ends;
        self.seconds = self.seconds * decay + seconds;
    }

    /// 0 or NaN while unknown: a time computed from it is not finite.
    fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds
    }

    fn ends_per_second(&self) -> f64 {
        self.ends / self.seconds
    }
}

/// A sequence's share of the queue. Given back on drop, whatever becomes of the sequence.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    tenant: u64,
    pending_tokens: usize,
    started: bool,
}

impl Ticket {
    /// The first chunk is about to run.
    pub(super) fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.shared.state().unstarted -= 1;
        }
    }

    /// All but `remaining` prompt tokens have been computed. Never goes back: work repeated after a preemption was
    /// already admitted once.
    pub(super) fn remaining(&mut self, remaining: usize) {
        if remaining < self.pending_tokens {
            let computed = self.pending_tokens - remaining;
            let mut state = self.shared.state();
            state.pending_tokens -= computed;
            if let Some(held) = state.tenants.get_mut(&self.tenant) {
                held.tokens -= computed;
            }
            self.pending_tokens = remaining;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.unfinished -= 1;
        state.unstarted -= usize::from(!self.started);
        state.pending_tokens -= self.pending_tokens;
        if let Some(held) = state.tenants.get_mut(&self.tenant) {
            held.sequences -= 1;
            held.tokens -= self.pending_tokens;
            if held.sequences == 0 {
                state.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_follows_the_recent_throughput() {
        let seconds = |pending_tokens, throughput: &[(f64, f64, f64)]| {
            let mut state = State { pending_tokens, ..State::default() };
            for &(tokens, ends, seconds) in throughput {
                state.throughput.add(tokens, ends, seconds);
            }
            state.retry_after(&QueueLimits { sequences_max: 10, tokens_max: 1000 }, 2).as_secs()
        };
        assert_eq!(seconds(1000, &[]), 1, "nothing is known yet");
        assert_eq!(seconds(0, &[(100.0, 10.0, 1.0)]), 1, "never less");
        assert_eq!(seconds(1000, &[(100.0, 10.0, 1.0)]), 10, "1000 tokens at 100 per second");
        assert_eq!(seconds(100, &[(100.0, 0.1, 1.0)]), 20, "two places at one in 10 s");
        assert_eq!(seconds(1_000_000, &[(100.0, 10.0, 1.0)]), 60, "never more");
        assert_eq!(seconds(1000, &[(0.0, 0.0, 1.0)]), 1, "a stalled engine says nothing about throughput");
        let slow_then_fast = seconds(1000, &[(10.0, 10.0, 1.0), (5000.0, 50.0, 50.0)]);
        assert_eq!(slow_then_fast, 11, "the past fades");
    }

    fn held(tenants: &[(u64, usize, usize)]) -> State {
        let mut state = State::default();
        for &(tenant, sequences, tokens) in tenants {
            state.tenants.insert(tenant, Held { sequences, tokens });
            state.unfinished += sequences;
            state.pending_tokens += tokens;
        }
        state
    }

    #[test]
    fn a_tenant_has_room_up_to_its_share_of_a_queue_that_others_fill() {
        let limits = QueueLimits { sequences_max: 12, tokens_max: 1200 };
        let room = |tenants: &[(u64, usize, usize)], tenant| {
            let Held { sequences, tokens } = held(tenants).room(&limits, tenant);
            (sequences, tokens)
        };
        assert_eq!(room(&[], 1), (12, 1200), "one alone has everything");
        assert_eq!(room(&[(1, 11, 1000)], 1), (1, 200));
        assert_eq!(room(&[(1, 12, 1200)], 1), (0, 0), "its share is not on top of that");
        assert_eq!(room(&[(1, 12, 1200)], 2), (4, 1200), "a third of the places, and any one prompt that fits");
        assert_eq!(room(&[(1, 12, 1200), (2, 3, 300)], 2), (1, 100), "a third of both");
        assert_eq!(room(&[(1, 12, 1200), (2, 4, 400)], 2), (0, 0));
        assert_eq!(room(&[(1, 5, 100), (2, 2, 100)], 2), (5, 1000), "what all leave free is more than the share");
        assert_eq!(room(&[(1, 12, 1200), (2, 12, 1100)], 3), (0, 100), "twice the bounds are the end");
        let many: Vec<_> = (1..=20).map(|tenant| (tenant, 1, 1)).collect();
        assert_eq!(room(&many, 21), (1, 1200), "one place at least, however many they are");
    }

    #[test]
    fn retry_after_counts_those_beyond_the_bound() {
        let limits = QueueLimits { sequences_max: 10, tokens_max: 1000 };
        let mut state = held(&[(1, 10, 0), (2, 3, 0)]);
        state.throughput.add(100.0, 1.0, 1.0);
        assert_eq!(state.retry_after(&limits, 2).as_secs(), 5, "three beyond the bound, and two places");
    }

    #[test]
    fn the_time_until_the_queue_is_empty_is_unknown_before_anything_ran() {
        let mut state = State::default();
        assert_eq!(state.empty_in(), Some(Duration::ZERO));
        state = held(&[(1, 4, 300)]);
        assert_eq!(state.empty_in(), None);
        state.throughput.add(100.0, 0.0, 1.0);
        assert_eq!(state.empty_in(), Some(Duration::from_secs(3)), "300 tokens at 100 per second");
        state.throughput.add(0.0, 1.0, 1.0);
        assert!(state.empty_in() > Some(Duration::from_secs(7)), "four ends at less than one in two seconds");
    }
}
