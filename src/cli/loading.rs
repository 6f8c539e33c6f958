//! From a model's name to a running engine: what `serve`, `chat` and `bench` share.
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use wick_kernels::{Isa, Precision, ThreadPool, give_back_freed};

use crate::config::{ActivationsArg, EngineArgs, FetchArgs, KvDtypeArg, SpeculationArg};
use crate::encoder::{
    self, EmbeddingSpec, EncoderFiles, EncoderHandle, EncoderInfo, EncoderLimits, EncoderModel, EncoderPlan,
};
use crate::engine::{EngineHandle, QueueLimits, StepObserver};
use crate::hub::{self, LocalModel};
use crate::model::registry;
use crate::ops::{ExecContext, KvDtype};
use crate::runner::device::{DeviceChoice, Machine};
use crate::runner::large_pages;
use crate::runner::memory::available_bytes;
use crate::runner::plan::{MemoryPlan, PlanInputs, PlanLimits};
use crate::runner::{ModelRunner, RunnerOptions};
use crate::scheduler::SchedulerConfig;
use crate::text::TextTools;
use crate::weights::{self, ModelFiles};

/// Bytes of logits that a step may hold for requests that want the log-probabilities of their prompt.
const PROMPT_LOGITS_BYTES: usize = 64 << 20;

/// Sequences in the queue of a model that embeds, for each request that may wait: a request may have many texts, and its tokens are what
/// it costs.
const QUEUED_TEXTS_PER_REQUEST: usize = 16;

/// A model of either kind, planned.
pub(super) enum PlannedModel {
    Decoder(Box<Planned>),
    Encoder(Box<PlannedEncoder>),
}

/// A decoder, which generates or embeds, whose files are opened and whose memory is planned; nothing big has been loaded yet.
pub(super) struct Planned {
    pub alias: String,
    /// Further names of the catalogue.
    pub also: Vec<String>,
    pub files: ModelFiles,
    pub text: Arc<TextTools>,
    pub plan: MemoryPlan,
    pub scheduler: SchedulerConfig,
    pub runner: RunnerOptions,
    pub queue: QueueLimits,
    /// What all models of the process compute on.
    pool: Arc<ThreadPool>,
}

/// The same for an encoder.
pub(super) struct PlannedEncoder {
    pub alias: String,
    /// Further names of the catalogue.
    pub also: Vec<String>,
    files: EncoderFiles,
    text: Arc<TextTools>,
    pub plan: EncoderPlan,
    limits: EncoderLimits,
    cx: ExecContext,
    pool: Arc<ThreadPool>,
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

/// What all models of the process run on.
#[derive(Clone)]
struct Hardware {
    machine: Machine,
    pool: Arc<ThreadPool>,
}

/// Plans one model that generates; see [`plan_models`].
pub(super) async fn plan_model(name: &str, engine: &EngineArgs, fetch: &FetchArgs) -> anyhow::Result<Planned> {
    match plan_models(&[name.to_owned()], engine, fetch).await?.remove(0) {
        PlannedModel::Decoder(planned) if planned.embedding().is_none() => Ok(*planned),
        other => anyhow::bail!(
            "{} generates no text: it is a model for embeddings or scores, which `wick serve` serves",
            other.alias()
        ),
    }
}

/// Finds the models (fetching them if need be), reads their headers and tokenizers, and plans their memory. What can be
/// refused without the files is refused before the first is fetched.
pub(super) async fn plan_models(
    names: &[String],
    engine: &EngineArgs,
    fetch: &FetchArgs,
) -> anyhow::Result<Vec<PlannedModel>> {
    let isa = engine.isa.as_deref().map(Isa::from_name).transpose()?;
    let (machine, why) = Machine::choose(DeviceChoice::parse(&engine.device)?, isa)?;
    tracing::info!(device = %why, "device");
    match engine.kv_dtype {
        KvDtypeArg::Int16 | KvDtypeArg::Int8 => anyhow::ensure!(
            machine.device.is_cpu(),
            "--kv-dtype int16 and int8 are for the CPU only: choose f16, or --device cpu"
        ),
        KvDtypeArg::Bf16 => anyhow::ensure!(
            !machine.device.is_cpu(),
            "--kv-dtype bf16 is for GPUs only: on the CPU choose f16, or int16, which are more exact and take as much memory"
        ),
        KvDtypeArg::Auto | KvDtypeArg::F16 | KvDtypeArg::F32 => {}
    }
    for name in names {
        if let (Some(asked), Some(context)) = (engine.context, hub::known_context(name, &fetch.options())?) {
            fits(asked, context, name)?;
        }
    }
    let mut models = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let local = hub::resolve(name, &fetch.options()).await?;
        models.push((place, encoder::is_encoder(&local.path), local));
    }
    // Encoders first: what they take is fixed, and what they leave is for the others' caches.
    models.sort_by_key(|(_, is_encoder, _)| !is_encoder);
    let hardware = Hardware { machine, pool: pool(engine.threads) };
    let (mut taken, mut planned) = (0, Vec::with_capacity(names.len()));
    let count = models.len();
    for (i, (place, is_encoder, local)) in models.into_iter().enumerate() {
        let room = Room { taken, models_left: count - i };
        let (engine, hardware) = (engine.clone(), hardware.clone());
        let plan = tokio::task::spawn_blocking(move || {
            if is_encoder {
                plan_encoder(&local, &engine, hardware, room).map(|planned| PlannedModel::Encoder(Box::new(planned)))
            } else {
                plan_local(&local, &engine, hardware, room).map(|planned| PlannedModel::Decoder(Box::new(planned)))
            }
        });
        let plan = plan.await.context("opening the model")??;
        taken += plan.total_bytes();
        planned.push((place, plan));
    }
    planned.sort_by_key(|(place, _)| *place);
    Ok(planned.into_iter().map(|(_, plan)| plan).collect())
}

fn plan_encoder(
    local: &LocalModel,
    args: &EngineArgs,
    hardware: Hardware,
    room: Room,
) -> anyhow::Result<PlannedEncoder> {
    let Hardware { machine, pool } = hardware;
    let files = encoder::open(&local.path).with_context(|| format!("opening {}", local.alias))?;
    let text = TextTools::load(&local.path, None)?;
    anyhow::ensure!(
        !files.spec.is_reranker() || text.tokenizer.frame_pair_len().is_some(),
        "{}: tokenizer.json says nothing of how two texts are put together, which a reranker needs",
        local.alias
    );
    let available = if machine.device.is_cpu() { available(room) } else { None };
    let cx = machine.context(Arc::clone(&pool), precision(args.activations));
    let batch_tokens = args.batched_tokens.get();
    let plan = EncoderPlan::new(&files, &cx, batch_tokens, available)?;
    let limits = EncoderLimits {
        requests_max: args.queue_requests.get(),
        tokens_max: args.queue_tokens.get(),
        batch_tokens_max: batch_tokens,
    };
    let (alias, also) = (local.alias.clone(), local.aliases.clone());
    Ok(PlannedEncoder { alias, also, files, text: Arc::new(text), plan, limits, cx, pool })
}

fn precision(activations: ActivationsArg) -> Precision {
    match activations {
        ActivationsArg::Int8 => Precision::Int8,
        ActivationsArg::Exact => Precision::Exact,
    }
}

/// What the machine has left beside the models that have been planned.
fn available(room: Room) -> Option<u64> {
    available_bytes().map(|bytes| bytes.saturating_sub(room.taken))
}

fn fits(asked: NonZeroUsize, context: usize, name: &str) -> anyhow::Result<usize> {
    anyhow::ensure!(
        asked.get() <= context,
        "--context {asked} is more than the {context} tokens that {name} was made for: lower it"
    );
    Ok(asked.get())
}

fn plan_local(local: &LocalModel, args: &EngineArgs, hardware: Hardware, room: Room) -> anyhow::Result<Planned> {
    let Hardware { machine, pool } = hardware;
    let mut files = weights::open(&local.path)?;
    let spec = registry::spec(&files.config)?;
    let template = args.chat_template.as_deref();
    let text = match files.gguf.take() {
        Some(file) => TextTools::from_gguf(&file, template)?,
        None => TextTools::load(&local.path, template)?,
    };
    let context_max = match args.context {
        Some(asked) => fits(asked, spec.max_context, &local.alias)?,
        None => spec.max_context,
    };
    let block_size = usize::from(args.block_size);
    let logit_rows_max = (PROMPT_LOGITS_BYTES / (spec.row_width() * size_of::<f32>())).max(1);
    let head_dims: Vec<usize> = spec.layers.iter().map(|layer| layer.attn.head_dim).collect();
    let kv_dtype = match args.kv_dtype {
        KvDtypeArg::Auto => machine.kv_dtype(&head_dims, block_size),
        KvDtypeArg::F16 => KvDtype::F16,
        KvDtypeArg::Bf16 => KvDtype::Bf16,
        KvDtypeArg::F32 => KvDtype::F32,
        KvDtypeArg::Int16 => KvDtype::I16,
        KvDtypeArg::Int8 => KvDtype::I8,
    };
    if let Some(head_dim) =
        head_dims.iter().find(|&&head_dim| machine.device.is_cpu() && !kv_dtype.holds(head_dim, block_size))
    {
        anyhow::bail!(
            "--kv-dtype {kv_dtype} needs blocks and heads of a multiple of {}, but the blocks have {block_size} tokens and the model's heads {head_dim} dimensions: choose f16",
            kv_dtype.multiple()
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
        inputs.available = available(room);
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
        speculation: args.speculation == SpeculationArg::Ngram && spec.embedding.is_none(),
    };
    let runner = RunnerOptions {
        device: machine.device,
        threads: threads(args.threads),
        isa: Some(machine.isa),
        activations: precision(args.activations),
        kv_dtype,
        block_size,
        num_blocks: plan.num_blocks,
    };
    let sequences_max = match spec.embedding {
        None => args.queue_requests.get(),
        Some(_) => args.queue_requests.get().saturating_mul(QUEUED_TEXTS_PER_REQUEST),
    };
    let queue = QueueLimits { sequences_max, tokens_max: args.queue_tokens.get() };
    let (alias, also) = (local.alias.clone(), local.aliases.clone());
    Ok(Planned { alias, also, files, text: Arc::new(text), plan, scheduler, runner, queue, pool })
}

/// The threads asked for, or one for each core.
fn threads(asked: Option<NonZeroUsize>) -> NonZeroUsize {
    asked.unwrap_or_else(cores)
}

fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The threads that all models share; more than cores is slower, so it is said.
fn pool(asked: Option<NonZeroUsize>) -> Arc<ThreadPool> {
    let (threads, cores) = (threads(asked), cores());
    if threads > cores {
        tracing::warn!(
            threads,
            cores,
            "more threads than cores: they wait for each other at every step, which is slower"
        );
    }
    Arc::new(ThreadPool::new(threads))
}

impl PlannedModel {
    pub(super) fn alias(&self) -> &str {
        match self {
            Self::Decoder(planned) => &planned.alias,
            Self::Encoder(planned) => &planned.alias,
        }
    }

    /// Its further names.
    pub(super) fn also(&self) -> &[String] {
        match self {
            Self::Decoder(planned) => &planned.also,
            Self::Encoder(planned) => &planned.also,
        }
    }

    pub(super) fn rename(&mut self, alias: &str) {
        let own = match self {
            Self::Decoder(planned) => &mut planned.alias,
            Self::Encoder(planned) => &mut planned.alias,
        };
        alias.clone_into(own);
    }

    /// The plan of its memory, to be printed.
    pub(super) fn plan(&self) -> &dyn std::fmt::Display {
        match self {
            Self::Decoder(planned) => &planned.plan,
            Self::Encoder(planned) => &planned.plan,
        }
    }

    fn total_bytes(&self) -> u64 {
        match self {
            Self::Decoder(planned) => planned.plan.total_bytes,
            Self::Encoder(planned) => planned.plan.total_bytes,
        }
    }
}

/// Loads weights: what the tokenizer was made of would be in memory beside them, and what they were made of from then on.
fn alone_in_memory<T>(load: impl FnOnce() -> T) -> T {
    give_back_freed();
    let loaded = load();
    give_back_freed();
    loaded
}

impl PlannedEncoder {
    /// Loads the weights and starts the encoder's thread.
    pub(super) async fn start(self) -> anyhow::Result<(EncoderHandle, Arc<TextTools>)> {
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let info = EncoderInfo::from(&self.files.spec);
            let model = alone_in_memory(|| EncoderModel::load(&self.files, self.cx))?;
            tracing::info!(
                model = %self.alias,
                runs = %model.describe(),
                milliseconds = started.elapsed().as_millis() as u64,
                "model loaded"
            );
            let handle =
                EncoderHandle::spawn(Box::new(model), info, self.limits).context("starting the encoder's thread")?;
            large_pages::move_in_background(self.pool);
            Ok((handle, self.text))
        })
        .await
        .context("loading the model")?
    }
}

impl Planned {
    /// How it embeds; `None`: it generates.
    pub(super) fn embedding(&self) -> Option<EmbeddingSpec> {
        self.files.config.embedding
    }

    /// Loads the weights and makes the runner.
    pub(super) fn load(&self) -> anyhow::Result<ModelRunner> {
        let started = Instant::now();
        let cx = self.runner.context_on(Arc::clone(&self.pool));
        let runner = alone_in_memory(|| ModelRunner::load_in(cx, &self.files, &self.runner))?;
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
            large_pages::move_in_background(self.pool);
            Ok((engine, self.text))
        })
        .await
        .context("loading the model")?
    }
}
