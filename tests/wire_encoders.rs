//! The endpoints of encoders: shapes, refusals, and which model is meant.
mod support;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use support::{MODEL, Server, Setup, chat};
use wick::api::ServedEncoder;
use wick::encoder::{EncodeError, EncoderHandle, EncoderInfo, EncoderInput, EncoderLimits, EncoderRunner, Pooling};
use wick::text::TextTools;

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";
/// Tokens of one input.
const LIMIT: usize = 12;
const VOCAB: usize = 400;

/// Vectors of the input's length and its last ids, or the share of second texts as the score.
struct Fake {
    scores: bool,
    delay: Duration,
}

impl EncoderRunner for Fake {
    fn run(&mut self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>, EncodeError> {
        std::thread::sleep(self.delay);
        let one = |input: &EncoderInput| {
            let n = input.ids.len();
            if self.scores { vec![(n - input.second) as f32 / n as f32] } else { vec![n as f32, 3.0, 4.0, 0.0] }
        };
        Ok(inputs.iter().map(one).collect())
    }
}

fn encoder(alias: &str, scores: bool, delay: Duration) -> ServedEncoder {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders/bert-reranker");
    let pooling = (!scores).then_some(Pooling::Mean);
    let info = EncoderInfo { vocab: VOCAB, tokens_max: LIMIT, dimensions: pooling.map(|_| 4), pooling };
    let limits = EncoderLimits { requests_max: 2, tokens_max: 1000, batch_tokens_max: 64 };
    ServedEncoder {
        alias: alias.to_owned(),
        backend: EncoderHandle::spawn(Box::new(Fake { scores, delay }), info, limits).unwrap().into(),
        text: Arc::new(TextTools::load(&folder, None).unwrap()),
        created: 1_790_000_000,
        owned_by: "wick".to_owned(),
    }
}

async fn server() -> Server {
    let encoders = vec![encoder("embedder", false, Duration::ZERO), encoder("acme/reranker", true, Duration::ZERO)];
    Server::start(Setup { encoders, ..Setup::default() }).await
}

async fn ok(server: &Server, path: &str, body: Value) -> Value {
    let (status, body) = server.ask(path, body).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Status, code and parameter of a refusal, and its message.
async fn refused(server: &Server, path: &str, body: Value) -> (u16, String, String, String) {
    let (status, answer) = server.ask(path, body.clone()).await;
    assert!(status >= 400, "{body} was answered with {answer}");
    let text = |field: &str| answer["error"][field].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("param"), text("message"))
}

#[tokio::test]
async fn embeddings_of_every_kind_of_input() {
    let server = server().await;
    let body = ok(&server, EMBEDDINGS, json!({"model": "embedder", "input": "x"})).await;
    let expected = json!({
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [3.0, 3.0, 4.0, 0.0]}],
        "model": "embedder",
        "usage": {"prompt_tokens": 3, "total_tokens": 3}
    });
    assert_eq!(body, expected);
    let vectors = |body: &Value| -> Vec<f64> {
        let data = body["data"].as_array().unwrap();
        assert!(data.iter().enumerate().all(|(i, item)| item["index"] == json!(i)));
        data.iter().map(|item| item["embedding"][0].as_f64().unwrap()).collect()
    };
    let body = ok(&server, EMBEDDINGS, json!({"input": ["x", "x x", " "], "user": "me"})).await;
    assert_eq!((vectors(&body), &body["usage"]["total_tokens"]), (vec![3.0, 4.0, 2.0], &json!(9)));
    // Ids are taken as they are.
    assert_eq!(vectors(&ok(&server, EMBEDDINGS, json!({"input": [7, 8]})).await), [2.0]);
    assert_eq!(vectors(&ok(&server, EMBEDDINGS, json!({"input": [[7, 8, 9], [1]]})).await), [3.0, 1.0]);
    let cut = json!({"input": ["x x x x x", "x"], "truncate_prompt_tokens": 4});
    assert_eq!(vectors(&ok(&server, EMBEDDINGS, cut).await), [4.0, 3.0]);
    let cut = json!({"input": ["x ".repeat(500)], "truncate_prompt_tokens": -1});
    assert_eq!(vectors(&ok(&server, EMBEDDINGS, cut).await), [LIMIT as f64]);
}

#[tokio::test]
async fn base64_is_the_same_vector_and_dimensions_shorten_it() {
    let server = server().await;
    let body = ok(&server, EMBEDDINGS, json!({"input": "x", "encoding_format": "base64"})).await;
    let text = body["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values, [3.0, 3.0, 4.0, 0.0]);
    let body = ok(&server, EMBEDDINGS, json!({"input": [5, 5, 5, 5], "dimensions": 2})).await;
    let vector: Vec<f32> = serde_json::from_value(body["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(vector, [0.8, 0.6]);
    let (status, code, param, message) = refused(&server, EMBEDDINGS, json!({"input": "x", "dimensions": 5})).await;
    assert_eq!((status, code.as_str(), param.as_str()), (400, "invalid_value", "dimensions"));
    assert!(message.contains("the model's 4"), "{message}");
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_with_its_place() {
    let server = server().await;
    let long = "x ".repeat(11);
    let very_long = "x ".repeat(5000);
    for (input, code, param, part) in [
        (json!(""), "invalid_value", "input", "empty"),
        (json!([]), "invalid_value", "input", "empty"),
        (json!(["x", ""]), "invalid_value", "input[1]", "empty"),
        (json!([[1], []]), "invalid_value", "input[1]", "empty"),
        (json!([1, VOCAB]), "invalid_value", "input[1]", "399"),
        (json!([[1], [1, -1]]), "invalid_value", "input[1][1]", "-1"),
        (json!({"text": "x"}), "invalid_type", "input", "array"),
        (json!(["x", 5]), "invalid_type", "input[1]", "number"),
        (json!(["x", long]), "context_length_exceeded", "input[1]", "13 tokens, but this model reads at most 12"),
        (json!([vec![1; 13]]), "context_length_exceeded", "input[0]", "13 tokens"),
        (json!([very_long]), "context_length_exceeded", "input[0]", "10000 bytes"),
        (json!(vec!["x"; 2049]), "invalid_value", "input", "2048"),
    ] {
        let found = refused(&server, EMBEDDINGS, json!({"model": "embedder", "input": input})).await;
        assert_eq!((found.0, found.1.as_str(), found.2.as_str()), (400, code, param), "{}", found.3);
        assert!(found.3.contains(part), "{}", found.3);
    }
    for (extra, param) in [
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"truncate_prompt_tokens": 2}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 13}), "truncate_prompt_tokens"),
        (json!({"dimensions": 0}), "dimensions"),
        (json!({"dimension": 3}), "dimension"),
        (json!({"user": 3}), "user"),
    ] {
        let mut body = json!({"input": "x"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let found = refused(&server, EMBEDDINGS, body).await;
        assert_eq!((found.0, found.2.as_str()), (400, param), "{}", found.3);
    }
    let missing = refused(&server, EMBEDDINGS, json!({"model": "embedder"})).await;
    assert_eq!((missing.0, missing.2.as_str()), (400, "input"));
}

#[tokio::test]
async fn documents_are_ranked() {
    let server = server().await;
    let body = json!({"query": "x", "documents": ["x", {"text": "x x x"}, "x x"]});
    let answer = ok(&server, RERANK, body.clone()).await;
    assert!(answer["id"].as_str().unwrap().starts_with("rerank-"));
    assert_eq!((&answer["model"], &answer["usage"]["total_tokens"]), (&json!("acme/reranker"), &json!(18)));
    let order: Vec<u64> = answer["results"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 2, 0]);
    assert!(answer["results"][0].get("document").is_none());
    let mut best = body;
    best.as_object_mut().unwrap().extend(json!({"top_n": 1, "return_documents": true}).as_object().unwrap().clone());
    for path in [RERANK, "/rerank", "/v2/rerank"] {
        let answer = ok(&server, path, best.clone()).await;
        let expected = json!([{"index": 1, "relevance_score": 0.571_428_6, "document": {"text": "x x x"}}]);
        assert_eq!(answer["results"], expected);
    }
    // [CLS] x [SEP] leaves room for eight tokens and another [SEP].
    let cut = json!({"query": "x", "documents": ["x ".repeat(30)], "truncate_prompt_tokens": -1});
    assert_eq!(ok(&server, RERANK, cut).await["usage"]["total_tokens"], LIMIT);
    let cut = json!({"query": "x", "documents": ["x ".repeat(30)], "max_tokens_per_doc": 5});
    assert_eq!(ok(&server, RERANK, cut).await["usage"]["total_tokens"], 9);
    for (body, param, part) in [
        (json!({"documents": ["x"]}), "query", "Missing"),
        (json!({"query": "", "documents": ["x"]}), "query", "empty"),
        (json!({"query": "x"}), "documents", "Missing"),
        (json!({"query": "x", "documents": []}), "documents", "1 to 2048"),
        (json!({"query": "x", "documents": ["x", ""]}), "documents[1]", "empty"),
        (json!({"query": "x", "documents": [{"text": "x", "title": "y"}]}), "documents[0].title", "Unknown"),
        (json!({"query": "x", "documents": [{}]}), "documents[0].text", "Missing"),
        (json!({"query": "x", "documents": [3]}), "documents[0]", "a string or an object"),
        (
            json!({"query": "x", "documents": ["x", "x ".repeat(9)]}),
            "documents[1]",
            "13 tokens together with the query",
        ),
        (json!({"query": "x ".repeat(9), "documents": ["x"]}), "query", "leaves no room"),
        (json!({"query": "x", "documents": ["x"], "top_n": 0}), "top_n", "between 1"),
        (json!({"query": "x", "documents": ["x"], "rank_fields": []}), "rank_fields", "Unknown"),
    ] {
        let found = refused(&server, RERANK, body).await;
        assert_eq!((found.0, found.2.as_str()), (400, param), "{}", found.3);
        assert!(found.3.contains(part), "{}", found.3);
    }
}

#[tokio::test]
async fn each_model_serves_its_own_endpoints() {
    let server = server().await;
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, "embedder", "acme/reranker"]);
    let one: Value = server.get("/v1/models/acme/reranker").send().await.unwrap().json().await.unwrap();
    assert_eq!(one["max_model_len"], LIMIT);
    for (path, body, serves) in [
        ("/v1/chat/completions", chat(json!({"model": "embedder"})), "serves /v1/embeddings"),
        ("/v1/chat/completions", chat(json!({"model": "acme/reranker"})), "serves /v1/rerank"),
        (EMBEDDINGS, json!({"model": MODEL, "input": "x"}), "serves /v1/chat/completions"),
        (EMBEDDINGS, json!({"model": "acme/reranker", "input": "x"}), "serves /v1/rerank"),
        (RERANK, json!({"model": "embedder", "query": "x", "documents": ["x"]}), "serves /v1/embeddings"),
    ] {
        let found = refused(&server, path, body).await;
        assert_eq!((found.0, found.1.as_str(), found.2.as_str()), (400, "unsupported_endpoint", "model"));
        assert!(found.3.contains(serves), "{}", found.3);
    }
    for path in [EMBEDDINGS, RERANK] {
        let found = refused(&server, path, json!({"model": "nope", "input": "x"})).await;
        assert_eq!((found.0, found.1.as_str()), (404, "model_not_found"));
    }
    let alone = Server::start(Setup::default()).await;
    let found = refused(&alone, EMBEDDINGS, json!({"input": "x"})).await;
    assert_eq!((found.0, found.1.as_str()), (400, "unsupported_endpoint"));
    assert!(found.3.contains("wick serve all-minilm-l6-v2"), "{}", found.3);
}

#[tokio::test]
async fn a_full_queue_is_503_with_the_time_to_come_back() {
    let encoders = vec![encoder("embedder", false, Duration::from_millis(300))];
    let server = Server::start(Setup { encoders, ..Setup::default() }).await;
    let ask = || server.post(EMBEDDINGS, &json!({"input": "x"})).send();
    let answers = futures_util::future::join_all((0..6).map(|_| ask())).await;
    let (mut fine, mut busy) = (0, 0);
    for answer in answers {
        let answer = answer.unwrap();
        match answer.status().as_u16() {
            200 => fine += 1,
            503 => {
                let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..=60).contains(&seconds));
                busy += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((fine, busy), (2, 4));
}

const ACCOUNT: &str = "/client/v4/accounts/any/ai";

#[tokio::test]
async fn workers_ai_embeds_and_reranks() {
    let also = vec![("@cf/acme/embedder".to_owned(), "embedder".to_owned())];
    let encoders = vec![encoder("embedder", false, Duration::ZERO), encoder("acme/reranker", true, Duration::ZERO)];
    let options = wick::api::ServerOptions { also, ..Default::default() };
    let server = Server::start(Setup { encoders, options, ..Setup::default() }).await;
    let embed = format!("{ACCOUNT}/run/@cf/acme/embedder");
    let answer = ok(&server, &embed, json!({"text": ["x", "x x"], "pooling": "mean"})).await;
    let result = json!({
        "shape": [2, 4],
        "data": [[3.0, 3.0, 4.0, 0.0], [4.0, 3.0, 4.0, 0.0]],
        "pooling": "mean",
        "usage": {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7},
    });
    assert_eq!(answer, json!({"result": result, "success": true, "errors": [], "messages": []}));
    assert_eq!(ok(&server, &embed, json!({"text": "x"})).await["result"]["shape"], json!([1, 4]));
    let long = json!({"text": "x ".repeat(500), "truncate_inputs": true});
    assert_eq!(ok(&server, &embed, long).await["result"]["data"][0][0], json!(LIMIT as f32));
    let rerank = format!("{ACCOUNT}/run/acme/reranker");
    let contexts = json!([{"text": "x"}, {"text": "x x x x"}, {"text": "x x"}]);
    let answer = ok(&server, &rerank, json!({"query": "x", "contexts": contexts, "top_k": 2})).await;
    let ids: Vec<u64> =
        answer["result"]["response"].as_array().unwrap().iter().map(|c| c["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2]);
    assert!(answer["result"]["response"][0]["score"].is_f64() && answer["success"] == true);
    for (path, body, code, pointer) in [
        (&embed, json!({}), 5006, "/text"),
        (&embed, json!({"text": [1, 2]}), 5006, "/text"),
        (&embed, json!({"text": ["x", ""]}), 5006, "/text/1"),
        (&embed, json!({"text": "x", "pooling": "cls"}), 5006, "/pooling"),
        (&embed, json!({"text": "x", "input": "x"}), 5006, "/input"),
        (&embed, json!({"text": "x", "dimensions": 2}), 5006, "/dimensions"),
        (&rerank, json!({"query": "x", "contexts": contexts, "return_documents": true}), 5006, "/return_documents"),
        (&embed, json!({"text": ["x", "x ".repeat(11)]}), 5021, "/text/1"),
        (&rerank, json!({"query": "x"}), 5006, "/contexts"),
        (&rerank, json!({"query": "x", "contexts": [{"text": "x"}, {"txt": "x"}]}), 5006, "/contexts/1/text"),
        (&rerank, json!({"query": "x", "contexts": contexts, "top_k": 0}), 5006, "/top_k"),
        (&format!("{ACCOUNT}/v1/embeddings"), json!({"model": "nobody", "input": "x"}), 5007, "/model"),
    ] {
        let (status, answer) = server.ask(path, body.clone()).await;
        let error = &answer["errors"][0];
        assert!(status >= 400, "{body}");
        assert_eq!((&error["code"], &error["source"]["pointer"]), (&json!(code), &json!(pointer)), "{body}: {answer}");
    }
    let asked = json!({"model": "@cf/acme/embedder", "input": "x"});
    assert_eq!(ok(&server, &format!("{ACCOUNT}/v1/embeddings"), asked).await["model"], "@cf/acme/embedder");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoders_request_may_refuse_to_wait() {
    let encoders = vec![encoder("embedder", false, Duration::from_millis(300))];
    let server = Server::start(Setup { encoders, ..Setup::default() }).await;
    // More than a batch of 64 tokens.
    let many = server.post(EMBEDDINGS, &json!({"input": vec!["x x x x x"; 20]}));
    let many = tokio::spawn(many.send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let body = json!({"text": "x", "options": {"rejectIfBusy": true}});
    let (status, answer) = server.ask(&format!("{ACCOUNT}/run/embedder"), body.clone()).await;
    assert_eq!((status, &answer["errors"][0]["code"]), (429, &json!(3040)));
    assert_eq!(many.await.unwrap().unwrap().status(), 200);
    ok(&server, &format!("{ACCOUNT}/run/embedder"), body).await;
}
