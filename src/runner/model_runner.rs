//! The runner of real models.
use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::Device;
use wick_kernels::{Isa, Precision, ThreadPool};

use super::batch::{StepLimits, forward_batch};
use super::device::Machine;
use super::kv_cache::kv_shape;
use super::{Logits, Runner, RunnerError};
use crate::kv::BlockId;
use crate::model::decoder::Decoder;
use crate::model::registry;
use crate::model::spec::DecoderSpec;
use crate::ops::{ExecContext, KvDtype, PagedKv};
use crate::scheduler::{LogitRows, ScheduledSeq, SchedulerOutput, SeqId};
use crate::weights::{LoadError, ModelFiles, WeightSource};

/// How a model is to run.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    pub device: Device,
    /// Threads of the CPU kernels.
    pub threads: NonZeroUsize,
    /// Instruction set of the CPU kernels; `None` takes the machine's best.
    pub isa: Option<Isa>,
    /// How finely the CPU kernels round the activations of products with packed weights.
    pub activations: Precision,
    pub kv_dtype: KvDtype,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks of the KV pool, from the memory plan.
    pub num_blocks: usize,
}

impl RunnerOptions {
    /// The context that ops run in: the kernels on the CPU, candle's operations elsewhere.
    #[must_use]
    pub fn context(&self) -> ExecContext {
        self.context_on(Arc::new(ThreadPool::new(self.threads)))
    }

    /// The same on threads that other models use too.
    #[must_use]
    pub fn context_on(&self, pool: Arc<ThreadPool>) -> ExecContext {
        let machine = Machine { device: self.device.clone(), isa: self.isa.unwrap_or_else(Isa::detect) };
        machine.context(pool, self.activations)
    }
}

/// A decoder, its cache and its device. Knows no sequences: a step brings everything with it.
pub struct ModelRunner {
    cx: ExecContext,
    decoder: Decoder,
    kv: PagedKv,
    limits: StepLimits,
}

impl ModelRunner {
    /// Loads a model from its files and runs one token through it, so that the first request finds warm weights and buffers.
    ///
    /// # Errors
    /// Unknown architecture, missing, left-over or misshapen tensors, or no room on the device.
    pub fn load(files: &ModelFiles, options: &RunnerOptions) -> Result<Self, LoadError> {
        Self::load_in(options.context(), files, options)
    }

    /// The same in a context that the caller has made.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_in(cx: ExecContext, files: &ModelFiles, options: &RunnerOptions) -> Result<Self, LoadError> {
        let spec = registry::spec(&files.config)?;
        let mut runner = Self::new(cx, spec, files.weights.as_ref(), options)?;
        runner.warm_up().map_err(|error| match error {
            RunnerError::Forward(error) => LoadError::Candle(error),
            RunnerError::BadStep(reason) => LoadError::Config(format!("the model cannot run a single token: {reason}")),
        })?;
        Ok(runner)
    }

    /// Loads `spec` from `weights` to run in `cx` (tests bring their own context; `options.device`, `threads` and `isa` are not read).
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn new(
        cx: ExecContext,
        spec: DecoderSpec,
        weights: &dyn WeightSource,
        options: &RunnerOptions,
    ) -> Result<Self, LoadError> {
        if options.block_size == 0 || options.num_blocks == 0 {
            return Err(LoadError::Config("the KV cache needs at least one block of at least one token".to_owned()));
        }
        let limits = StepLimits { vocab: spec.vocab, block_size: options.block_size, num_blocks: options.num_blocks };
        let kv_shape = kv_shape(&spec, options.num_blocks, options.block_size)?;
        let decoder = Decoder::load(spec, weights, &cx)?;
        for (format, matrices) in cx.left_in_place() {
            tracing::info!(
                format,
                matrices,
                "no packed kernels for this format or width: read as in the file, which is slower"
            );
        }
        let kv = PagedKv::new(&cx, kv_shape, options.kv_dtype)?;
        Ok(Self { cx, decoder, kv, limits })
    }

    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        self.decoder.spec()
    }

    /// One line for the log: which arithmetic runs, on how many threads, over which KV cache.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}, {} KV", self.cx.describe(), self.kv.dtype())
    }

    /// One token at position 0 of block 0. Nobody reads what it leaves there: a block is written before it is read.
    fn warm_up(&mut self) -> Result<(), RunnerError> {
        let seq = ScheduledSeq {
            id: SeqId(0),
            start: 0,
            tokens: vec![0],
            drafts: 0,
            blocks: vec![BlockId(0)],
            logits: LogitRows::Last,
            sample: false,
            cached_tokens: None,
        };
        self.execute(&SchedulerOutput { seqs: vec![seq], preempted: vec![] }).map(|_| ())
    }
}

impl Runner for ModelRunner {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        let width = self.dimensions().unwrap_or(self.limits.vocab);
        if step.is_empty() {
            return Ok(Logits { width, ..Logits::default() });
        }
        let batch = forward_batch(step, self.limits)?;
        let _turn = self.cx.turn();
        let (data, peaks) = self.decoder.forward(&self.cx, &batch, &mut self.kv)?;
        // Every sequence may begin a block in the next step.
        let used = batch.block_ids.iter().max().map_or(0, |&block| block as usize + 1);
        self.kv.touch_next(&self.cx, used, used + batch.seqs.len());
        Ok(Logits { data, width, peaks })
    }

    fn recycle(&mut self, logits: Logits) {
        self.cx.give_back(logits.data, logits.peaks);
    }

    fn spread(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let _turn = self.cx.turn();
        self.cx.spread(tasks, f);
    }

    fn vocab(&self) -> usize {
        self.limits.vocab
    }

    fn dimensions(&self) -> Option<usize> {
        let spec = self.decoder.spec();
        spec.embedding.map(|_| spec.hidden)
    }
}
