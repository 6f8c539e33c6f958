//! Every response shape, chunk transcript and error body, byte for byte.
#![recursion_limit = "512"]
#[path = "wire/custom_grammars.rs"]
mod custom_grammars;
#[path = "wire/messages.rs"]
mod messages;
#[path = "wire/responses.rs"]
mod responses;
#[path = "wire/responses_kept.rs"]
mod responses_kept;
#[path = "wire/sessions.rs"]
mod sessions;
#[path = "wire/speculation.rs"]
mod speculation;
mod support;
#[path = "wire/thoughts.rs"]
mod thoughts;
#[path = "wire/tools.rs"]
mod tools;
#[path = "wire/workers_ai.rs"]
mod workers_ai;

use std::sync::Arc;

use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};
use support::{IM_END, MODEL, Server, Setup, chat, chunks, completion, redact, transcript};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn server() -> Server {
    Server::start(Setup::default()).await
}

async fn ok(server: &Server, path: &str, body: Value) -> Value {
    let (status, body) = server.ask(path, body).await;
    assert_eq!(status, 200, "{body}");
    redact(body)
}

async fn streamed(server: &Server, path: &str, body: Value) -> String {
    let response = server.post(path, &body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let stream = response.text().await.unwrap();
    server.assert_events_described(path, &stream).await;
    stream
}

#[tokio::test]
async fn chat_response() {
    let server = server().await;
    assert_json_snapshot!(ok(&server, CHAT, chat(json!({}))).await);
}

#[tokio::test]
async fn chat_stream() {
    let server = server().await;
    let body = chat(json!({"stream": true, "stop": "STOP", "stream_options": {"include_usage": true}}));
    assert_snapshot!(transcript(&streamed(&server, CHAT, body).await));
}

#[tokio::test]
async fn chat_stream_without_usage_and_cut_by_length() {
    let server = server().await;
    let body = chat(json!({"stream": true, "max_completion_tokens": 3}));
    assert_snapshot!(transcript(&streamed(&server, CHAT, body).await));
}

#[tokio::test]
async fn chat_stream_with_continuous_usage_logprobs_and_token_ids() {
    let server = server().await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let extra = json!({"stream": true, "stream_options": options, "logprobs": true, "top_logprobs": 1,
        "return_token_ids": true, "max_tokens": 6});
    assert_snapshot!(transcript(&streamed(&server, CHAT, chat(extra)).await));
}

#[tokio::test]
async fn chat_logprobs_have_exact_bytes_of_split_characters() {
    let server = server().await;
    let body = ok(&server, CHAT, chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 6}))).await;
    assert_json_snapshot!(body["choices"][0]);
}

#[tokio::test]
async fn chat_extensions() {
    let server = server().await;
    let body = chat(json!({"prompt_logprobs": 1, "return_token_ids": true, "max_tokens": 2,
        "messages": [{"role": "user", "content": "A"}]}));
    assert_json_snapshot!(ok(&server, CHAT, body).await);
}

#[tokio::test]
async fn completion_response() {
    let server = server().await;
    assert_json_snapshot!(ok(&server, COMPLETIONS, completion(json!({}))).await);
}

#[tokio::test]
async fn completion_stream() {
    let server = server().await;
    let extra = json!({"stream": true, "echo": true, "logprobs": 1, "max_tokens": 3, "stream_options": {"include_usage": true}});
    assert_snapshot!(transcript(&streamed(&server, COMPLETIONS, completion(extra)).await));
}

#[tokio::test]
async fn completion_echo_with_logprobs() {
    let server = server().await;
    let extra = json!({"prompt": "é>", "echo": true, "logprobs": 2, "max_tokens": 2});
    assert_json_snapshot!(ok(&server, COMPLETIONS, completion(extra)).await);
}

#[tokio::test]
async fn completion_scores_a_prompt_without_generating() {
    let server = server().await;
    let extra = json!({"prompt": [65, 66, 67], "echo": true, "logprobs": 1, "max_tokens": 0});
    assert_json_snapshot!(ok(&server, COMPLETIONS, completion(extra)).await);
}

/// Who scores tokens (an evaluation harness) counts entries: one for each prompt token and each generated one, the end of
/// the turn included. The last one's offset is the text's end.
#[tokio::test]
async fn completion_logprobs_have_an_entry_for_every_token() {
    let server = server().await;
    let at_end = format!("a>{}", support::ANSWER);
    let extra = json!({"prompt": at_end, "echo": true, "logprobs": 1, "max_tokens": 1});
    let body = ok(&server, COMPLETIONS, completion(extra)).await;
    let (choice, usage) = (&body["choices"][0], &body["usage"]);
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(at_end), &json!("stop")));
    let entries = usage["prompt_tokens"].as_u64().unwrap() + 1;
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(choice["logprobs"][field].as_array().unwrap().len() as u64, entries, "{field}");
    }
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().last(), Some(&json!("<|im_end|>")));
    assert_eq!(choice["logprobs"]["text_offset"].as_array().unwrap().last(), Some(&json!(at_end.chars().count())));
}

#[tokio::test]
async fn offsets_count_control_tokens_that_the_echo_shows() {
    let server = server().await;
    let offsets = async |prompt: Value, extra: Value| {
        let mut body = completion(extra);
        (body["prompt"], body["echo"], body["logprobs"], body["max_tokens"]) =
            (prompt, true.into(), 0.into(), 1.into());
        let body = ok(&server, COMPLETIONS, body).await;
        (body["choices"][0]["text"].clone(), body["choices"][0]["logprobs"]["text_offset"].clone())
    };
    let text = offsets(json!("<|im_start|>hi>"), json!({})).await;
    assert_eq!(text, (json!("<|im_start|>hi>x"), json!([0, 12, 13, 14, 15])));
    let ids = json!([IM_END, 104, 105, 62]);
    assert_eq!(offsets(ids.clone(), json!({})).await, (json!("hi>H"), json!([0, 0, 1, 2, 3])));
    let shown = offsets(ids, json!({"skip_special_tokens": false})).await;
    assert_eq!(shown, (json!("<|im_end|>hi>H"), json!([0, 10, 11, 12, 13])));
}

#[tokio::test]
async fn several_choices_with_prompt_logprobs_compute_the_prompt_once() {
    let server = server().await;
    let prompt = format!("{}>", "p".repeat(99));
    let computed = async |n: usize| {
        let before = server.engine.stats().scheduler.computed_tokens;
        let extra = json!({"prompt": prompt, "n": n, "echo": true, "logprobs": 1, "max_tokens": 1});
        let body = ok(&server, COMPLETIONS, completion(extra)).await;
        let choices = body["choices"].as_array().unwrap();
        assert!(choices.iter().all(|choice| choice["logprobs"]["tokens"].as_array().unwrap().len() == 101));
        server.engine.stats().scheduler.computed_tokens - before
    };
    let alone = computed(1).await;
    let four = computed(4).await;
    assert!(four < alone + 3 * 32, "{four} tokens for four choices, {alone} for one");
}

#[tokio::test]
async fn completion_of_several_prompts_and_choices() {
    let server = server().await;
    let extra = json!({"prompt": ["a>", "b>"], "n": 2, "max_tokens": 2});
    assert_json_snapshot!(ok(&server, COMPLETIONS, completion(extra)).await);
}

#[tokio::test]
async fn streams_carry_what_the_response_has() {
    let server = server().await;
    let cases = [
        json!({}),
        json!({"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 40, "logprobs": true, "top_logprobs": 3}),
        json!({"stop": ["STOP", "zzz"], "logprobs": true}),
        json!({"stop": "mor", "include_stop_str_in_output": true, "return_token_ids": true}),
        json!({"ignore_eos": true, "max_tokens": 60, "skip_special_tokens": false}),
        json!({"stop_token_ids": [111], "include_stop_str_in_output": true}),
        json!({"stop": "i", "min_tokens": 5}),
    ];
    for case in cases {
        let whole = ok(&server, CHAT, chat(case.clone())).await;
        let mut body = chat(case.clone());
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let chunks = chunks(&streamed(&server, CHAT, body).await);
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"], "{case}");
        assert_eq!(last["choices"], json!([]), "{case}");
        for choice in whole["choices"].as_array().unwrap() {
            let parts = rest.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
            let parts: Vec<&Value> = parts.filter(|part| part["index"] == choice["index"]).collect();
            let joined = |pointer: &str| -> Vec<Value> {
                parts.iter().filter_map(|part| part.pointer(pointer)?.as_array().cloned()).flatten().collect()
            };
            let text: String = parts.iter().filter_map(|part| part["delta"]["content"].as_str()).collect();
            assert_eq!(choice["message"]["content"], text, "{case}");
            assert_eq!(choice["finish_reason"], parts.last().unwrap()["finish_reason"], "{case}");
            if let Some(logprobs) = choice["logprobs"]["content"].as_array() {
                assert_eq!(*logprobs, joined("/logprobs/content"), "{case}");
                let spelled: Vec<u8> = logprobs
                    .iter()
                    .flat_map(|token| token["bytes"].as_array().unwrap())
                    .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
                    .collect();
                // The shown tokens spell the shown text (which may end in the middle of a character).
                assert_eq!(String::from_utf8_lossy(&spelled), text, "{case}");
            }
            if let Some(ids) = choice["token_ids"].as_array() {
                assert_eq!(*ids, joined("/token_ids"), "{case}");
            }
            assert_eq!(parts[0]["delta"], json!({"role": "assistant", "content": ""}), "{case}");
        }
    }
}

#[tokio::test]
async fn stops_hide_what_they_should() {
    let server = server().await;
    let text = async |extra: Value| {
        let body = ok(&server, CHAT, chat(extra)).await;
        let choice = &body["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap().to_owned();
        (content, choice["finish_reason"].clone(), body["usage"]["completion_tokens"].as_u64().unwrap())
    };
    let whole = support::ANSWER;
    let generated = whole.len() as u64;
    assert_eq!(text(json!({})).await, (whole.into(), json!("stop"), generated + 1));
    assert_eq!(text(json!({"stop": "STOP"})).await, ("Hi wörld 😀!\n".into(), json!("stop"), generated - 5));
    assert_eq!(text(json!({"stop": "😀"})).await, ("Hi wörld ".into(), json!("stop"), 14));
    let included = json!({"stop": "wö", "include_stop_str_in_output": true});
    assert_eq!(text(included).await, ("Hi wö".into(), json!("stop"), 6));
    assert_eq!(text(json!({"max_tokens": 5})).await, ("Hi w\u{fffd}".into(), json!("length"), 5));
    let control = json!({"ignore_eos": true, "skip_special_tokens": false, "max_tokens": generated + 3});
    assert_eq!(text(control).await, (format!("{whole}<|im_end|>zz"), json!("length"), generated + 3));
    let hidden = json!({"ignore_eos": true, "max_tokens": generated + 3});
    assert_eq!(text(hidden).await, (format!("{whole}zz"), json!("length"), generated + 3));
    assert_eq!(text(json!({"stop_token_ids": [33]})).await, ("Hi wörld 😀".into(), json!("stop"), 15));
    assert_eq!(text(json!({"stop": "i", "min_tokens": 5, "max_tokens": 9})).await.1, json!("length"));
}

#[tokio::test]
async fn choices_have_seeds_of_their_own_and_the_first_is_n_1() {
    let server = server().await;
    let sampled = json!({"temperature": 2.0, "seed": 11, "max_tokens": 24, "ignore_eos": true});
    let contents = async |n: usize| -> Vec<String> {
        let mut body = chat(sampled.clone());
        body["n"] = n.into();
        let body = ok(&server, CHAT, body).await;
        let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
        body["choices"].as_array().unwrap().iter().map(text).collect()
    };
    let one = contents(1).await;
    let four = contents(4).await;
    assert_eq!(one[0], four[0]);
    assert_eq!(four, contents(4).await);
    let distinct: std::collections::HashSet<_> = four.iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[tokio::test]
async fn best_of_shows_the_likeliest() {
    let server = server().await;
    let extra = json!({"temperature": 2.0, "seed": 3, "max_tokens": 8, "ignore_eos": true, "logprobs": 0});
    let mut all = completion(extra.clone());
    all["n"] = 6.into();
    let mut best = completion(extra);
    best["n"] = 2.into();
    best["best_of"] = 6.into();
    let all = ok(&server, COMPLETIONS, all).await;
    let best = ok(&server, COMPLETIONS, best).await;
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
    let mean = |choice: &Value| -> f64 {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / 8.0
    };
    let mut means: Vec<f64> = all["choices"].as_array().unwrap().iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let shown: Vec<f64> = best["choices"].as_array().unwrap().iter().map(mean).collect();
    assert_eq!(shown, means[..2]);
    assert_eq!(best["choices"][1]["index"], 1);
}

#[tokio::test]
async fn cached_tokens_are_reported() {
    let server = server().await;
    let long = json!({"prompt": format!("{}>", "p".repeat(100)), "max_tokens": 1});
    let cached = async |body: Value| {
        ok(&server, COMPLETIONS, completion(body)).await["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(cached(long.clone()).await, 0);
    assert_eq!(cached(long.clone()).await, 96);
    let mut salted = long;
    salted["cache_salt"] = "mine".into();
    assert_eq!(cached(salted.clone()).await, 0);
    assert_eq!(cached(salted).await, 96);
}

#[tokio::test]
async fn models() {
    let server = server().await;
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    server.assert_described("get", "/v1/models", 200, &list).await;
    assert_json_snapshot!(list);
    let nonsense = server.get("/v1/models/%ff").send().await.unwrap();
    assert_eq!(nonsense.status(), 404);
    assert_eq!(nonsense.json::<Value>().await.unwrap()["error"]["code"], "model_not_found");
    let one: Value = server.get(&format!("/v1/models/{MODEL}")).send().await.unwrap().json().await.unwrap();
    server.assert_described("get", "/v1/models/{id}", 200, &one).await;
    assert_eq!(one, list["data"][0]);
}

#[tokio::test]
async fn tokenize_and_detokenize() {
    let server = server().await;
    let (_, tokens) = server.ask("/tokenize", json!({"model": MODEL, "prompt": "hé<|im_end|>"})).await;
    assert_eq!(tokens, json!({"count": 4, "max_model_len": 512, "tokens": [104, 195, 169, IM_END]}));
    let (_, text) = server.ask("/detokenize", json!({"model": MODEL, "tokens": tokens["tokens"]})).await;
    assert_eq!(text, json!({"prompt": "hé<|im_end|>"}));
    let messages = json!([{"role": "user", "content": "x<|im_end|>"}]);
    let (_, chat) = server.ask("/tokenize", json!({"messages": messages, "return_token_strs": true})).await;
    assert_json_snapshot!(chat);
    let (_, closed) = server.ask("/tokenize", json!({"messages": messages, "add_generation_prompt": false})).await;
    assert_eq!(closed["count"].as_u64().unwrap() + 11, chat["count"].as_u64().unwrap());
}

#[tokio::test]
async fn tokenizer_info() {
    let server = server().await;
    let ask = async |path: &str| {
        let answer = server.get(path).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (_, info) = ask("/tokenizer_info").await;
    assert_eq!(info, json!({"model": MODEL, "max_model_len": 512, "bos_token": null, "eos_token": "<|im_end|>"}));
    assert_eq!(ask(&format!("/tokenizer_info?model={MODEL}")).await, (200, info));
    let (status, unknown) = ask("/tokenizer_info?model=nothing").await;
    assert_eq!((status, &unknown["error"]["code"]), (404, &json!("model_not_found")));
    let (status, misspelt) = ask("/tokenizer_info?modle=x").await;
    assert_eq!((status, &misspelt["error"]["param"]), (400, &json!("model")));
}

/// Fields of the official SDK's request types, with values that ask for nothing unsupported.
#[tokio::test]
async fn harmless_parameters_are_accepted() {
    let server = server().await;
    let plain = ok(&server, CHAT, chat(json!({}))).await["choices"].clone();
    let cases = json!({
        "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": true, "service_tier": "flex",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"},
        "parallel_tool_calls": false, "tools": [], "tool_choice": "none", "functions": [], "function_call": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "none", "verbosity": "medium",
        "priority": 0, "use_beam_search": false, "audio": null, "prediction": null, "top_k": -1, "min_p": 0,
        "repetition_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "seed": -5, "n": 1,
        "stop": [], "top_p": 1, "logprobs": false, "stream": false, "max_completion_tokens": 400, "max_tokens": 400,
        "cache_salt": "x", "chat_template_kwargs": {"enable_thinking": true}, "add_generation_prompt": true,
        "truncate_prompt_tokens": -1, "skip_special_tokens": true, "min_tokens": 0, "top_logprobs": 0, "request_id": "r",
        "detokenize": true, "spaces_between_special_tokens": true, "length_penalty": 1.0, "include_reasoning": true,
    });
    for (name, value) in cases.as_object().unwrap() {
        let body = ok(&server, CHAT, chat(json!({ name: value }))).await;
        assert_eq!(body["choices"], plain, "{name}");
    }
    ok(&server, CHAT, chat(cases)).await;
}

/// One line per refused request: its extra fields → status, `param`, `code`, message.
#[tokio::test]
async fn refused_parameters() {
    let server = Server::start(Setup { template: Some("gemma3.jinja"), ..Setup::default() }).await;
    let chat_cases = json!([
        {"tool_choice": "auto"}, {"tool_choice": {"type": "function"}},
        {"functions": [{"name": "f"}]}, {"function_call": "auto"}, {"guided_json": []},
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"response_format": {"type": "json_object"}, "guided_regex": "a"}, {"structured_outputs": {"structural_tag": "{}"}},
        {"guided_json": {"properties": {"a": {"uniqueItems": true}}}}, {"guided_json": {"type": "what"}}, {"guided_json": "{"},
        {"guided_json": {"type": "string", "format": "magic"}}, {"guided_json": {"minItems": 1e9}}, {"guided_regex": "("},
        {"guided_grammar": "start: x"}, {"guided_grammar": "root ::= x"}, {"guided_choice": []},
        {"guided_choice": ["a"], "stop_token_ids": [97]},
        {"modalities": ["text", "audio"]}, {"audio": {"voice": "x"}}, {"prediction": {"type": "content", "content": "x"}},
        {"web_search_options": {}}, {"moderation": {"model": "x"}}, {"reasoning_effort": "high"}, {"verbosity": "low"},
        {"priority": 1}, {"chat_template": "x"}, {"bad_words": ["a"]},
        {"temprature": 1}, {"echo": true}, {"best_of": 2}, {"stream_options": {"include_usage": true}},
        {"stream": true, "stream_options": {"usage": true}}, {"stream": true, "prompt_logprobs": 1},
        {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": "hot"}, {"top_p": 1.5}, {"n": 0}, {"n": 129}, {"n": 1.5},
        {"top_k": -2}, {"min_p": 2}, {"presence_penalty": 3}, {"frequency_penalty": -3}, {"repetition_penalty": 0},
        {"logit_bias": {"999": 1}}, {"logit_bias": {"5": 101}}, {"logit_bias": []}, {"seed": 1.5}, {"seed": 1e30},
        {"stop": ""}, {"stop": vec!["a"; 33]}, {"stop": [1]}, {"stop": 1}, {"logprobs": 1}, {"top_logprobs": 1},
        {"logprobs": true, "top_logprobs": 21}, {"prompt_logprobs": 21}, {"max_tokens": 0}, {"max_tokens": -1},
        {"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 10_000}, {"max_completion_tokens": 1e20},
        {"min_tokens": 9, "max_tokens": 8}, {"stop_token_ids": [259]}, {"stop_token_ids": ["a"]}, {"stream": "yes"},
        {"metadata": {"a": 1}}, {"user": 1}, {"store": "no"}, {"service_tier": "gold"}, {"cache_salt": ""},
        {"truncate_prompt_tokens": 0}, {"continue_final_message": true, "add_generation_prompt": true},
        {"chat_template_kwargs": {"messages": []}}, {"model": "gpt-9"}, {"model": 1},
        {"messages": []}, {"messages": "hi"}, {"messages": null}, {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": "x", "extra": 1}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "out of turn"}]},
        {"messages": [{"role": "user", "content": "x".repeat(600)}]},
    ]);
    let completion_cases = json!([
        {"suffix": "x"}, {"logprobs": 6}, {"logprobs": true}, {"best_of": 21}, {"best_of": 1, "n": 2}, {"best_of": 2, "stream": true},
        {"max_tokens": 0}, {"prompt": []}, {"prompt": null}, {"prompt": ""}, {"prompt": [1, "a"]}, {"prompt": ["a", 1]},
        {"prompt": [[1], "a", {}]}, {"prompt": [259]}, {"prompt": [[]]}, {"prompt": {"a": 1}}, {"messages": []},
        {"echo": 1}, {"prompt": "x".repeat(600)}, {"max_tokens": 600}, {"echo": true, "logprobs": 1, "prompt_logprobs": 1},
        {"n": 128, "prompt": ["a", "b", "c"]},
    ]);
    let mut lines = Vec::new();
    for (path, cases) in [(CHAT, chat_cases), (COMPLETIONS, completion_cases)] {
        for case in cases.as_array().unwrap() {
            let request = if path == CHAT { chat(case.clone()) } else { completion(case.clone()) };
            let (status, body) = server.ask(path, request).await;
            let error = &body["error"];
            assert_eq!(error.as_object().unwrap().len(), 4);
            let shown: String = case.to_string().chars().take(100).collect();
            lines.push(format!("{shown}\n  {status} {} {} {}", error["param"], error["code"], error["message"]));
        }
    }
    assert_snapshot!(lines.join("\n"));
}

/// The model would say something else; the mask leaves it no choice but of the form.
#[tokio::test]
async fn answers_have_the_form_that_is_asked_for() {
    let server = server().await;
    let record = json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 999, "minimum": 100},
        "b": {"enum": ["x", "yy"]}}, "required": ["a", "b"], "additionalProperties": false});
    let format =
        |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "r", "strict": true, "schema": schema}});
    let cases = [
        json!({ "response_format": format(&record) }),
        json!({"structured_outputs": {"json": record, "disable_any_whitespace": true}}),
        json!({ "guided_json": record.to_string() }),
        json!({"guided_regex": "[a-d]{3}(x|y)"}),
        json!({"guided_choice": ["one", "two", "one more"]}),
        json!({"guided_grammar": "start: \"<\" /[a-z]/ \">\""}),
        json!({"structured_outputs": {"grammar": "root ::= \"<\" [a-z]{2} \">\""}}),
    ];
    let form = |text: &str, case: usize| match case {
        0..=2 => {
            let value: Value = serde_json::from_str(text).unwrap();
            let fields = value.as_object().unwrap();
            fields.len() == 2
                && (100..=999).contains(&fields["a"].as_i64().unwrap())
                && ["x", "yy"].contains(&fields["b"].as_str().unwrap())
        }
        3 => text.len() == 4 && text.ends_with(['x', 'y']),
        4 => ["one", "two", "one more"].contains(&text),
        5 => text.len() == 3 && text.starts_with('<') && text.ends_with('>'),
        _ => text.len() == 4 && text.starts_with('<') && text.ends_with('>'),
    };
    for (number, case) in cases.iter().enumerate() {
        for sampling in [json!({"temperature": 0}), json!({"temperature": 1.5, "seed": 7, "n": 3})] {
            let mut body = chat(case.clone());
            body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
            let whole = ok(&server, CHAT, body.clone()).await;
            body["stream"] = json!(true);
            let chunks = chunks(&streamed(&server, CHAT, body).await);
            for choice in whole["choices"].as_array().unwrap() {
                let text = choice["message"]["content"].as_str().unwrap();
                assert!(form(text, number), "{case}: {text:?}");
                assert_eq!(choice["finish_reason"], "stop");
                let parts =
                    chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|part| part["index"] == choice["index"]);
                let streamed: String = parts.filter_map(|part| part["delta"]["content"].as_str()).collect();
                assert_eq!(streamed, text, "{case}");
            }
        }
        let mut body = completion(case.clone());
        // White space is bounded, and this model likes it.
        body["max_tokens"] = json!(300);
        let text = ok(&server, COMPLETIONS, body.clone()).await["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(form(&text, number), "{case}: {text:?}");
        body["max_tokens"] = json!(2);
        let cut = ok(&server, COMPLETIONS, body).await["choices"][0].clone();
        assert_eq!((&cut["finish_reason"], cut["text"].as_str().unwrap()), (&json!("length"), &text[..2]), "{case}");
    }
}

/// What a client asks beside a form: the form wins, and log-probabilities are those of the model.
#[tokio::test]
async fn forms_beside_other_parameters() {
    let server = server().await;
    let ask = async |extra: Value| {
        let mut body = chat(json!({"guided_regex": "(ab)*"}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        ok(&server, CHAT, body).await["choices"][0].clone()
    };
    let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    // Of what is allowed the model likes the end of the turn best when its own answer has come to `ö`, and after its end.
    assert_eq!(text(&ask(json!({})).await), "abab");
    assert_eq!(text(&ask(json!({"min_tokens": 29})).await), "ab".repeat(15));
    let ignoring = ask(json!({"ignore_eos": true, "max_tokens": 31})).await;
    assert_eq!((text(&ignoring), &ignoring["finish_reason"]), ("ab".repeat(15) + "a", &json!("length")));
    let stopped = ask(json!({"stop": "ba"})).await;
    assert_eq!((text(&stopped).as_str(), &stopped["finish_reason"]), ("a", &json!("stop")));
    let biased = ask(json!({"logit_bias": {"97": -100, "120": 100}, "ignore_eos": true, "max_tokens": 2})).await;
    assert_eq!(text(&biased), "ab");
    let told = ask(json!({"logprobs": true, "top_logprobs": 1, "max_tokens": 1})).await;
    let entry = &told["logprobs"]["content"][0];
    assert_eq!((&entry["token"], &entry["top_logprobs"][0]["token"]), (&json!("a"), &json!("H")));
    // Only one text is possible, whatever else is asked.
    let mut only = chat(json!({"guided_choice": ["ok"], "ignore_eos": true, "min_tokens": 50}));
    only["max_tokens"] = json!(60);
    let only = ok(&server, CHAT, only).await["choices"][0].clone();
    assert_eq!((text(&only).as_str(), &only["finish_reason"]), ("ok", &json!("stop")));
}

#[tokio::test]
async fn the_same_new_schema_is_compiled_once_and_hostile_ones_stall_nobody() {
    let server = Arc::new(server().await);
    let hostile = |i: usize| json!({"guided_regex": format!("(.*a(b|{i})){{60}}(a|b|ab)*c(a|b){{1,60}}")});
    let mut tasks = Vec::new();
    for i in 0..40 {
        let server = Arc::clone(&server);
        let extra = if i % 4 == 0 { hostile(i) } else { json!({"guided_json": {"enum": ["same", "schema"]}}) };
        tasks.push(tokio::spawn(async move { server.ask(CHAT, chat(extra)).await.0 }));
    }
    let begin = std::time::Instant::now();
    ok(&server, CHAT, chat(json!({"max_tokens": 5}))).await;
    assert!(begin.elapsed().as_secs() < 5, "a plain request took {:?}", begin.elapsed());
    for (i, task) in tasks.into_iter().enumerate() {
        let status = task.await.unwrap();
        assert!(if i % 4 == 0 { matches!(status, 200 | 400 | 503) } else { status == 200 }, "{i}: {status}");
    }
}

#[tokio::test]
async fn truncated_prompts_leave_room_for_the_answer() {
    let server = server().await;
    let long = json!({"prompt": "p".repeat(600), "truncate_prompt_tokens": -1, "max_tokens": 12});
    let usage = ok(&server, COMPLETIONS, completion(long)).await["usage"].clone();
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(500), &json!(12)));
}

#[tokio::test]
async fn a_failed_step_is_an_error_and_no_end() {
    let fail = Setup { fail_on_token: Some(u32::from(b'w')), ..Setup::default() };
    let server = Server::start(fail).await;
    let (status, body) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 500);
    assert_json_snapshot!(body);
    let stream = streamed(&server, CHAT, chat(json!({"stream": true}))).await;
    assert_snapshot!(transcript(&stream));
    // The engine goes on.
    let (status, _) = server.ask(CHAT, chat(json!({"max_tokens": 2}))).await;
    assert_eq!(status, 200);
}
