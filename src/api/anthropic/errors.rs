//! Errors in Anthropic's shape.
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::ApiError;
use crate::api::error::retold;

/// What Anthropic's SDKs take for "overloaded": they retry it.
const OVERLOADED: u16 = 529;

pub(crate) fn status(error: &ApiError) -> StatusCode {
    match error.status() {
        StatusCode::SERVICE_UNAVAILABLE => {
            StatusCode::from_u16(OVERLOADED).expect("a status of three digits that is none is a bug")
        }
        status => status,
    }
}

fn kind(error: &ApiError) -> &'static str {
    match status(error).as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        OVERLOADED => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// `{"type": "error", "error": {"type", "message"}}`, with the request's id where it is known.
pub(crate) fn body(error: &ApiError, request_id: Option<&str>) -> Value {
    let mut body = json!({"type": "error", "error": {"type": kind(error), "message": error.to_string()}});
    if let Some(id) = request_id {
        body["request_id"] = id.into();
    }
    body
}

/// Puts a response into Anthropic's shape: the request's id under its name, and errors in its words.
pub(crate) fn reshape(mut response: Response, request_id: &HeaderValue) -> Response {
    if let Some(error) = response.extensions().get::<ApiError>() {
        response = retold(&response, status(error), body(error, request_id.to_str().ok()));
    }
    response.headers_mut().insert("request-id", request_id.clone());
    response
}
