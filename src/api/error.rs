//! What can go wrong with a request, as OpenAI-shaped errors. The only place that knows status codes.
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::encoder::{EncodeFailure, EncodeRefusal};
use crate::engine::{EngineFailure, SubmitError};
use crate::grammar::GrammarError;
use crate::text::TextError;

/// When a draining server suggests to come back (by then a load balancer has noticed).
const DRAINING_RETRY: Duration = Duration::from_secs(5);

/// Why a response or an item is not there.
const GONE: &str = "it is unknown, was deleted, was not to be kept, or gave way to others";

/// Why a request is answered with an error. Messages name fields and numbers, never prompt text, outputs or keys.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    #[error(
        "The request body is not valid UTF-8: the first bad byte is at offset {offset}. Send JSON encoded as UTF-8."
    )]
    NotUtf8 { offset: usize },
    #[error(
        "The request body is not valid JSON: {reason} at line {line}, column {column}. Send one JSON object as the body."
    )]
    MalformedJson { reason: &'static str, line: usize, column: usize },
    #[error("The request body must be a JSON object, but it is {found}.")]
    NotAnObject { found: &'static str },
    #[error("Unsupported content type. Send the request with `Content-Type: application/json`.")]
    ContentType,
    #[error("The content encoding `{encoding}` is not supported. Send the body without Content-Encoding.")]
    ContentEncoding { encoding: String },
    #[error("The request body ended before it was complete.")]
    BodyAborted,
    #[error("The request body did not arrive in time. Send it without pauses, or send less.")]
    BodyTimeout,
    #[error("The request body is larger than this server's limit of {limit} bytes.")]
    BodyTooLarge { limit: usize },
    #[error(
        "The conversation, with what this server keeps of it, has {bytes} bytes, which is more than its limit of {limit}. Send what matters of it in `input`, without `previous_response_id` and item references."
    )]
    ConversationTooLarge { bytes: usize, limit: usize },
    #[error("Missing required parameter: `{param}`.")]
    Missing { param: String },
    #[error("`{param}` must be {expected}, but it is {found}.")]
    WrongType { param: String, expected: &'static str, found: &'static str },
    #[error("{message}")]
    InvalidValue { param: String, message: String },
    #[error("`{param}` is not supported by this server{hint}.")]
    Unsupported { param: String, hint: &'static str },
    #[error("Unknown parameter: `{param}`. Check its spelling: this server ignores nothing silently.")]
    UnknownParameter { param: String },
    #[error(
        "This model's maximum context length is {context_max} tokens. However, you requested {} tokens ({prompt} in the prompt, {completion} in the completion). Please reduce the length of the prompt or of the completion.",
        prompt + completion
    )]
    ContextLength { param: &'static str, context_max: usize, prompt: usize, completion: usize },
    #[error(
        "This model's maximum context length is {context_max} tokens. However, you requested {needed} tokens. Please reduce the length of the prompt or of the completion."
    )]
    TooLong { needed: usize, context_max: usize },
    #[error(
        "This model's maximum context length is {context_max} tokens. However, you requested far more: `{param}` has {bytes} bytes of text. Please reduce its length."
    )]
    PromptTooLong { param: &'static str, context_max: usize, bytes: usize },
    #[error("{message}")]
    Template { param: &'static str, message: String },
    /// A schema, regular expression or grammar that cannot be used; `code` says why.
    #[error("{message}")]
    Schema { param: String, code: &'static str, message: String },
    #[error(
        "The answer could not be completed in the form that was asked for: {reason}. Simplify the schema or grammar."
    )]
    GrammarStuck { reason: String },
    #[error("No API key was given. Send it as `Authorization: Bearer KEY`.")]
    KeyMissing,
    #[error("The API key is not valid.")]
    KeyInvalid,
    #[error("This API key lacks the scope `{scope}`, which this route needs.")]
    ScopeMissing { scope: &'static str },
    #[error("The model `{model}` does not exist on this server. GET /v1/models lists those that do.")]
    ModelNotFound { model: String },
    #[error("The model `{model}` serves {serves}, not this endpoint. GET /v1/models lists all models of this server.")]
    WrongEndpoint { model: String, serves: &'static str },
    #[error("This server has no model for this endpoint. Start it with one, for example `wick serve {example}`.")]
    NoModel { example: &'static str },
    #[error(
        "`{param}` has {size}, but this model reads at most {limit} at once. Shorten it, or have it cut off with `truncate_prompt_tokens` (-1: to that limit)."
    )]
    InputTooLong { param: String, size: String, limit: usize },
    #[error("Previous response with id '{id}' not found: {GONE}. Send the whole conversation in `input` instead.")]
    PreviousResponseNotFound { param: String, id: String },
    #[error("Item with id '{id}' not found: {GONE}. Send the item itself instead.")]
    ItemNotFound { param: String, id: String },
    #[error("Response with id '{id}' not found: {GONE}.")]
    ResponseNotFound { id: String },
    #[error("Response with id '{id}' not found: this server keeps no responses. Start it with `--responses-store`.")]
    ResponsesNotKept { id: String },
    #[error("There is no route {method} {path}.")]
    RouteNotFound { method: String, path: String },
    #[error("{method} is not allowed on {path}.")]
    MethodNotAllowed { method: String, path: String },
    #[error("The server is busy: {reason}. Retry after the time in the Retry-After header.")]
    Overloaded { reason: String, retry_after: Duration },
    #[error("The server is shutting down. Retry: another instance will answer.")]
    Draining,
    #[error("The server shut down before this request was complete. Retry: another instance will answer.")]
    CutOff,
    #[error("The engine has stopped. Retry later.")]
    EngineStopped,
    #[error("The server failed to process this request. Quote the x-request-id header when you report this.")]
    Internal,
}

/// A row of the table of errors: status, `type`, `code`.
type Row = (StatusCode, &'static str, Option<&'static str>);

impl ApiError {
    /// A value outside its range or set.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidValue { param: param.into(), message: message.into() }
    }

    /// For a request that is not to wait.
    pub(crate) fn busy() -> Self {
        let reason = "the request would have to wait, which `options.rejectIfBusy` forbids".to_owned();
        Self::Overloaded { reason, retry_after: Duration::from_secs(1) }
    }

    /// The `kind` (schema, grammar …) in the field `param` cannot be compiled.
    pub(crate) fn schema(param: String, kind: &str, error: &GrammarError) -> Self {
        let code = match error {
            GrammarError::Invalid { .. } => "invalid_schema",
            GrammarError::Unsupported { .. } | GrammarError::TooLarge { .. } | GrammarError::Tokenizer => {
                "unsupported_schema"
            }
        };
        let message = format!("The {kind} in `{param}` cannot be used: {error}.");
        Self::Schema { param, code, message }
    }

    fn row(&self) -> Row {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::NotUtf8 { .. } | Self::MalformedJson { .. } | Self::NotAnObject { .. } | Self::BodyAborted => {
                (StatusCode::BAD_REQUEST, INVALID, None)
            }
            Self::ContentType => (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_content_type")),
            Self::ContentEncoding { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_content_encoding"))
            }
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "timeout_error", Some("request_timeout")),
            Self::BodyTooLarge { .. } | Self::ConversationTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"))
            }
            Self::Missing { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("missing_required_parameter")),
            Self::WrongType { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_type")),
            Self::InvalidValue { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_value")),
            Self::Unsupported { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_parameter")),
            Self::UnknownParameter { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("unknown_parameter")),
            Self::ContextLength { .. }
            | Self::TooLong { .. }
            | Self::PromptTooLong { .. }
            | Self::InputTooLong { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
            Self::Template { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("chat_template_error")),
            Self::Schema { code, .. } => (StatusCode::BAD_REQUEST, INVALID, Some(*code)),
            Self::GrammarStuck { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_schema")),
            Self::KeyMissing | Self::KeyInvalid => {
                (StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"))
            }
            Self::ScopeMissing { .. } => (StatusCode::FORBIDDEN, "permission_error", Some("insufficient_scope")),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::WrongEndpoint { .. } | Self::NoModel { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_endpoint"))
            }
            Self::PreviousResponseNotFound { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, Some("previous_response_not_found"))
            }
            Self::ItemNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, Some("item_not_found")),
            Self::ResponseNotFound { .. } | Self::ResponsesNotKept { .. } => {
                (StatusCode::NOT_FOUND, INVALID, Some("response_not_found"))
            }
            Self::RouteNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, Some("route_not_found")),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed")),
            Self::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", Some("overloaded")),
            Self::Draining | Self::CutOff => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("draining")),
            Self::EngineStopped => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("engine_stopped")),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
        }
    }

    /// The status of a response that says it.
    pub(crate) fn status(&self) -> StatusCode {
        self.row().0
    }

    /// The parameter at fault, as a path such as `messages[2].content`.
    pub(crate) fn param(&self) -> Option<&str> {
        match self {
            Self::Missing { param }
            | Self::WrongType { param, .. }
            | Self::InvalidValue { param, .. }
            | Self::Unsupported { param, .. }
            | Self::Schema { param, .. }
            | Self::UnknownParameter { param }
            | Self::PreviousResponseNotFound { param, .. }
            | Self::ItemNotFound { param, .. }
            | Self::InputTooLong { param, .. } => Some(param),
            Self::ContextLength { param, .. } | Self::PromptTooLong { param, .. } | Self::Template { param, .. } => {
                Some(param)
            }
            Self::ModelNotFound { .. } | Self::WrongEndpoint { .. } | Self::NoModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// The prompt is in the field `param`.
    pub(crate) fn about_prompt(self, param: &'static str) -> Self {
        match self {
            Self::Template { message, .. } => Self::Template { param, message },
            other => other,
        }
    }

    /// `{"error": {message, type, param, code}}`: a response's body, and the last event of a stream that broke.
    #[must_use]
    pub fn body(&self) -> Value {
        let (_, kind, code) = self.row();
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } => Some(*retry_after),
            Self::Draining | Self::CutOff | Self::EngineStopped => Some(DRAINING_RETRY),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000).max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(millis.max(1)));
        }
        if matches!(&self, Self::KeyMissing | Self::KeyInvalid) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For whoever tells it in another dialect.
        response.extensions_mut().insert(self);
        response
    }
}

/// The same response with another status and body, for a dialect with its own errors.
pub(crate) fn retold(response: &Response, status: StatusCode, body: Value) -> Response {
    let mut told = (status, Json(body)).into_response();
    for (name, value) in response.headers() {
        if ![header::CONTENT_LENGTH, header::CONTENT_TYPE].contains(name) {
            told.headers_mut().insert(name.clone(), value.clone());
        }
    }
    told
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { waiting_sequences, waiting_tokens, retry_after } => Self::Overloaded {
                reason: format!("{waiting_sequences} requests and {waiting_tokens} prompt tokens are waiting"),
                retry_after,
            },
            SubmitError::TooLong { needed, context_max } => Self::TooLong { needed, context_max },
            SubmitError::EmptyPrompt => Self::invalid("prompt", "The prompt has no tokens; give at least one."),
            SubmitError::TokenOutOfRange { token, vocab } => Self::invalid(
                "prompt",
                format!(
                    "Token id {token} is outside the model's vocabulary of {vocab} tokens (0 to {}).",
                    vocab.saturating_sub(1)
                ),
            ),
            SubmitError::NeverFits { needed, total } => Self::invalid(
                "max_tokens",
                format!(
                    "The request needs {needed} KV cache blocks, but this server has {total}. Shorten the prompt or the completion."
                ),
            ),
            SubmitError::WrongTask { .. } => {
                tracing::error!(%error, "a request went to the wrong engine");
                Self::Internal
            }
            SubmitError::Draining => Self::Draining,
            SubmitError::Stopped => Self::EngineStopped,
        }
    }
}

impl From<EngineFailure> for ApiError {
    fn from(failure: EngineFailure) -> Self {
        match failure {
            // What failed is for the log, not for the client.
            EngineFailure::Step { .. } => Self::Internal,
            EngineFailure::Grammar(error) => Self::GrammarStuck { reason: error.to_string() },
            EngineFailure::Stopped => Self::EngineStopped,
        }
    }
}

impl From<EncodeRefusal> for ApiError {
    fn from(refusal: EncodeRefusal) -> Self {
        match refusal {
            EncodeRefusal::QueueFull { requests, tokens, retry_after } => {
                Self::Overloaded { reason: format!("{requests} requests and {tokens} tokens are waiting"), retry_after }
            }
            EncodeRefusal::Stopped => Self::EngineStopped,
        }
    }
}

impl From<EncodeFailure> for ApiError {
    fn from(failure: EncodeFailure) -> Self {
        match failure {
            // What failed is for the log, not for the client.
            EncodeFailure::Batch => Self::Internal,
            EncodeFailure::Stopped => Self::EngineStopped,
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::NoTemplate | TextError::Template(_) => {
                Self::Template { param: "messages", message: error.to_string() }
            }
            // What the text was is nobody's business but the client's.
            _ => {
                tracing::error!("tokenizing a prompt failed");
                Self::Internal
            }
        }
    }
}
