//! What serving costs around the model: the whole HTTP server on a socket, with a model of zero cost, and the client that
//! reads every event, all on this machine.
//!
//! `cargo bench --bench serving` with `-- --text FILE.gguf` for a real tokenizer, `-- --model NAME` for real weights as well,
//! `-- --test` for a short run that only checks, and the name of a part to run that alone.
//!
//! Figures are medians of several rounds, with the best in brackets; the CPU time of each part is of all rounds together.
mod client;
mod real;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::body::Bytes;
use serde_json::json;

use client::Connection;
use server::{MODEL, Model, Script, Server, Work};

const CLIENTS: [usize; 4] = [1, 8, 32, 64];
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    /// Tokens of a round that streams.
    streamed: usize,
    /// Requests of a round for single tokens.
    requests: usize,
    /// Tokens of each stream whose latency is measured.
    stream_len: usize,
    /// Threads of the HTTP side; 0: as many as `wick serve` has.
    workers: usize,
}

const FULL: Size = Size { rounds: 7, streamed: 32_768, requests: 2048, stream_len: 256, workers: 0 };
const SMOKE: Size = Size { rounds: 1, streamed: 2048, requests: 64, stream_len: 16, workers: 0 };

fn main() -> Result<()> {
    let mut size = FULL;
    let (mut text, mut model, mut only) = (None, None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo adds it.
            "--bench" => {}
            "--test" => size = SMOKE,
            "--workers" => size.workers = args.next().context("--workers needs a number")?.parse()?,
            "--model" => model = Some(args.next().context("--model needs a name")?),
            "--text" => text = Some(PathBuf::from(args.next().context("--text needs a file")?)),
            name if !name.starts_with('-') => only = Some(name.to_owned()),
            other => bail!("unknown option {other}"),
        }
    }
    if size.workers == 0 {
        size.workers = wick::cli::workers();
    }
    // As in service: a line of log per request, which is written to stderr.
    wick::telemetry::init(wick::telemetry::LogFormat::Text, if size.rounds == 1 { "warn" } else { "info" })?;
    let script = Arc::new(Script::load(text.as_deref())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    runtime.block_on(async {
        if wanted("streams") {
            streams(&script, size).await?;
        }
        if wanted("requests") {
            requests(&script, size).await?;
        }
        if wanted("latency") {
            println!("\nlatency, chat streams: from the logits to the client's read");
            latency(&script, size, "free model", Work::None).await?;
            latency(&script, size, "2 ms steps on all cores", Work::Busy(Duration::from_millis(2))).await?;
        }
        if let Some(name) = &model {
            real::measure(name, size, wanted).await?;
        }
        Ok(())
    })
}

/// A prompt of about `words` words that no other request has, from its first word on.
fn prompt(words: usize) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut text = format!("{number}:");
    for word in 1..words {
        text.push_str([" one", " two", " six", " ten"][(number as usize + word) % 4]);
    }
    text.push('\n');
    text
}

fn body(path: &str, words: usize, tokens: usize, stream: bool) -> Bytes {
    let mut body =
        json!({"model": MODEL, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": stream});
    if path == CHAT {
        body["messages"] = json!([{"role": "user", "content": prompt(words)}]);
    } else {
        body["prompt"] = json!(prompt(words));
    }
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body.to_string().into()
}

/// Runs `work` on `clients` connections at once, `each` times on each. Returns the seconds from the first request to the
/// last answer.
async fn together<F>(server: &Server, clients: usize, each: usize, work: impl Fn(Connection, usize) -> F) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(server.address).await?);
    }
    let begin = Instant::now();
    let tasks: Vec<_> = connections.into_iter().map(|connection| tokio::spawn(work(connection, each))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Streamed tokens per second.
async fn streams(script: &Arc<Script>, size: Size) -> Result<()> {
    println!("\nstreams of 128 tokens, tokens/s");
    let tokens = 128;
    let expected = Arc::new(script.answer(tokens));
    for path in [CHAT, COMPLETIONS] {
        for clients in CLIENTS {
            let server = Server::start(Model::fake(script, Work::None, size.workers))?;
            let each = (size.streamed / tokens / clients).max(1);
            let cpu = Cpu::now();
            let mut rates = Vec::new();
            for _ in 0..size.rounds {
                let seconds = together(&server, clients, each, |mut connection, each| {
                    let expected = Arc::clone(&expected);
                    async move {
                        for _ in 0..each {
                            connection.stream(path, body(path, 8, tokens, true), Some(&expected), tokens).await?;
                        }
                        Ok(())
                    }
                })
                .await?;
                rates.push((clients * each * tokens) as f64 / seconds);
            }
            let cost = cpu.since((clients * each * tokens * size.rounds) as f64);
            println!("{path:>22} {clients:>3} clients {}   CPU µs per token: {cost}", rate(rates));
        }
    }
    Ok(())
}

/// Requests per second for one token each.
async fn requests(script: &Arc<Script>, size: Size) -> Result<()> {
    println!("\nrequests for one token, requests/s");
    let expected = Arc::new(script.answer(1));
    // About 1,000 tokens: a word is one to a real tokenizer, and four to that of bytes.
    let long = if script.text.tokenizer.vocab_size() > 1000 { 1000 } else { 250 };
    for (path, words) in [(CHAT, 8), (COMPLETIONS, 8), (CHAT, long), (COMPLETIONS, long)] {
        for clients in CLIENTS {
            let server = Server::start(Model::fake(script, Work::None, size.workers))?;
            let each = (size.requests / if words == long { 4 } else { 1 } / clients).max(1);
            let cpu = Cpu::now();
            let mut rates = Vec::new();
            for _ in 0..size.rounds {
                let seconds = together(&server, clients, each, |mut connection, each| {
                    let expected = Arc::clone(&expected);
                    async move {
                        for _ in 0..each {
                            connection.whole(path, body(path, words, 1, false), &expected, 1).await?;
                        }
                        Ok(())
                    }
                })
                .await?;
                rates.push((clients * each) as f64 / seconds);
            }
            let cost = cpu.since((clients * each * size.rounds) as f64);
            println!("{path:>22} {words:>4} words {clients:>3} clients {}   CPU µs each: {cost}", rate(rates));
        }
    }
    Ok(())
}

/// How long a token takes from the model to its reader, how long a request takes to its first step, and how long the model
/// waits between two steps.
async fn latency(script: &Arc<Script>, size: Size, name: &str, work: Work) -> Result<()> {
    let tokens = size.stream_len;
    let expected = Arc::new(script.answer(tokens));
    for clients in CLIENTS {
        let server = Server::start(Model::fake(script, work, size.workers))?;
        let (mut delays, mut waits, mut between) = (Vec::new(), Vec::new(), Vec::new());
        let mut gaps = Vec::new();
        let cpu = Cpu::now();
        for _ in 0..size.rounds {
            server.take_seen();
            let mut tasks = Vec::new();
            for _ in 0..clients {
                let mut connection = Connection::open(server.address).await?;
                let expected = Arc::clone(&expected);
                tasks.push(tokio::spawn(async move {
                    let sent = Instant::now();
                    let body = body(CHAT, 8, tokens, true);
                    let streamed = connection.stream(CHAT, body, Some(&expected), tokens).await?;
                    anyhow::Ok((sent, streamed.arrivals))
                }));
            }
            let mut read = Vec::new();
            for task in tasks {
                read.push(task.await??);
            }
            let seen = server.take_seen();
            // Nobody knows which request got which number, so each is matched with the sequence whose first token came just
            // before: all streams have the same length and their tokens come in order.
            gaps.extend(seen.gaps(clients));
            let mut logits: Vec<Vec<Instant>> = seen.logits_at.into_values().collect();
            logits.sort();
            read.sort_by_key(|(_, arrivals)| arrivals.first().copied());
            ensure!(logits.len() == clients, "{} sequences for {clients} clients", logits.len());
            for ((sent, arrivals), logits) in read.iter().zip(&logits) {
                ensure!(arrivals.len() == tokens && logits.len() == tokens, "a token is missing");
                waits.push(arrivals[0] - *sent);
                delays.extend(arrivals.iter().zip(logits).map(|(read, made)| read.saturating_duration_since(*made)));
                between.extend(arrivals.windows(2).map(|pair| pair[1] - pair[0]));
            }
        }
        let cost = cpu.since((clients * tokens * size.rounds) as f64);
        println!(
            "{name:>24} {clients:>3} clients   token {}   first token {}   between tokens {}   between steps {}   CPU µs per token: {cost}",
            spread(delays),
            spread(waits),
            spread(between),
            spread(gaps)
        );
    }
    Ok(())
}

/// Median and best.
fn rate(mut rates: Vec<f64>) -> String {
    rates.sort_by(f64::total_cmp);
    format!("{:>8.0} ({:>6.0})", rates[rates.len() / 2], rates[rates.len() - 1])
}

/// Median and 99th percentile, in microseconds.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let micros = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    let micros = |part| micros(part).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    format!("p50 {:.0} p99 {:.0} µs", micros(50), micros(99))
}

/// CPU time by kind of thread, from Linux's `/proc`; nothing elsewhere.
struct Cpu(BTreeMap<&'static str, u64>);

impl Cpu {
    fn now() -> Self {
        let mut nanos = BTreeMap::new();
        for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let name = read("comm");
            let kind = match name.trim() {
                "wick-engine" => "engine",
                name if name.starts_with("wick-cpu") => "pool",
                name if name.starts_with("http") => "http",
                _ => "client",
            };
            let ran = read("schedstat").split(' ').next().and_then(|ran| ran.parse().ok()).unwrap_or(0);
            *nanos.entry(kind).or_insert(0) += ran;
        }
        Self(nanos)
    }

    /// Microseconds of each kind for each of `count` things since then.
    fn since(&self, count: f64) -> String {
        let now = Self::now().0;
        let part = |(kind, nanos): (&&str, &u64)| {
            let before = self.0.get(*kind).copied().unwrap_or(0);
            format!("{kind} {:.1}", nanos.saturating_sub(before) as f64 / 1e3 / count)
        };
        now.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}
