//! Plain data between the API and the engine thread.
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::grammar::{ConstraintError, Grammar, ThoughtBudget};
use crate::kv::{CacheSalt, ClosestPrefix};
use crate::runner::Pooling;
use crate::sampling::{SampledToken, SamplingParams, TokenLogprobs};
pub use crate::scheduler::FinishReason;
use crate::scheduler::{SchedulerCounters, SchedulerGauges, StopLimits};

/// One sequence: a prompt to go on with, or one to turn into a vector.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    pub prompt: Arc<[u32]>,
    pub params: Arc<SamplingParams>,
    pub limits: StopLimits,
    pub salt: CacheSalt,
    pub tenant: u64,
    /// `Some(n)`: log-probabilities of the prompt's tokens with `n` alternatives each; bypasses the prefix cache.
    pub prompt_logprobs: Option<u8>,
    /// What the generated text must follow. Compiled for this engine's model.
    pub grammar: Option<Arc<Grammar>>,
    /// What bounds the generated text's thoughts. Where a grammar does not allow their end, it wins.
    pub thoughts: Option<Arc<ThoughtBudget>>,
    /// The prompt is to be compared with what is cached.
    pub explain: bool,
    /// The prompt's rows are to be pooled to a vector; nothing is generated, whatever `limits` say. For engines around a model that embeds,
    /// and for no others.
    pub embed: Option<Pooling>,
}

impl GenerationRequest {
    /// A prompt that is to become a vector.
    #[must_use]
    pub fn embedding(prompt: Vec<u32>, pooling: Pooling, salt: CacheSalt, tenant: u64) -> Self {
        Self {
            prompt: prompt.into(),
            params: Arc::default(),
            limits: StopLimits { max_new_tokens: 0, stop_tokens: Arc::new([]) },
            salt,
            tenant,
            prompt_logprobs: None,
            grammar: None,
            thoughts: None,
            explain: false,
            embed: Some(pooling),
        }
    }

    /// How many tokens are to be generated at most.
    pub(super) fn new_tokens(&self) -> usize {
        if self.embed.is_some() { 0 } else { self.limits.max_new_tokens.max(1) }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Of those, taken from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated, the stop token among them.
    pub completion_tokens: usize,
}

/// What became of the guesses (see [`crate::scheduler::ScheduledSeq::drafts`]) that a token decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guesses {
    /// 1: the token had been guessed.
    pub accepted: usize,
    /// Guesses that this token, being another one, made void.
    pub rejected: usize,
}

/// What happens to a sequence, in order: `Started`, `PromptLogprobs`*, `Token`* (or one `Embedding`), then `Finished` or `Failed`, the
/// last event.
#[derive(Debug, Clone, PartialEq)]
pub enum SeqEvent {
    /// The first chunk is about to run.
    Started {
        cached_tokens: usize,
        /// Time between submission and this event.
        queued: Duration,
        /// With [`GenerationRequest::explain`]: how far the prompt goes along with what was cached.
        closest: Option<ClosestPrefix>,
    },
    /// Log-probabilities of the next prompt tokens, from position 1 on (position 0 has none). Over all such events
    /// every position comes exactly once and in order, and all of them before the first `Token`.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// A generated token. The stop token that ends a sequence is one of them, directly before
    /// `Finished { reason: StopToken(..), .. }`: it counts in [`Usage`] and its log-probability may be wanted; whoever
    /// turns tokens into text leaves its text out.
    Token(SampledToken, Guesses),
    /// The vector that the prompt became, as its rows were pooled.
    Embedding(Vec<f32>),
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    /// The sequence was lost; what was sent before stands.
    Failed(EngineFailure),
}

/// Why a running sequence was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFailure {
    #[error("the step that computed this request failed: {message}")]
    Step { message: String },
    /// The sequence's own: others go on.
    #[error(transparent)]
    Grammar(#[from] ConstraintError),
    #[error("the engine stopped")]
    Stopped,
}

/// Why a request was not admitted. Nothing of it was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `waiting_sequences`: admitted and not finished, `waiting_tokens`: their prompt tokens not yet computed, both
    /// without the refused request. `retry_after`: 1 to 60 s, from the recent throughput.
    #[error("the queue is full: {waiting_sequences} requests and {waiting_tokens} prompt tokens are waiting")]
    QueueFull { waiting_sequences: usize, waiting_tokens: usize, retry_after: Duration },
    /// `needed`: prompt and requested output tokens; where not even one output token fits, the prompt and one.
    #[error("this model's maximum context length is {context_max} tokens but {needed} were requested")]
    TooLong { needed: usize, context_max: usize },
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// In the prompt or in `logit_bias`.
    #[error("token id {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange { token: u32, vocab: usize },
    #[error("the request needs {needed} KV blocks but the whole cache has {total}")]
    NeverFits { needed: usize, total: usize },
    #[error("the model {}", if *embeds { "embeds and generates nothing" } else { "generates and does not embed" })]
    WrongTask { embeds: bool },
    #[error("the server is shutting down")]
    Draining,
    #[error("the engine stopped")]
    Stopped,
}

/// Receives a sequence's events; dropping it aborts the sequence.
#[derive(Debug)]
pub struct GenerationStream {
    pub events: mpsc::UnboundedReceiver<SeqEvent>,
}

impl GenerationStream {
    /// The next event; after `Finished` or `Failed`, `None`.
    pub async fn next(&mut self) -> Option<SeqEvent> {
        self.events.recv().await
    }
}

/// Counters and gauges of the engine thread. The `queued_*` gauges are of this moment, all else is as of the last
/// step, arrival or abort that the thread has handled.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    pub scheduler: SchedulerCounters,
    pub gauges: SchedulerGauges,
    pub steps: u64,
    pub failed_steps: u64,
    /// Seconds spent in steps.
    pub busy_seconds: f64,
    /// Prompt tokens of the sequences that got their first token, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Sequences that ended by themselves.
    pub finished: u64,
    /// Sequences whose stream was dropped before the end.
    pub aborted: u64,
    /// Sequences lost with a failed step, or by a failure of their own in one.
    pub failed: u64,
    /// Tokens computed in the last step, over all sequences.
    pub last_step_tokens: usize,
    /// Sequences admitted and not yet started.
    pub queued_sequences: usize,
    /// Prompt tokens not yet computed, over all admitted sequences.
    pub queued_tokens: usize,
}

/// One step, for histograms such as the tokens per iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Tokens computed, over all sequences.
    pub tokens: usize,
    pub sequences: usize,
    /// Tokens sampled; 0 when the step failed.
    pub sampled: usize,
    pub seconds: f64,
    pub failed: bool,
}

/// Is told about every step, on the engine thread: it must be quick and must not block.
pub trait StepObserver: Send + Sync {
    fn observe(&self, step: &StepReport);
}
