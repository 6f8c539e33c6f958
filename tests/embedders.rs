//! Decoders that embed, through the engine: against `sentence-transformers`, and the same bits in any company.
#[path = "support/models.rs"]
mod models;
mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use models::{golden, pulled};
use serde_json::{Value, json};
use support::{MODEL, Server, Setup, chat};
use wick::api::{Backend, DecoderBackend, ServedEncoder};
use wick::encoder::{EmbeddingSpec, is_encoder};
use wick::engine::{EngineHandle, GenerationRequest, QueueLimits, SeqEvent, SubmitError};
use wick::kv::CacheSalt;
use wick::model::registry;
use wick::ops::KvDtype;
use wick::runner::{ModelRunner, Pooling, RunnerOptions, normalize_vector};
use wick::scheduler::SchedulerConfig;
use wick::testing::{FakeOptions, FakeRunner};
use wick::text::TextTools;
use wick_kernels::{Isa, Precision};

const EMBEDDINGS: &str = "/v1/embeddings";
const FOLDERS: [&str; 2] = ["qwen3-last", "qwen3-mean"];
const VOCAB: usize = 400;
const DIMENSIONS: usize = 64;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embedders").join(name)
}

/// How an engine runs.
#[derive(Clone, Copy)]
struct Way {
    activations: Precision,
    kv: KvDtype,
    threads: usize,
    batched_tokens: usize,
    context: usize,
    num_blocks: usize,
    prefix_cache: bool,
}

const EXACT: Way = Way {
    activations: Precision::Exact,
    kv: KvDtype::F32,
    threads: 2,
    batched_tokens: 512,
    context: 8192,
    num_blocks: 2048,
    prefix_cache: true,
};

/// What `wick serve` does where nothing is asked for.
const DEFAULT: Way = Way { activations: Precision::Int8, kv: KvDtype::F16, ..EXACT };

/// An engine around a model, and its specification's pooling and normalisation.
fn engine(model: &Path, way: Way) -> (EngineHandle, EmbeddingSpec) {
    let files = wick::weights::open(model).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
    let spec = registry::spec(&files.config).unwrap();
    let block_size = 16;
    let options = RunnerOptions {
        device: Device::Cpu,
        threads: NonZeroUsize::new(way.threads).unwrap(),
        isa: Some(Isa::detect()),
        activations: way.activations,
        kv_dtype: way.kv,
        block_size,
        num_blocks: way.num_blocks,
    };
    let runner = ModelRunner::load(&files, &options).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
    let config = SchedulerConfig {
        block_size,
        num_blocks: way.num_blocks,
        batched_tokens_max: way.batched_tokens,
        prefill_chunk_max: way.batched_tokens.min(128),
        running_max: 64,
        context_max: way.context,
        logit_rows_max: 4096,
        prefix_cache: way.prefix_cache,
        speculation: false,
    };
    let queue = QueueLimits { sequences_max: 4096, tokens_max: 1_000_000 };
    (EngineHandle::spawn(Box::new(runner), config, queue).unwrap(), spec.embedding.expect("it embeds"))
}

/// The pooled rows of texts that are submitted at once, and how many tokens came from the cache.
fn embed(engine: &EngineHandle, pooling: Pooling, texts: &[Vec<u32>]) -> Vec<(Vec<f32>, usize)> {
    let request = |ids: &Vec<u32>| GenerationRequest::embedding(ids.clone(), pooling, CacheSalt::default(), 0);
    let streams = engine.submit(texts.iter().map(request).collect()).unwrap();
    let follow = |mut stream: wick::engine::GenerationStream| {
        let (mut vector, mut cached) = (None, 0);
        loop {
            match stream.events.blocking_recv().expect("a stream ends with Finished or Failed") {
                SeqEvent::Started { cached_tokens, .. } => cached = cached_tokens,
                SeqEvent::Embedding(values) => assert!(vector.replace(values).is_none(), "two vectors"),
                SeqEvent::Finished { usage, .. } => {
                    assert_eq!(usage.completion_tokens, 0);
                    return (vector.expect("a vector comes before the end"), cached);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    streams.into_iter().map(follow).collect()
}

fn vectors(engine: &EngineHandle, pooling: Pooling, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    embed(engine, pooling, texts).into_iter().map(|(vector, _)| vector).collect()
}

/// The reference's tokens, which are wick's, and its vectors.
fn expected(folder: &str, tokenizer_of: &Path) -> (Vec<Vec<u32>>, Vec<Vec<f64>>) {
    let golden = golden(&format!("embedders/{folder}/expected.json"));
    let tokenizer = TextTools::load(tokenizer_of, None).unwrap().tokenizer;
    let case = |case: &Value| {
        let ids = tokenizer.frame(&tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap());
        assert_eq!(ids, serde_json::from_value::<Vec<u32>>(case["ids"].clone()).unwrap(), "{}", case["text"]);
        (ids, serde_json::from_value(case["embedding"].clone()).unwrap())
    };
    golden["cases"].as_array().unwrap().iter().map(case).unzip()
}

/// The largest 1 - cosine.
fn cosine_distance(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let one = |(got, want): (&Vec<f32>, &Vec<f64>)| {
        assert_eq!(got.len(), want.len());
        let dot: f64 = got.iter().zip(want).map(|(a, b)| f64::from(*a) * b).sum();
        let (a, b): (f64, f64) =
            (got.iter().map(|v| f64::from(*v).powi(2)).sum(), want.iter().map(|v| v.powi(2)).sum());
        1.0 - dot / (a * b).sqrt()
    };
    got.iter().zip(want).map(one).fold(0.0, f64::max)
}

fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    vectors.iter().map(|vector| vector.iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn tiny_embedders_compute_what_sentence_transformers_computes() {
    for name in FOLDERS {
        let (texts, want) = expected(name, &path(name));
        assert!(texts.iter().any(|ids| ids.len() > 3000), "one text is longer than a chunk");
        for (way, most) in [(EXACT, 1e-9), (DEFAULT, 1e-3)] {
            let (engine, embedding) = engine(&path(name), way);
            assert_eq!(embedding.normalize, name == "qwen3-last");
            let mut got = vectors(&engine, embedding.pooling, &texts);
            let far = cosine_distance(&got, &want);
            println!("{name}, {:?}: 1 - cosine at most {far:.1e}", way.activations);
            assert!(far < most, "{name} {:?}: {far:e}", way.activations);
            if embedding.normalize {
                got.iter_mut().for_each(|vector| normalize_vector(vector));
            }
            let far = got.iter().zip(&want).flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (f64::from(*a) - b).abs());
            assert!(way.activations == Precision::Int8 || far.fold(0.0, f64::max) < 2e-5, "{name}: values, too");
        }
    }
}

/// The file is known by its pooling type, and has the tokenizer with it.
#[test]
fn a_gguf_file_embeds_as_the_folder_it_was_made_of() {
    let (folder, file) = (path("qwen3-last"), path("qwen3-last/model.gguf"));
    let (texts, _) = expected("qwen3-last", &file);
    let ((of_folder, one), (of_file, other)) = (engine(&folder, EXACT), engine(&file, EXACT));
    assert_eq!(one, other);
    let pooling = one.pooling;
    assert_eq!(bits(&vectors(&of_file, pooling, &texts)), bits(&vectors(&of_folder, pooling, &texts)));
}

#[test]
fn every_tiny_embedder_in_the_repository_is_compared_and_none_is_an_encoder() {
    let mut found: Vec<String> = std::fs::read_dir(path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, FOLDERS);
    assert!(FOLDERS.iter().all(|name| !is_encoder(&path(name))));
}

/// Alone, in company, in chunks of any size, on any number of threads, from the cache, short of memory: the same bits.
#[test]
fn vectors_do_not_depend_on_company_chunks_or_the_cache() {
    for name in FOLDERS {
        let (texts, _) = expected(name, &path(name));
        for way in [EXACT, DEFAULT] {
            let (lonely, embedding) = engine(&path(name), Way { threads: 1, prefix_cache: false, ..way });
            let pooling = embedding.pooling;
            let alone: Vec<Vec<f32>> =
                texts.iter().flat_map(|text| vectors(&lonely, pooling, std::slice::from_ref(text))).collect();
            let alone = bits(&alone);
            for other in [
                way,
                Way { batched_tokens: 37, threads: 3, ..way },
                // Room for the longest text and little else.
                Way { batched_tokens: 2048, num_blocks: 240, ..way },
            ] {
                let (engine, _) = engine(&path(name), other);
                assert_eq!(bits(&vectors(&engine, pooling, &texts)), alone, "{name} together");
                let again = embed(&engine, pooling, &texts);
                let cached = again.iter().map(|(_, cached)| cached).sum::<usize>();
                assert_eq!(cached > 0, pooling == Pooling::Last, "poolings of all rows take nothing from the cache");
                let again: Vec<Vec<f32>> = again.into_iter().map(|(vector, _)| vector).collect();
                assert_eq!(bits(&again), alone, "{name} from the cache");
                assert_eq!(engine.stats().gauges.blocks_used, 0);
            }
        }
    }
}

#[test]
fn a_text_may_fill_the_context_and_generating_is_refused() {
    let (engine, embedding) = engine(&path("qwen3-last"), Way { context: 64, num_blocks: 4, ..EXACT });
    assert_eq!(vectors(&engine, embedding.pooling, &[vec![5; 64]]).len(), 1);
    let too_long = GenerationRequest::embedding(vec![5; 65], embedding.pooling, CacheSalt::default(), 0);
    let refused = engine.submit(vec![too_long.clone()]).unwrap_err();
    assert_eq!(refused, SubmitError::TooLong { needed: 65, context_max: 64 });
    let generating = GenerationRequest { prompt: [5].into(), embed: None, ..too_long };
    assert_eq!(engine.submit(vec![generating]).unwrap_err(), SubmitError::WrongTask { embeds: true });
}

/// A server with a fake model that generates, and a real one that embeds texts of at most 40 tokens.
async fn server() -> Server {
    let folder = path("qwen3-last");
    let (engine, embedding) = engine(&folder, Way { context: 40, ..EXACT });
    let embedder = ServedEncoder {
        alias: "acme/embedder".to_owned(),
        backend: Backend::Decoder(DecoderBackend { engine, embedding, steps: None }),
        text: Arc::new(TextTools::load(&folder, None).unwrap()),
        created: 1_790_000_000,
        owned_by: "wick".to_owned(),
    };
    Server::start(Setup { encoders: vec![embedder], ..Setup::default() }).await
}

fn vector(answer: &Value, index: usize) -> Vec<f64> {
    serde_json::from_value(answer["data"][index]["embedding"].clone()).unwrap()
}

#[tokio::test]
async fn texts_become_vectors_over_http() {
    let server = server().await;
    let golden = golden("embedders/qwen3-last/expected.json");
    let case = |at: usize| &golden["cases"][at];
    let texts = [case(0)["text"].clone(), case(7)["text"].clone()];
    let (status, answer) = server.ask(EMBEDDINGS, json!({"model": "acme/embedder", "input": texts})).await;
    assert_eq!(status, 200, "{answer}");
    let tokens = [0, 7].map(|at| case(at)["ids"].as_array().unwrap().len()).iter().sum::<usize>();
    assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    assert_eq!(answer["model"], "acme/embedder");
    for (index, at) in [(0, 0), (1, 7)] {
        let want: Vec<f64> = serde_json::from_value(case(at)["embedding"].clone()).unwrap();
        let got = vector(&answer, index);
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-5), "{got:?}");
    }
    // Ids as they are; the first values alone, scaled to length 1 again.
    let ids = &case(0)["ids"];
    let (_, whole) = server.ask(EMBEDDINGS, json!({"input": ids})).await;
    assert_eq!(vector(&whole, 0), vector(&answer, 0));
    let (_, cut) = server.ask(EMBEDDINGS, json!({"input": ids, "dimensions": 8})).await;
    let length = vector(&cut, 0).iter().map(|v| v * v).sum::<f64>();
    assert!(vector(&cut, 0).len() == 8 && (length - 1.0).abs() < 1e-6);
    // Workers AI's dialect.
    let run = "/client/v4/accounts/any/ai/run/acme/embedder";
    let (status, answer) = server.ask(run, json!({"text": texts})).await;
    assert_eq!((status, &answer["result"]["shape"]), (200, &json!([2, DIMENSIONS])), "{answer}");
    assert_eq!(answer["result"]["pooling"], "last");
}

#[tokio::test]
async fn headers_tell_of_the_queue_and_the_cache() {
    let server = server().await;
    let body = json!({"input": (0..32).collect::<Vec<u32>>()});
    for expected in ["prompt=32, reused=0, differs_at=0, closest=none", "prompt=32, reused=16, closest=whole"] {
        let answer = server.post(EMBEDDINGS, &body).header("x-cache-explain", "1").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-cache-explain"], expected);
        assert!(answer.headers().contains_key("x-queue-ms"));
    }
    let metrics = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("vllm:prefix_cache_hits_total{model_name=\"acme/embedder\",engine=\"0\"} 16"),
        "{metrics}"
    );
}

#[tokio::test]
async fn each_model_serves_its_own_endpoints() {
    let server = server().await;
    let refused = async |path: &str, body: Value| {
        let (status, answer) = server.ask(path, body).await;
        (status, answer["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    let (status, message) = refused(EMBEDDINGS, json!({"model": MODEL, "input": "x"})).await;
    assert!(status == 400 && message.contains("/v1/chat/completions"), "{status} {message}");
    let chatting = chat(json!({"model": "acme/embedder"}));
    let (status, message) = refused("/v1/chat/completions", chatting).await;
    assert!(status == 400 && message.contains("serves /v1/embeddings"), "{status} {message}");
    let (status, message) = refused("/v1/rerank", json!({"query": "x", "documents": ["y"]})).await;
    assert!(status == 400 && message.contains("no model"), "{status} {message}");
    for (input, part) in [
        (json!("x ".repeat(60)), "this model reads at most 40"),
        (json!([3, VOCAB]), "399"),
        (json!(["x", ""]), "`input[1]` is empty"),
    ] {
        let (status, message) = refused(EMBEDDINGS, json!({"model": "acme/embedder", "input": input})).await;
        assert!(status == 400 && message.contains(part), "{status} {message}");
    }
    let cut = json!({"model": "acme/embedder", "input": "x ".repeat(60), "truncate_prompt_tokens": -1});
    let (status, answer) = server.ask(EMBEDDINGS, cut).await;
    assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(40)));
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!((&list["data"][1]["id"], &list["data"][1]["max_model_len"]), (&json!("acme/embedder"), &json!(40)));
}

#[tokio::test]
async fn the_tokenizer_is_there_for_clients() {
    let server = server().await;
    let golden = golden("embedders/qwen3-last/expected.json");
    let case = &golden["cases"][1];
    let asked = json!({"model": "acme/embedder", "prompt": case["text"]});
    let (status, tokens) = server.ask("/tokenize", asked.clone()).await;
    assert_eq!((status, &tokens["tokens"], &tokens["max_model_len"]), (200, &case["ids"], &json!(40)), "{tokens}");
    let (_, text) = server.ask("/detokenize", json!({"model": "acme/embedder", "tokens": case["ids"]})).await;
    assert_eq!(text["prompt"], format!("{}<|endoftext|>", case["text"].as_str().unwrap()));
    // As for embeddings, a control token in a text is text.
    let (_, tokens) = server.ask("/tokenize", json!({"model": "acme/embedder", "prompt": "<|im_end|>"})).await;
    assert!(tokens["count"].as_u64().unwrap() > 2, "{tokens}");
    let url = format!("{}/tokenizer_info?model=acme/embedder", server.url);
    let info: Value = server.client.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!((&info["eos_token"], &info["max_model_len"]), (&json!("<|im_end|>"), &json!(40)));
    let (status, refused) = server.ask("/tokenize", json!({"model": "acme/embedder", "messages": []})).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("messages")));
}

#[tokio::test]
async fn a_full_queue_and_a_busy_engine_are_told_at_once() {
    let options = FakeOptions {
        dimensions: Some(4),
        step_delay: Some(Duration::from_millis(300)),
        free_of_cost: true,
        ..FakeOptions::default()
    };
    let config = SchedulerConfig {
        block_size: 16,
        num_blocks: 64,
        batched_tokens_max: 16,
        prefill_chunk_max: 16,
        running_max: 4,
        context_max: 1000,
        logit_rows_max: 16,
        prefix_cache: true,
        speculation: false,
    };
    let queue = QueueLimits { sequences_max: 3, tokens_max: 200 };
    let runner = FakeRunner::with_options(VOCAB, 16, 64, options);
    let engine = EngineHandle::spawn(Box::new(runner), config, queue).unwrap();
    let embedding = EmbeddingSpec { pooling: Pooling::Last, normalize: true };
    let embedder = ServedEncoder {
        alias: "slow".to_owned(),
        backend: Backend::Decoder(DecoderBackend { engine: engine.clone(), embedding, steps: None }),
        text: Arc::new(TextTools::load(&path("qwen3-last"), None).unwrap()),
        created: 1_790_000_000,
        owned_by: "wick".to_owned(),
    };
    let server = Server::start(Setup { encoders: vec![embedder], ..Setup::default() }).await;
    let idle = json!({"input": [7, 8], "options": {"rejectIfBusy": true}});
    assert_eq!(server.ask(EMBEDDINGS, idle).await.0, 200, "nothing else is there");
    let slow = async { server.ask(EMBEDDINGS, json!({"input": [vec![5; 60], vec![6; 60]]})).await };
    let others = async {
        while engine.stats().queued_tokens == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let busy = server.ask(EMBEDDINGS, json!({"input": [7, 8], "options": {"rejectIfBusy": true}})).await;
        assert_eq!(busy.0, 503, "{}", busy.1);
        let full = server.post(EMBEDDINGS, &json!({"input": [[7], [8]]})).send().await.unwrap();
        assert_eq!(full.status(), 503, "two texts, where there is room for one");
        assert!(full.headers().contains_key("retry-after"));
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!((slow.0, &slow.1["usage"]["total_tokens"]), (200, &json!(120)), "{}", slow.1);
}

/// SmolLM2's weights as an embedding model's, by the last token, against transformers: trained and quantized ones, where those of the
/// checkpoints above are random floats.
#[test]
fn trained_weights_embed_as_transformers_has_it() {
    let expected = golden("embedders-smollm2-135m.json");
    let cases = expected["cases"].as_array().unwrap();
    let texts: Vec<Vec<u32>> = cases.iter().map(|c| serde_json::from_value(c["ids"].clone()).unwrap()).collect();
    let want: Vec<Vec<f64>> = cases.iter().map(|c| serde_json::from_value(c["embedding"].clone()).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("embedder.gguf");
    std::fs::write(&model, with_pooling(&std::fs::read(pulled("smollm2-135m")).unwrap(), 3)).unwrap();
    for (way, most) in [(EXACT, 1e-6), (DEFAULT, 1e-3)] {
        let (lonely, embedding) = engine(&model, Way { threads: 1, prefix_cache: false, batched_tokens: 64, ..way });
        let (engine, _) = engine(&model, way);
        let got = vectors(&engine, embedding.pooling, &texts);
        let far = cosine_distance(&got, &want);
        println!("smollm2-135m, {:?}: 1 - cosine at most {far:.1e}", way.activations);
        assert!(far < most, "{:?}: {far:e}", way.activations);
        for (text, together) in texts.iter().zip(&got) {
            let alone = vectors(&lonely, embedding.pooling, std::slice::from_ref(text));
            assert_eq!(bits(&alone)[0], bits(std::slice::from_ref(together))[0], "alone and in company");
        }
    }
}

/// A GGUF file of architecture `llama` with `llama.pooling_type` in its metadata.
fn with_pooling(file: &[u8], pooling: u32) -> Vec<u8> {
    const UINT32: u32 = 4;
    const STRING: u32 = 8;
    const ALIGNMENT: usize = 32;
    let entry = |key: &str, ty: u32, value: &[u8]| {
        [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &ty.to_le_bytes(), value].concat()
    };
    let mut added = entry("llama.pooling_type", UINT32, &pooling.to_le_bytes());
    // A text as long as it takes for the tensors to stay where they are aligned.
    let empty = entry("general.description", STRING, &0_u64.to_le_bytes());
    let fill = (added.len() + empty.len()).next_multiple_of(ALIGNMENT) - added.len() - empty.len();
    added.extend(entry("general.description", STRING, &[&(fill as u64).to_le_bytes()[..], &vec![b' '; fill]].concat()));
    // Magic and version, the number of tensors, the number of entries.
    let (head, rest) = file.split_at(24);
    let entries = u64::from_le_bytes(*head[16..].first_chunk().unwrap()) + 2;
    [&head[..16], &entries.to_le_bytes(), &added, rest].concat()
}

/// More texts than run at once, from several clients, one of which leaves.
#[tokio::test]
async fn many_clients_share_the_engine() {
    let server = server().await;
    let texts: Vec<String> = (0..300).map(|i| format!("text number {i}")).collect();
    let (_, alone) = server.ask(EMBEDDINGS, json!({"input": &texts[..5]})).await;
    let gone = server.post(EMBEDDINGS, &json!({"input": texts})).timeout(Duration::from_millis(5)).send();
    let (all, again, _) = tokio::join!(
        server.ask(EMBEDDINGS, json!({"input": texts})),
        server.ask(EMBEDDINGS, json!({"input": texts[..5]})),
        gone
    );
    assert_eq!((all.0, again.0), (200, 200));
    for index in 0..5 {
        assert_eq!(vector(&all.1, index), vector(&alone, index));
        assert_eq!(vector(&again.1, index), vector(&alone, index));
    }
    assert_eq!(all.1["data"].as_array().unwrap().len(), 300);
}
