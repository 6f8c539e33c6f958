//! From a model's name to a running engine: what `serve`, `chat` and `bench` share.
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use wick_kernels::{Isa, Precision};

use crate::config::{ActivationsArg, EngineArgs, FetchArgs, KvDtypeArg, SpeculationArg};
use crate::engine::{EngineHandle, QueueLimits, StepObserver};
use crate::hub::{self, LocalModel};
use crate::model::registry;
use crate::ops::KvDtype;
use crate::runner::device::{DeviceChoice, Machine};
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
struct Room {
    /// Bytes planned by models before this one.
    taken: u64,
    /// This one and those after it.
    models_left: usize,
}

/// Plans one model; see [`plan_models`].
pub(super) async fn plan_model(name: &str, engine: &EngineArgs, fetch: &FetchArgs) -> anyhow::Result<Planned> {
    let mut planned = plan_models(&[name.to_owned()], engine, fetch).await?;
    Ok(planned.remove(0))
}

/// Finds the models (fetching them if need be), reads their headers and tokenizers, and plans their memory. What can be
/// refused without the files is refused before the first is fetched.
pub(super) async fn plan_models(
    names: &[String],
    engine: &EngineArgs,
    fetch: &FetchArgs,
) -> anyhow::Result<Vec<Planned>> {
    let isa = engine.isa.as_deref().map(Isa::from_name).transpose()?;
    let (machine, why) = Machine::choose(DeviceChoice::parse(&engine.device)?, isa)?;
    tracing::info!(device = %why, "device");
    anyhow::ensure!(
        machine.device.is_cpu() || engine.kv_dtype != KvDtypeArg::Int8,
        "--kv-dtype int8 is for the CPU only: choose f16, or --device cpu"
    );
    for name in names {
        if let (Some(asked), Some(context)) = (engine.context, hub::known_context(name, &fetch.options())?) {
            fits(asked, context, name)?;
        }
    }
    let mut planned: Vec<Planned> = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        let taken = planned.iter().map(|p| p.plan.total_bytes).sum();
        let room = Room { taken, models_left: names.len() - i };
        let local = hub::resolve(name, &fetch.options()).await?;
        let (engine, machine) = (engine.clone(), machine.clone());
        let plan = tokio::task::spawn_blocking(move || plan_local(&local, &engine, machine, room));
        planned.push(plan.await.context("opening the model")??);
    }
    Ok(planned)
}

fn fits(asked: NonZeroUsize, context: usize, name: &str) -> anyhow::Result<usize> {
    anyhow::ensure!(
        asked.get() <= context,
        "--context {asked} is more than the {context} tokens that {name} was made for: lower it"
    );
    Ok(asked.get())
}

fn plan_local(local: &LocalModel, args: &EngineArgs, machine: Machine, room: Room) -> anyhow::Result<Planned> {
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
    let activations = match args.activations {
        ActivationsArg::Int8 => Precision::Int8,
        ActivationsArg::Exact => Precision::Exact,
    };
    let head_dims: Vec<usize> = spec.layers.iter().map(|layer| layer.attn.head_dim).collect();
    let kv_dtype = match args.kv_dtype {
        KvDtypeArg::Auto => machine.kv_dtype(activations, &head_dims, block_size),
        KvDtypeArg::F16 => KvDtype::F16,
        KvDtypeArg::Bf16 => KvDtype::Bf16,
        KvDtypeArg::F32 => KvDtype::F32,
        KvDtypeArg::Int8 => KvDtype::I8,
    };
    if let Some(head_dim) =
        head_dims.iter().find(|&&head_dim| machine.device.is_cpu() && !kv_dtype.holds(head_dim, block_size))
    {
        anyhow::bail!(
            "--kv-dtype bf16 needs blocks and heads of a multiple of 16, but the blocks have {block_size} tokens and the model's heads {head_dim} dimensions: choose f16"
        );
    }
    let limits = PlanLimits {
        block_size,
        context_max,
        sequences_max: args.max_running.get(),
        batched_tokens_max: args.batched_tokens.get(),
        logit_rows_max,
    };
    let memory = files.weights.memory(machine.packs());
    let mut inputs = PlanInputs::of(&spec, memory, kv_dtype, limits);
    inputs.kv_memory = args.kv_memory;
    inputs.kv_sharers = room.models_left;
    if machine.device.is_cpu() {
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
        speculation: args.speculation == SpeculationArg::Ngram,
    };
    let Machine { device, isa } = machine;
    let isa = Some(isa);
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
