//! From a model's name to a running engine: what `serve`, `chat` and `bench` share.
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;

use wick_kernels::{Isa, Precision};

use crate::config::{ActivationsArg, EngineArgs, FetchArgs, KvDtypeArg};
use crate::engine::{EngineHandle, QueueLimits, StepObserver};
use crate::hub::{self, LocalModel};
use crate::model::registry;
use crate::ops::KvDtype;
use crate::runner::device::{DeviceChoice, select};
use crate::runner::memory::available_bytes;
use crate::runner::plan::{MemoryPlan, PlanInputs, PlanLimits};
use crate::runner::{ModelRunner, RunnerOptions};
use crate::scheduler::SchedulerConfig;
use crate::text::TextTools;
use crate::weights::{self, ModelFiles};

/// Bytes of logits that a step may hold for requests that want the log-probabilities of their prompt.
const PROMPT_LOGITS_BYTES: usize = 64 << 20;

/// A model whose files are opened and whose memory is planned; nothing big has been loaded yet.
pub(super) struct Planned {
    pub alias: String,
    pub files: ModelFiles,
    pub text: Arc<TextTools>,
    pub plan: MemoryPlan,
    pub scheduler: SchedulerConfig,
    pub runner: RunnerOptions,
    pub queue: QueueLimits,
}

/// The memory that a model may plan with: what other models of this process have not planned. Of that, the cache that nobody
/// gave a size is shared evenly with the models still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes planned by models before this one.
    pub taken: u64,
    /// This one and those after it.
    pub models_left: usize,
}

impl Room {
    pub(super) const ALL: Self = Self { taken: 0, models_left: 1 };
}

/// Finds the model (fetching it if need be), reads its headers and tokenizer, and plans its memory.
pub(super) async fn plan_model(
    name: &str,
    engine: &EngineArgs,
    fetch: &FetchArgs,
    room: Room,
) -> anyhow::Result<Planned> {
    check(name, engine, fetch)?;
    let local = hub::resolve(name, &fetch.options()).await?;
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || plan_local(&local, &engine, room)).await.context("opening the model")?
}

/// What can be refused before a model is fetched.
pub(super) fn check(name: &str, engine: &EngineArgs, fetch: &FetchArgs) -> anyhow::Result<()> {
    select(DeviceChoice::parse(&engine.device)?)?;
    engine.isa.as_deref().map(wick_kernels::Isa::from_name).transpose()?;
    if let (Some(asked), Some(context)) = (engine.context, hub::known_context(name, &fetch.options())?) {
        fits(asked, context, name)?;
    }
    Ok(())
}

fn fits(asked: NonZeroUsize, context: usize, name: &str) -> anyhow::Result<usize> {
    anyhow::ensure!(
        asked.get() <= context,
        "--context {asked} is more than the {context} tokens that {name} was made for: lower it"
    );
    Ok(asked.get())
}

fn plan_local(local: &LocalModel, args: &EngineArgs, room: Room) -> anyhow::Result<Planned> {
    let (device, why) = select(DeviceChoice::parse(&args.device)?)?;
    tracing::info!(device = %why, "device");
    let isa = args.isa.as_deref().map(Isa::from_name).transpose()?;
    let threads = threads(args.threads);
    let files = weights::open(&local.path)?;
    let spec = registry::spec(&files.config)?;
    let text = TextTools::load(&local.path, args.chat_template.as_deref())?;
    let context_max = match args.context {
        Some(asked) => fits(asked, spec.max_context, &local.alias)?,
        None => spec.max_context,
    };
    let block_size = usize::from(args.block_size);
    let logit_rows_max = (PROMPT_LOGITS_BYTES / (spec.vocab * size_of::<f32>())).max(1);
    let kv_dtype = match args.kv_dtype {
        KvDtypeArg::F16 => KvDtype::F16,
        KvDtypeArg::F32 => KvDtype::F32,
    };
    let activations = match args.activations {
        ActivationsArg::Int8 => Precision::Int8,
        ActivationsArg::Exact => Precision::Exact,
    };
    let limits = PlanLimits {
        block_size,
        context_max,
        sequences_max: args.max_running.get(),
        batched_tokens_max: args.batched_tokens.get(),
        logit_rows_max,
    };
    let packed = device.is_cpu() && isa.unwrap_or_else(Isa::detect).packs();
    let copied = if packed { 0 } else { files.weights.copied_bytes() };
    let weight_bytes =
        if packed { files.weights.packed_bytes() } else { files.weights.total_bytes().saturating_add(copied) };
    let mut inputs = PlanInputs::of(&spec, weight_bytes, kv_dtype, limits);
    inputs.copied_bytes = copied;
    inputs.packed = packed;
    inputs.kv_memory = args.kv_memory;
    inputs.kv_sharers = room.models_left;
    if device.is_cpu() {
        inputs.available = available_bytes().map(|bytes| bytes.saturating_sub(room.taken));
    }
    let plan = MemoryPlan::new(inputs)?;
    let scheduler = SchedulerConfig {
        block_size,
        num_blocks: plan.num_blocks,
        batched_tokens_max: args.batched_tokens.get(),
        prefill_chunk_max: args.prefill_chunk.get().min(args.batched_tokens.get()),
        running_max: args.max_running.get(),
        context_max,
        logit_rows_max,
        prefix_cache: !args.no_prefix_cache,
    };
    let runner = RunnerOptions { device, threads, isa, activations, kv_dtype, block_size, num_blocks: plan.num_blocks };
    let queue = QueueLimits { sequences_max: args.queue_requests.get(), tokens_max: args.queue_tokens.get() };
    Ok(Planned { alias: local.alias.clone(), files, text: Arc::new(text), plan, scheduler, runner, queue })
}

/// The threads asked for, or one for each core; more than cores is slower, so it is said.
fn threads(asked: Option<NonZeroUsize>) -> NonZeroUsize {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match asked {
        Some(n) if n > cores => {
            tracing::warn!(
                threads = n,
                cores,
                "more threads than cores: they wait for each other at every step, which is slower"
            );
            n
        }
        Some(n) => n,
        None => cores,
    }
}

impl Planned {
    /// Loads the weights and makes the runner.
    pub(super) fn load(&self) -> anyhow::Result<ModelRunner> {
        let started = Instant::now();
        let runner = ModelRunner::load(&self.files, &self.runner)?;
        tracing::info!(
            model = %self.alias,
            runs = %runner.describe(),
            milliseconds = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        Ok(runner)
    }

    /// Loads the weights and starts the engine thread.
    pub(super) async fn start(
        self,
        observer: Option<Arc<dyn StepObserver>>,
    ) -> anyhow::Result<(EngineHandle, Arc<TextTools>)> {
        tokio::task::spawn_blocking(move || {
            let runner = self.load()?;
            let engine = EngineHandle::spawn_observed(Box::new(runner), self.scheduler, self.queue, observer)
                .context("starting the engine thread")?;
            Ok((engine, self.text))
        })
        .await
        .context("loading the model")?
    }
}
