//! The description against the code: routes against the router's, fields of requests against what parsers ask for.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, header};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::document;
use crate::api::fields::{Kind, known};
use crate::api::{AppState, KeyStore, ServedEncoder, ServedModel, ServerOptions, auth, router, routes};
use crate::encoder::{EncodeError, EncoderHandle, EncoderInfo, EncoderInput, EncoderLimits, EncoderRunner, Pooling};
use crate::engine::{EngineHandle, QueueLimits};
use crate::scheduler::SchedulerConfig;
use crate::testing::FakeRunner;
use crate::text::TextTools;

const VOCAB: usize = 259;

struct Encodes {
    scores: bool,
}

impl EncoderRunner for Encodes {
    fn run(&mut self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>, EncodeError> {
        Ok(inputs.iter().map(|_| vec![0.5; if self.scores { 1 } else { 4 }]).collect())
    }
}

fn text(folder: &str, template: Option<&str>) -> Arc<TextTools> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let template = template.map(|name| root.join("golden/templates/src").join(name));
    Arc::new(TextTools::load(&root.join(folder), template.as_deref()).unwrap())
}

fn encoder(alias: &str, scores: bool) -> ServedEncoder {
    let pooling = (!scores).then_some(Pooling::Mean);
    let info = EncoderInfo { vocab: 400, tokens_max: 64, dimensions: pooling.map(|_| 4), pooling };
    let limits = EncoderLimits { requests_max: 2, tokens_max: 1000, batch_tokens_max: 64 };
    ServedEncoder {
        alias: alias.to_owned(),
        backend: EncoderHandle::spawn(Box::new(Encodes { scores }), info, limits).unwrap().into(),
        text: text("golden/encoders/bert-reranker", None),
        created: 1,
        owned_by: "wick".to_owned(),
    }
}

/// A server with a model that thinks and calls tools, one that embeds and one that reranks.
fn server() -> Router {
    let config = SchedulerConfig {
        block_size: 16,
        num_blocks: 512,
        batched_tokens_max: 512,
        prefill_chunk_max: 256,
        running_max: 8,
        context_max: 2048,
        logit_rows_max: 256,
        prefix_cache: true,
        speculation: false,
    };
    let queue = QueueLimits { sequences_max: 64, tokens_max: 100_000 };
    let engine = EngineHandle::spawn(Box::new(FakeRunner::new(VOCAB, 16, 512)), config, queue).unwrap();
    let model = ServedModel {
        alias: "m".to_owned(),
        engine,
        text: text("fixtures/tiny-tokenizer", Some("qwen3.jinja")),
        created: 1,
        context_max: 2048,
        owned_by: "wick".to_owned(),
        steps: None,
    };
    let encoders = vec![encoder("embedder", false), encoder("reranker", true)];
    router(AppState::with_encoders(vec![model], encoders, ServerOptions::default()))
}

async fn send(server: &Router, method: Method, path: &str, body: Option<&Value>) -> axum::response::Response {
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    TowerToHyperService::new(server.clone()).call(request.body(body).unwrap()).await.unwrap()
}

fn described() -> Value {
    document(&ServerOptions::default())
}

/// The operations: path as the router has it, method, and what describes it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &'_ Value)| -> Vec<(String, String)> {
        methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())).collect()
    };
    let all: Vec<(String, String)> = paths.iter().flat_map(of).collect();
    all.into_iter()
        .map(|(path, method)| {
            let about = &paths[&path][&method];
            (path, method, about)
        })
        .collect()
}

#[tokio::test]
async fn every_route_is_described_with_its_methods_and_no_other() {
    let (document, server) = (described(), server());
    let mut described: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, method, _) in operations(&document) {
        described.entry(path).or_default().insert(method.to_uppercase());
    }
    let mut routed = BTreeMap::new();
    for (path, _) in routes() {
        let concrete = path.replace(['{', '}', '*'], "");
        let answer = send(&server, Method::OPTIONS, &concrete, None).await;
        let allowed = answer.headers()[header::ALLOW].to_str().unwrap().split(',').map(str::to_owned);
        // Every GET can be asked for its head.
        routed.insert(path.replace("{*", "{"), allowed.filter(|method| method != "HEAD").collect::<BTreeSet<String>>());
    }
    assert_eq!(described, routed);
}

/// What is at the end of a `$ref`.
fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(at) => document.pointer(at.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{at} is nowhere")),
        None => schema,
    }
}

/// Every field that a schema describes, by its path.
fn fields<'d>(document: &'d Value, schema: &'d Value, at: &str, found: &mut BTreeMap<String, Vec<&'d Value>>) {
    let schema = resolved(document, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        found.entry(path.clone()).or_default().push(field);
        fields(document, field, &path, found);
    }
    for choice in ["oneOf", "anyOf", "allOf"] {
        for option in schema[choice].as_array().into_iter().flatten() {
            fields(document, option, at, found);
        }
    }
    if schema["items"].is_object() {
        fields(document, &schema["items"], &format!("{at}[]"), found);
    }
}

/// What a schema says of a value, its alternatives included.
fn leaves<'d>(schema: &'d Value, found: &mut Vec<&'d Value>) {
    found.push(schema);
    for choice in ["oneOf", "anyOf"] {
        schema[choice].as_array().into_iter().flatten().for_each(|option| leaves(option, found));
    }
}

/// The words of a keyword that takes one or several, in all of these schemas; `null` is left out.
fn words(schemas: &[&Value], keyword: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for schema in schemas {
        match &schema[keyword] {
            Value::Array(all) => found.extend(all.iter().filter_map(Value::as_str).map(str::to_owned)),
            Value::String(one) => drop(found.insert(one.clone())),
            _ => {}
        }
    }
    found.remove("null");
    found
}

/// Whether the description of a field says what its parser wants.
fn says(schemas: &[&Value], path: &str, kind: &Kind) -> Result<(), String> {
    let mut all = Vec::new();
    schemas.iter().for_each(|schema| leaves(schema, &mut all));
    let kinds = words(&all, "type");
    let only = |wanted: &str| {
        if kinds.iter().all(|kind| kind == wanted) { Ok(()) } else { Err(format!("{kinds:?} instead of {wanted}")) }
    };
    let bound = |keyword: &str| all.iter().find_map(|schema| schema[keyword].as_f64());
    match kind {
        Kind::Any => Ok(()),
        Kind::Text => only("string"),
        Kind::Flag => only("boolean"),
        Kind::Array => only("array"),
        Kind::Object => only("object"),
        // Refused whatever its value is.
        Kind::Integer(_) | Kind::Number(_) if kinds.is_empty() => Ok(()),
        Kind::Integer(range) => {
            only("integer")?;
            let (low, high) = (Some(*range.start() as f64), Some(*range.end() as f64));
            // How much a model can read is not said in the description of all servers.
            let high = high.filter(|_| path != "truncate_prompt_tokens" && *range.end() != i64::MAX);
            let said = (bound("minimum"), bound("maximum"));
            if said == (low, high) { Ok(()) } else { Err(format!("{said:?} instead of {range:?}")) }
        }
        Kind::Number(range) => {
            only("number")?;
            let said = (bound("minimum"), bound("maximum"));
            let wanted = (Some(*range.start()), Some(*range.end()));
            if said == wanted { Ok(()) } else { Err(format!("{said:?} instead of {range:?}")) }
        }
        Kind::OneOf(choices) => {
            // Known, so that its refusal can say what to use instead.
            let wanted = choices.iter().filter(|word| **word != "structural_tag").map(|word| (*word).to_owned());
            let (said, wanted) = (words(&all, "enum"), wanted.collect::<BTreeSet<String>>());
            if said == wanted { Ok(()) } else { Err(format!("{said:?} instead of {wanted:?}")) }
        }
    }
}

/// `messages[2].content` → `messages[].content`.
fn without_indices(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| path + "[]" + part.split_once(']').unwrap().1)
}

/// The path for a body: of an account, and of the model that takes such bodies.
fn concrete(path: &str, body: &Value) -> String {
    let model = match (body.get("text"), body.get("query")) {
        (Some(_), _) => "embedder",
        (_, Some(_)) => "reranker",
        _ => "m",
    };
    path.replace("{account}", "any").replace("{model}", model)
}

/// Bodies that have every object a request may have. Some are refused: after all of their fields have been asked for.
fn bodies(path: &str) -> Vec<Value> {
    let path = path.strip_prefix("/client/v4/accounts/{account}/ai").unwrap_or(path);
    let function = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let grammar = json!({"syntax": "regex", "definition": "[a-z]+"});
    let format = json!({"type": "grammar", "grammar": grammar});
    let custom = json!({"type": "custom", "custom": {"name": "c", "format": format}});
    let tools = json!([function, custom]);
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let custom_call = json!({"id": "2", "type": "custom", "custom": {"name": "c", "input": "x"}});
    let refusal = json!([{"type": "refusal", "refusal": "no"}]);
    let messages = json!([
        {"role": "system", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call, custom_call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "tool", "tool_call_id": "2", "content": "x"},
        {"role": "assistant", "content": refusal},
    ]);
    let schema = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}});
    let chats = || {
        vec![
            json!({"messages": messages, "tools": tools, "tool_choice": function}),
            json!({"messages": messages, "tools": tools, "tool_choice": custom}),
            json!({"messages": messages, "tools": tools, "tool_choice": allowed}),
        ]
    };
    let flat_format = json!({"type": "grammar", "syntax": "regex", "definition": "[a-z]+"});
    let flat = json!([
        {"type": "function", "name": "f"}, {"type": "custom", "name": "c", "format": flat_format},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c", "format": flat_format}]},
        {"type": "web_search"},
    ]);
    let allowed_flat = json!({"type": "allowed_tools", "mode": "auto", "tools": [flat[0], flat[1]]});
    let item = |kind: &str, more: Value| {
        let mut item = json!({ "type": kind });
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        item
    };
    let said = json!([{"type": "input_text", "text": "x"}, {"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "x"}]);
    let items = json!([
        item("message", json!({"role": "user", "content": said})),
        item(
            "reasoning",
            json!({"summary": [{"type": "summary_text", "text": "x"}], "content": [{"type": "reasoning_text", "text": "x"}]})
        ),
        item("function_call", json!({"call_id": "1", "name": "f", "arguments": "{}", "caller": {"type": "direct"}})),
        item("function_call_output", json!({"call_id": "1", "output": [{"type": "input_text", "text": "x"}]})),
        item("custom_tool_call", json!({"call_id": "2", "name": "c", "input": "x"})),
        item("custom_tool_call_output", json!({"call_id": "2", "output": "x"})),
    ]);
    let options = json!({"rejectIfBusy": false});
    let mut responses = vec![
        json!({"input": items, "tools": flat, "tool_choice": flat[0], "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}}),
        json!({"input": "x", "tools": flat, "tool_choice": allowed_flat}),
    ];
    match path {
        "/v1/chat/completions" => {
            let mut all = chats();
            all.push(
                json!({"messages": messages, "reasoning": {"effort": "low"}, "stream": true, "stream_options": {}, "options": options,
                "structured_outputs": {"json": {"type": "object"}}, "max_tokens": 2}),
            );
            all.push(json!({"messages": messages, "response_format": schema, "max_tokens": 2}));
            all
        }
        "/v1/completions" => vec![
            json!({"prompt": "x", "stream": true, "stream_options": {}, "structured_outputs": {}, "options": options, "max_tokens": 2}),
            json!({"prompt": "x", "response_format": schema, "max_tokens": 2}),
        ],
        "/tokenize" => chats(),
        "/v1/responses" => {
            let more = json!({"input": "x", "stream": true, "stream_options": {}, "structured_outputs": {}, "options": options,
                "max_output_tokens": 2});
            responses.push(more);
            responses
        }
        "/v1/responses/input_tokens" => responses,
        "/v1/messages" | "/v1/messages/count_tokens" => {
            let hint = json!({"type": "ephemeral"});
            let text = json!({"type": "text", "text": "x", "cache_control": hint});
            let results = json!([{"type": "tool_result", "tool_use_id": "1", "content": [text]}, text]);
            let said = json!([{"type": "thinking", "thinking": "x", "signature": ""}, {"type": "redacted_thinking", "data": "x"}, text,
                {"type": "tool_use", "id": "1", "name": "f", "input": {}}]);
            let messages = json!([
                {"role": "user", "content": [text]},
                {"role": "assistant", "content": said},
                {"role": "user", "content": results},
                {"role": "system", "content": [text]},
            ]);
            let edits = json!([{"type": "clear_thinking_20251015", "keep": "all"}]);
            let format = json!({"type": "json_schema", "schema": {"type": "object"}});
            vec![
                json!({"system": [text], "messages": messages, "max_tokens": 2, "thinking": {"type": "enabled"}, "metadata": {},
                "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool", "name": "f"},
                "output_config": {"format": format}, "options": options, "context_management": {"edits": edits}}),
            ]
        }
        "/v1/embeddings" => vec![json!({"input": "x", "options": options})],
        "/v1/rerank" | "/v2/rerank" | "/rerank" => {
            vec![json!({"query": "x", "documents": [{"text": "x"}], "options": options})]
        }
        "/run/{model}" => {
            let function = json!({"name": "f", "parameters": {"type": "object"}});
            let mut all = chats();
            all.extend([
                json!({"messages": messages, "tools": [function, flat[1]], "tool_choice": flat[0]}),
                json!({"messages": messages, "tools": [flat[0], flat[1]], "tool_choice": allowed_flat}),
                json!({"messages": messages, "reasoning": {"effort": "low"}, "stream": true, "stream_options": {}, "options": options,
                    "structured_outputs": {"json": {"type": "object"}}, "max_tokens": 2}),
                json!({"prompt": "x", "response_format": schema, "max_tokens": 2}),
                json!({"prompt": "x", "raw": true, "max_tokens": 2}),
                json!({"text": "x", "options": options}),
                json!({"query": "x", "contexts": [{"text": "x"}], "options": options}),
            ]);
            all
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn fields_are_described_as_parsers_take_them() {
    let (document, server) = (described(), server());
    // Where a form is taken to another field, what is asked for there is no client's.
    let moved = ["text.format.json_schema", "output_config.format.json_schema"];
    // What is brought into a chat's form before any parser asks.
    let translated = ["messages[].tool_calls[].name", "messages[].tool_calls[].arguments"];
    let mut wrong = Vec::new();
    for (path, method, about) in operations(&document) {
        let Some(body) = about["requestBody"]["content"].get("application/json") else { continue };
        assert_eq!(method, "post");
        let mut described = BTreeMap::new();
        fields(&document, &body["schema"], "", &mut described);
        let mut asked: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
        let examples = body["examples"].as_object().unwrap().values().map(|example| example["value"].clone());
        for body in examples.chain(bodies(&path)) {
            known::take();
            drop(
                to_bytes(
                    send(&server, Method::POST, &concrete(&path, &body), Some(&body)).await.into_body(),
                    usize::MAX,
                )
                .await,
            );
            for (path, kind) in known::take() {
                // The words of `response_format`, too.
                let is_moved = matches!(&kind, Kind::OneOf(words) if words.contains(&"structural_tag"))
                    && !path.starts_with("response_format");
                if !is_moved && !moved.iter().any(|moved| path.starts_with(moved)) {
                    asked.entry(without_indices(&path)).or_default().push(kind);
                }
            }
        }
        let is_translated = |field: &str| path.ends_with("/run/{model}") && translated.contains(&field);
        let unknown = described.keys().filter(|field| !asked.contains_key(*field) && !is_translated(field));
        wrong.extend(unknown.map(|field| format!("{path}: `{field}` is described, but nothing asks for it")));
        for (field, kinds) in asked {
            match described.get(&field) {
                None => wrong.push(format!("{path}: `{field}` is read, but not described")),
                Some(schemas) => {
                    let errors = kinds.iter().filter_map(|kind| says(schemas, &field, kind).err());
                    wrong.extend(errors.map(|error| format!("{path}: `{field}`: {error}")).collect::<BTreeSet<_>>());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn examples_are_answered() {
    let (document, server) = (described(), server());
    for (path, _, about) in operations(&document) {
        let body = &about["requestBody"]["content"]["application/json"];
        for example in body["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]) {
            let answer = send(&server, Method::POST, &concrete(&path, example), Some(example)).await;
            let status = answer.status();
            let text = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&text));
            assert!(valid(&document, &body["schema"], example), "{path}: {example}");
        }
    }
}

fn valid(document: &Value, schema: &Value, value: &Value) -> bool {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    jsonschema::options().build(&schema).unwrap().is_valid(value)
}

fn references<'d>(value: &'d Value, found: &mut Vec<&'d Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("$ref").map(|_| value));
            fields.values().for_each(|field| references(field, found));
        }
        _ => {}
    }
}

#[test]
fn the_document_is_whole() {
    let document = described();
    let mut all = Vec::new();
    references(&document, &mut all);
    assert!(all.len() > 100);
    for reference in all {
        resolved(&document, reference);
    }
    let ids: BTreeSet<&str> =
        operations(&document).iter().map(|(_, _, about)| about["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations(&document).len());
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        assert!(!valid(&document, &schema, &json!(0.5)), "{name}");
    }
}

#[test]
fn errors_are_shown_as_they_are_sent() {
    let document = described();
    let about = &document["paths"]["/v1/messages"]["post"]["responses"];
    assert!(about.get("503").is_none());
    let busy = &about["529"]["content"]["application/json"];
    let mut examples = busy["examples"].as_object().unwrap().values();
    assert!(examples.all(|example| valid(&document, &busy["schema"], &example["value"])));
    let large = &document["paths"]["/v1/embeddings"]["post"]["responses"]["413"]["content"]["application/json"];
    assert_eq!(large["examples"]["error1"]["value"]["error"]["code"], "request_too_large");
}

#[test]
fn keys_are_asked_for_where_the_server_has_some() {
    assert_eq!(described()["security"][0], json!({}));
    let keys =
        KeyStore::parse(&auth::generate_key("team", &[auth::Scope::Infer]).unwrap().toml, Path::new("keys.toml"))
            .unwrap();
    let with_keys = document(&ServerOptions { auth: Some(keys), ..ServerOptions::default() });
    assert_eq!(with_keys["security"], json!([{"bearer": []}, {"x-api-key": []}]));
    for (path, about) in with_keys["paths"].as_object().unwrap() {
        let is_open = ["/livez", "/readyz", "/openapi.json"].contains(&path.as_str());
        for operation in about.as_object().unwrap().values() {
            assert_eq!(operation.get("security").is_some(), is_open, "{path}");
            assert_eq!(operation["responses"].get("401").is_none(), is_open, "{path}");
        }
    }
}
