//! Errors in the envelope, with the codes that Workers AI's clients know.
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Wording;
use crate::api::ApiError;
use crate::api::error::retold;

/// What a request that nobody may make is answered with.
const AUTHENTICATION: u32 = 10_000;
const NO_ROUTE: u32 = 7_000;
const NO_METHOD: u32 = 7_001;
/// Headers or body are missing, or not what they should be.
const INCOMPLETE: u32 = 3_003;
const TOO_LARGE: u32 = 3_006;
const TIMEOUT: u32 = 3_007;
const ABORTED: u32 = 3_008;
const OUT_OF_CAPACITY: u32 = 3_040;
const INTERNAL: u32 = 3_043;
const NO_LORA: u32 = 5_005;
/// A field is not what it should be: not in the vendor's table, but what its servers say.
const BAD_INPUT: u32 = 5_006;
const NO_SUCH_MODEL: u32 = 5_007;
/// Neither are these.
const CONTEXT: u32 = 5_021;
const JSON_MODE: u32 = 5_024;

/// The status and the code.
fn row(error: &ApiError) -> (StatusCode, u32) {
    match error {
        ApiError::KeyMissing | ApiError::KeyInvalid | ApiError::ScopeMissing { .. } => (error.status(), AUTHENTICATION),
        ApiError::RouteNotFound { .. } => (error.status(), NO_ROUTE),
        ApiError::MethodNotAllowed { .. } => (error.status(), NO_METHOD),
        ApiError::NotUtf8 { .. }
        | ApiError::MalformedJson { .. }
        | ApiError::NotAnObject { .. }
        | ApiError::ContentType
        | ApiError::ContentEncoding { .. } => (StatusCode::BAD_REQUEST, INCOMPLETE),
        ApiError::BodyTooLarge { .. } | ApiError::ConversationTooLarge { .. } => (error.status(), TOO_LARGE),
        ApiError::BodyTimeout => (error.status(), TIMEOUT),
        ApiError::BodyAborted => (StatusCode::REQUEST_TIMEOUT, ABORTED),
        ApiError::ContextLength { .. }
        | ApiError::TooLong { .. }
        | ApiError::PromptTooLong { .. }
        | ApiError::InputTooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, CONTEXT),
        ApiError::ModelNotFound { .. } | ApiError::WrongEndpoint { .. } | ApiError::NoModel { .. } => {
            (StatusCode::BAD_REQUEST, NO_SUCH_MODEL)
        }
        ApiError::GrammarStuck { .. } => (error.status(), JSON_MODE),
        ApiError::Unsupported { param, .. } if param == "lora" => (StatusCode::METHOD_NOT_ALLOWED, NO_LORA),
        ApiError::Overloaded { .. } | ApiError::Draining | ApiError::CutOff => {
            (StatusCode::TOO_MANY_REQUESTS, OUT_OF_CAPACITY)
        }
        _ if error.status().is_server_error() => (error.status(), INTERNAL),
        _ => (error.status(), BAD_INPUT),
    }
}

/// Clients look for the vendor's words; what is wrong here stands after them.
fn message(error: &ApiError) -> String {
    match row(error).1 {
        AUTHENTICATION => format!("Authentication error: {error}"),
        BAD_INPUT => format!("Bad input: {error}"),
        OUT_OF_CAPACITY => format!("Capacity temporarily exceeded, please try again. {error}"),
        JSON_MODE => format!("JSON Mode couldn't be met. {error}"),
        NO_SUCH_MODEL => match error {
            ApiError::ModelNotFound { model } => {
                format!("No such model {model} or task. GET /v1/models lists the models of this server.")
            }
            _ => format!("No such model or task. {error}"),
        },
        _ => error.to_string(),
    }
}

/// A field's path as a JSON pointer.
fn pointer(param: &str) -> String {
    let path = param.replace(['.', '['], "/").replace(']', "");
    format!("/{path}")
}

/// `{"result": null, "success": false, "errors": [{"code", "message"}], "messages": []}`; where a field is at fault, the
/// error's `source` points to it.
pub(super) fn body(error: &ApiError) -> Value {
    let mut told = json!({"code": row(error).1, "message": message(error)});
    if let Some(param) = error.param() {
        told["source"] = json!({"pointer": pointer(param)});
    }
    json!({"result": null, "success": false, "errors": [told], "messages": []})
}

/// As [`body`]; with OpenAI's `error` beside it, where its clients are at home, too.
pub(crate) fn told(error: &ApiError, wording: Wording) -> Value {
    let mut body = body(error);
    if wording == Wording::Both {
        body["error"] = error.body()["error"].take();
    }
    body
}

/// The status of a response that says it.
pub(crate) fn status(error: &ApiError) -> StatusCode {
    row(error).0
}

/// Puts an error into the envelope.
pub(crate) fn reshape(response: Response, wording: Wording) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    retold(&response, status(error), told(error, wording))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_pointed_to() {
        let error = ApiError::Missing { param: "tools[2].parameters.type".into() };
        let body = body(&error);
        assert_eq!(body["errors"][0]["source"]["pointer"], "/tools/2/parameters/type");
        assert_eq!(body["errors"][0]["code"], BAD_INPUT);
        assert_eq!(body["success"], false);
    }

    #[test]
    fn codes_are_those_that_clients_know() {
        let code = |error: ApiError| (row(&error).0.as_u16(), row(&error).1);
        assert_eq!(code(ApiError::ModelNotFound { model: "x".into() }), (400, 5007));
        assert_eq!(code(ApiError::busy()), (429, 3040));
        assert_eq!(code(ApiError::BodyTooLarge { limit: 1 }), (413, 3006));
        assert_eq!(code(ApiError::BodyTimeout), (408, 3007));
        assert_eq!(code(ApiError::KeyInvalid), (401, 10000));
        assert_eq!(code(ApiError::ScopeMissing { scope: "infer" }), (403, 10000));
        assert_eq!(code(ApiError::Unsupported { param: "lora".into(), hint: "" }), (405, 5005));
        assert_eq!(code(ApiError::TooLong { needed: 2, context_max: 1 }), (413, 5021));
    }
}
