//! What the handles and the engine thread share: who was admitted, how full the queue is, statistics, health.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::message::{EngineStats, GenerationRequest, GenerationStream, SeqEvent, SubmitError};
use super::{EngineInfo, QueueLimits};
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
    draining: bool,
    stopped: bool,
    throughput: Throughput,
    stats: EngineStats,
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
        if !state.has_room(&self.info.queue, requests.len(), tokens) {
            return Err(SubmitError::QueueFull {
                waiting_sequences: state.unfinished,
                waiting_tokens: state.pending_tokens,
                retry_after: state.retry_after(requests.len()),
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
                let ticket = Ticket { shared: self.clone(), pending_tokens: request.prompt.len(), started: false };
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
    fn has_room(&self, limits: &QueueLimits, sequences: usize, tokens: usize) -> bool {
        let sequences_fit = self.unfinished == 0 || self.unfinished.saturating_add(sequences) <= limits.sequences_max;
        let tokens_fit = self.pending_tokens == 0 || self.pending_tokens.saturating_add(tokens) <= limits.tokens_max;
        sequences_fit && tokens_fit
    }

    /// When `sequences` may find room: the waiting prompt tokens computed, and as many sequences ended.
    fn retry_after(&self, sequences: usize) -> Duration {
        let compute = self.pending_tokens as f64 / self.throughput.tokens_per_second();
        let ends = sequences as f64 / self.throughput.ends_per_second();
        let known = [compute, ends].into_iter().filter(|s| s.is_finite()).fold(0.0, f64::max);
        Duration::from_secs_f64(known.clamp(RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S).ceil())
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
            self.shared.state().pending_tokens -= self.pending_tokens - remaining;
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
            state.retry_after(2).as_secs()
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
}
