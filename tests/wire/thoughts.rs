//! Budgets of thoughts on the wire.
use serde_json::{Value, json};

use super::support::{MODEL, Server, Setup, chat, chunks};
use super::{CHAT, COMPLETIONS, ok, streamed};

/// What the model would say goes by its position: the forced end takes the place of eight dots.
const THOUGHT: &str = "<think>\nabc........Answer.";

async fn says(script: &'static str, speculation: bool) -> Server {
    let setup = Setup {
        script: Some(script),
        template: Some("qwen3.jinja"),
        context_max: 8192,
        speculation,
        ..Setup::default()
    };
    Server::start(setup).await
}

fn parts(answer: &Value) -> (Value, Value) {
    let message = &answer["choices"][0]["message"];
    (message["reasoning_content"].clone(), message["content"].clone())
}

#[tokio::test]
async fn every_name_of_a_budget_ends_the_thoughts() {
    let server = says(THOUGHT, false).await;
    let cut = (json!("abc"), json!("Answer."));
    for extra in [
        json!({"thinking_budget": 4}),
        json!({"thinking_token_budget": 4}),
        json!({"reasoning": {"max_tokens": 4}}),
        json!({"reasoning": {"max_tokens": 4, "effort": "high"}}),
        json!({"chat_template_kwargs": {"thinking_budget": 4}}),
        json!({"chat_template_kwargs": {"thinking_budget": 4}, "thinking_budget": 4}),
    ] {
        let answer = ok(&server, CHAT, chat(extra.clone())).await;
        assert_eq!(parts(&answer), cut, "{extra}");
        let usage = &answer["usage"];
        // What marks the thoughts is counted among them: the last byte of `<think>` and all of `</think>`.
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 1 + 4 + 8);
        assert_eq!(usage["completion_tokens"], THOUGHT.len() + 1);
        let mut body = chat(extra);
        body["stream"] = true.into();
        let chunks = chunks(&streamed(&server, CHAT, body).await);
        let told = |field: &str| -> String {
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
        };
        assert_eq!((json!(told("reasoning")), json!(told("content"))), cut);
    }
    for extra in [json!({}), json!({"thinking_budget": -1}), json!({"thinking_budget": 400})] {
        let answer = ok(&server, CHAT, chat(extra)).await;
        assert_eq!(parts(&answer), (json!("abc........Answer."), Value::Null));
    }
    let none = ok(&server, CHAT, chat(json!({"thinking_budget": 0, "max_tokens": 15}))).await;
    assert_eq!(parts(&none), (Value::Null, json!("")));
    let open = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\nI"}]);
    let open = json!({"messages": open, "continue_final_message": true, "thinking_budget": 2, "max_tokens": 12});
    let continued = ok(&server, CHAT, chat(open)).await;
    assert!(continued["choices"][0]["message"]["content"].is_string(), "{continued}");
}

#[tokio::test]
async fn choices_guesses_and_other_dialects_keep_to_it() {
    let plain = says(THOUGHT, false).await;
    let guessing = says(THOUGHT, true).await;
    for server in [&plain, &guessing] {
        let answer = ok(server, CHAT, chat(json!({"n": 3, "thinking_budget": 4, "temperature": 0}))).await;
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["message"]["reasoning"], "abc");
            assert_eq!(choice["message"]["content"], "Answer.");
        }
        let messages = json!({"model": MODEL, "max_tokens": 400, "temperature": 0, "messages": [{"role": "user", "content": "x"}],
            "thinking": {"type": "enabled", "budget_tokens": 4}});
        let answer = ok(server, "/v1/messages", messages).await;
        assert_eq!(answer["content"][0]["thinking"], "abc");
        assert_eq!(answer["content"][1]["text"], "Answer.");
        assert_eq!(answer["usage"]["output_tokens_details"]["thinking_tokens"], 13);
        let responses = json!({"model": MODEL, "input": "x", "temperature": 0, "reasoning": {"max_tokens": 4}});
        let answer = ok(server, "/v1/responses", responses).await;
        assert_eq!(answer["output"][0]["content"][0]["text"], "abc");
        assert_eq!(answer["output"][1]["content"][0]["text"], "Answer.");
        assert_eq!(answer["usage"]["output_tokens_details"]["reasoning_tokens"], 13);
    }
}

#[tokio::test]
async fn a_call_may_follow_thoughts_that_were_cut_off() {
    const CALL: &str = "<think>\nabc........<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    let server = says(CALL, true).await;
    let tool = json!({"type": "function", "function": {"name": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}});
    let format = json!({"type": "json_object"});
    // A call that must be made leaves no room for another form.
    for (choice, format) in [("auto", Value::Null), ("required", Value::Null), ("required", format)] {
        let extra = json!({"tools": [tool], "tool_choice": choice, "thinking_budget": 4, "response_format": format});
        let answer = ok(&server, CHAT, chat(extra)).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["reasoning"], "abc");
        assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{\"x\": 1}");
    }
}

#[tokio::test]
async fn budgets_that_cannot_be_kept_are_refused() {
    let thinking = says(THOUGHT, false).await;
    let plain = Server::start(Setup::default()).await;
    let refused = async |server: &Server, path: &str, body: Value| {
        let (status, body) = server.ask(path, body).await;
        assert_eq!(status, 400, "{body}");
        body["error"]["param"].clone()
    };
    assert_eq!(refused(&plain, CHAT, chat(json!({"thinking_budget": 4}))).await, "thinking_budget");
    assert_eq!(refused(&plain, CHAT, chat(json!({"reasoning": {"max_tokens": 4}}))).await, "reasoning.max_tokens");
    let kwargs = json!({"chat_template_kwargs": {"thinking_budget": "4"}});
    assert_eq!(refused(&thinking, CHAT, chat(kwargs)).await, "chat_template_kwargs.thinking_budget");
    let both = json!({"thinking_budget": 4, "reasoning": {"max_tokens": 5}});
    assert_eq!(refused(&thinking, CHAT, chat(both)).await, "thinking_budget");
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let schema = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}});
    let either = json!({"thinking_budget": 4, "tools": [tool], "response_format": schema});
    assert_eq!(refused(&thinking, CHAT, chat(either)).await, "thinking_budget");
    let adaptive = json!({"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "x"}],
        "thinking": {"type": "adaptive", "budget_tokens": 1024}});
    let (status, body) = plain.ask("/v1/messages", adaptive).await;
    assert!(status == 400 && body["error"]["message"].as_str().unwrap().contains("thinking.budget_tokens"), "{body}");
    let completion = json!({"model": MODEL, "prompt": "x", "thinking_budget": 4});
    assert_eq!(refused(&thinking, COMPLETIONS, completion).await, "thinking_budget");
}

/// Some templates begin the model's thoughts: what has the form is the answer, and not them.
#[tokio::test]
async fn an_answer_that_must_have_a_form_comes_after_open_thoughts() {
    let server = says(THOUGHT, false).await;
    let open = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\nI"}]);
    let schema = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "yes"}}});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (extra, text) in [
        (json!({"guided_choice": ["yes"]}), "yes"),
        (json!({"response_format": schema}), "\"yes\""),
        (json!({"response_format": schema, "tools": tools, "tool_choice": "none"}), "\"yes\""),
        (json!({"guided_regex": "y{3}", "thinking_budget": 4}), "yyy"),
    ] {
        let mut body = chat(json!({"messages": open, "continue_final_message": true, "max_tokens": 30}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = ok(&server, CHAT, body).await;
        assert_eq!(parts(&answer), (Value::Null, json!(text)), "{extra}");
        assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    }
    // Whether there are tools that may be called or not: calls come after the thoughts' end, too.
    let both = json!({"messages": open, "continue_final_message": true, "max_tokens": 60, "tools": tools, "response_format": schema});
    let answer = ok(&server, CHAT, chat(both)).await;
    assert_eq!(answer["choices"][0]["message"].get("reasoning_content"), None);
}
