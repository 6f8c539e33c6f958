//! What the server sends. Schemas of answers come from the types that are serialized; those of answers that are written
//! field by field stand here.
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::schema::{any_of, component, integer, list, map, one_of, or_null, text, with, words};
use crate::api::chat_shape::{ChatChoice, ChunkChoice};
use crate::api::completions::CompletionChoice;
use crate::api::logprobs::ChatToken;
use crate::api::types::Enveloped;
use crate::api::{embeddings, models, rerank, responses, responses_kept, responses_shape, tokenize, workers_ai};

/// Answers and events by the names of their components.
pub(super) fn components() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut types = settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    let mut named = Map::new();
    {
        let mut name = |name: &str, schema: schemars::Schema| named.insert(name.to_owned(), schema.to_value());
        name("ChatCompletion", types.subschema_for::<Enveloped<'_, ChatChoice>>());
        name("ChatCompletionChunk", types.subschema_for::<Enveloped<'_, ChunkChoice>>());
        name("Completion", types.subschema_for::<Enveloped<'_, CompletionChoice>>());
        name("Models", types.subschema_for::<models::ModelList>());
    }
    // Chunks of a completion have the form of the whole; what they leave out there is optional anyway.
    collect::<models::ModelObject>(&mut types);
    collect::<tokenize::Tokenized>(&mut types);
    collect::<tokenize::Detokenized>(&mut types);
    collect::<tokenize::TokenizerInfo>(&mut types);
    collect::<embeddings::Body<'_>>(&mut types);
    collect::<rerank::Reranked>(&mut types);
    collect::<responses::InputTokens>(&mut types);
    collect::<responses_shape::Response>(&mut types);
    collect::<responses_kept::ResponseDeleted>(&mut types);
    collect::<responses_kept::ResponseItems>(&mut types);
    collect::<ChatToken>(&mut types);
    collect::<workers_ai::Envelope<workers_ai::TextResult>>(&mut types);
    collect::<workers_ai::Envelope<workers_ai::Vectors>>(&mut types);
    collect::<workers_ai::Envelope<workers_ai::Ranking>>(&mut types);
    collect::<workers_ai::Piece>(&mut types);
    let mut all = types.take_definitions(true);
    all.extend(named);
    all.insert("ResponseEvent".to_owned(), response_event());
    all.insert("Message".to_owned(), message());
    all.insert("MessageEvent".to_owned(), message_event());
    all.insert("MessageTokens".to_owned(), object(vec![("input_tokens", counted())]));
    all.insert("Error".to_owned(), error());
    all.insert("MessageError".to_owned(), message_error());
    all.insert("WorkersAiAnswer".to_owned(), super::workers_ai::answer());
    all.insert("WorkersAiError".to_owned(), super::workers_ai::error());
    all
}

fn collect<T: schemars::JsonSchema>(types: &mut SchemaGenerator) {
    types.subschema_for::<T>();
}

/// An object with all of these fields; more may come with later versions.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let fields: Map<String, Value> = fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "required": names, "properties": fields})
}

fn counted() -> Value {
    integer(0..=i64::MAX)
}

/// The items of a `text/event-stream`: its fields, and what their data is.
pub(super) fn events(data: Value, is_named: bool, is_done: bool) -> Value {
    let json = json!({"type": "string", "contentMediaType": "application/json", "contentSchema": data});
    let data = if is_done { any_of(vec![words(&["[DONE]"]), json]) } else { json };
    let mut fields = vec![("data", data)];
    if is_named {
        fields.push(("event", with(text(), "description", "The data's `type`.")));
    }
    object(fields)
}

/// OpenAI's shape of errors.
fn error() -> Value {
    let kinds = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "timeout_error",
        "overloaded_error",
        "server_error",
    ];
    object(vec![(
        "error",
        object(vec![
            ("message", with(text(), "description", "What is wrong, where, and what to do.")),
            ("type", words(&kinds)),
            ("param", with(or_null(text()), "description", "The field at fault, such as `messages[2].content`.")),
            ("code", or_null(text())),
        ]),
    )])
}

/// Anthropic's shape of errors.
fn message_error() -> Value {
    let kinds = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "timeout_error",
        "request_too_large",
        "overloaded_error",
        "api_error",
    ];
    let mut error = object(vec![
        ("type", words(&["error"])),
        ("error", object(vec![("type", words(&kinds)), ("message", text())])),
    ]);
    // Not in a stream, whose headers have it.
    error["properties"]["request_id"] = text();
    error
}

const STOP_REASONS: [&str; 5] =
    ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"];

fn message_usage() -> Value {
    object(vec![
        ("input_tokens", with(counted(), "description", "Without those read from the cache.")),
        ("cache_creation_input_tokens", counted()),
        ("cache_read_input_tokens", counted()),
        ("output_tokens", counted()),
        ("output_tokens_details", object(vec![("thinking_tokens", counted())])),
        ("service_tier", text()),
    ])
}

/// What ended a message, both `null` before its end.
fn message_stop() -> Vec<(&'static str, Value)> {
    vec![("stop_reason", or_null(words(&STOP_REASONS))), ("stop_sequence", or_null(text()))]
}

fn content_block() -> Value {
    let input = with(any_of(vec![map(), text()]), "description", "Text where the model wrote no object.");
    one_of(vec![
        object(vec![("type", words(&["thinking"])), ("thinking", text()), ("signature", text())]),
        object(vec![("type", words(&["text"])), ("text", text())]),
        object(vec![("type", words(&["tool_use"])), ("id", text()), ("name", text()), ("input", input)]),
    ])
}

fn message() -> Value {
    let mut fields = vec![
        ("id", text()),
        ("type", words(&["message"])),
        ("role", words(&["assistant"])),
        ("model", text()),
        ("content", list(content_block())),
        ("usage", message_usage()),
    ];
    fields.extend(message_stop());
    object(fields)
}

fn message_event() -> Value {
    let event = |kind: &str, mut fields: Vec<(&str, Value)>| {
        fields.push(("type", words(&[kind])));
        object(fields)
    };
    let delta = |kind: &str, field: &str| object(vec![("type", words(&[kind])), (field, text())]);
    let deltas = one_of(vec![
        delta("thinking_delta", "thinking"),
        delta("text_delta", "text"),
        delta("input_json_delta", "partial_json"),
    ]);
    one_of(vec![
        event("message_start", vec![("message", component("Message"))]),
        event("content_block_start", vec![("index", counted()), ("content_block", content_block())]),
        event("content_block_delta", vec![("index", counted()), ("delta", deltas)]),
        event("content_block_stop", vec![("index", counted())]),
        event("message_delta", vec![("delta", object(message_stop())), ("usage", message_usage())]),
        event("message_stop", Vec::new()),
        component("MessageError"),
    ])
}

/// The events of a response's stream.
fn response_event() -> Value {
    let event = |kinds: &[&str], mut fields: Vec<(&str, Value)>| {
        fields.extend([("type", words(kinds)), ("sequence_number", counted())]);
        object(fields)
    };
    let within = |kinds: &[&str], has_parts: bool, mut fields: Vec<(&'static str, Value)>| {
        fields.extend([("item_id", text()), ("output_index", counted())]);
        if has_parts {
            fields.push(("content_index", counted()));
        }
        event(kinds, fields)
    };
    let tokens = || list(component("TokenLogprob"));
    one_of(vec![
        event(
            &[
                "response.created",
                "response.in_progress",
                "response.completed",
                "response.incomplete",
                "response.failed",
            ],
            vec![("response", component("Response"))],
        ),
        event(
            &["response.output_item.added", "response.output_item.done"],
            vec![("output_index", counted()), ("item", component("ResponseItem"))],
        ),
        within(
            &["response.content_part.added", "response.content_part.done"],
            true,
            vec![("part", component("ResponsePart"))],
        ),
        within(&["response.output_text.delta"], true, vec![("delta", text()), ("logprobs", tokens())]),
        within(&["response.output_text.done"], true, vec![("text", text()), ("logprobs", tokens())]),
        within(&["response.reasoning_text.delta"], true, vec![("delta", text())]),
        within(&["response.reasoning_text.done"], true, vec![("text", text())]),
        within(
            &["response.function_call_arguments.delta", "response.custom_tool_call_input.delta"],
            false,
            vec![("delta", text())],
        ),
        within(&["response.function_call_arguments.done"], false, vec![("name", text()), ("arguments", text())]),
        within(&["response.custom_tool_call_input.done"], false, vec![("input", text())]),
    ])
}
