//! Guessed tokens on the wire.
use serde_json::json;

use super::support::{ANSWER, Server, Setup, chat, chunks, completion};
use super::{CHAT, COMPLETIONS, ok, streamed};

#[tokio::test]
async fn guesses_are_counted_and_change_nothing_else() {
    let [guessing, plain] = [true, false].map(|speculation| Setup { speculation, ..Setup::default() });
    let (guessing, plain) = (Server::start(guessing).await, Server::start(plain).await);
    for (path, mut body) in [
        // The answer stands in the prompt already; then comes one `z` after the other.
        (
            COMPLETIONS,
            completion(json!({"prompt": format!("{ANSWER}{ANSWER}>"), "max_tokens": 60, "ignore_eos": true})),
        ),
        (CHAT, chat(json!({"max_tokens": 60, "ignore_eos": true, "logprobs": true}))),
        (CHAT, chat(json!({"max_tokens": 60, "ignore_eos": true, "stop": "zzzzzzzzz"}))),
    ] {
        let mut with = ok(&guessing, path, body.clone()).await;
        let without = ok(&plain, path, body.clone()).await;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let stream = chunks(&streamed(&guessing, path, body).await);
        // How many are made depends on how long steps take.
        let mut details = with["usage"]["completion_tokens_details"].clone();
        for usage in [&with["usage"], &stream.last().unwrap()["usage"]] {
            let counts = &usage["completion_tokens_details"];
            let [accepted, completion] = [&counts["accepted_prediction_tokens"], &usage["completion_tokens"]]
                .map(|count| count.as_u64().unwrap());
            assert!(accepted > 3 && accepted < completion, "{path}: {accepted} of {completion}");
            assert!(counts["rejected_prediction_tokens"].is_u64());
        }
        details["accepted_prediction_tokens"] = json!(0);
        details["rejected_prediction_tokens"] = json!(0);
        with["usage"]["completion_tokens_details"] = details;
        assert_eq!(with, without, "{path}");
    }
    let metrics = guessing.get("/metrics").send().await.unwrap().text().await.unwrap();
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}_total{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    };
    let [drafted, accepted, rejected] =
        ["vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens", "wick_rejected_draft_tokens"]
            .map(count);
    assert!(accepted > 20 && drafted == accepted + rejected);
}
