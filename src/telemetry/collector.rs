//! The engines' own numbers, read when somebody scrapes.
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::steps::StepMetrics;
use crate::engine::{EngineHandle, EngineStats};

/// A served model, as far as metrics are concerned.
pub(crate) struct Observed {
    pub(crate) model: String,
    pub(crate) engine: EngineHandle,
    pub(crate) steps: Option<Arc<StepMetrics>>,
}

/// Every served model.
pub(super) struct EngineCollector {
    pub(super) observed: Vec<Observed>,
}

impl std::fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.observed.iter().map(|observed| &observed.model)).finish()
    }
}

/// Labels that the `vllm:` names carry; wick runs one engine per model.
fn labels(model: &str) -> [(&'static str, String); 2] {
    [("model_name", model.to_owned()), ("engine", "0".to_owned())]
}

type Gauge = (&'static str, &'static str, fn(&EngineStats) -> f64);
type Counter = (&'static str, &'static str, fn(&EngineStats) -> f64);

#[expect(clippy::cast_precision_loss, reason = "metrics are floats; counts below 2^53 are exact")]
const GAUGES: &[Gauge] = &[
    // The scheduler counts what it was handed; what is still on its way there waits too.
    ("vllm:num_requests_waiting", "Sequences waiting to run", |stats| waiting(stats) as f64),
    ("vllm:num_requests_running", "Sequences running", |stats| stats.gauges.running as f64),
    ("vllm:kv_cache_usage_perc", "Share of KV cache blocks in use, 0 to 1", kv_usage),
    ("wick_kv_blocks_used", "KV cache blocks in use", |stats| stats.gauges.blocks_used as f64),
    ("wick_kv_blocks", "KV cache blocks in the pool", |stats| stats.gauges.blocks_total as f64),
    ("wick_queued_prompt_tokens", "Prompt tokens admitted and not yet computed", |stats| stats.queued_tokens as f64),
];

#[expect(clippy::cast_precision_loss, reason = "metrics are floats; counts below 2^53 are exact")]
const COUNTERS: &[Counter] = &[
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", |stats| {
        stats.scheduler.prefix_queried_tokens as f64
    }),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", |stats| {
        stats.scheduler.prefix_hit_tokens as f64
    }),
    ("vllm:num_preemptions", "Sequences that lost their blocks and were recomputed", |stats| {
        stats.scheduler.preemptions as f64
    }),
    ("vllm:spec_decode_num_draft_tokens", "Guesses of next tokens that were computed", |stats| {
        stats.scheduler.drafted_tokens as f64
    }),
    ("vllm:spec_decode_num_accepted_tokens", "Guesses that were right", |stats| stats.scheduler.accepted_tokens as f64),
    ("wick_rejected_draft_tokens", "Guesses that were wrong", |stats| {
        (stats.scheduler.drafted_tokens - stats.scheduler.accepted_tokens) as f64
    }),
    ("wick_engine_steps", "Steps of the engine", |stats| stats.steps as f64),
    ("wick_engine_failed_steps", "Steps that failed", |stats| stats.failed_steps as f64),
    ("wick_engine_busy_seconds", "Seconds spent in steps", |stats| stats.busy_seconds),
    ("wick_engine_computed_tokens", "Tokens computed, recomputed ones included", |stats| {
        stats.scheduler.computed_tokens as f64
    }),
];

fn waiting(stats: &EngineStats) -> usize {
    stats.queued_sequences.max(stats.gauges.waiting)
}

#[expect(clippy::cast_precision_loss, reason = "block counts are far below 2^53")]
fn kv_usage(stats: &EngineStats) -> f64 {
    stats.gauges.blocks_used as f64 / stats.gauges.blocks_total.max(1) as f64
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let stats: Vec<(&str, EngineStats)> =
            self.observed.iter().map(|observed| (observed.model.as_str(), observed.engine.stats())).collect();
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (model, stats) in &stats {
                ConstGauge::new(value(stats)).encode(family.encode_family(&labels(model))?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, stats) in &stats {
                ConstCounter::new(value(stats)).encode(family.encode_family(&labels(model))?)?;
            }
        }
        let help = "Shape of the KV cache";
        let mut family = encoder.encode_descriptor("vllm:cache_config_info", help, None, MetricType::Gauge)?;
        for Observed { model, engine, .. } in &self.observed {
            let scheduler = &engine.info().scheduler;
            let [name, number] = labels(model);
            let labels = [
                name,
                number,
                ("block_size", scheduler.block_size.to_string()),
                ("num_gpu_blocks", scheduler.num_blocks.to_string()),
            ];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
        let help = "Tokens computed in a step";
        let name = "vllm:iteration_tokens_total";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for Observed { model, steps, .. } in &self.observed {
            if let Some(steps) = steps {
                steps.tokens.encode(family.encode_family(&labels(model))?)?;
            }
        }
        Ok(())
    }
}
