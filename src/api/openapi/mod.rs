//! `GET /openapi.json`: what the server does, for programs that read OpenAPI 3.1.
//!
//! Schemas of answers come from the types that are serialized. Requests are read field by field, so their schemas are written
//! here, from the parsers' own tables and limits; `tests` holds them to what the parsers ask for (every field, type, range and
//! word, both ways), the routes to the router's, and `tests/wire.rs` every answer to its schema.
mod answers;
mod dialects;
mod generation;
mod operations;
mod schema;
#[cfg(test)]
mod tests;
mod workers_ai;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{AppState, ServerOptions};

const ABOUT: &str = "Open-weight language models over the APIs of OpenAI, Anthropic and Workers AI.\n\n\
    In requests, a field that is `null` counts as left out, and one that nobody knows is a 400 that names it. Unknown paths \
    are answered with 404, other methods of known ones with 405 and `Allow` (`OPTIONS` with 204), both with an error in the \
    shape of `Error` (below `/v1/messages`: of `MessageError`; below `/client/v4`: of `WorkersAiError`). Errors of a stream that has begun come as its last event.";

/// The handler. The document is no secret: it is open to strangers, and the same for all.
pub(crate) async fn serve(State(app): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.shared.openapi.clone()).into_response()
}

/// The document of a server with these options, as it is sent.
pub(super) fn written(options: &ServerOptions) -> Bytes {
    Bytes::from(document(options).to_string())
}

fn document(options: &ServerOptions) -> Value {
    let mut paths = Map::new();
    for operation in operations::all(options.body_bytes_max) {
        let path = paths.entry(operation.template()).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    let mut schemas = answers::components();
    schemas.extend(requests());
    echo(&mut schemas);
    let mut security = vec![json!({"bearer": []}), json!({"x-api-key": []})];
    if options.auth.is_none() {
        security.insert(0, json!({}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "wick",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "security": security,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": operations::parameters(),
            "headers": operations::headers(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the server's keys file."},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key, as Anthropic's clients send it."},
            },
        },
    })
}

/// A response repeats these fields of its request, or says what counted instead.
fn echo(schemas: &mut Map<String, Value>) {
    const ECHOED: [&str; 20] = [
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    ];
    let given = schemas["ResponseRequest"]["properties"].clone();
    let response = &mut schemas["Response"];
    for name in ECHOED {
        response["properties"][name] = given[name].clone();
        if let Value::Array(required) = &mut response["required"] {
            required.push(name.into());
        }
    }
}

/// The schemas of bodies by the names of their components.
fn requests() -> Map<String, Value> {
    let bodies = [
        ("ChatRequest", generation::chat()),
        ("CompletionRequest", generation::completion()),
        ("ResponseRequest", dialects::response()),
        ("InputTokensRequest", dialects::response_count()),
        ("MessageRequest", dialects::messages(false)),
        ("CountMessageRequest", dialects::messages(true)),
        ("EmbeddingRequest", dialects::embedding()),
        ("RerankRequest", dialects::rerank()),
        ("TokenizeRequest", generation::tokenize()),
        ("DetokenizeRequest", generation::detokenize()),
        ("WorkersAiRequest", workers_ai::request()),
        ("WorkersAiTextRequest", workers_ai::text_request()),
        ("WorkersAiEmbeddingRequest", workers_ai::embedding_request()),
        ("WorkersAiRerankRequest", workers_ai::rerank_request()),
    ];
    bodies.map(|(name, schema)| (name.to_owned(), schema)).into_iter().collect()
}
