//! `/v1/responses`: its object, its events, and that one is the fold of the other.
use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};

use super::support::{MODEL, Server, Setup};
use super::{CHAT, ok, streamed};

pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const COUNT: &str = "/v1/responses/input_tokens";

pub(crate) const CALLS: &str = "<think>\nTwo cities.\n</think>\n\nLooking.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\"}}\n\
    </tool_call>\n<tool_call>\n{\"name\": \"patch\", \"arguments\": {\"input\": \"+ a\\n\"}}\n</tool_call>";

async fn says(script: &'static str) -> Server {
    let setup = Setup { script: Some(script), template: Some("qwen3.jinja"), context_max: 8192, ..Setup::default() };
    Server::start(setup).await
}

pub(crate) fn request(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": "Hello", "temperature": 0});
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().unwrap().extend(extra);
    body
}

pub(crate) fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([
        {"type": "function", "name": "weather", "description": "Weather of a city", "parameters": city, "strict": false},
        {"type": "custom", "name": "patch", "description": "Changes a file"},
    ])
}

/// Replaces what is new each time, after checking its form.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), &*field) {
                    ("id" | "item_id" | "call_id", Value::String(id)) => {
                        let (prefix, rest) = id.split_once('_').unwrap();
                        assert!(rest.len() >= 24 && rest.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
                        *field = format!("[{prefix}]").into();
                    }
                    ("created_at" | "completed_at", Value::Number(_)) => *field = "[time]".into(),
                    _ => redact(field),
                }
            }
        }
        _ => {}
    }
}

/// The events of a stream, checked to be well formed.
pub(crate) fn events(stream: &str) -> Vec<Value> {
    let event = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').unwrap();
        let body: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), body["type"].as_str());
        assert_eq!(body["sequence_number"], number);
        body
    };
    stream.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')).enumerate().map(event).collect()
}

/// What the deltas add up to, as an SDK puts it together, checking each event against what came before.
fn folded(events: &[Value]) -> Vec<Value> {
    let mut items: Vec<Value> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        let index = event["output_index"].as_u64().map(|index| index as usize);
        match kind {
            "output_item.added" => {
                assert_eq!(index, Some(items.len()));
                items.push(event["item"].clone());
                continue;
            }
            "created" | "in_progress" | "completed" | "incomplete" | "failed" => continue,
            _ => assert_eq!(index, Some(items.len() - 1), "items come one after the other"),
        }
        let item = items.last_mut().unwrap();
        let add = |to: &mut Value| *to = format!("{}{}", to.as_str().unwrap(), event["delta"].as_str().unwrap()).into();
        match kind {
            "output_item.done" => {
                let mut done = event["item"].clone();
                if item.get("status").is_some() {
                    item["status"] = done["status"].clone();
                }
                assert_eq!(*item, done);
                std::mem::swap(item, &mut done);
                continue;
            }
            "content_part.added" => item["content"].as_array_mut().unwrap().push(event["part"].clone()),
            "content_part.done" => assert_eq!(item["content"][0], event["part"]),
            "output_text.delta" | "reasoning_text.delta" => {
                add(&mut item["content"][0]["text"]);
                if let Some(tokens) = event["logprobs"].as_array() {
                    item["content"][0]["logprobs"].as_array_mut().unwrap().extend(tokens.iter().cloned());
                }
            }
            "output_text.done" => {
                assert_eq!(item["content"][0]["text"], event["text"]);
                assert_eq!(item["content"][0]["logprobs"], event["logprobs"]);
            }
            "reasoning_text.done" => assert_eq!(item["content"][0]["text"], event["text"]),
            "function_call_arguments.delta" => add(&mut item["arguments"]),
            "function_call_arguments.done" => {
                assert_eq!((&item["arguments"], &item["name"]), (&event["arguments"], &event["name"]));
            }
            "custom_tool_call_input.delta" => add(&mut item["input"]),
            "custom_tool_call_input.done" => assert_eq!(item["input"], event["input"]),
            other => panic!("{other}"),
        }
        assert_eq!(item["id"], event["item_id"]);
    }
    items
}

#[tokio::test]
async fn a_response() {
    let server = says(CALLS).await;
    let extra = json!({"tools": tools(), "instructions": "Be brief.", "metadata": {"a": "b"}, "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 400, "include": ["reasoning.encrypted_content"], "store": false, "user": "u"});
    let mut body = ok(&server, RESPONSES, request(extra)).await;
    body["id"] = "resp_000000000000000000000000".into();
    redact(&mut body);
    assert_json_snapshot!(body);
}

#[tokio::test]
async fn a_stream() {
    let server =
        says("<think>\nHm.\n</think>\n\nSo\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"B\"}}\n</tool_call>")
            .await;
    let stream = streamed(&server, RESPONSES, request(json!({"tools": tools(), "stream": true}))).await;
    let line = |mut event: Value| {
        redact(&mut event);
        if event.get("response").is_some() {
            let response = event["response"].as_object_mut().unwrap();
            response.retain(|name, _| ["id", "status", "output", "usage"].contains(&name.as_str()));
        }
        event.to_string()
    };
    assert_snapshot!(events(&stream).into_iter().map(line).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn the_response_is_the_fold_of_the_stream() {
    for script in [
        CALLS,
        "<think>\nonly thoughts",
        "<tool_call>\n{\"name\": \"weather\", \"argu",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Be",
        "<tool_call>\n{\"name\": \"nothing\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>\nThere <b>é</b> you are",
        "Plain é text STOP more",
        "{\"name\": \"patch\"}",
        "",
    ] {
        let server = says(script).await;
        for extra in [
            json!({}),
            json!({"tool_choice": "none"}),
            json!({"parallel_tool_calls": false}),
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
            json!({"max_output_tokens": 60}),
            json!({"max_output_tokens": 7}),
            json!({"stop": ["STOP", "Bern"]}),
        ] {
            let mut body = request(json!({"tools": tools()}));
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let (status, mut whole) = server.ask(RESPONSES, body.clone()).await;
            assert_eq!(status, 200, "{whole}");
            body["stream"] = true.into();
            let events = events(&streamed(&server, RESPONSES, body).await);
            let [created, in_progress, .., last] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!([&created["type"], &in_progress["type"]], ["response.created", "response.in_progress"]);
            assert_eq!(created["response"], in_progress["response"]);
            let is_cut = whole["status"] == "incomplete";
            assert_eq!(last["type"], if is_cut { "response.incomplete" } else { "response.completed" });
            assert_eq!(created["response"]["id"], last["response"]["id"]);
            let mut done = last["response"].clone();
            assert_eq!(done["output"], Value::Array(folded(&events)), "{script} {extra}");
            // The second request finds the first's prompt in the cache.
            assert_eq!(done["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
            done["usage"]["input_tokens_details"] = whole["usage"]["input_tokens_details"].clone();
            [&mut done, &mut whole].into_iter().for_each(redact);
            assert_eq!(done, whole, "{script} {extra}");
            assert_eq!(whole["incomplete_details"]["reason"] == "max_output_tokens", is_cut);
            assert!(!whole["output"].as_array().unwrap().is_empty());
            if extra.get("include").is_some() {
                for item in whole["output"].as_array().unwrap().iter().filter(|item| item["type"] == "message") {
                    let part = &item["content"][0];
                    let tokens = part["logprobs"].as_array().unwrap().iter();
                    let bytes = tokens.flat_map(|token| token["bytes"].as_array().unwrap());
                    let spelled: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
                    let spelled = String::from_utf8_lossy(&spelled).into_owned();
                    assert!(spelled.starts_with(part["text"].as_str().unwrap()), "{spelled:?} {part}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_cut_off_is_incomplete() {
    let server = says(CALLS).await;
    let statuses = async |most: usize| {
        let body = request(json!({"tools": tools(), "max_output_tokens": most}));
        let body = ok(&server, RESPONSES, body).await;
        let items: Vec<String> = body["output"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| format!("{} {}", item["type"], item["status"]))
            .collect();
        (body["status"].clone(), items.join(", ").replace('"', ""))
    };
    assert_eq!(statuses(12).await, (json!("incomplete"), "reasoning incomplete".to_owned()));
    assert_eq!(statuses(36).await, (json!("incomplete"), "reasoning completed, message incomplete".to_owned()));
    let call = "reasoning completed, message completed, function_call";
    assert_eq!(statuses(100).await, (json!("incomplete"), format!("{call} incomplete")));
    assert_eq!(statuses(400).await, (json!("completed"), format!("{call} completed, custom_tool_call null")));
}

#[tokio::test]
async fn items_become_messages() {
    let server = says("x").await;
    let prompt = async |path: &str, body: Value| {
        let (status, tokens) = server.ask(path, body).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    };
    let input = json!([
        {"role": "developer", "content": [{"type": "input_text", "text": "Second."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}], "encrypted_content": null},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Looking.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Bern\"}", "status": "completed"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "patch", "input": "+ a"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        {"role": "user", "content": "and?"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "17"}]},
    ]);
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let messages = json!([
        {"role": "system", "content": "First.\n\nSecond."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "Looking.", "reasoning_content": "Hm.",
         "tool_calls": [call("c1", "weather", "{\"city\": \"Bern\"}"), call("c2", "patch", "{\"input\": \"+ a\"}")]},
        {"role": "tool", "tool_call_id": "c2", "content": "done"},
        {"role": "tool", "tool_call_id": "c1", "content": "17"},
        {"role": "user", "content": "and?"},
    ]);
    let body = json!({"instructions": "First.", "input": input, "tools": tools()});
    let counted = prompt(COUNT, body.clone()).await;
    assert_eq!(counted["object"], "response.input_tokens");
    let chat_tools: Vec<Value> = tools()
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            let mut inner = tool.clone();
            let kind = inner.as_object_mut().unwrap().remove("type").unwrap();
            json!({"type": kind, kind.as_str().unwrap(): inner})
        })
        .collect();
    let chat = json!({"messages": messages, "tools": chat_tools});
    assert_eq!(counted["input_tokens"], prompt("/tokenize", chat.clone()).await["count"]);
    // The whole prompts are the same: the second one's is in the cache.
    let mut chat = chat;
    chat["max_tokens"] = 1.into();
    ok(&server, CHAT, chat).await;
    let mut body = body;
    body["max_output_tokens"] = 1.into();
    let usage = ok(&server, RESPONSES, body).await["usage"].clone();
    assert_eq!(usage["input_tokens"], counted["input_tokens"]);
    assert!(
        usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap() + 16
            >= usage["input_tokens"].as_u64().unwrap()
    );
}

#[tokio::test]
async fn an_answers_items_are_taken_back() {
    let server = says(CALLS).await;
    let first = ok(&server, RESPONSES, request(json!({"tools": tools()}))).await;
    let mut input = vec![json!({"role": "user", "content": "Hello"})];
    input.extend(first["output"].as_array().unwrap().iter().cloned());
    for item in first["output"].as_array().unwrap().iter().filter(|item| item.get("call_id").is_some()) {
        let kind = format!("{}_output", item["type"].as_str().unwrap());
        input.push(json!({"type": kind, "call_id": item["call_id"], "output": "17"}));
    }
    assert_eq!(input.len(), 7);
    ok(&server, RESPONSES, request(json!({"tools": tools(), "input": input}))).await;
}

/// As Codex sends it: tools in namespaces, and a search that a model need not use.
#[tokio::test]
async fn tools_in_namespaces_are_called_by_two_names() {
    let server = says(
        "<tool_call>\n{\"name\": \"geo.weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"patch\", \"arguments\": {\"input\": \"+\"}}\n</tool_call>",
    )
    .await;
    let within = json!([tools()[0], {"type": "custom", "name": "patch", "async": false}]);
    let geo = json!({"type": "namespace", "name": "geo", "description": "Places.", "tools": within});
    let search = json!({"type": "web_search", "external_web_access": true, "search_context_size": "low"});
    let hinted = json!({"type": "custom", "name": "patch", "defer_loading": false, "allowed_callers": ["direct"]});
    let body = request(json!({"tools": [geo, search, hinted], "client_metadata": {"turn": "x".repeat(1000)}}));
    let response = server.post(RESPONSES, &body).send().await.unwrap();
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap().to_owned();
    assert_eq!(ignored, "client_metadata, tools[1]");
    let output = response.json::<Value>().await.unwrap()["output"].take();
    assert_eq!((&output[0]["namespace"], &output[0]["name"]), (&json!("geo"), &json!("weather")));
    assert_eq!((output[1].get("namespace"), &output[1]["name"]), (None, &json!("patch")));
    let mut streamed_body = body.clone();
    streamed_body["stream"] = true.into();
    let told = events(&streamed(&server, RESPONSES, streamed_body).await);
    assert_eq!(folded(&told)[0]["namespace"], "geo");
    // The model sees one name, the namespace's words with its first tool, and what it called before by the same name.
    let mut input = vec![json!({"role": "user", "content": "Hello"})];
    input.extend(output.as_array().unwrap().iter().cloned());
    input.push(json!({"type": "function_call_output", "call_id": output[0]["call_id"], "output": "17",
        "namespace": "geo", "name": "weather", "caller": {"type": "direct"}}));
    let count = async |path: &str, body: Value| server.ask(path, body).await.1;
    let tools = body["tools"].clone();
    let counted = count(COUNT, json!({"input": input, "tools": tools})).await;
    let function = json!({"name": "geo.weather", "description": "Places.\n\nWeather of a city", "parameters": within[0]["parameters"]});
    let custom = |name: &str| json!({"type": "custom", "custom": {"name": name}});
    let call = |id: &Value, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = [
        call(&output[0]["call_id"], "geo.weather", "{\"city\": \"Bern\"}"),
        call(&output[1]["call_id"], "patch", "{\"input\": \"+\"}"),
    ];
    let chat = json!({
        "tools": [{"type": "function", "function": function}, custom("geo.patch"), custom("patch")],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": null, "tool_calls": calls},
            {"role": "tool", "tool_call_id": output[0]["call_id"], "content": "17", "name": "geo.weather"},
        ],
    });
    assert_eq!(counted["input_tokens"], count("/tokenize", chat).await["count"], "{counted}");
}

#[tokio::test]
async fn efforts_and_truncation_change_the_prompt() {
    let server = says("x").await;
    let count = async |extra: Value| {
        let mut body = request(extra);
        body.as_object_mut().unwrap().remove("temperature");
        let (status, body) = server.ask(COUNT, body).await;
        assert_eq!(status, 200, "{body}");
        body["input_tokens"].as_u64().unwrap()
    };
    let plain = count(json!({})).await;
    assert_eq!(count(json!({"reasoning": {"effort": "none"}})).await, plain + "<think>\n\n</think>\n\n".len() as u64);
    let turn = |text: String| json!({"role": "user", "content": text});
    let long = json!([turn("a".repeat(5000)), turn("b".repeat(5000)), turn("c".repeat(2000))]);
    let (status, body) = server.ask(RESPONSES, request(json!({ "input": long }))).await;
    assert_eq!(
        (status, &body["error"]["code"], &body["error"]["param"]),
        (400, &json!("context_length_exceeded"), &json!("input"))
    );
    let kept = ok(&server, RESPONSES, request(json!({"input": long, "truncation": "auto"}))).await;
    let kept = kept["usage"]["input_tokens"].as_u64().unwrap();
    assert!((7000..7100).contains(&kept), "{kept}");
    assert_eq!(count(json!({"input": long, "truncation": "auto"})).await, kept);
    let alone = json!({"input": "x".repeat(20_000), "truncation": "auto"});
    let (status, body) = server.ask(RESPONSES, request(alone)).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[tokio::test]
async fn a_failed_step_is_a_failed_response() {
    let server = Server::start(Setup { fail_on_token: Some(u32::from(b'w')), ..Setup::default() }).await;
    let (status, _) = server.ask(RESPONSES, request(json!({}))).await;
    assert_eq!(status, 500);
    let events = events(&streamed(&server, RESPONSES, request(json!({"stream": true}))).await);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let response = &last["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(response["output"][0]["content"][0]["text"], "Hi w");
    assert_eq!(response["output"][0]["status"], "incomplete");
}

/// One line per refused request: its extra fields → status, `param`, `code`, message.
#[tokio::test]
async fn refused_responses() {
    let server = says("x").await;
    let part =
        |part: Value| json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, part]}]});
    let call = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"});
    let schema = json!({"type": "json_schema", "name": "x", "schema": {"not": {}}});
    let cases = json!([
        {"input": null}, {"input": []}, {"input": 1}, {"input": ["x"]}, {"input": [{"role": "king", "content": "x"}]},
        {"input": [{"role": "user"}]}, {"input": [{"role": "user", "content": "x", "nmae": 1}]}, {"input": [{"content": "x"}]},
        part(json!({"type": "input_image", "image_url": "x"})), part(json!({"type": "input_file", "file_id": "x"})), part(json!({"type": "input_text"})),
        {"input": [{"type": "item_reference", "id": "msg_1"}]}, {"input": [{"type": "web_search_call", "id": "ws_1"}]},
        {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}]},
        {"input": [call, {"type": "function_call_output", "call_id": "b", "output": "x"}]},
        {"input": [call, {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image"}]}]},
        {"input": [{"type": "reasoning", "summary": "x"}]}, {"input": [{"type": "reasoning", "summary": [{"type": "output_text", "text": "x"}]}]},
        {"instructions": ["x"]}, {"store": true}, {"background": true}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"prompt": {"id": "x"}},
        {"tools": [{"type": "file_search"}]}, {"tools": [{"type": "web_search"}], "tool_choice": "required"}, {"tools": [{"type": "function"}]}, {"tools": [{"type": "function", "name": "a b"}]},
        {"tools": [{"type": "function", "name": "a"}, {"type": "custom", "name": "a"}]}, {"tools": [{"type": "function", "function": {"name": "a"}}]},
        {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
        {"tools": [{"type": "function", "name": "a", "async": true}]}, {"tools": [{"type": "function", "name": "a", "allowed_callers": ["programmatic"]}]},
        {"tools": [{"type": "namespace", "name": "n"}]}, {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "namespace", "name": "m", "tools": []}]}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": vec![call.clone(); 129]}]}, {"tools": [{"type": "function", "name": "n.a"}, {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "a"}]}]},
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "caller": {"type": "program"}}]}, {"context_management": []},
        {"tools": tools(), "tool_choice": {"type": "function", "name": "none"}}, {"tools": tools(), "tool_choice": {"type": "web_search"}},
        {"tools": tools(), "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, {"tool_choice": "any"}, {"tool_choice": "required"},
        {"text": {"format": schema}}, {"text": {"format": {"type": "json_schema", "schema": {}}}},
        {"text": {"format": {"type": "yaml"}}}, {"text": {"verbosity": "low"}}, {"text": {"style": 1}},
        {"reasoning": {"effort": "huge"}}, {"reasoning": {"summary": "long"}}, {"reasoning": {"max_tokens": "1"}},
        {"max_output_tokens": 0}, {"max_output_tokens": 10_000}, {"max_tool_calls": 0}, {"temperature": 3}, {"top_p": 2}, {"top_logprobs": 1}, {"include": ["x"]}, {"include": [1]},
        {"truncation": "left"}, {"metadata": {"a": 1}}, {"service_tier": "gold"}, {"stream_options": {}}, {"stream": 1},
        {"messages": []}, {"max_tokens": 1}, {"n": 2}, {"response_format": {"type": "text"}}, {"model": "gpt-9"}, {"inptu": "x"},
    ]);
    let mut lines = Vec::new();
    for case in cases.as_array().unwrap() {
        let (status, body) = server.ask(RESPONSES, request(case.clone())).await;
        let error = &body["error"];
        let shown: String = case.to_string().chars().take(100).collect();
        lines.push(format!("{shown}\n  {status} {} {} {}", error["param"], error["code"], error["message"]));
    }
    assert_snapshot!(lines.join("\n"));
    let (_, body) = server.ask(RESPONSES, request(json!({"user": "u".repeat(2 << 20)}))).await;
    assert_eq!(body["error"]["param"], "user");
    let (_, body) = server.ask(COUNT, json!({"input": "x", "response_format": {"type": "text"}})).await;
    assert_eq!(body["error"]["param"], "response_format");
    // What asks for nothing more is taken.
    let harmless = json!({"store": false, "background": false, "previous_response_id": null, "truncation": "disabled", "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "include": ["web_search_call.results".replace(".results", ".action.sources")],
        "max_tool_calls": 3, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "parallel_tool_calls": true, "top_logprobs": 0,
        "reasoning": {"effort": null, "summary": "auto"}, "seed": 1, "stream": false, "conversation": null});
    ok(&server, RESPONSES, request(harmless)).await;
}
