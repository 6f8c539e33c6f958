//! Workers AI's dialect on the wire.
use std::time::Duration;

use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};
use wick::api::auth::{Scope, generate_key};
use wick::api::{KeyStore, ServerOptions};

use super::support::{ANSWER, MODEL, Server, Setup, chat, chunks, redact, transcript};
use super::{CHAT, streamed};

const ACCOUNT: &str = "/client/v4/accounts/0123456789abcdef/ai";
const CALL: &str = "<think>\nOne city.\n</think>\n\nLooking.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\"}}\n\
    </tool_call>";

fn run(model: &str) -> String {
    format!("{ACCOUNT}/run/{model}")
}

async fn says(script: &'static str) -> Server {
    let setup = Setup { script: Some(script), template: Some("qwen3.jinja"), context_max: 8192, ..Setup::default() };
    Server::start(setup).await
}

fn request(extra: Value) -> Value {
    let mut body = json!({"temperature": 0});
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().unwrap().extend(extra);
    body
}

fn hello(extra: Value) -> Value {
    let mut body = request(extra);
    body["messages"] = json!([{"role": "user", "content": "Hello"}]);
    body
}

/// The result in the envelope of a request that went well.
async fn result(server: &Server, body: Value) -> Value {
    let (status, mut answer) = server.ask(&run(MODEL), body).await;
    assert_eq!(status, 200, "{answer}");
    let result = answer["result"].take();
    assert_eq!(answer, json!({"result": null, "success": true, "errors": [], "messages": []}));
    without_ids(result)
}

/// Status and envelope of one that did not.
async fn refused(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = server.ask(path, body).await;
    assert!(status >= 400 && answer["success"] == false && answer["result"].is_null(), "{answer}");
    (status, answer["errors"][0].clone())
}

/// Without what differs from run to run, and from a first request to its like.
fn without_ids(mut result: Value) -> Value {
    if let Some(cached) = result.pointer_mut("/usage/prompt_tokens_details/cached_tokens") {
        *cached = "[cached]".into();
    }
    for call in result.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        call["id"] = "[call]".into();
    }
    result
}

fn weather() -> Value {
    json!([{"name": "weather", "description": "Weather of a city", "parameters":
        {"type": "object", "properties": {"city": {"type": "string", "description": "its name"}}, "required": ["city"]}}])
}

#[tokio::test]
async fn text_result() {
    let server = Server::start(Setup::default()).await;
    let answer = result(&server, hello(json!({}))).await;
    assert_json_snapshot!(answer);
    assert_eq!(result(&server, request(json!({"prompt": "Hello"}))).await["response"], answer["response"]);
    let raw = result(&server, request(json!({"prompt": "say>", "raw": true, "max_tokens": 6}))).await;
    assert_eq!((&raw["response"], &raw["usage"]["prompt_tokens"]), (&json!(&ANSWER[..6]), &json!(4)));
    let limited = result(&server, hello(json!({"ignore_eos": true}))).await;
    assert_eq!((&limited["usage"]["completion_tokens"], &limited["finish_reason"]), (&json!(256), &json!("length")));
    let wide =
        hello(json!({"temperature": 5, "top_p": 2, "top_k": 1, "repetition_penalty": 1, "seed": 9, "max_tokens": 3}));
    assert_eq!(result(&server, wide).await["response"], ANSWER[..3]);
}

#[tokio::test]
async fn text_stream() {
    let server = Server::start(Setup::default()).await;
    let stream = streamed(&server, &run(MODEL), hello(json!({"stream": true, "max_tokens": 6}))).await;
    assert_snapshot!(transcript(&stream));
    let raw = streamed(&server, &run(MODEL), request(json!({"prompt": "say>", "raw": true, "stream": true}))).await;
    let text: String = chunks(&raw).iter().map(|chunk| chunk["response"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, ANSWER);
}

#[tokio::test]
async fn calls_are_objects() {
    let server = says(CALL).await;
    let body = hello(json!({"tools": weather(), "max_tokens": 200}));
    let answer = result(&server, body.clone()).await;
    assert_json_snapshot!(answer);
    let mut nested = body.clone();
    nested["tools"] = json!([{"type": "function", "function": weather()[0]}]);
    assert_eq!(result(&server, nested).await, answer);
    let mut streaming = body.clone();
    streaming["stream"] = true.into();
    let chunks: Vec<Value> =
        chunks(&streamed(&server, &run(MODEL), streaming).await).into_iter().map(without_ids).collect();
    let text = |field: &str| -> String { chunks.iter().filter_map(|chunk| chunk[field].as_str()).collect() };
    assert_eq!(
        (json!(text("response")), json!(text("reasoning_content"))),
        (answer["response"].clone(), answer["reasoning_content"].clone())
    );
    let calls: Vec<&Value> = chunks.iter().filter_map(|chunk| chunk["tool_calls"].get(0)).collect();
    assert_eq!(calls, [&json!({"id": "[call]", "index": 0, "name": "weather", "arguments": {"city": "Zürich"}})]);
    let last = chunks.last().unwrap();
    assert_eq!((&last["finish_reason"], &last["usage"]), (&answer["finish_reason"], &answer["usage"]));
    // The next round, with the call as it came and a result that names no call.
    let round = json!([
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Zürich"}}]},
        {"role": "tool", "name": "weather", "content": "rain"},
    ]);
    assert_eq!(
        result(&server, request(json!({"messages": round, "tools": weather()}))).await["finish_reason"],
        "tool_calls"
    );
    let (status, error) = refused(&server, &run(MODEL), hello(json!({"tools": [{"name": "a b"}]}))).await;
    assert_eq!((status, &error["source"]["pointer"]), (400, &json!("/tools/0/name")));
}

#[tokio::test]
async fn json_mode_answers_with_json() {
    let server = Server::start(Setup { script: Some(r#"{"a": [1, 2]}"#), ..Setup::default() }).await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]});
    for format in [
        json!({"type": "json_schema", "json_schema": schema}),
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}),
        json!({"type": "json_schema", "json_schema": {"schema": schema}}),
        json!({"type": "json_object"}),
    ] {
        let body = hello(json!({"response_format": format}));
        assert_eq!(result(&server, body.clone()).await["response"], json!({"a": [1, 2]}), "{format}");
        let mut cut = body.clone();
        cut["max_tokens"] = 4.into();
        let (status, error) = refused(&server, &run(MODEL), cut).await;
        assert_eq!((status, &error["code"]), (400, &json!(5024)));
        assert!(error["message"].as_str().unwrap().starts_with("JSON Mode couldn't be met."));
        let mut streaming = body;
        streaming["stream"] = true.into();
        assert_eq!(refused(&server, &run(MODEL), streaming).await.1["source"]["pointer"], "/stream");
    }
    let text = hello(json!({"response_format": {"type": "text"}}));
    assert_eq!(result(&server, text).await["response"], r#"{"a": [1, 2]}"#);
}

/// Deeper than parsers go, and a number that no float holds.
#[tokio::test]
async fn json_is_passed_on_as_the_model_wrote_it() {
    let written = format!("{{\"a\": {}1e999{}}}", "[".repeat(150), "]".repeat(150));
    let server = Server::start(Setup { script: Some(written.clone().leak()), ..Setup::default() }).await;
    let body = hello(json!({"response_format": {"type": "json_object"}, "max_tokens": 400}));
    let answer = server.post(&run(MODEL), &body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(text.contains(&format!("\"response\":{written},")), "{text}");
}

#[tokio::test]
async fn errors_stand_in_the_envelope() {
    let server = Server::start(Setup::default()).await;
    let here = run(MODEL);
    let mut table = Vec::new();
    for (path, body) in [
        (run("@cf/meta/llama-3.1-8b-instruct"), hello(json!({}))),
        (here.clone(), json!({})),
        (here.clone(), hello(json!({"prompt": "x"}))),
        (here.clone(), json!({"prompt": ""})),
        (here.clone(), json!({"prompt": 1})),
        (here.clone(), json!({"messages": [{"role": "king", "content": "x"}]})),
        (here.clone(), json!({"messages": [], "raw": true})),
        (here.clone(), hello(json!({"temperature": 6}))),
        (here.clone(), hello(json!({"n": 2}))),
        (here.clone(), hello(json!({"logprobs": true}))),
        (here.clone(), hello(json!({"lora": "mine"}))),
        (here.clone(), hello(json!({"functions": [{"name": "f", "code": "1"}]}))),
        (here.clone(), hello(json!({"model": "other"}))),
        (here.clone(), hello(json!({"options": {"rejectIfBsuy": true}}))),
        (here.clone(), hello(json!({"max_tokens": 5000}))),
        (here.clone(), json!({"requests": [{"prompt": "x"}]})),
        (format!("{here}?queueRequest=true"), hello(json!({}))),
        (format!("{ACCOUNT}/nothing"), json!({})),
        (format!("{ACCOUNT}/v1/chat/completions"), chat(json!({"model": "other"}))),
    ] {
        let (status, answer) = server.ask(&path, body).await;
        table.push(json!([status, answer]));
    }
    assert_json_snapshot!(table);
    let broken =
        server.client.post(format!("{}{here}", server.url)).header("content-type", "application/json").body("{");
    let broken = broken.send().await.unwrap();
    assert_eq!(broken.status(), 400);
    assert_eq!(broken.json::<Value>().await.unwrap()["errors"][0]["code"], 3003);
    let get = server.get(&here).send().await.unwrap();
    assert_eq!((get.status().as_u16(), &get.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert_eq!(get.json::<Value>().await.unwrap()["errors"][0]["code"], 7001);
    let ok = server.ask(&here, hello(json!({"model": MODEL, "n": 1, "logprobs": false, "max_tokens": 1}))).await;
    assert_eq!(ok.0, 200, "{}", ok.1);
}

#[tokio::test]
async fn a_failed_step_ends_a_stream_with_an_envelope() {
    let server = Server::start(Setup { fail_on_token: Some(u32::from(b'w')), ..Setup::default() }).await;
    let (status, error) = refused(&server, &run(MODEL), hello(json!({}))).await;
    assert_eq!((status, &error["code"]), (500, &json!(3043)));
    let stream = streamed(&server, &run(MODEL), hello(json!({"stream": true}))).await;
    let last = transcript(&stream).lines().last().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["errors"][0]["code"], 3043);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_refuse_to_wait() {
    let server = Server::start(Setup { gated: true, ..Setup::default() }).await;
    let all_places = tokio::spawn(server.post(CHAT, &chat(json!({"n": 64, "max_tokens": 2}))).send());
    while !server.gate.is_blocked() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let unless_busy = json!({"rejectIfBusy": true});
    let response = server.post(&run(MODEL), &hello(json!({"options": unless_busy}))).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let error = response.json::<Value>().await.unwrap()["errors"][0].take();
    assert_eq!(error["code"], 3040);
    assert!(error["message"].as_str().unwrap().starts_with("Capacity temporarily exceeded, please try again."));
    let compatible = format!("{ACCOUNT}/v1/chat/completions");
    let (status, answer) = server.ask(&compatible, chat(json!({"options": unless_busy}))).await;
    assert_eq!(
        (status, &answer["errors"][0]["code"], &answer["error"]["code"]),
        (429, &json!(3040), &json!("overloaded"))
    );
    let waits = tokio::spawn(
        server.post(&run(MODEL), &hello(json!({"options": {"rejectIfBusy": false}, "max_tokens": 2}))).send(),
    );
    server.gate.open();
    assert_eq!(all_places.await.unwrap().unwrap().status(), 200);
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    let idle = result(&server, hello(json!({"options": unless_busy, "max_tokens": 2}))).await;
    assert_eq!(idle["response"], "Hi");
}

#[tokio::test]
async fn a_model_answers_by_the_name_that_was_asked_for() {
    let also = vec![("@cf/acme/tiny-instruct".to_owned(), MODEL.to_owned())];
    let options = ServerOptions { also, ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let (status, native) = server.ask(&run("@cf/acme/tiny-instruct"), hello(json!({}))).await;
    assert_eq!((status, &native["result"]["response"]), (200, &json!(ANSWER)));
    // As some clients write it.
    let (status, escaped) = server.ask(&run("%40cf%2Facme%2Ftiny-instruct"), hello(json!({}))).await;
    assert_eq!((status, &escaped["result"]["response"]), (200, &json!(ANSWER)));
    let asked = chat(json!({"model": "@cf/acme/tiny-instruct"}));
    let (_, mut compatible) = server.ask(&format!("{ACCOUNT}/v1/chat/completions"), asked.clone()).await;
    assert_eq!(compatible["model"], "@cf/acme/tiny-instruct");
    compatible["model"] = MODEL.into();
    let (_, own) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(redact(compatible)["choices"], own["choices"]);
    let body = json!({"model": "@cf/acme/tiny-instruct", "input": "Hello"});
    let (status, response) = server.ask(&format!("{ACCOUNT}/v1/responses"), body).await;
    assert_eq!((status, &response["model"]), (200, &json!("@cf/acme/tiny-instruct")));
    let listed: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    let names: Vec<&str> = listed["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, [MODEL, "@cf/acme/tiny-instruct"]);
}

#[tokio::test]
async fn keys_are_asked_for_in_the_envelope() {
    let infer = generate_key("team", &[Scope::Infer]).unwrap();
    let metrics = generate_key("scraper", &[Scope::Metrics]).unwrap();
    let keys = KeyStore::parse(&[infer.toml, metrics.toml].concat(), std::path::Path::new("keys.toml")).unwrap();
    let options = ServerOptions { auth: Some(keys), body_bytes_max: 1000, ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let body = hello(json!({"max_tokens": 1}));
    let send = async |key: Option<&str>, path: String| {
        let request = server.post(&path, &body);
        let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap()["errors"][0]["code"].as_u64())
    };
    assert_eq!(send(None, run(MODEL)).await, (401, Some(10000)));
    assert_eq!(send(Some("wrong"), run(MODEL)).await, (401, Some(10000)));
    assert_eq!(send(Some(&metrics.plaintext), run(MODEL)).await, (403, Some(10000)));
    assert_eq!(send(None, format!("{ACCOUNT}/v1/chat/completions")).await, (401, Some(10000)));
    assert_eq!(send(Some(&infer.plaintext), run(MODEL)).await, (200, None));
    // What `curl -d` says of its body is taken, but only with a key: web pages send such requests without asking.
    let form = |path: &str| {
        let request = server.client.post(format!("{}{path}", server.url)).body(body.to_string());
        request.header("content-type", "application/x-www-form-urlencoded")
    };
    assert_eq!(form(&run(MODEL)).bearer_auth(&infer.plaintext).send().await.unwrap().status(), 200);
    assert_eq!(form(&run(MODEL)).header("x-api-key", &infer.plaintext).send().await.unwrap().status(), 400);
    assert_eq!(form(CHAT).bearer_auth(&infer.plaintext).send().await.unwrap().status(), 400);
    let large = server.post(&run(MODEL), &hello(json!({"prompt": "x".repeat(2000)}))).bearer_auth(&infer.plaintext);
    let large = large.send().await.unwrap();
    assert_eq!(large.status(), 413);
    assert_eq!(large.json::<Value>().await.unwrap()["errors"][0]["code"], 3006);
}
