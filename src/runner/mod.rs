//! Values → tensors → values: runs one step on the device.
//!
//! [`ModelRunner`] is the real [`Runner`]; around it stand what it needs before a step can run: which device ([`device`]), how much memory
//! ([`plan`]), the shape of the cache ([`kv_cache`]); what makes later steps faster ([`large_pages`]).
pub mod batch;
pub mod device;
pub mod kv_cache;
pub mod large_pages;
pub mod memory;
pub mod model_runner;
pub mod plan;
#[doc(hidden)]
pub mod testing;

pub use device::{DeviceChoice, DeviceError};
pub use model_runner::{ModelRunner, RunnerOptions};
pub use plan::{MemoryPlan, PlanError, PlanInputs};

pub use crate::model::embedding::{EmbeddingSpec, Pooler, Pooling, normalize_vector};
use crate::ops::Peaks;
use crate::sampling::LogitRow;
use crate::scheduler::SchedulerOutput;

/// Rows of logits, `[rows, vocab]`, in the order of the step's sequences (`LogitRows::Last` gives one row, `All` one per
/// token of the chunk, `None` none). Of a model that embeds: rows of its hidden states, `[rows, dimensions]`.
#[derive(Debug, Clone, Default)]
pub struct Logits {
    pub data: Vec<f32>,
    /// Values of a row.
    pub width: usize,
    /// Of all rows, or not known.
    pub peaks: Peaks,
}

impl Logits {
    /// The rows, each with its peaks.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = LogitRow<'_>> {
        let Self { data, width, peaks: Peaks { values, run } } = self;
        let runs = width.div_ceil((*run).max(1)).max(1);
        let mut peaks = values.chunks_exact_mut(runs);
        data.chunks_exact_mut((*width).max(1)).map(move |row| match peaks.next() {
            Some(peaks) => LogitRow::bounded(row, peaks, *run),
            None => row.into(),
        })
    }
}

/// Why a step failed. The step's sequences fail with it; the engine goes on.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("the model's forward pass failed: {0}")]
    Forward(#[from] candle_core::Error),
    #[error("the step is malformed: {0}")]
    BadStep(&'static str),
}

/// What runs steps. The engine thread owns it; tests use `testing::FakeRunner`.
pub trait Runner: Send {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError>;

    /// Takes back the memory of a step's logits, for the next step. Who does not give them back only makes the next step
    /// allocate.
    fn recycle(&mut self, logits: Logits) {
        drop(logits);
    }

    /// Runs `f(0)` to `f(tasks - 1)`, each once and in any order, on the threads that steps run on: they have nothing else
    /// to do between two steps. By default on the caller's.
    fn spread(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(f);
    }

    fn vocab(&self) -> usize;

    /// Values of a vector, of a model that embeds; `None`: the model gives logits.
    fn dimensions(&self) -> Option<usize> {
        None
    }
}
