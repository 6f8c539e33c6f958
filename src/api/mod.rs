//! HTTP and OpenAI's JSON. Nothing below knows either.
//!
//! `encoders` is what `embeddings` and `rerank` share: models that do not generate. `backend` is what computes them.
//!
//! A request's path: `gate` (request id, key, drain) → `body` (bytes → fields) → `lower` in `chat`, `completions` or `responses`
//! (fields → a `pipeline::Plan`) → `pipeline` (admission, then one stream of `pipeline::Event`s) → `stream` (server-sent
//! events) or `fold` (one JSON body: the fold of the same events).
//!
//! `anthropic` and `workers_ai` are other dialects: their own paths, fields, answers and errors around the same requests and events.
mod anthropic;
pub mod auth;
mod backend;
mod body;
mod chat;
mod chat_shape;
mod choice;
mod completions;
mod embeddings;
mod encoders;
pub mod error;
mod fields;
mod fold;
mod gate;
mod grammars;
mod limits;
mod logprobs;
mod messages;
mod models;
mod notes;
mod openapi;
mod ops;
pub mod params;
mod pipeline;
mod rerank;
mod responses;
mod responses_input;
mod responses_kept;
mod responses_shape;
mod responses_store;
mod responses_tools;
mod stream;
mod structured;
mod thoughts;
mod tokenize;
mod tools;
mod turns;
mod types;
mod workers_ai;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::{Semaphore, watch};

pub use auth::KeyStore;
pub use backend::{Backend, DecoderBackend};
pub use encoders::ServedEncoder;
pub use error::ApiError;

use crate::engine::EngineHandle;
use crate::telemetry::{Metrics, ModelMetrics, Observed, StepMetrics};
use crate::text::TextTools;

/// One model that clients can name.
#[derive(Clone)]
pub struct ServedModel {
    /// The name clients use; may contain slashes.
    pub alias: String,
    pub engine: EngineHandle,
    pub text: Arc<TextTools>,
    /// Unix time in seconds, shown by `/v1/models`.
    pub created: u64,
    /// Tokens of prompt and completion together; the engine's own limit applies too.
    pub context_max: usize,
    pub owned_by: String,
    /// The observer that the engine was started with, for the metrics of its steps.
    pub steps: Option<Arc<StepMetrics>>,
}

/// How the HTTP service behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// `None`: everyone may use every route.
    pub auth: Option<KeyStore>,
    /// A larger request body is answered with 413.
    pub body_bytes_max: usize,
    /// Bytes of bodies above 64 KiB that are read or tokenized at once; beyond them a request is answered with 503.
    pub bodies_bytes_max: usize,
    /// Longest pause inside a request body.
    pub body_idle_max: Duration,
    /// Longest time for a whole request body.
    pub body_time_max: Duration,
    /// Longest time for a request's head; also how long an idle kept-alive connection stays open.
    pub head_time_max: Duration,
    /// A stream that has nothing to say for this long sends a comment. Must not be zero.
    pub keep_alive: Duration,
    /// A connection whose client reads nothing for this long, while there is something to send, is closed.
    pub stalled_max: Duration,
    /// Connections open at once; more wait to be accepted.
    pub connections_max: usize,
    /// Prompts being tokenized at once.
    pub text_jobs_max: usize,
    /// Prompts waiting to be tokenized; one more is answered with 503.
    pub text_jobs_waiting_max: usize,
    /// Further names of served models: (name, the alias that a model is served by). What is asked for by such a name answers by it.
    pub also: Vec<(String, String)>,
    /// Responses that are kept for later requests; 0: none, and whoever asks for it is told so.
    pub responses_max: usize,
    /// Bytes that they take.
    pub responses_bytes_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            auth: None,
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 64 << 20,
            body_idle_max: Duration::from_secs(30),
            body_time_max: Duration::from_mins(5),
            head_time_max: Duration::from_secs(75),
            keep_alive: Duration::from_secs(10),
            stalled_max: Duration::from_mins(2),
            connections_max: 8192,
            text_jobs_max: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            text_jobs_waiting_max: 1024,
            also: Vec::new(),
            responses_max: 0,
            responses_bytes_max: 64 << 20,
        }
    }
}

/// A served model with what the API keeps about it.
pub(crate) struct Model {
    pub(crate) served: ServedModel,
    pub(crate) metrics: Arc<ModelMetrics>,
    /// The smaller of the served and the engine's limit.
    pub(crate) context_max: usize,
    /// Changes when answers may change: with the version and the model.
    pub(crate) fingerprint: String,
    pub(crate) grammars: grammars::Grammars,
}

impl Model {
    /// The same model by another name.
    fn named(&self, alias: &str) -> Self {
        Self {
            served: ServedModel { alias: alias.to_owned(), ..self.served.clone() },
            metrics: Arc::clone(&self.metrics),
            context_max: self.context_max,
            fingerprint: self.fingerprint.clone(),
            grammars: self.grammars.clone(),
        }
    }
}

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    shared: Arc<Shared>,
}

struct Shared {
    models: Vec<Arc<Model>>,
    encoders: Vec<Arc<encoders::Encoder>>,
    /// The same by further names.
    also_models: Vec<Arc<Model>>,
    also_encoders: Vec<Arc<encoders::Encoder>>,
    options: ServerOptions,
    metrics: Metrics,
    /// Requests being answered, streams included until their last byte.
    in_flight: watch::Sender<usize>,
    /// New requests are refused.
    draining: watch::Sender<bool>,
    /// Running requests are cut off.
    cut: watch::Sender<bool>,
    text_running: Arc<Semaphore>,
    text_waiting: Arc<Semaphore>,
    /// What large bodies may take, in units of [`body::CLAIM_UNIT`].
    bodies: Arc<Semaphore>,
    /// `None`: responses are not kept.
    responses: Option<responses_kept::Keeper>,
    /// The text of `/openapi.json`.
    openapi: Bytes,
}

impl AppState {
    #[must_use]
    pub fn new(models: Vec<ServedModel>, options: ServerOptions) -> Self {
        Self::with_encoders(models, Vec::new(), options)
    }

    /// Models that generate, and models that encode or embed; no two of them have the same name.
    ///
    /// # Panics
    /// A name of [`ServerOptions::also`] belongs to a model that is not there.
    #[must_use]
    pub fn with_encoders(models: Vec<ServedModel>, encoders: Vec<ServedEncoder>, options: ServerOptions) -> Self {
        let observed = |model: &ServedModel| Observed {
            model: model.alias.clone(),
            engine: model.engine.clone(),
            steps: model.steps.clone(),
        };
        let embedding = |encoder: &ServedEncoder| match &encoder.backend {
            Backend::Encoder(_) => None,
            Backend::Decoder(DecoderBackend { engine, steps, .. }) => {
                Some(Observed { model: encoder.alias.clone(), engine: engine.clone(), steps: steps.clone() })
            }
        };
        let metrics = Metrics::new(models.iter().map(observed).chain(encoders.iter().filter_map(embedding)).collect());
        let models: Vec<Arc<Model>> = models
            .into_iter()
            .map(|served| {
                Arc::new(Model {
                    metrics: Arc::new(metrics.model(&served.alias)),
                    context_max: served.context_max.min(served.engine.info().context_max),
                    fingerprint: types::fingerprint(&served.alias),
                    grammars: grammars::Grammars::new(Arc::clone(&served.text.tokenizer), served.engine.info().vocab),
                    served,
                })
            })
            .collect();
        let encoders: Vec<Arc<encoders::Encoder>> =
            encoders.into_iter().map(|served| Arc::new(encoders::Encoder::new(served, &metrics))).collect();
        let (mut also_models, mut also_encoders) = (Vec::new(), Vec::new());
        for (name, of) in &options.also {
            match models.iter().find(|model| model.served.alias == *of) {
                Some(model) => also_models.push(Arc::new(model.named(name))),
                None => {
                    let encoder = encoders.iter().find(|encoder| encoder.alias() == of);
                    let encoder = encoder.expect("a further name of a model that is not served is a bug");
                    also_encoders.push(Arc::new(encoder.named(name)));
                }
            }
        }
        let jobs = options.text_jobs_max.max(1);
        // One body of the largest size always fits.
        let bodies = options.bodies_bytes_max.max(options.body_bytes_max).div_ceil(body::CLAIM_UNIT);
        Self {
            shared: Arc::new(Shared {
                models,
                encoders,
                also_models,
                also_encoders,
                metrics,
                in_flight: watch::Sender::new(0),
                draining: watch::Sender::new(false),
                cut: watch::Sender::new(false),
                text_running: Arc::new(Semaphore::new(jobs)),
                text_waiting: Arc::new(Semaphore::new(jobs + options.text_jobs_waiting_max)),
                bodies: Arc::new(Semaphore::new(bodies.min(Semaphore::MAX_PERMITS))),
                responses: (options.responses_max > 0).then(|| {
                    let store = responses_store::Store::new(options.responses_max, options.responses_bytes_max);
                    Arc::new(Mutex::new(store))
                }),
                openapi: openapi::written(&options),
                options,
            }),
        }
    }

    /// Whether a load balancer should send requests here: not draining, and every engine works.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.is_healthy()
    }

    /// Whether every engine works.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.models().iter().all(|model| model.served.engine.is_healthy())
            && self.encoders().iter().all(|encoder| encoder.is_healthy())
    }

    /// New requests are refused with 503 from now on; running ones go on.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
        for model in self.models() {
            model.served.engine.drain();
        }
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Ends running requests with an error.
    pub fn cut_off(&self) {
        self.shared.cut.send_replace(true);
    }

    /// How many requests are being answered, as a value that can be waited for.
    #[must_use]
    pub fn in_flight(&self) -> watch::Receiver<usize> {
        self.shared.in_flight.subscribe()
    }

    #[must_use]
    pub fn options(&self) -> &ServerOptions {
        &self.shared.options
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        for (tenant, responses, bytes) in self.keeper().into_iter().flat_map(|keeper| responses_kept::held(keeper)) {
            self.shared.metrics.kept(&tenant, responses, bytes);
        }
        self.shared.metrics.text()
    }

    /// Where responses are kept, if they are.
    fn keeper(&self) -> Option<&responses_kept::Keeper> {
        self.shared.responses.as_ref()
    }

    fn models(&self) -> &[Arc<Model>] {
        &self.shared.models
    }

    fn encoders(&self) -> &[Arc<encoders::Encoder>] {
        &self.shared.encoders
    }

    /// Models that generate by every name they have: their own first.
    fn every_model(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.shared.models.iter().chain(&self.shared.also_models)
    }

    /// Encoders by every name they have: their own first.
    fn every_encoder(&self) -> impl Iterator<Item = &Arc<encoders::Encoder>> {
        self.shared.encoders.iter().chain(&self.shared.also_encoders)
    }

    /// A model that generates, by its name.
    fn find(&self, alias: &str) -> Result<Arc<Model>, ApiError> {
        if let Some(found) = self.every_model().find(|model| model.served.alias == alias) {
            return Ok(Arc::clone(found));
        }
        Err(match self.every_encoder().find(|encoder| encoder.alias() == alias) {
            Some(encoder) => ApiError::WrongEndpoint { model: alias.to_owned(), serves: encoder.serves() },
            None => ApiError::ModelNotFound { model: alias.chars().take(256).collect() },
        })
    }

    /// The model that a request's `model` field names; without one, the first that generates.
    fn named(&self, fields: &mut fields::Fields) -> Result<Arc<Model>, ApiError> {
        self.find_or_first(fields.string("model")?.as_deref())
    }

    fn find_or_first(&self, alias: Option<&str>) -> Result<Arc<Model>, ApiError> {
        match (alias, self.models()) {
            (None, [first, ..]) => Ok(Arc::clone(first)),
            (None, []) => Err(ApiError::NoModel { example: "smollm2-135m" }),
            (Some(alias), _) => self.find(alias),
        }
    }

    /// Runs CPU work (tokenizing, parsing) on the blocking pool: a bounded number at once, a bounded number waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(waiting) = Arc::clone(&self.shared.text_waiting).try_acquire_owned() else {
            return Err(ApiError::Overloaded {
                reason: "too many prompts are waiting to be tokenized".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        };
        let running = Arc::clone(&self.shared.text_running).acquire_owned().await.map_err(|_| ApiError::Internal)?;
        // The permits travel with the job: it goes on when the client leaves.
        let task = tokio::task::spawn_blocking(move || {
            let _permits = (waiting, running);
            job()
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(panicked = error.is_panic(), "a text job failed");
            Err(ApiError::Internal)
        })
    }
}

/// Every route: its path and what answers there.
fn routes() -> Vec<(&'static str, MethodRouter<AppState>)> {
    let mut routes = vec![
        ("/v1/chat/completions", post(chat::create)),
        ("/v1/completions", post(completions::create)),
        ("/v1/messages", post(anthropic::create)),
        ("/v1/messages/count_tokens", post(anthropic::count)),
        ("/v1/embeddings", post(embeddings::create)),
        ("/v1/rerank", post(rerank::create)),
        ("/v2/rerank", post(rerank::create)),
        ("/rerank", post(rerank::create)),
        ("/v1/responses", post(responses::create)),
        ("/v1/responses/input_tokens", post(responses::input_tokens)),
        ("/v1/responses/{id}", get(responses_kept::get).delete(responses_kept::delete)),
        ("/v1/responses/{id}/input_items", get(responses_kept::input_items)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::get)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/tokenizer_info", get(tokenize::info)),
        ("/livez", get(ops::live)),
        ("/readyz", get(ops::ready)),
        ("/health", get(ops::health)),
        ("/metrics", get(ops::metrics)),
        ("/openapi.json", get(openapi::serve)),
    ];
    routes.extend(workers_ai::routes());
    routes
}

/// The server's routes, and its answers to requests that match none.
pub fn router(state: AppState) -> Router {
    let routes = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    routes
        .fallback(ops::not_found)
        .method_not_allowed_fallback(ops::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(state.clone(), gate::gate))
        .with_state(state)
}
