//! Probes, metrics, and answers to requests that match no route.
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body::refuse;
use super::error::ApiError;

/// The text format that every Prometheus-compatible scraper reads.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /livez`: the process answers.
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: requests are welcome.
pub(crate) async fn ready(State(app): State<AppState>) -> Response {
    if app.is_draining() { ApiError::Draining.into_response() } else { health(State(app)).await }
}

/// `GET /health`: every engine works. Stays 200 while draining, so that nothing kills a server that is finishing.
pub(crate) async fn health(State(app): State<AppState>) -> Response {
    if app.is_healthy() { "ok\n".into_response() } else { ApiError::EngineStopped.into_response() }
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(app): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], app.metrics_text()).into_response()
}

/// Any path that is not a route.
pub(crate) async fn not_found(request: Request) -> Response {
    let path = request.uri().path().chars().take(256).collect();
    let error = ApiError::RouteNotFound { method: request.method().to_string(), path };
    refuse(error, request.into_body()).await
}

/// A route with a method it does not have. `OPTIONS` is answered with the `Allow` header that the router adds; no CORS
/// headers, so browsers keep other origins out.
pub(crate) async fn method_not_allowed(request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let path = request.uri().path().chars().take(256).collect();
    let error = ApiError::MethodNotAllowed { method: request.method().to_string(), path };
    refuse(error, request.into_body()).await
}
