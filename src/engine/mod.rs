//! The engine's public face: submit token ids, receive tokens. It never sees text.
//!
//! One thread owns the runner and the scheduler (`core`); handles share the admission state with it
//! (`admission`), so that a submission is admitted or refused on the spot, without waiting for a step.
mod admission;
mod core;
mod masks;
pub mod message;
mod pace;
#[cfg(test)]
mod tests;

use std::sync::{Arc, mpsc};
use std::time::Duration;

pub use message::{
    EngineFailure, EngineStats, FinishReason, GenerationRequest, GenerationStream, Guesses, SeqEvent, StepObserver,
    StepReport, SubmitError, Usage,
};

use self::admission::{Admitted, Shared};
use self::core::EngineCore;
use crate::runner::Runner;
use crate::scheduler::SchedulerConfig;

/// Bounds of the waiting queue; one more is refused with [`SubmitError::QueueFull`].
///
/// A tenant may use the whole queue while others leave it. When it is full, a tenant that holds less than its share (the
/// bound divided by one more than the tenants that have anything unfinished, itself included) is still admitted up to
/// that share, and with one prompt of any length when it has none waiting, as long as all together stay within twice the
/// bound. So nobody is locked out by one who fills the queue, and memory is bounded.
///
/// A group of requests that exceeds a bound all alone is admitted when nothing else counts against that bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Sequences admitted and not finished.
    pub sequences_max: usize,
    /// Prompt tokens not yet computed, over all admitted sequences.
    pub tokens_max: usize,
}

/// How full the queue is for one tenant, at this moment: what a client needs to pace itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLoad {
    pub limits: QueueLimits,
    /// Sequences that the tenant may still submit: 0 means that the next one is refused, and so it is while draining.
    pub sequences_left: usize,
    /// Prompt tokens that the tenant may still submit. (A single group may exceed it where nothing else is waiting.)
    pub tokens_left: usize,
    /// Estimated time until everything admitted now has ended, in engine time as of the recent throughput, which leaves
    /// out whatever comes later. Zero when nothing is unfinished, `None` before the first steps have been measured.
    pub empty_in: Option<Duration>,
}

/// Facts about the running engine that the API needs for validation.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    pub context_max: usize,
    pub vocab: usize,
    /// Values of a vector, if the model embeds; `None`: it generates.
    pub dimensions: Option<usize>,
    pub scheduler: SchedulerConfig,
    pub queue: QueueLimits,
}

/// Cheap to clone; dropping the last handle stops the engine thread once it is idle.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Vec<Admitted>>,
}

impl EngineHandle {
    /// Starts the engine thread around a runner.
    pub fn spawn(runner: Box<dyn Runner>, config: SchedulerConfig, queue: QueueLimits) -> std::io::Result<Self> {
        Self::spawn_observed(runner, config, queue, None)
    }

    /// As [`EngineHandle::spawn`]; `observer` is told about every step.
    pub fn spawn_observed(
        runner: Box<dyn Runner>,
        config: SchedulerConfig,
        queue: QueueLimits,
        observer: Option<Arc<dyn StepObserver>>,
    ) -> std::io::Result<Self> {
        let info = EngineInfo {
            context_max: config.context_max,
            vocab: runner.vocab(),
            dimensions: runner.dimensions(),
            scheduler: config,
            queue,
        };
        let shared = Arc::new(Shared::new(info));
        let (commands, receiver) = mpsc::channel();
        let core = EngineCore::new(runner, config, receiver, shared.clone(), observer);
        std::thread::Builder::new().name("wick-engine".into()).spawn(move || core.run())?;
        Ok(Self { shared, commands })
    }

    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Submits requests of one tenant that are admitted together or not at all (`n` choices of one request). One stream each.
    /// Dropping a stream aborts its sequence within one step.
    ///
    /// Never blocks. `max_new_tokens` must fit the context beside the prompt; defaults are the caller's business.
    pub fn submit(&self, requests: Vec<GenerationRequest>) -> Result<Vec<GenerationStream>, SubmitError> {
        for request in &requests {
            self.check(request)?;
        }
        self.shared.admit(requests, |group| self.commands.send(group).map_err(|refused| refused.0))
    }

    /// Whether the request could run on an empty engine.
    fn check(&self, request: &GenerationRequest) -> Result<(), SubmitError> {
        let EngineInfo { context_max, vocab, dimensions, scheduler, .. } = *self.info();
        if request.embed.is_some() != dimensions.is_some() {
            return Err(SubmitError::WrongTask { embeds: dimensions.is_some() });
        }
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let new_tokens = request.new_tokens();
        let least = prompt.saturating_add(new_tokens.min(1));
        if least > context_max {
            return Err(SubmitError::TooLong { needed: least, context_max });
        }
        let needed = prompt.saturating_add(new_tokens);
        if needed > context_max {
            return Err(SubmitError::TooLong { needed, context_max });
        }
        let mut tokens = request.prompt.iter().copied().chain(request.params.logit_bias.iter().map(|bias| bias.0));
        if let Some(token) = tokens.find(|&token| token as usize >= vocab) {
            return Err(SubmitError::TokenOutOfRange { token, vocab });
        }
        // The last token generated is never an input, so it needs no slot.
        let blocks = (needed - new_tokens.min(1)).div_ceil(scheduler.block_size.max(1));
        if blocks > scheduler.num_blocks {
            return Err(SubmitError::NeverFits { needed: blocks, total: scheduler.num_blocks });
        }
        Ok(())
    }

    /// New submissions are refused with [`SubmitError::Draining`]; running ones go on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Resolves when no sequence is waiting or running and all their events were sent.
    pub async fn wait_idle(&self) {
        self.shared.wait_idle().await;
    }

    /// False after an invariant broke in the engine thread: the process should be restarted.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.shared.is_healthy()
    }

    /// Resolves when the engine has become unhealthy, never before: `main` waits for it to exit non-zero.
    pub async fn failed(&self) {
        self.shared.failed().await;
    }

    /// How full the queue is for a tenant. Cheap: a lock and a few divisions.
    #[must_use]
    pub fn load(&self, tenant: u64) -> QueueLoad {
        self.shared.load(tenant)
    }

    /// Whether this many more sequences would have to wait for others to end: for a place to run in, or for memory, which others
    /// waited for at the end of the last step.
    #[must_use]
    pub fn is_busy(&self, sequences: usize) -> bool {
        self.shared.is_busy(sequences)
    }

    /// A snapshot of counters and gauges for /metrics.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }
}
