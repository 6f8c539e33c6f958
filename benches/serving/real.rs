//! Real weights, served and alone: the same requests over HTTP and straight from the engine, in turns.
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::body::Bytes;
use serde_json::json;
use wick::engine::{EngineHandle, FinishReason, GenerationRequest, SeqEvent};
use wick::hub::{self, FetchOptions};
use wick::kv::CacheSalt;
use wick::ops::KvDtype;
use wick::runner::{ModelRunner, RunnerOptions};
use wick::sampling::SamplingParams;
use wick::scheduler::StopLimits;
use wick::text::TextTools;
use wick::weights;

use super::client::Connection;
use super::server::{BLOCK_SIZE, Model, Server, Work};
use super::{COMPLETIONS, Size, spread};

const NUM_BLOCKS: usize = 2048;
const INPUT: usize = 128;
const OUTPUT: usize = 64;

/// What of real serving is measured, and by whom.
struct Bench {
    server: Server,
    alias: String,
    vocab: u64,
    dice: u64,
    size: Size,
}

/// Loads a cached model and measures the parts that are wanted.
pub async fn measure(name: &str, size: Size, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let options = FetchOptions { offline: true, ..FetchOptions::default() };
    let local = hub::resolve(name, &options).await?;
    let files = weights::open(&local.path)?;
    let text = Arc::new(TextTools::load(&local.path, None)?);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let runner = RunnerOptions {
        device: candle_core::Device::Cpu,
        threads,
        isa: None,
        activations: wick_kernels::Precision::Int8,
        kv_dtype: KvDtype::F16,
        block_size: BLOCK_SIZE,
        num_blocks: NUM_BLOCKS,
    };
    let runner = ModelRunner::load(&files, &runner)?;
    let (vocab, context_max) = (runner.spec().vocab as u64, runner.spec().max_context.min(NUM_BLOCKS * BLOCK_SIZE));
    println!("\n{} with real weights: {}", local.alias, runner.describe());
    let model = Model {
        alias: local.alias.clone(),
        text,
        runner: Box::new(runner),
        num_blocks: NUM_BLOCKS,
        context_max,
        work: Work::None,
        workers: size.workers,
    };
    let mut bench = Bench { server: Server::start(model)?, alias: local.alias, vocab, dice: 1, size };
    if wanted("served") {
        for clients in [1, 8, 32] {
            bench.served(clients).await?;
        }
    }
    if wanted("arrival") {
        bench.arrival(2000).await?;
    }
    if wanted("prefix") {
        for len in [128, 512, 2048] {
            bench.prefix(len).await?;
        }
    }
    if wanted("gap") {
        for sampled in [false, true] {
            for batch in [1, 8, 32] {
                bench.gap(batch, sampled).await?;
            }
        }
    }
    Ok(())
}

impl Bench {
    /// A prompt like no other: tokens that no tokenizer treats as control.
    fn prompt(&mut self, len: usize) -> Vec<u32> {
        let mut token = || {
            self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.dice >> 33) % (self.vocab / 2) + self.vocab / 8) as u32
        };
        (0..len).map(|_| token()).collect()
    }

    fn body(&self, prompt: &[u32], tokens: usize) -> Bytes {
        let body = json!({"model": self.alias, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
        body.to_string().into()
    }

    /// Closed loops of `clients` clients, over HTTP and straight from the engine.
    async fn served(&mut self, clients: usize) -> Result<()> {
        let each = (if self.size.rounds == 1 { 8 } else { 32 } / clients).max(2);
        let tokens = (clients * each * OUTPUT) as f64;
        let (mut ratios, mut rates, mut shares, mut prefill) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut gaps, mut steps, mut steps_alone, mut between) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.size.rounds.min(3) {
            let mut tasks = Vec::new();
            self.server.take_seen();
            let begin = Instant::now();
            for _ in 0..clients {
                let prompts: Vec<_> = (0..each).map(|_| self.prompt(INPUT)).collect();
                let bodies: Vec<_> = prompts.iter().map(|prompt| self.body(prompt, OUTPUT)).collect();
                let mut connection = Connection::open(self.server.address).await?;
                tasks.push(tokio::spawn(async move {
                    let mut between = Vec::new();
                    for body in bodies {
                        let streamed = connection.stream(COMPLETIONS, body, None, OUTPUT).await?;
                        between.extend(streamed.arrivals.windows(2).map(|pair| pair[1] - pair[0]));
                    }
                    anyhow::Ok(between)
                }));
            }
            for task in tasks {
                between.extend(task.await??);
            }
            let over_http = begin.elapsed().as_secs_f64();
            let seen = self.server.take_seen();
            let busy: Duration = seen.steps.iter().map(|step| step.end - step.begin).sum();
            let prompts = seen.steps.iter().filter(|step| step.tokens > step.sequences);
            let prompts: Duration = prompts.map(|step| step.end - step.begin).sum();
            prefill.push(100.0 * prompts.as_secs_f64() / over_http);
            shares.push(100.0 * busy.as_secs_f64() / over_http);
            gaps.extend(seen.gaps(clients));
            steps.extend(seen.decode_steps(clients));
            let begin = Instant::now();
            let mut tasks = Vec::new();
            for _ in 0..clients {
                let prompts: Vec<_> = (0..each).map(|_| self.prompt(INPUT)).collect();
                let engine = self.server.engine.clone();
                tasks.push(tokio::spawn(async move {
                    for prompt in prompts {
                        generate(&engine, &prompt, OUTPUT, false).await?;
                    }
                    anyhow::Ok(())
                }));
            }
            for task in tasks {
                task.await??;
            }
            let alone = begin.elapsed().as_secs_f64();
            steps_alone.extend(self.server.take_seen().decode_steps(clients));
            ratios.push(100.0 * alone / over_http);
            rates.push(tokens / over_http);
        }
        println!(
            "{clients:>3} clients, {INPUT} in {OUTPUT} out: {:>6.1} tok/s, {:.0}% of the engine alone; {:.1}% of the time in steps, {:.0}% in steps with prompts; decode step {}, alone {}; between steps {}; between tokens {}",
            median(rates),
            median(ratios),
            median(shares),
            median(prefill),
            spread(steps),
            spread(steps_alone),
            spread(gaps),
            spread(between),
        );
        Ok(())
    }

    /// What a long prompt does to eight streams that are running.
    async fn arrival(&mut self, len: usize) -> Result<()> {
        let mut between = Vec::new();
        let mut alone = Vec::new();
        for _ in 0..self.size.rounds.min(3) {
            let output = if self.size.rounds == 1 { 160 } else { 224 };
            let mut tasks = Vec::new();
            for _ in 0..8 {
                let prompt = self.prompt(INPUT);
                let body = self.body(&prompt, output);
                let mut connection = Connection::open(self.server.address).await?;
                tasks.push(tokio::spawn(async move { connection.stream(COMPLETIONS, body, None, output).await }));
            }
            // Until all eight have their first token.
            while self.server.engine.stats().gauges.running < 8 || self.server.engine.stats().queued_tokens > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let prompt = self.prompt(len);
            let body = self.body(&prompt, 1);
            let begin = Instant::now();
            Connection::open(self.server.address).await?.stream(COMPLETIONS, body, None, 1).await?;
            let end = Instant::now();
            for task in tasks {
                for pair in task.await??.arrivals.windows(2) {
                    if pair[0] >= end {
                        alone.push(pair[1] - pair[0]);
                    } else if pair[1] > begin {
                        between.push(pair[1] - pair[0]);
                    }
                }
            }
        }
        println!(
            "8 streams while a prompt of {len} tokens is computed: between tokens {}; afterwards {}",
            spread(between),
            spread(alone)
        );
        Ok(())
    }

    /// The time to the first token after a prefix that is in the cache.
    async fn prefix(&mut self, len: usize) -> Result<()> {
        let prefix = self.prompt(len);
        let mut connection = Connection::open(self.server.address).await?;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for round in 0..=self.size.rounds {
            let prompt = [prefix.clone(), self.prompt(16)].concat();
            let body = self.body(&prompt, 1);
            let begin = Instant::now();
            let streamed = connection.stream(COMPLETIONS, body, None, 1).await?;
            let first = *streamed.arrivals.first().context("no token came")? - begin;
            if round == 0 { cold.push(first) } else { warm.push(first) }
        }
        println!("prefix of {len:>4} tokens: first token cold {}, warm {}", spread(cold), spread(warm));
        Ok(())
    }

    /// How long the engine is between two steps, without HTTP: what sampling costs above all.
    async fn gap(&mut self, batch: usize, sampled: bool) -> Result<()> {
        self.server.take_seen();
        let mut tasks = Vec::new();
        for _ in 0..batch {
            let (engine, prompt) = (self.server.engine.clone(), self.prompt(16));
            tasks.push(tokio::spawn(async move { generate(&engine, &prompt, 40, sampled).await }));
        }
        for task in tasks {
            task.await??;
        }
        let seen = self.server.take_seen();
        let how = if sampled { "top_p 0.9" } else { "greedy" };
        println!(
            "batch {batch:>2} {how:>9}: step {}, between steps {}",
            spread(seen.decode_steps(batch)),
            spread(seen.gaps(batch))
        );
        Ok(())
    }
}

/// One sequence straight from the engine.
async fn generate(engine: &EngineHandle, prompt: &[u32], tokens: usize, sampled: bool) -> Result<()> {
    let params = if sampled {
        SamplingParams { temperature: 0.7, top_p: 0.9, ..SamplingParams::default() }
    } else {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    };
    let request = GenerationRequest {
        prompt: prompt.into(),
        params: Arc::new(params),
        limits: StopLimits { max_new_tokens: tokens, stop_tokens: Arc::new([]) },
        salt: CacheSalt(0),
        tenant: 0,
        prompt_logprobs: None,
        grammar: None,
        thoughts: None,
        explain: false,
        embed: None,
    };
    let mut stream = engine.submit(vec![request])?.pop().context("no stream")?;
    while let Some(event) = stream.next().await {
        match event {
            SeqEvent::Finished { reason: FinishReason::Length, .. } => return Ok(()),
            SeqEvent::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    anyhow::bail!("the sequence did not finish")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
