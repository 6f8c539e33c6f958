//! What the commands print, and how a server ends.
use futures_util::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::models::pulled;
use crate::process::{Server, command, wick};

#[tokio::test]
async fn models_lists_the_catalogue() {
    pulled("smollm2-135m");
    let listed = wick(&["models"]).await.succeeded();
    let row = |name: &str| {
        listed.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{listed}"))
    };
    for name in ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m"] {
        row(name);
    }
    let words: Vec<&str> = row("smollm2-135m").split_whitespace().collect();
    assert_eq!(words[1..6], ["94", "MiB", "8192", "Apache-2.0", "yes"]);
    let empty = tempfile::tempdir().unwrap();
    let listed = wick(&["models", "--cache-dir", empty.path().to_str().unwrap()]).await.succeeded();
    assert!(listed.lines().skip(1).all(|line| line.split_whitespace().any(|word| word == "-")), "{listed}");
}

#[tokio::test]
async fn pull_prints_where_the_file_lies() {
    let path = pulled("smollm2-135m");
    let printed = wick(&["pull", "--print-path", "--offline", "smollm2-135m"]).await.succeeded();
    assert_eq!(printed, format!("{}\n", path.display()));
    let printed = wick(&["pull", "--offline", "smollm2-135m"]).await.succeeded();
    assert_eq!(printed, format!("smollm2-135m: {}  (licence: Apache-2.0)\n", path.display()));
}

#[tokio::test]
async fn inspect_shows_the_file_and_the_decoder() {
    let path = pulled("smollm2-135m");
    for model in ["smollm2-135m", path.to_str().unwrap()] {
        let shown: Value = serde_json::from_str(&wick(&["inspect", model, "--json"]).await.succeeded()).unwrap();
        assert_eq!((&shown["format"], &shown["architecture"]), (&json!("GGUF v3"), &json!("llama")));
        assert_eq!((&shown["tensor_count"], &shown["problem"]), (&json!(272), &Value::Null));
        assert_eq!(shown["tensors"].as_array().unwrap().len(), 272);
        assert_eq!(shown["spec"]["layers"].as_array().unwrap().len(), 30);
        assert_eq!((&shown["spec"]["hidden"], &shown["spec"]["vocab"]), (&json!(576), &json!(49152)));
    }
    let shown = wick(&["inspect", "smollm2-135m"]).await.succeeded();
    assert!(shown.starts_with("GGUF v3, architecture llama, 272 tensors, "), "{shown}");
    assert!(shown.contains("Q4_1"), "{shown}");
}

#[tokio::test]
async fn chat_answers_one_question() {
    // With 8-bit activations the first word is a near tie, which not every instruction set decides alike.
    let exact = ["--activations", "exact", "--temperature", "0", "--max-tokens", "8", "--kv-memory", "256MiB"];
    let ask = ["chat", "smollm2-135m", "--prompt", "What is the capital of France?"];
    let ask = async |threads: &str| wick(&[&ask[..], &exact, &["--threads", threads]].concat()).await.succeeded();
    let answer = ask("1").await;
    assert!(answer.contains("Paris") && answer.ends_with('\n'), "{answer:?}");
    assert_eq!(ask("2").await, answer, "the number of threads changes nothing");
}

#[tokio::test]
async fn print_config_shows_the_plan_and_serves_nothing() {
    // The default's blocks may have scales.
    let kv = ["--kv-dtype", "f16", "--kv-memory", "256MiB"];
    let shown =
        wick(&[&["serve", "smollm2-135m", "--port", "0", "--print-config"], &kv[..]].concat()).await.succeeded();
    for part in ["smollm2-135m\nmemory\n", "KV cache  255.9 MiB  at most: 728 blocks", "max_running: 64", "drain: 30"] {
        assert!(shown.contains(part), "`{part}` is not in: {shown}");
    }
    assert!(!shown.contains("wick serves"), "{shown}");
}

#[tokio::test]
async fn more_threads_than_cores_are_warned_of_once() {
    let more = (std::thread::available_parallelism().unwrap().get() + 1).to_string();
    let args = ["serve", "smollm2-135m", "--port", "0", "--print-config", "--log", "warn", "--threads", &more];
    let output = command(args).output().await.unwrap();
    let logged = String::from_utf8(output.stderr).unwrap();
    assert_eq!(logged.matches("more threads than cores").count(), 1, "{logged}");
}

#[tokio::test]
async fn a_new_key_opens_the_server_and_nothing_else_does() {
    let made = wick(&["key", "alice"]).await;
    let hash: String = Sha256::digest(made.stdout.trim()).iter().map(|byte| format!("{byte:02x}")).collect();
    for part in ["[[key]]", "name = \"alice\"", &hash] {
        assert!(made.stderr.contains(part), "`{part}` is not in: {}", made.stderr);
    }
    assert!(!made.stderr.contains(made.stdout.trim()), "the key itself belongs on stdout alone");
    assert_eq!(made.succeeded().lines().count(), 1);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let file = file.to_str().unwrap();
    let alice = wick(&["key", "alice", "--append", file]).await.succeeded();
    let bob = wick(&["key", "bob", "--append", file]).await.succeeded();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    let server = Server::start(&["smollm2-135m", "--keys", file]).await;
    let models = async |key: Option<&str>| {
        let request = server.client.get(format!("{}/v1/models", server.url));
        key.iter().fold(request, reqwest::RequestBuilder::bearer_auth).send().await.unwrap().status().as_u16()
    };
    assert_eq!((models(Some(alice.trim())).await, models(Some(bob.trim())).await), (200, 200));
    assert_eq!((models(None).await, models(Some("guess")).await), (401, 401));
    assert_eq!((server.status("/readyz").await, server.status("/health").await), (200, 401));
}

/// A stream of `tokens` tokens that has begun: its first bytes, and the rest.
async fn begun(
    server: &Server,
    tokens: usize,
) -> (String, impl futures_util::Stream<Item = reqwest::Result<Vec<u8>>> + Unpin + use<>) {
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": true, "max_tokens": tokens, "ignore_eos": true, "temperature": 0
    });
    let request = server.client.post(format!("{}/v1/chat/completions", server.url)).json(&body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut rest = Box::pin(response.bytes_stream().map(|bytes| bytes.map(|bytes| bytes.to_vec())));
    let first = rest.next().await.unwrap().unwrap();
    (String::from_utf8(first).unwrap(), rest)
}

/// Asks until the server says that it is about to stop.
async fn draining(server: &Server) {
    while server.status("/readyz").await != 503 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_running_requests_finish() {
    let server = Server::start(&["smollm2-135m"]).await;
    let (mut seen, mut rest) = begun(&server, 200).await;
    server.signal("TERM").await;
    draining(&server).await;
    let late = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    let late = server.client.post(format!("{}/v1/chat/completions", server.url)).json(&late).send().await.unwrap();
    assert_eq!(late.status(), 503);
    while let Some(bytes) = rest.next().await {
        seen.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap());
    }
    assert!(seen.contains("\"finish_reason\":\"length\"") && seen.ends_with("data: [DONE]\n\n"), "{seen}");
    let (status, stdout, stderr) = server.ended().await;
    assert_eq!((status.code(), stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_stops_at_once() {
    let server = Server::start(&["smollm2-135m"]).await;
    server.signal("INT").await;
    let (status, ..) = server.ended().await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_server_at_once() {
    let server = Server::start(&["smollm2-135m"]).await;
    let (_, rest) = begun(&server, 4000).await;
    server.signal("INT").await;
    draining(&server).await;
    server.signal("INT").await;
    let (status, _, stderr) = server.ended().await;
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("second signal"), "{stderr}");
    drop(rest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_drain_budget_cuts_off() {
    let server = Server::start(&["smollm2-135m", "--drain", "0"]).await;
    let (mut seen, mut rest) = begun(&server, 4000).await;
    server.signal("TERM").await;
    while let Some(Ok(bytes)) = rest.next().await {
        seen.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    assert!(!seen.contains("[DONE]") && seen.contains("\"error\""), "{seen}");
    let (status, ..) = server.ended().await;
    assert_eq!(status.code(), Some(0));
}
