//! Anthropic's Messages on the wire.
use serde_json::{Value, json};

use super::support::{Server, Setup};

const MESSAGES: &str = "/v1/messages";
const THOUGHT_AND_CALL: &str = "<think>\nTwo cities.\n</think>\n\nLooking.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\"}}\n</tool_call>";

async fn says(script: &'static str) -> Server {
    let setup = Setup { script: Some(script), template: Some("qwen3.jinja"), context_max: 8192, ..Setup::default() };
    Server::start(setup).await
}

fn request(extra: Value) -> Value {
    let mut body = json!({"model": "acme/tiny", "max_tokens": 400, "temperature": 0, "messages": [{"role": "user", "content": "hi"}]});
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().unwrap().extend(extra);
    body
}

fn weather() -> Value {
    json!([{"name": "weather", "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

async fn answer(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let response = server.post(path, &body).header("anthropic-version", "2023-06-01").send().await.unwrap();
    assert!(response.headers().contains_key("request-id"));
    let (status, body) = (response.status().as_u16(), response.json().await.unwrap());
    server.assert_described("post", path, status, &body).await;
    (status, body)
}

async fn ok(server: &Server, body: Value) -> Value {
    let (status, body) = answer(server, MESSAGES, body).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The events of a stream: each one's name is its type.
async fn events(server: &Server, body: Value) -> Vec<Value> {
    let text = server.post(MESSAGES, &body).send().await.unwrap().text().await.unwrap();
    server.assert_events_described(MESSAGES, &text).await;
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    text.split_terminator("\n\n").map(event).collect()
}

/// The message that a stream's events make, as an SDK puts it together.
fn folded(events: &[Value]) -> Value {
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events.last().unwrap(), &json!({"type": "message_stop"}));
    let mut message = events[0]["message"].clone();
    let mut open = None;
    let mut inputs = std::collections::HashMap::<u64, String>::new();
    for event in &events[1..events.len() - 1] {
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!(open, None, "blocks come one after the other");
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"].as_u64(), Some(content.len() as u64));
                open = event["index"].as_u64();
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let index = event["index"].as_u64().unwrap();
                assert_eq!(open, Some(index));
                let (delta, block) = (&event["delta"], &mut message["content"][index as usize]);
                let (kind, field) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "input_json_delta" => {
                        assert_eq!(block["type"], "tool_use");
                        inputs.entry(index).or_default().push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    other => panic!("unknown delta {other}"),
                };
                assert_eq!(block["type"], kind);
                block[field] = format!("{}{}", block[field].as_str().unwrap(), delta[field].as_str().unwrap()).into();
            }
            "content_block_stop" => assert_eq!(open.take(), event["index"].as_u64()),
            "message_delta" => {
                assert_eq!(open, None);
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            other => panic!("unknown event {other}"),
        }
    }
    for (index, input) in inputs {
        message["content"][index as usize]["input"] = serde_json::from_str(&input).unwrap_or(Value::String(input));
    }
    message
}

fn without_ids(mut message: Value) -> Value {
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    message["id"] = Value::Null;
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().unwrap().starts_with("toolu_"));
            block["id"] = Value::Null;
        }
    }
    message
}

#[tokio::test]
async fn an_answer_has_blocks_in_the_order_of_the_text() {
    let server = says(THOUGHT_AND_CALL).await;
    let message = without_ids(ok(&server, request(json!({"tools": weather(), "system": "Be brief."}))).await);
    let usage = message["usage"].clone();
    assert_eq!(
        message,
        json!({
            "id": null, "type": "message", "role": "assistant", "model": "acme/tiny",
            "content": [
                {"type": "thinking", "thinking": "Two cities.", "signature": ""},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Zürich"}},
            ],
            "stop_reason": "tool_use", "stop_sequence": null, "usage": usage,
        })
    );
    assert!(usage["input_tokens"].as_u64().unwrap() > 0 && usage["output_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_answer_is_the_fold_of_the_stream() {
    for script in [
        THOUGHT_AND_CALL,
        "<think>\nonly thoughts",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Be",
        "<tool_call>\n{\"name\": \"nothing\", \"arguments\": {}}\n</tool_call>",
        "Plain é text END more",
        "",
    ] {
        let server = says(script).await;
        let body = |stream: bool| request(json!({"tools": weather(), "stop_sequences": ["END"], "stream": stream}));
        let whole = without_ids(ok(&server, body(false)).await);
        let mut streamed = without_ids(folded(&events(&server, body(true)).await));
        // The second request finds the first one's prompt in the cache.
        assert!(
            streamed["usage"]["cache_read_input_tokens"].as_u64() >= whole["usage"]["cache_read_input_tokens"].as_u64()
        );
        let all = |usage: &Value| {
            usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
        };
        assert_eq!(all(&streamed["usage"]), all(&whole["usage"]), "{script}");
        streamed["usage"] = whole["usage"].clone();
        assert_eq!(streamed, whole, "{script}");
    }
}

#[tokio::test]
async fn an_answer_follows_its_schema() {
    let server = says("{\"a\": 1} and more").await;
    let format = json!({"format": {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}});
    let message = ok(&server, request(json!({"output_config": format}))).await;
    let text = message["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["a"].is_i64(), "{text}");
    assert_eq!(message["stop_reason"], "end_turn");
}

#[tokio::test]
async fn stops_are_told_apart() {
    let server = says("one END two").await;
    let message = ok(&server, request(json!({"stop_sequences": ["X", "END"]}))).await;
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!("END")));
    assert_eq!(message["content"], json!([{"type": "text", "text": "one "}]));
    assert_eq!(ok(&server, request(json!({}))).await["stop_reason"], "end_turn");
    assert_eq!(ok(&server, request(json!({"max_tokens": 3}))).await["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn an_answer_ends_with_the_context_and_says_so() {
    let setup = Setup { script: Some("word ".repeat(100).leak()), context_max: 200, ..Setup::default() };
    let server = Server::start(setup).await;
    let endless = |extra: Value| {
        let mut body = request(json!({"max_tokens": 32_000}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let message = ok(&server, endless(json!({}))).await;
    assert_eq!(message["stop_reason"], "model_context_window_exceeded");
    let usage = &message["usage"];
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap(), 200);
    let long = json!({"messages": [{"role": "user", "content": "long ".repeat(100)}]});
    let (status, error) = answer(&server, "/v1/messages", endless(long)).await;
    assert_eq!((status, &error["error"]["type"]), (400, &json!("invalid_request_error")));
}

#[tokio::test]
async fn several_rounds_with_tools_count_what_they_generate_from() {
    let server = says("fine").await;
    let rounds = json!([
        {"role": "user", "content": [{"type": "text", "text": "weather?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Look it up.", "signature": "x"},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}], "is_error": false},
            {"type": "text", "text": "And?"},
        ]},
    ]);
    let body = request(json!({"messages": rounds, "tools": weather(), "system": [{"type": "text", "text": "s"}]}));
    let message = ok(&server, body.clone()).await;
    let (_, counted) = answer(&server, "/v1/messages/count_tokens", body).await;
    let usage = &message["usage"];
    let prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted, json!({"input_tokens": prompt}));
    assert_eq!(message["content"], json!([{"type": "text", "text": "fine"}]));
}

#[tokio::test]
async fn errors_have_anthropics_shape_and_name_its_fields() {
    let server = says("x").await;
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    let lost =
        json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}]}]);
    let twice = json!([weather()[0], weather()[0]]);
    for (extra, at) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "system", "content": [{"type": "image"}]}]}), "messages[0].content[0]"),
        (
            json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
            "context_management.edits[0].type",
        ),
        (
            json!({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}),
            "context_management.edits[0].keep",
        ),
        (json!({"options": {"rejectIfBusy": 1}}), "options.rejectIfBusy"),
        (json!({"messages": image}), "messages[0].content[0]"),
        (json!({"messages": lost}), "messages[0].content[0].tool_use_id"),
        (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0].type"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
        (json!({"tools": twice}), "`weather`"),
        (json!({"tool_choice": {"type": "auto"}}), "tool_choice"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"stop_sequences": [1]}), "stop_sequences"),
        (json!({"mcp_servers": []}), "mcp_servers"),
        (json!({"output_config": {"effort": "huge"}}), "output_config.effort"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format.schema"),
        (json!({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}), "output_config.format"),
        (json!({"nonsense": 1}), "nonsense"),
    ] {
        let (status, body) = answer(&server, MESSAGES, request(extra)).await;
        assert_eq!((status, &body["type"]), (400, &json!("error")), "{body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert!(body["error"]["message"].as_str().unwrap().contains(at), "{at}: {body}");
        assert!(body["request_id"].as_str().unwrap().starts_with("req_"));
    }
    let (status, body) = answer(&server, MESSAGES, request(json!({"model": "other"}))).await;
    assert_eq!((status, &body["error"]["type"]), (404, &json!("not_found_error")));
    let (status, body) = answer(&server, "/v1/messages/nothing", json!({})).await;
    assert_eq!((status, &body["error"]["type"]), (404, &json!("not_found_error")));
}

#[tokio::test]
async fn an_overloaded_server_says_so_as_anthropics_does() {
    let server = says("x").await;
    server.state.drain();
    let (status, body) = answer(&server, MESSAGES, request(json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (529, &json!("overloaded_error")));
}

/// As Claude Code sends it: a system's words in the middle, and an edit of the conversation that changes nothing.
#[tokio::test]
async fn systems_speak_at_the_beginning_and_later() {
    let server = says("x").await;
    let (user, system) = (
        |text: &str| json!({"role": "user", "content": text}),
        |text: Value| json!({"role": "system", "content": text}),
    );
    let blocks = json!([{"type": "text", "text": "Later.", "cache_control": {"type": "ephemeral"}}]);
    let messages = json!([system("Second.".into()), user("a"), system(blocks), user("b")]);
    let edits = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]});
    let extra = json!({"system": "First.", "messages": messages, "context_management": edits});
    let usage = ok(&server, request(extra.clone())).await["usage"].clone();
    let texts = json!([{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]);
    let chat = json!({"messages": [system(texts), user("a"), system("Later.".into()), user("b")]});
    let (_, tokens) = server.ask("/tokenize", chat).await;
    assert_eq!(usage["input_tokens"], tokens["count"]);
    // A template that refuses them there: they are the user's.
    let setup = Setup { template: Some("gemma3.jinja"), ..Setup::default() };
    let server = Server::start(setup).await;
    let usage = ok(&server, request(extra)).await["usage"].clone();
    let chat = json!({"messages": [system("First.\nSecond.".into()), user("a\n\nLater.\n\nb")]});
    let (_, tokens) = server.ask("/tokenize", chat).await;
    assert_eq!(usage["input_tokens"], tokens["count"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_refuse_to_wait() {
    let server = Server::start(Setup { gated: true, ..Setup::default() }).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "n": 64, "max_tokens": 2});
    let all_places = tokio::spawn(server.post("/v1/chat/completions", &chat).send());
    while !server.gate.is_blocked() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let unless_busy = request(json!({"options": {"rejectIfBusy": true}, "max_tokens": 2}));
    let (status, busy) = answer(&server, MESSAGES, unless_busy.clone()).await;
    assert_eq!((status, &busy["error"]["type"]), (529, &json!("overloaded_error")));
    server.gate.open();
    assert_eq!(all_places.await.unwrap().unwrap().status(), 200);
    ok(&server, unless_busy).await;
}
