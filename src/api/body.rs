//! Reads request bodies: bounded in size and time, and never left half-read on a connection that is kept.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;
use super::fields::{Fields, type_name};
use super::{AppState, workers_ai};

/// A refused request's body is read up to this much, so that the connection stays usable.
const DISCARD_BYTES_MAX: usize = 1 << 20;
/// … and for this long.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);
/// Bodies above this are parsed on the blocking pool.
const PARSE_INLINE_MAX: usize = 64 << 10;
/// Texts of bodies up to this are tokenized where they are: another thread would cost more than it takes off this one.
const TEXT_INLINE_MAX: usize = 2 << 10;
/// Bytes that one permit of [`super::Shared::bodies`] stands for.
pub(crate) const CLAIM_UNIT: usize = 1 << 10;

/// A request body that is one JSON object.
pub(crate) struct JsonBody {
    fields: Fields,
    large: bool,
    claim: Claim,
}

impl JsonBody {
    /// Looks for what the fields name of what the server keeps, beside the async workers if there are many, and claims the
    /// bytes of what is found as if the body had had them.
    pub(crate) async fn find<T: Send + 'static>(
        self,
        app: &AppState,
        look: impl FnOnce(&Fields) -> Result<(T, usize), ApiError> + Send + 'static,
    ) -> Result<(Self, T), ApiError> {
        let limit = app.options().body_bytes_max;
        let find = move |mut body: Self, app: &AppState| {
            let (found, more) = look(&body.fields)?;
            let bytes = body.claim.bytes.saturating_add(more);
            if bytes > limit {
                return Err(ApiError::ConversationTooLarge { bytes, limit });
            }
            body.claim.grow(app, bytes)?;
            body.large = bytes > PARSE_INLINE_MAX;
            Ok((body, found))
        };
        if self.large {
            let state = app.clone();
            return app.blocking(move || find(self, &state)).await;
        }
        find(self, app)
    }

    /// Turns the fields into what an endpoint needs, beside the async workers if there are many. The claim is to be kept
    /// until the request's text has been tokenized.
    pub(crate) async fn lower<T: Send + 'static>(
        self,
        app: &AppState,
        lower: impl FnOnce(Fields, &AppState) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, Claim), ApiError> {
        let Self { fields, large, claim } = self;
        let lowered = if large {
            let state = app.clone();
            app.blocking(move || lower(fields, &state)).await
        } else {
            lower(fields, app)
        };
        Ok((lowered?, claim))
    }
}

/// What a body claims of what all requests share, given back on drop.
#[derive(Default)]
pub(crate) struct Claim {
    /// Of a large body: its share of the memory that bodies may take at once.
    memory: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Claim {
    /// Extends the claim to a body of `bytes`. Small bodies need none.
    fn grow(&mut self, app: &AppState, bytes: usize) -> Result<(), ApiError> {
        self.bytes = self.bytes.max(bytes);
        if bytes <= PARSE_INLINE_MAX {
            return Ok(());
        }
        let held = self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(CLAIM_UNIT).saturating_sub(held)).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&app.shared.bodies).try_acquire_many_owned(more) else {
            return Err(ApiError::Overloaded {
                reason: "large request bodies take all the memory they may".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        };
        match &mut self.memory {
            Some(all) => all.merge(permit),
            None => self.memory = Some(permit),
        }
        Ok(())
    }

    /// Runs the work on the body's text, and then gives back what was claimed for it: in place if the text is short, else
    /// on the blocking pool.
    pub(crate) async fn work<T: Send + 'static>(
        self,
        app: &AppState,
        job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.bytes > TEXT_INLINE_MAX {
            return app
                .blocking(move || {
                    let _held = self;
                    job()
                })
                .await;
        }
        catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| {
            tracing::error!(panicked = true, "a text job failed");
            Err(ApiError::Internal)
        })
    }
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = Response;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) && !is_curl_without_a_type(&parts) {
            return Err(refuse(ApiError::ContentType, body).await);
        }
        if let Some(encoding) = encoding(&parts.headers) {
            return Err(refuse(ApiError::ContentEncoding { encoding }, body).await);
        }
        let (bytes, claim) = read(body, &parts.headers, app).await?;
        let large = bytes.len() > PARSE_INLINE_MAX;
        let value = if large { app.blocking(move || parse(&bytes)).await } else { parse(&bytes) };
        match value.map_err(IntoResponse::into_response)? {
            Value::Object(map) => Ok(Self { fields: Fields::body(map), large, claim }),
            other => Err(ApiError::NotAnObject { found: type_name(&other) }.into_response()),
        }
    }
}

/// Answers with `error` after taking the request's body off the connection; closes the connection if that fails.
pub(crate) async fn refuse(error: ApiError, body: Body) -> Response {
    let drained = discard(body, DISCARD_BYTES_MAX).await;
    let mut response = error.into_response();
    if !drained {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads and forgets a body; true if it ended within the bounds.
async fn discard(body: Body, bytes_max: usize) -> bool {
    let mut left = bytes_max;
    let mut chunks = body.into_data_stream();
    let all = async {
        while let Some(chunk) = chunks.next().await {
            let Some(rest) = chunk.ok().and_then(|chunk| left.checked_sub(chunk.len())) else { return false };
            left = rest;
        }
        true
    };
    tokio::time::timeout(DISCARD_TIME_MAX, all).await.unwrap_or(false)
}

/// No content type counts as JSON: curl users forget it, and there is nothing else it could be.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let mime = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"))
}

/// Workers AI takes what `curl -d` sends, which calls it a form, and its examples leave it so. No web page can make such a request
/// without being allowed to: it has a key in a header.
fn is_curl_without_a_type(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind == Some(b"application/x-www-form-urlencoded")
        && parts.headers.contains_key(header::AUTHORIZATION)
        && workers_ai::speaks(parts.uri.path()).is_some()
}

/// An encoding of the body that would have to be undone.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_ENCODING)?;
    let shown: String = String::from_utf8_lossy(value.as_bytes()).chars().take(64).collect();
    (!shown.eq_ignore_ascii_case("identity")).then_some(shown)
}

async fn read(body: Body, headers: &HeaderMap, app: &AppState) -> Result<(Vec<u8>, Claim), Response> {
    let limit = app.options().body_bytes_max;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        let error = ApiError::BodyTooLarge { limit };
        // A client that asks before it sends is answered without being asked for the body.
        let asks = headers.contains_key(header::EXPECT);
        return Err(if asks { closing(error) } else { refuse(error, body).await });
    }
    let mut claim = Claim::default();
    if let Err(error) = claim.grow(app, announced.unwrap_or(0)) {
        return Err(refuse(error, body).await);
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20));
    let mut chunks = body.into_data_stream();
    let deadline = tokio::time::Instant::now() + app.options().body_time_max;
    loop {
        let idle = tokio::time::Instant::now() + app.options().body_idle_max;
        let chunk = match tokio::time::timeout_at(idle.min(deadline), chunks.next()).await {
            Err(_) => return Err(closing(ApiError::BodyTimeout)),
            Ok(None) => return Ok((bytes, claim)),
            Ok(Some(Err(_))) => return Err(closing(ApiError::BodyAborted)),
            Ok(Some(Ok(chunk))) => chunk,
        };
        if bytes.len() + chunk.len() > limit {
            return Err(refuse(ApiError::BodyTooLarge { limit }, Body::from_stream(chunks)).await);
        }
        if let Err(error) = claim.grow(app, bytes.len() + chunk.len()) {
            return Err(refuse(error, Body::from_stream(chunks)).await);
        }
        bytes.extend_from_slice(&chunk);
    }
}

fn closing(error: ApiError) -> Response {
    let mut response = error.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// serde_json bounds the depth of nesting at 128; its own messages quote nothing of the input, but they are replaced by
/// fixed ones so that this stays so.
fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    if let Err(error) = std::str::from_utf8(bytes) {
        return Err(ApiError::NotUtf8 { offset: error.valid_up_to() });
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::MalformedJson { reason: "it is empty", line: 1, column: 1 });
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = if error.to_string().starts_with("recursion limit exceeded") {
            "it is nested too deeply"
        } else if error.is_eof() {
            "it ends in the middle of a value"
        } else {
            "there is a syntax error"
        };
        ApiError::MalformedJson { reason, line: error.line(), column: error.column() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_errors_say_where_and_quote_nothing() {
        let error = parse(b"{\"messages\": [\n secret]}").unwrap_err();
        assert_eq!(error, ApiError::MalformedJson { reason: "there is a syntax error", line: 2, column: 2 });
        assert!(!error.to_string().contains("secret"));
        assert_eq!(parse(b"{\"a\": \"\xff\"}").unwrap_err(), ApiError::NotUtf8 { offset: 7 });
        assert!(
            matches!(parse(b"{\"a\": 1").unwrap_err(), ApiError::MalformedJson { reason, .. } if reason.contains("middle"))
        );
        assert!(matches!(parse(b" ").unwrap_err(), ApiError::MalformedJson { reason: "it is empty", .. }));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        let error = parse(&deep).unwrap_err();
        assert!(error.to_string().contains("nested too deeply"), "{error}");
    }

    #[test]
    fn json_content_types() {
        let with =
            |value: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
        assert!(is_json(&HeaderMap::new()));
        assert!(is_json(&with("application/json; charset=utf-8")));
        assert!(is_json(&with("Application/JSON")));
        assert!(is_json(&with("application/vnd.api+json")));
        assert!(!is_json(&with("text/plain")));
        assert!(!is_json(&with("multipart/form-data; boundary=x")));
    }
}
