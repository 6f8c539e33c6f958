//! What every request passes first: request id, key, drain; and what every response leaves with: headers and a log line
//! (see also `notes`).
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use super::auth::{Scope, Tenant};
use super::body::refuse;
use super::error::ApiError;
use super::limits;
use super::notes::{Notes, is_harmless};
use super::{AppState, anthropic, workers_ai};
use crate::engine::EngineHandle;
use crate::telemetry::RequestLabels;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
/// Longest request id taken from a client.
const REQUEST_ID_LEN_MAX: usize = 128;
/// What nginx logs when the client left before the answer; never sent.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Who asks, and where the handler notes what it cost.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) tenant: Tenant,
    pub(crate) started: Instant,
    pub(crate) tokens: TokenCounts,
    pub(crate) notes: Notes,
    /// The engine that was asked for a place.
    engine: Arc<OnceLock<EngineHandle>>,
}

impl RequestContext {
    /// The request asks this engine for a place: its response says what is left of the queue.
    pub(crate) fn queue_of(&self, engine: &EngineHandle) {
        // A second request for places, of which there is none, would not change the first's headers.
        let _ = self.engine.set(engine.clone());
    }
}

/// Tokens of a request, for the log and the tenant's counters; filled in as they come.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenCounts(Arc<Mutex<Tokens>>);

/// Plain counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    /// Of the completion, the tokens of thoughts.
    pub(crate) reasoning: usize,
    /// Of the completion, the tokens that had been guessed.
    pub(crate) accepted: usize,
    /// Guesses that were wrong; they are no part of the completion.
    pub(crate) rejected: usize,
}

impl TokenCounts {
    pub(crate) fn set(&self, tokens: Tokens) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = tokens;
    }

    fn get(&self) -> Tokens {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How the gate treats a path.
struct Rules {
    /// `None`: open to strangers.
    scope: Option<Scope>,
    /// Answered while draining, and not counted as a running request.
    operational: bool,
}

fn rules(path: &str) -> Rules {
    match path {
        "/livez" | "/readyz" | "/openapi.json" => Rules { scope: None, operational: true },
        "/health" => Rules { scope: Some(Scope::Infer), operational: true },
        "/metrics" => Rules { scope: Some(Scope::Metrics), operational: true },
        _ => Rules { scope: Some(Scope::Infer), operational: false },
    }
}

/// The middleware around all routes, unknown ones included.
pub(crate) async fn gate(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let rules = rules(path);
    let (anthropic, workers_ai) = (anthropic::speaks(path), workers_ai::speaks(path));
    let allowed = match (&app.options().auth, rules.scope) {
        (Some(keys), Some(scope)) => keys.authorise(request.headers(), scope),
        _ => Ok(Tenant::ANONYMOUS),
    };
    let tenant = allowed.as_ref().unwrap_or(&Tenant::ANONYMOUS).clone();
    let tokens = TokenCounts::default();
    let notes = Notes::of(request.headers());
    let id = request_id(request.headers());
    let span = span(&id, &notes);
    let mut record = Record {
        app: app.clone(),
        _counted: (!rules.operational).then(|| Counted::new(app.clone())),
        id,
        method: request.method().clone(),
        route: request.extensions().get::<MatchedPath>().map_or("unmatched".into(), |path| path.as_str().into()),
        tenant: tenant.clone(),
        started,
        status: None,
        tokens: tokens.clone(),
        notes: notes.clone(),
    };
    let response = match allowed {
        Err(error) => refuse(error, std::mem::take(request.body_mut())).await,
        Ok(_) if app.is_draining() && !rules.operational => {
            let mut response = refuse(ApiError::Draining, std::mem::take(request.body_mut())).await;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        Ok(_) => {
            let engine = Arc::<OnceLock<EngineHandle>>::default();
            request.extensions_mut().insert(RequestContext {
                tenant: tenant.clone(),
                started,
                tokens,
                notes: notes.clone(),
                engine: Arc::clone(&engine),
            });
            let mut response = next.run(request).instrument(span.clone()).await;
            if let Some(engine) = engine.get() {
                limits::stamp(response.headers_mut(), &engine.load(tenant.group()));
            }
            response
        }
    };
    let response = match workers_ai {
        Some(wording) => workers_ai::reshape(response, wording),
        None if anthropic => anthropic::reshape(response, &record.id),
        None => response,
    };
    record.status = Some(response.status());
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(REQUEST_ID, record.id.clone());
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    parts.headers.insert(PROCESSING_MS, HeaderValue::from(millis));
    notes.stamp(&mut parts.headers);
    (parts, Body::new(RecordedBody { body, span, _record: record })).into_response()
}

/// What the log says while a request is served belongs to it, and to its caller's trace.
fn span(id: &HeaderValue, notes: &Notes) -> Span {
    let trace = notes.known().trace;
    let (trace_id, parent_id) = trace.map(|trace| (trace.trace_id, trace.parent_id)).unzip();
    let id = id.to_str().unwrap_or_default();
    tracing::info_span!("serving", request_id = id, trace_id, parent_id)
}

/// The client's id if it is short and harmless, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| is_harmless(id.as_bytes(), REQUEST_ID_LEN_MAX);
    headers.get(&REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let id = format!("req_{}", uuid::Uuid::new_v4().simple());
        HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("req_unknown"))
    })
}

/// Counts a request as running while it lives.
struct Counted(AppState);

impl Counted {
    fn new(app: AppState) -> Self {
        app.shared.in_flight.send_modify(|count| *count += 1);
        Self(app)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared.in_flight.send_modify(|count| *count -= 1);
    }
}

/// A request's line in the access log and its counters, written when its last byte is gone or its client is.
struct Record {
    app: AppState,
    /// Dropped after `drop` below has run: whoever waits for zero finds the record complete.
    _counted: Option<Counted>,
    id: HeaderValue,
    method: Method,
    route: Arc<str>,
    tenant: Tenant,
    started: Instant,
    status: Option<StatusCode>,
    tokens: TokenCounts,
    notes: Notes,
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16());
        let tokens = self.tokens.get();
        let labels =
            RequestLabels { method: self.method.as_str(), route: &self.route, status, tenant: self.tenant.label() };
        self.app.shared.metrics.request(&labels, tokens.prompt, tokens.cached, tokens.completion);
        let id = self.id.to_str().unwrap_or_default();
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (method, path, tenant) = (self.method.as_str(), &*self.route, self.tenant.label());
        if status == 200 && PROBES.contains(&path) {
            tracing::debug!(request_id = id, method, path, status, ms, "probe");
            return;
        }
        let noted = self.notes.known();
        let queue_ms = noted.queued.map(|queued| u64::try_from(queued.as_millis()).unwrap_or(u64::MAX));
        let trace = noted.trace.as_ref();
        tracing::info!(
            request_id = id,
            session = noted.session,
            trace_id = trace.map(|trace| trace.trace_id.as_str()),
            parent_id = trace.map(|trace| trace.parent_id.as_str()),
            method,
            path,
            status,
            ms,
            queue_ms,
            tokens_in = tokens.prompt,
            tokens_cached = tokens.cached,
            tokens_out = tokens.completion,
            tenant,
            "request"
        );
    }
}

/// Asked every few seconds by whoever watches the server: their successes would drown the log.
const PROBES: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];

/// A response body that holds its request's record until it is sent or dropped.
struct RecordedBody {
    body: Body,
    span: Span,
    _record: Record,
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let _serving = this.span.enter();
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_of_clients_are_kept_only_if_harmless() {
        let with = |id: &str| {
            let headers = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(id).unwrap())]);
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(with("trace:abc/1.2-3_x"), "trace:abc/1.2-3_x");
        for bad in ["", "a b", "a\"b", "<script>", &"x".repeat(129)] {
            assert!(with(bad).starts_with("req_"), "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn only_probes_and_the_description_are_open() {
        for path in ["/livez", "/readyz", "/openapi.json"] {
            assert!(rules(path).scope.is_none());
        }
        for path in ["/livez/", "/health", "/metrics", "/v1/models", "/nope", "/", "//livez"] {
            assert!(rules(path).scope.is_some(), "{path}");
        }
    }
}
