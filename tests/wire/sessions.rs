//! Headers about sessions, the cache, the queue and what was ignored.
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use wick::api::auth::{Scope, generate_key};
use wick::api::{KeyStore, ServerOptions};

use super::support::{MODEL, Server, Setup, chat, chunks, completion};
use super::{CHAT, COMPLETIONS, server};

/// The headers of an answer that is read to its end.
async fn headers(server: &Server, path: &str, body: &Value, given: &[(&str, &str)]) -> HeaderMap {
    let mut request = server.post(path, body);
    for (name, value) in given {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    response.bytes().await.unwrap();
    headers
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// `x-cache-explain` of an answer.
async fn explained(server: &Server, path: &str, body: &Value) -> String {
    let headers = headers(server, path, body, &[("x-cache-explain", "1")]).await;
    text(&headers, "x-cache-explain").expect("the header was asked for").to_owned()
}

#[tokio::test]
async fn sessions_are_echoed_and_break_nothing() {
    let server = server().await;
    let body = chat(json!({}));
    let echoed = async |body: &Value, given: &[(&str, &str)]| {
        text(&headers(&server, CHAT, body, given).await, "x-session-affinity").map(str::to_owned)
    };
    assert_eq!(echoed(&body, &[]).await, None);
    assert_eq!(
        echoed(&body, &[("X-Claude-Code-Session-Id", "5e5"), ("x-parent-session-id", "p")]).await.as_deref(),
        Some("5e5")
    );
    assert_eq!(
        echoed(&body, &[("x-session-id", "not a name"), ("session_id", "codex")]).await.as_deref(),
        Some("codex")
    );
    assert_eq!(echoed(&body, &[("x-session-id", &"x".repeat(2000))]).await, None);
    let keyed = chat(json!({"prompt_cache_key": "key", "stream": true}));
    assert_eq!(echoed(&keyed, &[]).await.as_deref(), Some("key"));
    assert_eq!(echoed(&keyed, &[("x-session-affinity", "own")]).await.as_deref(), Some("own"));
    let refused = server.post(CHAT, &json!({})).header("x-session-id", "s").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), text(refused.headers(), "x-session-affinity")), (400, Some("s")));
}

#[tokio::test]
async fn ignored_parameters_and_time_in_the_queue_are_told() {
    let server = server().await;
    let plain = headers(&server, CHAT, &chat(json!({"store": false, "service_tier": "auto"})), &[]).await;
    assert_eq!(text(&plain, "x-ignored-params"), None);
    assert!(text(&plain, "x-queue-ms").unwrap().parse::<u64>().is_ok());
    let extra = json!({"metadata": {"a": "b"}, "user": "u", "prompt_cache_retention": "24h", "stream": true});
    let streamed = headers(&server, CHAT, &chat(extra), &[]).await;
    assert_eq!(text(&streamed, "x-ignored-params"), Some("user, metadata, prompt_cache_retention"));
    assert_eq!(text(&streamed, "x-queue-ms"), None, "the headers of a stream do not wait for its turn");
    let messages = json!({"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}],
        "metadata": {"user_id": "u"}, "service_tier": "auto"});
    let messages = headers(&server, "/v1/messages", &messages, &[]).await;
    assert_eq!(text(&messages, "x-ignored-params"), Some("metadata"));
}

#[tokio::test]
async fn explanations_are_exact_to_the_token() {
    let server = server().await;
    let ask = async |prompt: Vec<u32>, stream: bool| {
        explained(&server, COMPLETIONS, &completion(json!({"prompt": prompt, "max_tokens": 30, "stream": stream})))
            .await
    };
    let first: Vec<u32> = (0..40).map(|i| 100 + i).collect();
    let with = |at: usize| {
        let mut prompt = first.clone();
        prompt[at] = 98;
        prompt
    };
    assert_eq!(ask(first.clone(), false).await, "prompt=40, reused=0, differs_at=0, closest=none");
    assert_eq!(ask(first.clone(), true).await, "prompt=40, reused=32, closest=whole");
    for (at, reused) in [(39, 32), (37, 32), (31, 16), (17, 16), (1, 0)] {
        let expected = format!("prompt=40, reused={reused}, differs_at={at}, closest=differs");
        assert_eq!(ask(with(at), at > 20).await, expected);
    }
    // Of the 69 tokens that were computed first, whole blocks are cached.
    let mut longer = first.clone();
    longer.extend([u32::from(b'x'); 30]);
    assert_eq!(ask(longer, false).await, "prompt=70, reused=64, differs_at=64, closest=ends");
    let off = headers(&server, COMPLETIONS, &completion(json!({})), &[("x-cache-explain", "0")]).await;
    assert_eq!(text(&off, "x-cache-explain"), None, "nobody asked");
}

/// The same header whatever the dialect, in one piece and in a stream, which is what it would be without.
#[tokio::test]
async fn every_dialect_explains() {
    let server = server().await;
    let said = "Nobody has said this before. ".repeat(3);
    let question = json!([{"role": "user", "content": said}]);
    let other = json!([{"role": "user", "content": said.replace("before", "Before")}]);
    let chats = json!({"model": MODEL, "max_tokens": 20, "messages": question, "temperature": 0});
    let responses = json!({"model": MODEL, "max_output_tokens": 20, "input": other, "temperature": 0});
    let messages = json!({"model": MODEL, "max_tokens": 20, "messages": other, "temperature": 0});
    assert!(explained(&server, CHAT, &chats).await.ends_with("differs_at=0, closest=none"));
    // The prompt is the same as a chat's: it differs where the word does.
    let before = "<|im_start|>user\n".len() - "<|im_start|>".len() + 1 + said.find("before").unwrap();
    let differs = format!("differs_at={before}, closest=differs");
    let found = explained(&server, "/v1/responses", &responses).await;
    assert!(found.contains(&differs), "{found}");
    for stream in [false, true] {
        for (path, body) in [("/v1/responses", &responses), ("/v1/messages", &messages), (CHAT, &chats)] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            let found = explained(&server, path, &body).await;
            assert!(found.ends_with("closest=whole"), "{path} {stream}: {found}");
        }
    }
    let mut body = chats;
    body["stream"] = true.into();
    let ask = async |explain: &str| {
        let response = server.post(CHAT, &body).header("x-cache-explain", explain).send().await.unwrap();
        let chunks = chunks(&response.text().await.unwrap());
        chunks.into_iter().map(|chunk| chunk["choices"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ask("1").await, ask("0").await);
}

#[tokio::test]
async fn a_tenant_learns_nothing_of_anothers_prompts() {
    let (mine, other) =
        (generate_key("team-a", &[Scope::Infer]).unwrap(), generate_key("team-b", &[Scope::Infer]).unwrap());
    let keys = KeyStore::parse(&[mine.toml, other.toml].concat(), std::path::Path::new("keys.toml")).unwrap();
    let options = ServerOptions { auth: Some(keys), ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let ask = async |key: &str, salt: Option<&str>| {
        let body = completion(json!({"prompt": "The secret of this long prompt is 42>", "cache_salt": salt}));
        let given = [("authorization", &*format!("Bearer {key}")), ("x-session-id", "same"), ("x-cache-explain", "1")];
        let headers = headers(&server, COMPLETIONS, &body, &given).await;
        text(&headers, "x-cache-explain").unwrap().to_owned()
    };
    for (key, salt) in [(&mine.plaintext, None), (&other.plaintext, None), (&mine.plaintext, Some("s"))] {
        let found = ask(key, salt).await;
        assert!(found.ends_with("reused=0, differs_at=0, closest=none"), "{found}");
        assert!(ask(key, salt).await.ends_with("closest=whole"));
    }
}

/// Agents whose turns alternate, each with a call of a tool and its result between them: what a session has said is found
/// again, though others come and go, and memory holds little more than the sessions.
#[tokio::test(flavor = "multi_thread")]
async fn later_turns_of_a_session_find_the_earlier_ones() {
    const CALL: &str = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"README.md\"}}\n</tool_call>";
    let setup = Setup {
        script: Some(CALL),
        template: Some("qwen3.jinja"),
        context_max: 4096,
        num_blocks: 512,
        ..Setup::default()
    };
    let server = Server::start(setup).await;
    let tool = json!({"type": "function", "function": {"name": "look", "description": "Reads a file",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}});
    let session = async |name: &'static str| {
        let mut messages = vec![
            json!({"role": "system", "content": format!("You are {name}.")}),
            json!({"role": "user", "content": "Look at it."}),
        ];
        let (mut before, mut growth) = (0, Vec::new());
        for turn in 0..5 {
            let body = json!({"model": MODEL, "messages": messages, "tools": [tool], "temperature": 0});
            let request = server.post(CHAT, &body).header("x-session-id", name).header("x-cache-explain", "1");
            let response = request.send().await.unwrap();
            assert_eq!(text(response.headers(), "x-session-affinity"), Some(name));
            let explained = text(response.headers(), "x-cache-explain").unwrap().to_owned();
            let answer: Value = response.json().await.unwrap();
            let usage = &answer["usage"];
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            assert!(explained.contains(&format!("reused={cached},")), "{explained}");
            // The template gives the last answer the form in which it was written: at most its end is computed again.
            assert!(cached + 32 > before, "turn {turn} of {name}: {cached} of {before} tokens were found");
            growth.push(cached);
            before = usage["prompt_tokens"].as_u64().unwrap();
            let message = &answer["choices"][0]["message"];
            let id = message["tool_calls"][0]["id"].clone();
            messages.push(message.clone());
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": format!("{name} has {turn} lines.")}));
            server.ask(COMPLETIONS, completion(json!({"prompt": format!("{turn} passes {name} by>")}))).await;
        }
        assert!(growth.is_sorted() && growth[1] > growth[0] && growth[4] > growth[1], "{name}: {growth:?}");
    };
    tokio::join!(session("ses_a"), session("ses_b"), session("ses_c"));
}
