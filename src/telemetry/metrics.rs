//! What requests cost, as counters and histograms: wick's own names, and the `vllm:` names that gateways and harnesses
//! read.
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::collector::{EngineCollector, Observed};
use super::exposition::to_classic;

type Labels = Vec<(&'static str, String)>;

/// Upper bounds in seconds: to the first token, and for whole requests.
const SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Upper bounds in seconds between tokens.
const TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0,
    40.0, 80.0,
];
/// Upper bounds in tokens of a request.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0, 200_000.0,
];

#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<Labels, Histogram, Buckets>;

/// The registry and the families that the API writes to.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    tenant_tokens: Family<Labels, Counter>,
    success: Family<Labels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    generation_tokens: Family<Labels, Counter>,
    kept_responses: Family<Labels, Gauge>,
    kept_bytes: Family<Labels, Gauge>,
    histograms: [Histograms; HISTOGRAMS.len()],
}

/// Name, help and bounds, in the order of the fields of [`ModelMetrics`].
const HISTOGRAMS: [(&str, &str, &[f64]); 9] = [
    ("vllm:time_to_first_token_seconds", "From a request's arrival to its first token", SECONDS),
    ("vllm:inter_token_latency_seconds", "Between the tokens of a sequence", TOKEN_SECONDS),
    ("vllm:e2e_request_latency_seconds", "From a request's arrival to its last token", SECONDS),
    ("vllm:request_queue_time_seconds", "From admission to the first step", SECONDS),
    ("vllm:request_prefill_time_seconds", "From the first step to the first token", SECONDS),
    ("vllm:request_decode_time_seconds", "From the first token to the last", SECONDS),
    ("vllm:request_inference_time_seconds", "From the first step to the last token", SECONDS),
    ("vllm:request_prompt_tokens", "Tokens of a sequence's prompt", TOKENS),
    ("vllm:request_generation_tokens", "Tokens generated for a sequence", TOKENS),
];

/// One model's histograms and counters.
#[derive(Clone)]
pub(crate) struct ModelMetrics {
    first_token: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt: Histogram,
    generation: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    stop: Counter,
    length: Counter,
    abort: Counter,
    error: Counter,
}

/// What a finished HTTP request is counted under. All values come from small fixed sets.
pub(crate) struct RequestLabels<'r> {
    pub(crate) method: &'r str,
    /// The route's pattern, not the path.
    pub(crate) route: &'r str,
    pub(crate) status: u16,
    pub(crate) tenant: &'r str,
}

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stop,
    Length,
    Error,
    Abort,
}

/// Methods with a label of their own; HTTP allows any word.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

impl Metrics {
    pub(crate) fn new(observed: Vec<Observed>) -> Self {
        let mut registry = Registry::default();
        let mut counter = |name: &str, help: &str| {
            let family = Family::<Labels, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let requests = counter("wick_http_requests", "HTTP requests answered; status 499: the client left first");
        let tenant_tokens =
            counter("wick_tenant_tokens", "Tokens by tenant and kind: prompt, cached (part of prompt), completion");
        let success = counter("vllm:request_success", "Sequences finished, by reason");
        let prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of sequences that started");
        let generation_tokens = counter("vllm:generation_tokens", "Tokens generated");
        let histograms = HISTOGRAMS.map(|(name, help, bounds)| {
            let family = Histograms::new_with_constructor(Buckets(bounds));
            registry.register(name, help, family.clone());
            family
        });
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let kept_responses = gauge("wick_kept_responses", "Responses kept for later requests (--responses-store)");
        let kept_bytes = gauge("wick_kept_response_bytes", "Bytes that they take, of --responses-memory");
        let version = Family::<Labels, Gauge>::default();
        version.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        registry.register("wick_build_info", "The version of wick", version);
        registry.register_collector(Box::new(EngineCollector { observed }));
        Self {
            registry,
            requests,
            tenant_tokens,
            success,
            prompt_tokens,
            generation_tokens,
            kept_responses,
            kept_bytes,
            histograms,
        }
    }

    /// Notes what a tenant has of the kept responses.
    pub(crate) fn kept(&self, tenant: &str, responses: usize, bytes: usize) {
        let labels: Labels = vec![("tenant", tenant.to_owned())];
        for (family, value) in [(&self.kept_responses, responses), (&self.kept_bytes, bytes)] {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// The handles of one model. Its series exist from now on, with zeros.
    pub(crate) fn model(&self, model: &str) -> ModelMetrics {
        let labels: Labels = vec![("model_name", model.to_owned()), ("engine", "0".to_owned())];
        let [first_token, inter_token, e2e, queue, prefill, decode, inference, prompt, generation] =
            self.histograms.each_ref().map(|family| family.get_or_create(&labels).clone());
        let success = |reason: &str| {
            let mut labels = labels.clone();
            labels.push(("finished_reason", reason.to_owned()));
            self.success.get_or_create(&labels).clone()
        };
        ModelMetrics {
            first_token,
            inter_token,
            e2e,
            queue,
            prefill,
            decode,
            inference,
            prompt,
            generation,
            prompt_tokens: self.prompt_tokens.get_or_create(&labels).clone(),
            generation_tokens: self.generation_tokens.get_or_create(&labels).clone(),
            stop: success("stop"),
            length: success("length"),
            abort: success("abort"),
            error: success("error"),
        }
    }

    /// Counts a finished HTTP request and its tokens.
    pub(crate) fn request(&self, labels: &RequestLabels, prompt: usize, cached: usize, completion: usize) {
        let method = METHODS.iter().find(|method| **method == labels.method).copied().unwrap_or("other");
        self.requests
            .get_or_create(&vec![
                ("method", method.to_owned()),
                ("route", labels.route.to_owned()),
                ("status", labels.status.to_string()),
                ("tenant", labels.tenant.to_owned()),
            ])
            .inc();
        for (kind, count) in [("prompt", prompt), ("cached", cached), ("completion", completion)] {
            if count > 0 {
                let labels = vec![("tenant", labels.tenant.to_owned()), ("kind", kind.to_owned())];
                self.tenant_tokens.get_or_create(&labels).inc_by(count as u64);
            }
        }
    }

    /// The text of `/metrics`, in Prometheus' text format 0.0.4.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail; if an encoder refuses, what was written before stands.
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("encoding the metrics failed");
        }
        to_classic(&text)
    }
}

impl ModelMetrics {
    /// Counts a request of an encoder, which has no phases.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    pub(crate) fn encoded(&self, arrived: Instant, tokens: usize, done: bool) {
        self.prompt.observe(tokens as f64);
        self.prompt_tokens.inc_by(tokens as u64);
        if done {
            self.stop.inc();
            self.e2e.observe(arrived.elapsed().as_secs_f64());
        } else {
            self.error.inc();
        }
    }
}

/// Times one sequence. Dropped before it finished, it counts as aborted.
pub(crate) struct SequenceTimer {
    metrics: Arc<ModelMetrics>,
    prompt: usize,
    arrived: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: usize,
    done: bool,
}

impl SequenceTimer {
    pub(crate) fn new(metrics: &Arc<ModelMetrics>, arrived: Instant, prompt: usize) -> Self {
        let metrics = Arc::clone(metrics);
        Self { metrics, prompt, arrived, started: None, first: None, last: None, tokens: 0, done: false }
    }

    /// The first step is about to run.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    pub(crate) fn started(&mut self, queued: Duration) {
        self.started = Some(Instant::now());
        self.metrics.queue.observe(queued.as_secs_f64());
        self.metrics.prompt.observe(self.prompt as f64);
        self.metrics.prompt_tokens.inc_by(self.prompt as u64);
    }

    /// A token came.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        self.tokens += 1;
        self.metrics.generation_tokens.inc();
        match self.last {
            Some(last) => self.metrics.inter_token.observe((now - last).as_secs_f64()),
            None => {
                self.first = Some(now);
                self.metrics.first_token.observe((now - self.arrived).as_secs_f64());
                if let Some(started) = self.started {
                    self.metrics.prefill.observe((now - started).as_secs_f64());
                }
            }
        }
        self.last = Some(now);
    }

    /// The sequence ended; only the first call counts.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    pub(crate) fn finished(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let metrics = &self.metrics;
        match outcome {
            Outcome::Stop => metrics.stop.inc(),
            Outcome::Length => metrics.length.inc(),
            Outcome::Error => metrics.error.inc(),
            Outcome::Abort => metrics.abort.inc(),
        };
        if matches!(outcome, Outcome::Stop | Outcome::Length) {
            let now = Instant::now();
            let seconds = |since: Instant| (now - since).as_secs_f64();
            metrics.e2e.observe(seconds(self.arrived));
            metrics.generation.observe(self.tokens as f64);
            if let Some(first) = self.first {
                metrics.decode.observe(seconds(first));
            }
            if let Some(started) = self.started {
                metrics.inference.observe(seconds(started));
            }
        }
    }
}

impl Drop for SequenceTimer {
    fn drop(&mut self) {
        self.finished(Outcome::Abort);
    }
}
