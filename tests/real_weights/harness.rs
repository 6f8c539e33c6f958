//! An engine on a real model, driven without HTTP.
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Device;
use wick::engine::{
    EngineHandle, EngineStats, GenerationRequest, GenerationStream, QueueLimits, SeqEvent, StepObserver, StepReport,
};
use wick::kv::CacheSalt;
use wick::model::registry;
use wick::ops::KvDtype;
use wick::runner::device::Machine;
use wick::runner::{ModelRunner, RunnerOptions};
use wick::sampling::{SamplingParams, TokenLogprobs};
use wick::scheduler::{SchedulerConfig, StopLimits};
use wick_kernels::{Isa, Precision};

pub const BLOCK_SIZE: usize = 16;

/// How the engine runs.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub threads: usize,
    /// `None`: what the server takes.
    pub kv: Option<KvDtype>,
    /// How activations are rounded.
    pub activations: Precision,
    pub num_blocks: usize,
    /// Prompt tokens in one step.
    pub chunk: usize,
    pub prefix_cache: bool,
    pub speculation: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            threads: cores(),
            kv: None,
            activations: Precision::Exact,
            num_blocks: 2048,
            chunk: 512,
            prefix_cache: true,
            speculation: true,
        }
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The most sequences that one step computed.
#[derive(Default)]
struct Widest(AtomicUsize);

impl StepObserver for Widest {
    fn observe(&self, step: &StepReport) {
        self.0.fetch_max(step.sequences, Ordering::Relaxed);
    }
}

pub struct Engine {
    handle: EngineHandle,
    widest: Arc<Widest>,
    /// Engines spin on all cores: two at once would only wait for each other.
    _alone: MutexGuard<'static, ()>,
}

/// What a request got.
#[derive(Debug, Clone, Default)]
pub struct Output {
    pub ids: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens from the second on, if asked for.
    pub prompt: Vec<TokenLogprobs>,
    pub cached_tokens: usize,
}

impl Engine {
    pub fn start(model: &Path, setup: Setup) -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let files = wick::weights::open(model).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
        let machine = Machine { device: Device::Cpu, isa: Isa::detect() };
        let spec = registry::spec(&files.config).unwrap();
        let head_dims: Vec<usize> = spec.layers.iter().map(|layer| layer.attn.head_dim).collect();
        let options = RunnerOptions {
            device: Device::Cpu,
            threads: NonZeroUsize::new(setup.threads).unwrap(),
            isa: None,
            activations: setup.activations,
            kv_dtype: setup.kv.unwrap_or_else(|| machine.kv_dtype(&head_dims, BLOCK_SIZE)),
            block_size: BLOCK_SIZE,
            num_blocks: setup.num_blocks,
        };
        let runner = ModelRunner::load(&files, &options).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
        let config = SchedulerConfig {
            block_size: BLOCK_SIZE,
            num_blocks: setup.num_blocks,
            batched_tokens_max: setup.chunk.max(64),
            prefill_chunk_max: setup.chunk,
            running_max: 64,
            context_max: 4096,
            logit_rows_max: 64,
            prefix_cache: setup.prefix_cache,
            speculation: setup.speculation,
        };
        let queue = QueueLimits { sequences_max: 256, tokens_max: 1_000_000 };
        let widest = Arc::new(Widest::default());
        let handle = EngineHandle::spawn_observed(Box::new(runner), config, queue, Some(widest.clone())).unwrap();
        Self { handle, widest, _alone: alone }
    }

    /// Runs requests as one batch; their outputs in order.
    pub fn run(&self, requests: Vec<GenerationRequest>) -> Vec<Output> {
        let streams = self.handle.submit(requests).unwrap();
        streams.into_iter().map(follow).collect()
    }

    /// Runs requests one after the other.
    pub fn run_alone(&self, requests: &[GenerationRequest]) -> Vec<Output> {
        requests.iter().flat_map(|request| self.run(vec![request.clone()])).collect()
    }

    pub fn widest_step(&self) -> usize {
        self.widest.0.load(Ordering::Relaxed)
    }

    pub fn stats(&self) -> EngineStats {
        self.handle.stats()
    }
}

fn follow(mut stream: GenerationStream) -> Output {
    let mut output = Output::default();
    loop {
        match stream.events.blocking_recv().expect("a stream ends with Finished or Failed") {
            SeqEvent::Started { cached_tokens, .. } => output.cached_tokens = cached_tokens,
            SeqEvent::PromptLogprobs(rows) => output.prompt.extend(rows),
            SeqEvent::Token(token, _) => {
                output.ids.push(token.id);
                output.logprobs.push(token.logprobs.expect("log-probabilities were asked for"));
            }
            SeqEvent::Finished { .. } => return output,
            SeqEvent::Embedding(_) => panic!("no request of these embeds"),
            SeqEvent::Failed(failure) => panic!("{failure}"),
        }
    }
}

/// A greedy request for `count` tokens that nothing stops early, with the log-probabilities of `top` alternatives.
pub fn request(prompt: &[u32], count: usize, top: u8) -> GenerationRequest {
    let params = SamplingParams { temperature: 0.0, logprobs: Some(top), ..SamplingParams::default() };
    GenerationRequest {
        prompt: prompt.into(),
        params: Arc::new(params),
        limits: StopLimits { max_new_tokens: count, stop_tokens: Arc::new([]) },
        salt: CacheSalt::default(),
        tenant: 0,
        prompt_logprobs: None,
        grammar: None,
        thoughts: None,
        explain: false,
        embed: None,
    }
}
