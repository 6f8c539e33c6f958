//! A real server on a real socket around a model that says what the test wants.
#![allow(dead_code, reason = "each test crate uses its own part")]
mod described;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wick::api::{AppState, ServedEncoder, ServedModel, ServerOptions};
use wick::engine::{EngineHandle, QueueLimits, StepObserver};
use wick::scheduler::SchedulerConfig;
use wick::server::{DrainReport, ServerError};
use wick::telemetry::StepMetrics;
use wick::testing::{FakeOptions, FakeRunner};
use wick::text::TextTools;

pub const MODEL: &str = "acme/tiny";
pub const VOCAB: usize = 259;
pub const IM_START: u32 = 256;
pub const IM_END: u32 = 257;
/// What the model answers after the template's generation prompt, or after a `>` in a completion's prompt. Then it ends
/// its turn; made to go on, it says `z`. Without such a start it says `x`.
pub const ANSWER: &str = "Hi wörld 😀!\nSTOP more";
/// Tokens of `<|im_start|>assistant\n`.
const TURN: usize = 11;

fn answer(context: &[u32]) -> u32 {
    let turn = context.iter().rposition(|token| *token == IM_START).map(|at| at + TURN);
    let mark = context.iter().rposition(|token| *token == u32::from(b'>')).map(|at| at + 1);
    // A sampled turn that has not got its head yet starts nothing.
    let Some(at) = turn.max(mark).and_then(|start| context.len().checked_sub(start)) else { return u32::from(b'x') };
    match (at, ANSWER.as_bytes()) {
        (at, bytes) if at < bytes.len() => u32::from(bytes[at]),
        (at, bytes) if at == bytes.len() => IM_END,
        _ => u32::from(b'z'),
    }
}

/// As `answer`, with another text, after the template's generation prompt alone.
fn scripted(script: &str, context: &[u32]) -> u32 {
    let turn = context.iter().rposition(|token| *token == IM_START).map_or(0, |at| at + TURN);
    match context.len().checked_sub(turn) {
        Some(at) if at < script.len() => u32::from(script.as_bytes()[at]),
        Some(at) if at == script.len() => IM_END,
        _ => u32::from(b'z'),
    }
}

/// Lets the model compute a number of tokens, then blocks it.
#[derive(Default)]
pub struct Gate {
    allowed: Mutex<usize>,
    changed: Condvar,
    blocked: AtomicBool,
}

impl Gate {
    pub fn allow(&self, tokens: usize) {
        let mut allowed = self.allowed.lock().unwrap();
        *allowed = allowed.saturating_add(tokens);
        self.changed.notify_all();
    }

    /// Whether the engine stands in a step: who is submitted now cannot join that step, and stays queued.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    pub fn open(&self) {
        self.allow(usize::MAX);
    }

    fn pass(&self) {
        let mut allowed = self.allowed.lock().unwrap();
        self.blocked.store(*allowed == 0, Ordering::Release);
        allowed = self.changed.wait_while(allowed, |allowed| *allowed == 0).unwrap();
        self.blocked.store(false, Ordering::Release);
        *allowed -= usize::from(*allowed < usize::MAX / 2);
    }
}

pub struct Setup {
    pub options: ServerOptions,
    pub queue: QueueLimits,
    pub context_max: usize,
    pub num_blocks: usize,
    /// The gate starts closed.
    pub gated: bool,
    pub fail_on_token: Option<u32>,
    /// How long the model takes for a step.
    pub step_delay: Option<Duration>,
    /// The gate counts guesses as the tokens they may be.
    pub speculation: bool,
    pub drain_budget: Duration,
    /// What the model says instead of `ANSWER`.
    pub script: Option<&'static str>,
    /// A file of tests/golden/templates/src, instead of the fixture's own.
    pub template: Option<&'static str>,
    /// Models beside the one that generates.
    pub encoders: Vec<ServedEncoder>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            options: ServerOptions::default(),
            queue: QueueLimits { sequences_max: 256, tokens_max: 100_000 },
            context_max: 512,
            num_blocks: 4096,
            gated: false,
            fail_on_token: None,
            step_delay: None,
            speculation: false,
            drain_budget: Duration::from_secs(20),
            script: None,
            template: None,
            encoders: Vec::new(),
        }
    }
}

pub struct Server {
    pub url: String,
    pub engine: EngineHandle,
    pub state: AppState,
    pub gate: Arc<Gate>,
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<DrainReport, ServerError>>>,
}

impl Server {
    pub async fn start(setup: Setup) -> Self {
        let gate = Arc::new(Gate::default());
        if !setup.gated {
            gate.open();
        }
        let passed = Arc::clone(&gate);
        let next = move |context: &[u32]| {
            passed.pass();
            setup.script.map_or_else(|| answer(context), |script| scripted(script, context))
        };
        let block_size = 16;
        let fake = FakeOptions {
            next: Some(Box::new(next)),
            fail_on_token: setup.fail_on_token,
            step_delay: setup.step_delay,
            ..FakeOptions::default()
        };
        let runner = FakeRunner::with_options(VOCAB, block_size, setup.num_blocks, fake);
        let config = SchedulerConfig {
            block_size,
            num_blocks: setup.num_blocks,
            batched_tokens_max: 512,
            prefill_chunk_max: 256,
            running_max: 64,
            context_max: setup.context_max,
            logit_rows_max: 256,
            prefix_cache: true,
            speculation: setup.speculation,
        };
        let steps = Arc::new(StepMetrics::default());
        let observer: Arc<dyn StepObserver> = steps.clone();
        let engine = EngineHandle::spawn_observed(Box::new(runner), config, setup.queue, Some(observer)).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-tokenizer");
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates/src");
        let template = setup.template.map(|name| templates.join(name));
        let model = ServedModel {
            alias: MODEL.to_owned(),
            engine: engine.clone(),
            text: Arc::new(TextTools::load(&folder, template.as_deref()).unwrap()),
            created: 1_790_000_000,
            context_max: setup.context_max,
            owned_by: "wick".to_owned(),
            steps: Some(steps),
        };
        let state = AppState::with_encoders(vec![model], setup.encoders, setup.options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(wick::server::run(listener, state.clone(), shutdown, setup.drain_budget));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, engine, state, gate, client, stop: Some(stop), task: Some(task) }
    }

    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub async fn ask(&self, path: &str, body: Value) -> (u16, Value) {
        self.answered("post", path, self.post(path, &body)).await
    }

    /// A request without a body, with a key if there is one.
    pub async fn call(&self, method: &str, path: &str, key: Option<&str>) -> (u16, Value) {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
        self.answered(&method.to_lowercase(), path, request).await
    }

    /// Sends the request, whose answer must be one that is described.
    pub async fn answered(&self, method: &str, path: &str, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        let (status, body) = (response.status().as_u16(), response.json().await.unwrap());
        self.assert_described(method, path, status, &body).await;
        (status, body)
    }

    /// Tells the server to stop; `stopped` waits for it.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn stopped(&mut self) -> DrainReport {
        self.task.take().unwrap().await.unwrap().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The engine's thread must not stay blocked.
        self.gate.open();
    }
}

/// A chat request with one user message.
pub fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0});
    merge(&mut body, extra);
    body
}

/// A completion request for a prompt that starts the answer.
pub fn completion(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "say>", "temperature": 0});
    merge(&mut body, extra);
    body
}

fn merge(body: &mut Value, extra: Value) {
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().unwrap().extend(extra);
}

/// Replaces what differs from run to run.
pub fn redact(mut body: Value) -> Value {
    for (field, with) in [("id", json!("[id]")), ("created", json!("[created]")), ("system_fingerprint", json!("[fp]"))]
    {
        if let Some(value) = body.get_mut(field) {
            *value = with;
        }
    }
    body
}

/// The data of a stream's events, `[DONE]` included; comments are left out.
pub fn data(stream: &str) -> Vec<String> {
    assert!(stream.ends_with("\n\n"), "a stream ends with a whole event: {stream:?}");
    let events = stream.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

/// The parsed chunks of a stream that ended well.
pub fn chunks(stream: &str) -> Vec<Value> {
    let mut data = data(stream);
    assert_eq!(data.pop().as_deref(), Some("[DONE]"));
    data.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

/// A stream as one redacted line per event.
pub fn transcript(stream: &str) -> String {
    let line = |data: String| match serde_json::from_str::<Value>(&data) {
        Ok(chunk) => redact(chunk).to_string(),
        Err(_) => data,
    };
    data(stream).into_iter().map(line).collect::<Vec<_>>().join("\n")
}
