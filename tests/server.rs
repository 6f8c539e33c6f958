//! The service on a real socket: many clients, bad clients, keys, overload and shutdown.
mod support;

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use support::{MODEL, Server, Setup, chat, completion, data};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wick::api::auth::{Scope, generate_key};
use wick::api::{KeyStore, ServerOptions};
use wick::engine::QueueLimits;

const CHAT: &str = "/v1/chat/completions";

/// Waits for a condition that another thread brings about; the test's own limit is the runner's.
async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

async fn no_blocks_used(server: &Server) {
    until(|| {
        let gauges = server.engine.stats().gauges;
        gauges.running == 0 && gauges.waiting == 0 && gauges.blocks_used == 0
    })
    .await;
}

/// Reads a stream until `enough`, then drops it.
async fn read_until(response: reqwest::Response, enough: impl Fn(&str) -> bool) -> String {
    let mut seen = String::new();
    let mut bytes = response.bytes_stream();
    while !enough(&seen) {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_at_once_get_what_each_would_get_alone() {
    let server = Server::start(Setup { gated: true, ..Setup::default() }).await;
    let request = |client: usize| {
        let stream = client.is_multiple_of(2);
        let content = format!("client {client}");
        chat(json!({"stream": stream, "messages": [{"role": "user", "content": content}], "temperature": 1.5,
            "seed": client, "max_tokens": 32, "ignore_eos": true}))
    };
    let text = async |client: usize| {
        let body = server.post(CHAT, &request(client)).send().await.unwrap().text().await.unwrap();
        if client % 2 == 1 {
            let body: Value = serde_json::from_str(&body).unwrap();
            return body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        }
        let part = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
        support::chunks(&body).iter().map(part).collect()
    };
    // The model is held until all are there, so that they run as one batch.
    let admitted = async {
        let bound = server.engine.info().queue.sequences_max;
        until(|| bound - server.engine.load(0).sequences_left == 64).await;
        server.gate.open();
    };
    let (together, ()) = tokio::join!(futures_util::future::join_all((0..64).map(&text)), admitted);
    let stats = server.engine.stats();
    assert_eq!(stats.generation_tokens, 64 * 32);
    // Their prompts take a few steps of 256 tokens and more; from then on all 64 get a token in every step.
    let prefill = stats.scheduler.computed_tokens.saturating_sub(64 * 31).div_ceil(256) + 2;
    assert!(stats.steps <= 32 + prefill, "{} steps, {prefill} of them for the prompts", stats.steps);
    for (client, text_together) in together.iter().enumerate() {
        assert_eq!(*text_together, text(client).await, "client {client}");
    }
    no_blocks_used(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_free_their_blocks() {
    let server = Server::start(Setup { gated: true, ..Setup::default() }).await;
    server.gate.allow(3);
    let streaming = server.post(CHAT, &chat(json!({"stream": true, "ignore_eos": true}))).send().await.unwrap();
    until(|| server.gate.is_blocked()).await;
    // A client without a stream: it leaves while it is queued.
    let waiting = tokio::spawn(server.post(CHAT, &chat(json!({"ignore_eos": true}))).send());
    until(|| server.engine.stats().queued_sequences == 1).await;
    let seen = read_until(streaming, |seen| seen.contains("\"content\":\"H\"")).await;
    assert!(seen.contains("\"role\":\"assistant\""));
    let mut in_flight = server.state.in_flight();
    waiting.abort();
    in_flight.wait_for(|count| *count == 0).await.unwrap();
    server.gate.open();
    no_blocks_used(&server).await;
    until(|| server.engine.stats().aborted == 2).await;
    let (status, _) = server.ask(CHAT, chat(json!({"max_tokens": 1}))).await;
    assert_eq!(status, 200);
}

/// Where a client of the chaos test goes away.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Never,
    /// Before the answer has begun, so many turns of the runtime after it asked.
    Early(usize),
    /// In the middle of the stream, after so many pieces of it.
    Streaming(usize),
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_leave_nothing_behind() {
    // Steps that take a while, so that clients really leave in the middle; little memory, so that they get in each
    // other's way.
    let setup = Setup { num_blocks: 120, step_delay: Some(Duration::from_micros(300)), ..Setup::default() };
    let server = Server::start(setup).await;
    let mut dice = 7u64;
    let mut roll = |n: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % n
    };
    let clients = (0..500).map(|client| {
        let leaves = match roll(4) {
            0 => Leaves::Never,
            1 => Leaves::Early(roll(60) as usize),
            _ => Leaves::Streaming(roll(12) as usize),
        };
        let stream = matches!(leaves, Leaves::Streaming(_)) || roll(2) == 0;
        let content = format!("{} {client}", "again and ".repeat(roll(12) as usize));
        let body = json!({"stream": stream, "messages": [{"role": "user", "content": content}], "ignore_eos": true,
            "max_tokens": 1 + roll(50), "n": 1 + roll(3)});
        (leaves, server.post(CHAT, &chat(body)))
    });
    let clients: Vec<_> = clients.collect();
    let visit = async |(leaves, request): (Leaves, reqwest::RequestBuilder)| match leaves {
        Leaves::Never => {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            response.text().await.unwrap();
        }
        Leaves::Early(turns) => {
            let asking = tokio::spawn(request.send());
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            asking.abort();
        }
        Leaves::Streaming(pieces) => {
            let mut bytes = request.send().await.unwrap().bytes_stream();
            for _ in 0..pieces {
                if bytes.next().await.is_none() {
                    return;
                }
            }
        }
    };
    futures_util::stream::iter(clients).map(visit).buffer_unordered(48).collect::<()>().await;
    no_blocks_used(&server).await;
    let mut in_flight = server.state.in_flight();
    in_flight.wait_for(|count| *count == 0).await.unwrap();
    let stats = server.engine.stats();
    assert_eq!((stats.queued_sequences, stats.queued_tokens, stats.failed), (0, 0, 0));
    assert!(stats.aborted > 50 && stats.finished > 100, "{stats:?}");
    let (status, answer) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!(support::ANSWER)));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_at_once_and_comments_until_the_first_token() {
    let options = ServerOptions { keep_alive: Duration::from_millis(5), ..ServerOptions::default() };
    let server = Server::start(Setup { options, gated: true, ..Setup::default() }).await;
    let request = server.post(CHAT, &chat(json!({"stream": true, "max_tokens": 4}))).header("x-request-id", "abc-1");
    // The model is blocked: that the response is here shows that headers do not wait for it.
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-request-id"], "abc-1");
    // One of 256 places and the prompt's tokens are taken.
    let left = |name: &str| response.headers()[name].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!((left("x-ratelimit-limit-requests"), left("x-ratelimit-limit-tokens")), (256, 100_000));
    assert!(left("x-ratelimit-remaining-requests") < 256 && left("x-ratelimit-remaining-tokens") <= 100_000);
    assert!(response.headers().contains_key("openai-processing-ms"));
    let mut bytes = response.bytes_stream();
    let mut seen = String::new();
    while seen.matches(": keep-alive\n\n").count() < 3 {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(!seen.contains("data:"), "nothing but comments before the first token: {seen}");
    server.gate.allow(1);
    while !seen.contains("\"content\":\"H\"") {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    let comments = seen.matches(": keep-alive").count();
    while seen.matches(": keep-alive").count() < comments + 2 {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    server.gate.open();
    while let Some(chunk) = bytes.next().await {
        seen.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    assert_eq!(data(&seen).last().unwrap(), "[DONE]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_a_503_before_the_first_byte() {
    let queue = QueueLimits { sequences_max: 2, tokens_max: 10_000 };
    let server = Server::start(Setup { queue, gated: true, ..Setup::default() }).await;
    let first = server.post(CHAT, &chat(json!({"stream": true, "n": 2}))).send().await.unwrap();
    assert_eq!(first.status(), 200);
    for stream in [true, false] {
        let refused = server.post(CHAT, &chat(json!({ "stream": stream }))).send().await.unwrap();
        assert_eq!(refused.status(), 503);
        let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        let millis: u64 = refused.headers()["retry-after-ms"].to_str().unwrap().parse().unwrap();
        assert!(seconds >= 1 && millis >= 1 && millis <= seconds * 1000);
        let body: Value = refused.json().await.unwrap();
        assert_eq!(body["error"]["code"], "overloaded");
        assert_eq!(body["error"]["type"], "overloaded_error");
    }
    server.gate.open();
    assert_eq!(data(&first.text().await.unwrap()).last().unwrap(), "[DONE]");
    let (status, _) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_running_streams_and_refuses_new_requests() {
    let mut server = Server::start(Setup { gated: true, ..Setup::default() }).await;
    server.gate.allow(2);
    let running = server.post(CHAT, &chat(json!({"stream": true}))).send().await.unwrap();
    until(|| server.gate.is_blocked()).await;
    let whole = server.post(CHAT, &chat(json!({})));
    let whole = tokio::spawn(async move { whole.send().await.unwrap().json::<Value>().await.unwrap() });
    // Both must be admitted before the engine drains.
    until(|| server.engine.stats().queued_sequences == 1).await;
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200);
    server.stop();
    until(|| !server.state.is_ready()).await;
    let ready = server.get("/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(server.get("/livez").send().await.unwrap().status(), 200);
    assert_eq!(server.get("/health").send().await.unwrap().status(), 200);
    let refused = server.post(CHAT, &chat(json!({}))).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "draining");
    server.gate.open();
    let stream = running.text().await.unwrap();
    let text: String = support::chunks(&stream)
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned())
        .collect();
    assert_eq!(text, support::ANSWER, "no token is lost");
    assert_eq!(whole.await.unwrap()["choices"][0]["message"]["content"], support::ANSWER);
    let report = server.stopped().await;
    assert_eq!((report.running, report.cut_off), (2, 0));
    assert!(server.get("/livez").send().await.is_err(), "the socket is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_the_drain_budget_is_told_so() {
    let setup = Setup { gated: true, drain_budget: Duration::from_millis(30), ..Setup::default() };
    let mut server = Server::start(setup).await;
    server.gate.allow(2);
    let running = server.post(CHAT, &chat(json!({"stream": true}))).send().await.unwrap();
    until(|| server.gate.is_blocked()).await;
    let whole = server.post(CHAT, &chat(json!({})));
    let whole = tokio::spawn(async move { whole.send().await.unwrap() });
    until(|| server.engine.stats().queued_sequences == 1).await;
    server.stop();
    let events = data(&running.text().await.unwrap());
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "draining");
    assert!(!events.iter().any(|event| event.contains("\"finish_reason\":\"")), "no end is faked: {events:?}");
    let whole = whole.await.unwrap();
    assert_eq!(whole.status(), 503);
    let report = server.stopped().await;
    assert_eq!((report.running, report.cut_off), (2, 2));
}

/// Sends raw bytes and reads the connection to its end or until `enough`.
async fn raw(server: &Server, request: &[u8], enough: impl Fn(&str) -> bool) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(server.address()).await.unwrap();
    socket.write_all(request).await.unwrap();
    let seen = read_socket(&mut socket, enough).await;
    (socket, seen)
}

async fn read_socket(socket: &mut TcpStream, enough: impl Fn(&str) -> bool) -> String {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if enough(&text) || socket.read_buf(&mut seen).await.unwrap() == 0 {
            return text;
        }
    }
}

fn http(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_alive_connection_stays_usable() {
    let server = Server::start(Setup::default()).await;
    let stream = chat(json!({"stream": true})).to_string();
    let (mut socket, seen) = raw(&server, &http(CHAT, &stream), |seen| seen.ends_with("0\r\n\r\n")).await;
    assert!(seen.contains("[DONE]"));
    // Errors whose bodies were not read by the handler: unknown route, wrong method, wrong content type, unknown field.
    for (request, status) in [
        (http("/v1/nope", &stream), "404"),
        (http("/livez", &stream), "405"),
        (String::from_utf8(http(CHAT, &stream)).unwrap().replace("application/json", "text/plain").into_bytes(), "400"),
        (http(CHAT, "{\"mesages\": []}"), "400"),
        (http(CHAT, "{\"messages\": ["), "400"),
    ] {
        socket.write_all(&request).await.unwrap();
        let seen = read_socket(&mut socket, |seen| seen.ends_with("}}")).await;
        assert!(seen.starts_with(&format!("HTTP/1.1 {status}")), "{seen}");
        assert!(!seen.contains("connection: close"), "{seen}");
    }
    socket.write_all(&http(CHAT, &chat(json!({})).to_string())).await.unwrap();
    let seen = read_socket(&mut socket, |seen| seen.ends_with("\"}")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_broken_bodies_end() {
    let options = ServerOptions {
        body_idle_max: Duration::from_millis(30),
        head_time_max: Duration::from_millis(60),
        ..ServerOptions::default()
    };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let (_, seen) =
        raw(&server, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", |_| false).await;
    assert!(seen.starts_with("HTTP/1.1 408"), "{seen}");
    assert!(seen.contains("request_timeout"), "{seen}");
    // A head that never ends is not answered with anything but the end of the connection.
    let (_, seen) = raw(&server, b"POST /v1/completions HTTP/1.1\r\nhost:", |_| false).await;
    assert!(!seen.contains("200"), "{seen}");
    // A client that goes away in the middle of its body leaves nothing behind.
    let (socket, _) =
        raw(&server, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", |_| true).await;
    drop(socket);
    server.state.in_flight().wait_for(|count| *count == 0).await.unwrap();
    let (status, _) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_and_nobody_else_suffers() {
    let options = ServerOptions { body_bytes_max: 100_000, ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let send = async |body: Vec<u8>| {
        let request = server.client.post(format!("{}{CHAT}", server.url)).header("content-type", "application/json");
        let response = request.body(body).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        assert!(!text.contains("secret"), "{text}");
        (status, body["error"]["message"].as_str().unwrap().to_owned())
    };
    let deep = [b"[".repeat(50_000), b"]".repeat(50_000 - 1)].concat();
    let cases: [(Vec<u8>, u16, &str); 8] = [
        (Vec::new(), 400, "it is empty"),
        (b"{\"messages\": [{\"content\": secret}]}".to_vec(), 400, "line 1, column"),
        (b"{\"a\": \"\xff\xfe\"}".to_vec(), 400, "not valid UTF-8"),
        (b"[1, 2]".to_vec(), 400, "must be a JSON object, but it is an array"),
        (b"\"secret\"".to_vec(), 400, "must be a JSON object"),
        (deep, 400, "nested too deeply"),
        (b"{\"temperature\": 1e999}".to_vec(), 400, "not valid JSON"),
        (vec![b' '; 100_001], 413, "larger than this server's limit of 100000 bytes"),
    ];
    for (body, status, message) in cases {
        let (found, text) = send(body).await;
        assert_eq!(found, status, "{text}");
        assert!(text.contains(message), "{text}");
    }
    // A body of unknown length is measured while it comes.
    let endless = futures_util::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>(vec![b' '; 10_000])));
    let request = server.client.post(format!("{}{CHAT}", server.url)).header("content-type", "application/json");
    let response = request.body(reqwest::Body::wrap_stream(endless)).send().await.unwrap();
    assert_eq!(response.status(), 413);
    let (status, _) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_share_bounded_memory() {
    let options = ServerOptions { body_bytes_max: 200_000, bodies_bytes_max: 300_000, ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    // One that announces much and sends little keeps its claim until it goes.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 190000\r\n\r\n{";
    let (holder, _) = raw(&server, head.as_bytes(), |_| true).await;
    let mut in_flight = server.state.in_flight();
    in_flight.wait_for(|count| *count == 1).await.unwrap();
    let large = chat(json!({"messages": [{"role": "user", "content": "x".repeat(150_000)}]}));
    loop {
        let response = server.post(CHAT, &large).send().await.unwrap();
        if response.status() == 503 {
            assert_eq!(response.headers()["retry-after"], "1");
            break;
        }
        // The holder's head may not have been read yet.
        assert_eq!(response.status(), 400);
    }
    let (status, _) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200, "small bodies need no claim");
    drop(holder);
    in_flight.wait_for(|count| *count == 0).await.unwrap();
    let (status, body) = server.ask(CHAT, large).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(body["error"]["message"].as_str().unwrap().contains("bytes of text"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_bodies_are_refused_by_name() {
    let server = Server::start(Setup::default()).await;
    let response = server.post(CHAT, &chat(json!({}))).header("content-encoding", "gzip").send().await.unwrap();
    assert_eq!(response.status(), 415);
    let body: Value = response.json().await.unwrap();
    assert!(body["error"]["message"].as_str().unwrap().contains("`gzip`"), "{body}");
    let plain = server.post(CHAT, &chat(json!({}))).header("content-encoding", "identity").send().await.unwrap();
    assert_eq!(plain.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_given_up() {
    let options = ServerOptions { stalled_max: Duration::from_millis(200), ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    let mut socket = socket.connect(server.address().parse().unwrap()).await.unwrap();
    // Some ten megabytes of events: more than the system's buffers take.
    let much =
        json!({"stream": true, "n": 8, "logprobs": true, "top_logprobs": 20, "max_tokens": 480, "ignore_eos": true});
    socket.write_all(&http(CHAT, &chat(much).to_string())).await.unwrap();
    let mut in_flight = server.state.in_flight();
    in_flight.wait_for(|count| *count == 1).await.unwrap();
    in_flight.wait_for(|count| *count == 0).await.unwrap();
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_methods() {
    let server = Server::start(Setup::default()).await;
    let unknown = server.get("/v1/nope").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    let body: Value = unknown.json().await.unwrap();
    assert_eq!(body["error"]["message"], "There is no route GET /v1/nope.");
    let wrong = server.get(CHAT).send().await.unwrap();
    assert_eq!(wrong.status(), 405);
    assert_eq!(wrong.headers()["allow"], "POST");
    let body: Value = wrong.json().await.unwrap();
    assert_eq!(body["error"]["code"], "method_not_allowed");
    let options =
        server.client.request(reqwest::Method::OPTIONS, format!("{}{CHAT}", server.url)).send().await.unwrap();
    assert_eq!(options.status(), 204);
    assert_eq!(options.headers()["allow"], "POST");
    assert!(!options.headers().contains_key("access-control-allow-origin"));
    let head = server.client.head(format!("{}/v1/models", server.url)).send().await.unwrap();
    assert_eq!(head.status(), 200);
    let missing = server.get("/v1/models/acme/other").send().await.unwrap();
    assert_eq!(missing.status(), 404);
    let body: Value = missing.json().await.unwrap();
    assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!("model_not_found"), &json!("model")));
    let generated = server.get("/livez").header("x-request-id", "bad id").send().await.unwrap();
    assert!(generated.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_guard_every_route_but_the_probes_and_the_description() {
    let infer = generate_key("team-a", &[Scope::Infer]).unwrap();
    let other = generate_key("team-b", &[Scope::Infer]).unwrap();
    let metrics = generate_key("prometheus", &[Scope::Metrics]).unwrap();
    let file = [infer.toml, other.toml, metrics.toml].concat();
    let keys = KeyStore::parse(&file, std::path::Path::new("keys.toml")).unwrap();
    let options = ServerOptions { auth: Some(keys), ..ServerOptions::default() };
    let server = Server::start(Setup { options, ..Setup::default() }).await;
    let body = chat(json!({"max_tokens": 1}));
    // Route, status for a stranger, for an inference key, for a metrics key.
    let table = [
        ("GET", "/livez", 200, 200, 200),
        ("GET", "/readyz", 200, 200, 200),
        ("GET", "/openapi.json", 200, 200, 200),
        ("GET", "/health", 401, 200, 403),
        ("GET", "/metrics", 401, 403, 200),
        ("GET", "/v1/models", 401, 200, 403),
        ("GET", "/v1/models/acme/tiny", 401, 200, 403),
        ("POST", CHAT, 401, 200, 403),
        ("POST", "/v1/completions", 401, 400, 403),
        ("POST", "/tokenize", 401, 400, 403),
        ("POST", "/detokenize", 401, 400, 403),
        ("GET", "/", 401, 404, 403),
        ("POST", "/v1/nope", 401, 404, 403),
        ("DELETE", CHAT, 401, 405, 403),
        ("OPTIONS", CHAT, 401, 204, 403),
    ];
    for (method, path, stranger, inference, scrape) in table {
        let send = async |key: Option<&str>| {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let request = server.client.request(method, format!("{}{path}", server.url)).json(&body);
            let request = match key {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            request.send().await.unwrap()
        };
        let refused = send(None).await;
        assert_eq!(refused.status(), stranger, "{method} {path}");
        if stranger == 401 {
            assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        }
        assert_eq!(send(Some("wick-wrong")).await.status(), stranger, "{method} {path}");
        assert_eq!(send(Some(&infer.plaintext)).await.status(), inference, "{method} {path}");
        assert_eq!(send(Some(&metrics.plaintext)).await.status(), scrape, "{method} {path}");
    }
    // Tenants do not see each other's prefix cache.
    let prompt = completion(json!({"prompt": format!("{}>", "p".repeat(100)), "max_tokens": 1}));
    let cached = async |key: &str| {
        let request = server.post("/v1/completions", &prompt).header("x-api-key", key);
        let body: Value = request.send().await.unwrap().json().await.unwrap();
        body["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(cached(&infer.plaintext).await, 0);
    assert_eq!(cached(&infer.plaintext).await, 96);
    assert_eq!(cached(&other.plaintext).await, 0);
    let text = server.get("/metrics").bearer_auth(&metrics.plaintext).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("wick_tenant_tokens_total{tenant=\"team-a\",kind=\"cached\"} 96"), "{text}");
    for key in [&infer.plaintext, &other.plaintext, &metrics.plaintext] {
        assert!(!text.contains(key.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_that_others_read() {
    let server = Server::start(Setup::default()).await;
    for _ in 0..2 {
        server
            .ask("/v1/completions", completion(json!({"prompt": format!("{}>", "p".repeat(100)), "max_tokens": 5})))
            .await;
    }
    server.ask(CHAT, json!({"secret": 1})).await;
    no_blocks_used(&server).await;
    let response = server.get("/metrics").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let labels = format!("model_name=\"{MODEL}\",engine=\"0\"");
    for line in [
        format!("vllm:num_requests_waiting{{{labels}}} 0"),
        format!("vllm:num_requests_running{{{labels}}} 0"),
        format!("vllm:kv_cache_usage_perc{{{labels}}} 0"),
        format!("vllm:cache_config_info{{{labels},block_size=\"16\",num_gpu_blocks=\"4096\"}} 1"),
        format!("vllm:prompt_tokens_total{{{labels}}} 202"),
        format!("vllm:generation_tokens_total{{{labels}}} 10"),
        format!("vllm:prefix_cache_queries_total{{{labels}}} "),
        format!("vllm:prefix_cache_hits_total{{{labels}}} 96"),
        format!("vllm:num_preemptions_total{{{labels}}} 0"),
        format!("vllm:spec_decode_num_draft_tokens_total{{{labels}}} 0"),
        format!("vllm:spec_decode_num_accepted_tokens_total{{{labels}}} 0"),
        format!("wick_rejected_draft_tokens_total{{{labels}}} 0"),
        format!("vllm:request_success_total{{{labels},finished_reason=\"length\"}} 2"),
        format!("vllm:request_success_total{{{labels},finished_reason=\"stop\"}} 0"),
        format!("vllm:time_to_first_token_seconds_count{{{labels}}} 2"),
        format!("vllm:inter_token_latency_seconds_count{{{labels}}} 8"),
        format!("vllm:e2e_request_latency_seconds_count{{{labels}}} 2"),
        format!("vllm:request_queue_time_seconds_count{{{labels}}} 2"),
        format!("vllm:request_prefill_time_seconds_count{{{labels}}} 2"),
        format!("vllm:request_decode_time_seconds_count{{{labels}}} 2"),
        format!("vllm:request_inference_time_seconds_count{{{labels}}} 2"),
        format!("vllm:request_prompt_tokens_sum{{{labels}}} 202"),
        format!("vllm:request_generation_tokens_bucket{{le=\"5.0\",{labels}}} 2"),
        format!("vllm:iteration_tokens_total_count{{{labels}}} "),
        "# TYPE vllm:prompt_tokens_total counter".to_owned(),
        "# TYPE vllm:num_requests_running gauge".to_owned(),
        "# TYPE vllm:time_to_first_token_seconds histogram".to_owned(),
        "wick_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"400\",tenant=\"anonymous\"} 1".to_owned(),
    ] {
        assert!(text.lines().any(|found| found.starts_with(&line)), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("secret") && !text.contains("ppp"));
}
