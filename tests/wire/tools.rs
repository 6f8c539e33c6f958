//! Tools and thoughts on the wire: what the SDKs expect, and that the answer is the fold of the stream.
use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};

use super::support::{Server, Setup, chat, chunks, transcript};
use super::{CHAT, ok, streamed};

const CALLS: &str = "<think>\nTwo cities.\n</think>\n\nLooking.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\"}}\n\
    </tool_call>\n<tool_call>\n{\"name\": \"patch\", \"arguments\": {\"input\": \"+ a\\n\"}}\n</tool_call>";

async fn says(script: &'static str) -> Server {
    let setup = Setup { script: Some(script), template: Some("qwen3.jinja"), context_max: 8192, ..Setup::default() };
    Server::start(setup).await
}

fn with_tools(extra: Value) -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let mut body = chat(json!({"tools": [
        {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": city}},
        {"type": "custom", "custom": {"name": "patch", "description": "Changes a file"}},
    ]}));
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().unwrap().extend(extra);
    body
}

/// Replaces ids of calls, which are new each time, after checking their form.
fn without_ids(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_ids),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str().filter(|id| name == "id" && id.starts_with("call_")) {
                    Some(id) => {
                        assert_eq!(id.len(), 29);
                        *field = "[call]".into();
                    }
                    None => without_ids(field),
                }
            }
        }
        _ => {}
    }
}

fn lines(stream: &str) -> String {
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(mut chunk) => {
            without_ids(&mut chunk);
            chunk.to_string()
        }
        Err(_) => line.to_owned(),
    };
    transcript(stream).lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The message that a stream's deltas make, as an SDK puts it together.
fn folded(chunks: &[Value], index: u64) -> Value {
    let mut message = json!({"role": "assistant", "content": null, "refusal": null});
    let mut finish = Value::Null;
    let parts = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    for choice in parts.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "nothing follows the finish");
        finish = choice["finish_reason"].clone();
        let delta = &choice["delta"];
        for field in ["content", "reasoning_content", "reasoning"] {
            if let Some(text) = delta[field].as_str().filter(|text| !text.is_empty()) {
                message[field] = format!("{}{text}", message[field].as_str().unwrap_or_default()).into();
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let at = call["index"].as_u64().unwrap() as usize;
            if message["tool_calls"].is_null() {
                message["tool_calls"] = json!([]);
            }
            let calls = message["tool_calls"].as_array_mut().unwrap();
            if at == calls.len() {
                let mut first = call.clone();
                first.as_object_mut().unwrap().remove("index");
                calls.push(first);
                continue;
            }
            assert_eq!(at + 1, calls.len(), "calls come one after the other");
            assert!(call.get("id").is_none() && call.get("type").is_none());
            for (kind, text) in [("function", "arguments"), ("custom", "input")] {
                if let Some(more) = call.pointer(&format!("/{kind}/{text}")) {
                    let before = calls[at][kind][text].as_str().unwrap();
                    calls[at][kind][text] = format!("{before}{}", more.as_str().unwrap()).into();
                }
            }
        }
    }
    json!({"message": message, "finish_reason": finish})
}

#[tokio::test]
async fn calls_in_an_answer() {
    let server = says(CALLS).await;
    let mut body = ok(&server, CHAT, with_tools(json!({}))).await;
    without_ids(&mut body);
    assert_json_snapshot!(body);
}

#[tokio::test]
async fn calls_in_a_stream() {
    let server = says("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"B\"}}\n</tool_call>").await;
    let body = with_tools(json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_snapshot!(lines(&streamed(&server, CHAT, body).await));
}

#[tokio::test]
async fn the_answer_is_the_fold_of_the_stream() {
    for script in [
        CALLS,
        "<think>\nonly thoughts",
        "<tool_call>\n{\"name\": \"weather\", \"argu",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Be",
        "<tool_call>\n{\"name\": \"nothing\", \"arguments\": {}}\n</tool_call>",
        "Plain é text STOP more",
        "{\"name\": \"patch\"}",
    ] {
        let server = says(script).await;
        for extra in [
            json!({}),
            json!({"tool_choice": "none"}),
            json!({"parallel_tool_calls": false}),
            json!({"n": 2, "logprobs": true, "return_token_ids": true}),
            json!({"max_tokens": 60}),
            json!({"include_reasoning": false, "stop": ["STOP", "Bern"]}),
        ] {
            let mut whole = ok(&server, CHAT, with_tools(extra.clone())).await;
            without_ids(&mut whole);
            let mut body = with_tools(extra.clone());
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
            let mut chunks = chunks(&streamed(&server, CHAT, body).await);
            chunks.iter_mut().for_each(without_ids);
            let (last, rest) = chunks.split_last().unwrap();
            assert_eq!(
                last["usage"]["completion_tokens_details"], whole["usage"]["completion_tokens_details"],
                "{extra}"
            );
            assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"], "{extra}");
            for choice in whole["choices"].as_array().unwrap() {
                let index = choice["index"].as_u64().unwrap();
                let expected = json!({"message": choice["message"], "finish_reason": choice["finish_reason"]});
                let mut found = folded(rest, index);
                // A stream has no way to say that an empty answer is text.
                if expected["message"]["content"] == "" {
                    found["message"]["content"] = "".into();
                }
                assert_eq!(found, expected, "{script} {extra}");
                let parts = rest.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
                let parts: Vec<&Value> = parts.filter(|part| part["index"] == index).collect();
                for (pointer, whole) in
                    [("/logprobs/content", &choice["logprobs"]["content"]), ("/token_ids", &choice["token_ids"])]
                {
                    let joined: Vec<Value> =
                        parts.iter().filter_map(|part| part.pointer(pointer)?.as_array().cloned()).flatten().collect();
                    assert_eq!(joined.as_slice(), whole.as_array().map_or(&[][..], Vec::as_slice), "{extra}");
                }
            }
        }
    }
}

#[tokio::test]
async fn one_call_ends_the_answer_where_only_one_may_be_made() {
    let server = says(CALLS).await;
    let body = ok(&server, CHAT, with_tools(json!({"parallel_tool_calls": false}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1);
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert!(body["usage"]["completion_tokens"].as_u64().unwrap() < CALLS.len() as u64 - 50);
}

#[tokio::test]
async fn without_tools_calls_are_text() {
    let server = says(CALLS).await;
    for extra in [json!({"tools": null}), json!({"tool_choice": "none"})] {
        let choice = ok(&server, CHAT, with_tools(extra)).await["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop");
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(content.starts_with("Looking.\n<tool_call>\n{"), "{content}");
        assert_eq!(choice["message"]["reasoning_content"], "Two cities.");
    }
    // A tool that is not allowed is not called.
    let allowed = json!({"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "patch"}}]});
    let extra = json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}});
    let message = ok(&server, CHAT, with_tools(extra)).await["choices"][0]["message"].clone();
    let calls = message["tool_calls"].as_array().unwrap();
    assert!(calls.iter().all(|call| call["custom"]["name"] == "patch"), "{message}");
}

#[tokio::test]
async fn thoughts_are_counted_and_may_be_hidden() {
    let script = "<think>\nHm.\n</think>\n\nHi";
    let server = says(script).await;
    let body = ok(&server, CHAT, chat(json!({}))).await;
    let thoughts = "<think>\nHm.\n</think>".len();
    // One token is a byte here; a thought begins with its marker's last.
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], thoughts - "<think".len());
    let message = &body["choices"][0]["message"];
    assert_eq!((&message["content"], &message["reasoning"]), (&json!("Hi"), &json!("Hm.")));
    let hidden = ok(&server, CHAT, chat(json!({"include_reasoning": false}))).await;
    assert_eq!(hidden["choices"][0]["message"], json!({"role": "assistant", "content": "Hi", "refusal": null}));
    assert_eq!(hidden["usage"]["completion_tokens_details"], body["usage"]["completion_tokens_details"]);
    let cut = ok(&server, CHAT, chat(json!({"max_tokens": 10}))).await;
    assert_eq!(cut["choices"][0]["message"]["content"], Value::Null);
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn the_prompt_has_tools_and_efforts() {
    let server = says("x").await;
    let prompt = async |extra: Value| {
        let mut body = with_tools(extra);
        body.as_object_mut().unwrap().remove("temperature");
        body["return_token_strs"] = true.into();
        let (status, tokens) = server.ask("/tokenize", body).await;
        assert_eq!(status, 200, "{tokens}");
        let strings = tokens["token_strs"].as_array().unwrap().iter();
        strings.map(|token| token.as_str().unwrap()).collect::<String>()
    };
    let text = prompt(json!({})).await;
    assert!(text.contains("{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": \"Weather of a city\", \"parameters\""));
    assert!(text.contains("\"name\": \"patch\"") && text.contains("\"required\": [\"input\"]"));
    assert!(!prompt(json!({"tool_choice": "none"})).await.contains("weather"));
    let used = async |extra: Value| {
        let mut body = chat(extra);
        body["max_tokens"] = 1.into();
        ok(&server, CHAT, body).await["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = used(json!({})).await;
    let closed = "<think>\n\n</think>\n\n".len() as u64;
    assert_eq!(used(json!({"reasoning_effort": "none"})).await, plain + closed);
    assert_eq!(used(json!({"reasoning": {"effort": "none"}})).await, plain + closed);
    assert_eq!(used(json!({"reasoning_effort": "high"})).await, plain);
    assert_eq!(
        used(json!({"chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low"})).await,
        plain + closed
    );
}

/// One line per refused request: its extra fields → status, `param`, `code`, message.
#[tokio::test]
async fn refused_tools() {
    let server = says("x").await;
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let call = json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]});
    let result = json!({"role": "tool", "tool_call_id": "b", "content": "x"});
    let many: Vec<Value> = (0..500).map(|index| function(&format!("f{index}"))).collect();
    let cases = json!([
        {"tools": {}}, {"tools": [{}]}, {"tools": [{"type": "web_search"}]}, {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [function("f"), function("f")]}, {"tools": many},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "text"}}}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": true, "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}}]},
        {"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "grammar"}}}]},
        {"response_format": {"type": "json_object"}, "guided_regex": "a"}, {"guided_regex": "a"},
        {"tool_choice": {"type": "function", "function": {"name": "none"}}}, {"tool_choice": "any"}, {"tool_choice": 1},
        {"tools": null, "tool_choice": "auto"}, {"parallel_tool_calls": "no"},
        {"messages": [result]}, {"messages": [call, result]},
        {"reasoning_effort": "huge"}, {"reasoning": {"max_tokens": "5"}}, {"thinking_budget": 5, "thinking_token_budget": 6},
        {"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, {"include_reasoning": 1},
    ]);
    let mut lines = Vec::new();
    for case in cases.as_array().unwrap() {
        let (status, body) = server.ask(CHAT, with_tools(case.clone())).await;
        let error = &body["error"];
        let shown: String = case.to_string().chars().take(100).collect();
        lines.push(format!("{shown}\n  {status} {} {} {}", error["param"], error["code"], error["message"]));
    }
    assert_snapshot!(lines.join("\n"));
    // A model that does not think says so.
    let plain = Server::start(Setup::default()).await;
    let (status, body) = plain.ask(CHAT, chat(json!({"reasoning_effort": "high"}))).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("reasoning_effort")));
}
