//! Loads an OpenAI-compatible server over HTTP: closed loop (`--clients`) or Poisson arrivals (`--rate`).
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::report::{Report, Sample, Setup};
use super::workload::{self, Rng};
use crate::config::{BenchEndpoint, LoadArgs, Workload};

/// Runs the load and reports. `known_context`: the model's context, should the server not say it.
///
/// # Errors
/// The URL is malformed, or nobody knows the context that agents are to be scaled to. Failed requests are part of the report, not errors.
pub async fn run(
    url: &str,
    model: &str,
    args: &LoadArgs,
    known_context: Option<usize>,
) -> Result<Report, anyhow::Error> {
    let mut client = Client::new(url, model, args)?;
    if args.workload == Workload::Agent {
        let told = match args.scale_context {
            Some(context) => Some(context.get()),
            None => client.context().await.or(known_context),
        };
        let context = told.context("the server does not say how long its context is: give --scale-context")?;
        client.context = Some(context);
    }
    let setup = Setup::new(url, model, args, client.context);
    let client = Arc::new(client);
    let started = Instant::now();
    let samples = match args.rate {
        Some(rate) if rate > 0.0 && rate.is_finite() => open_loop(&client, args, rate).await,
        Some(rate) => anyhow::bail!("--rate must be above 0, not {rate}"),
        None => closed_loop(&client, args).await,
    };
    Ok(Report::new(setup, &samples, started.elapsed().as_secs_f64()))
}

/// Each client sends its next request when its last one is answered.
async fn closed_loop(client: &Arc<Client>, args: &LoadArgs) -> Vec<Sample> {
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..args.clients.get())
        .map(|_| {
            let (client, next, args) = (client.clone(), next.clone(), args.clone());
            tokio::spawn(async move {
                let mut samples = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.requests.get() {
                        return samples;
                    }
                    samples.extend(client.job(&args, index).await);
                }
            })
        })
        .collect();
    gather(tasks).await
}

/// Requests arrive at their own times, whether or not earlier ones were answered.
async fn open_loop(client: &Arc<Client>, args: &LoadArgs, rate: f64) -> Vec<Sample> {
    let mut rng = Rng::new(args.seed);
    let mut tasks = Vec::new();
    let mut at = tokio::time::Instant::now();
    for index in 0..args.requests.get() {
        at += Duration::from_secs_f64(rng.exponential(rate));
        tokio::time::sleep_until(at).await;
        let (client, args) = (client.clone(), args.clone());
        tasks.push(tokio::spawn(async move { client.job(&args, index).await }));
    }
    gather(tasks).await
}

async fn gather(tasks: Vec<tokio::task::JoinHandle<Vec<Sample>>>) -> Vec<Sample> {
    let mut samples = Vec::new();
    for task in tasks {
        match task.await {
            Ok(s) => samples.extend(s),
            Err(e) => samples.push(Sample { error: Some(format!("client failed: {e}")), ..Sample::default() }),
        }
    }
    samples
}

struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    model: String,
    ignore_eos: bool,
    /// Tokens that agents fill.
    context: Option<usize>,
}

/// An answer's text and figures.
struct Answer {
    text: String,
    sample: Sample,
}

impl Client {
    fn new(url: &str, model: &str, args: &LoadArgs) -> Result<Self, anyhow::Error> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(args.timeout)).tcp_nodelay(true).build()?;
        let base = url.trim_end_matches('/').to_owned();
        anyhow::ensure!(
            base.starts_with("http://") || base.starts_with("https://"),
            "--url must begin with http:// or https://"
        );
        Ok(Self {
            http,
            base,
            key: args.api_key.clone(),
            model: model.to_owned(),
            ignore_eos: !args.no_ignore_eos,
            context: None,
        })
    }

    /// The context that the server's list of models gives, if it does.
    async fn context(&self) -> Option<usize> {
        let mut request = self.http.get(format!("{}/models", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let listed: Value = request.send().await.ok()?.json().await.ok()?;
        context_of(&listed, &self.model)
    }

    /// One unit of the workload: a request, or a whole conversation.
    async fn job(&self, args: &LoadArgs, index: usize) -> Vec<Sample> {
        match args.workload {
            Workload::Random => {
                let prompt = workload::prompt(args.seed, index, args.shared_prefix, args.input);
                let answer = match args.endpoint {
                    BenchEndpoint::Completions => {
                        self.send("/completions", json!({ "prompt": prompt, "max_tokens": args.output })).await
                    }
                    BenchEndpoint::Chat => {
                        let messages = json!([{ "role": "user", "content": prompt }]);
                        self.send("/chat/completions", json!({ "messages": messages, "max_tokens": args.output })).await
                    }
                };
                vec![answer.sample]
            }
            Workload::Agent => self.conversation(args, index).await,
        }
    }

    async fn conversation(&self, args: &LoadArgs, index: usize) -> Vec<Sample> {
        let (system, turns) = workload::agent_turns(self.context.unwrap_or_default(), args.turns.get());
        let mut messages = vec![json!({ "role": "system", "content": workload::text(system, args.seed) })];
        let mut samples = Vec::new();
        for (t, turn) in turns.iter().enumerate() {
            let seed = args.seed ^ ((index as u64 + 1) << 20) ^ (t as u64 + 1);
            messages.push(json!({ "role": "user", "content": workload::text(turn.new_input, seed) }));
            let answer =
                self.send("/chat/completions", json!({ "messages": messages, "max_tokens": turn.output })).await;
            messages.push(json!({ "role": "assistant", "content": answer.text }));
            let failed = answer.sample.error.is_some();
            samples.push(answer.sample);
            if failed {
                break;
            }
        }
        samples
    }

    /// Sends one streamed request and follows the stream to its end.
    async fn send(&self, path: &str, mut body: Value) -> Answer {
        body["model"] = json!(self.model);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        body["temperature"] = json!(0);
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        let started = Instant::now();
        let mut answer = Answer { text: String::new(), sample: Sample::default() };
        if let Err(error) = self.follow(path, &body, started, &mut answer).await {
            answer.sample.error = Some(error);
        }
        answer.sample.total = started.elapsed().as_secs_f64();
        answer
    }

    async fn follow(&self, path: &str, body: &Value, started: Instant, answer: &mut Answer) -> Result<(), String> {
        let mut request = self.http.post(format!("{}{path}", self.base)).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|e| short(&e))?;
        let status = response.status();
        if !status.is_success() {
            let body: Value = response.json().await.unwrap_or_default();
            let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
            return Err(format!("{} {code}", status.as_u16()).trim().to_owned());
        }
        let mut stream = response.bytes_stream();
        let mut lines = Lines::default();
        let mut last: Option<Instant> = None;
        let mut done = false;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| short(&e))?;
            let now = Instant::now();
            for data in lines.push(&chunk) {
                if data == "[DONE]" {
                    done = true;
                    continue;
                }
                let event: Value = serde_json::from_str(&data).map_err(|_| "malformed event".to_owned())?;
                if let Some(message) = event.pointer("/error/message").and_then(Value::as_str) {
                    return Err(format!("error event: {message}"));
                }
                answer.take_usage(&event);
                if answer.take_text(&event) {
                    match last {
                        None => answer.sample.ttft = Some((now - started).as_secs_f64()),
                        Some(l) => answer.sample.gaps.push((now - l).as_secs_f64()),
                    }
                    last = Some(now);
                }
            }
        }
        if done { Ok(()) } else { Err("the stream ended without [DONE]".to_owned()) }
    }
}

impl Answer {
    fn take_usage(&mut self, event: &Value) {
        let Some(usage) = event.get("usage").filter(|u| u.is_object()) else { return };
        let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        self.sample.input_tokens = number("/prompt_tokens");
        self.sample.output_tokens = number("/completion_tokens");
        self.sample.cached_tokens = number("/prompt_tokens_details/cached_tokens");
    }

    /// True if the event carried text.
    fn take_text(&mut self, event: &Value) -> bool {
        let choice = event.pointer("/choices/0");
        let text = choice.and_then(|c| c.pointer("/delta/content").or_else(|| c.get("text"))).and_then(Value::as_str);
        match text {
            Some(t) if !t.is_empty() => {
                self.text += t;
                true
            }
            _ => false,
        }
    }
}

/// `max_model_len` of `model` in a list of models; of the only model there, whatever its name.
fn context_of(listed: &Value, model: &str) -> Option<usize> {
    let models = listed.get("data")?.as_array()?;
    let named = models.iter().find(|m| m.get("id").and_then(Value::as_str) == Some(model));
    let only = models.first().filter(|_| models.len() == 1);
    usize::try_from(named.or(only)?.get("max_model_len")?.as_u64()?).ok()
}

fn short(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        "timed out".to_owned()
    } else if e.is_connect() {
        "cannot connect".to_owned()
    } else {
        "connection broken".to_owned()
    }
}

/// Splits a byte stream into the payloads of SSE `data:` lines.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(chunk);
        let mut out = Vec::new();
        while let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                out.push(data.trim_start().to_owned());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = ": keep-alive\n\ndata: {\"a\":\"é\"}\r\n\r\ndata:[DONE]\n\n".as_bytes();
        for cut in 0..text.len() {
            let mut l = Lines::default();
            let mut got = l.push(&text[..cut]);
            got.extend(l.push(&text[cut..]));
            assert_eq!(got, ["{\"a\":\"é\"}", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn the_context_is_what_the_server_says() {
        let one = json!({"data": [{"id": "a", "max_model_len": 4096}]});
        assert_eq!((context_of(&one, "a"), context_of(&one, "alias")), (Some(4096), Some(4096)));
        let two = json!({"data": [{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}]});
        assert_eq!((context_of(&two, "b"), context_of(&two, "c")), (Some(2), None));
        assert_eq!(context_of(&json!({"data": [{"id": "a"}]}), "a"), None);
        assert_eq!(context_of(&json!("no list"), "a"), None);
    }

    #[test]
    fn usage_and_text_are_read_from_both_kinds_of_chunk() {
        let mut a = Answer { text: String::new(), sample: Sample::default() };
        assert!(a.take_text(&json!({"choices":[{"delta":{"content":"x"}}]})));
        assert!(a.take_text(&json!({"choices":[{"text":"y"}]})));
        assert!(!a.take_text(&json!({"choices":[{"delta":{"role":"assistant","content":""}}]})));
        assert!(!a.take_text(&json!({"choices":[]})));
        a.take_usage(
            &json!({"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}),
        );
        assert_eq!((a.text.as_str(), a.sample.input_tokens, a.sample.cached_tokens), ("xy", 9, 4));
    }
}
