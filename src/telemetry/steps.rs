//! What each step of an engine does.
use prometheus_client::metrics::histogram::Histogram;

use crate::engine::{StepObserver, StepReport};

/// Upper bounds in tokens of a step.
const STEP_TOKENS: [f64; 14] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// Observes an engine's steps. Give one to `EngineHandle::spawn_observed` and to the `ServedModel` of that engine.
#[derive(Debug)]
pub struct StepMetrics {
    /// Tokens computed in a step, over all its sequences.
    pub(super) tokens: Histogram,
}

impl Default for StepMetrics {
    fn default() -> Self {
        Self { tokens: Histogram::new(STEP_TOKENS) }
    }
}

impl StepObserver for StepMetrics {
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    fn observe(&self, step: &StepReport) {
        self.tokens.observe(step.tokens as f64);
    }
}
