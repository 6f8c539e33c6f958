//! A fake model whose steps a test can hold, fail and count, and ways to read whole streams.
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::engine::{
    EngineFailure, EngineHandle, FinishReason, GenerationRequest, GenerationStream, QueueLimits, SeqEvent, Usage,
};
use crate::kv::CacheSalt;
use crate::runner::{Logits, Runner, RunnerError};
use crate::sampling::{SampledToken, SamplingParams, TokenLogprobs};
use crate::scheduler::{SchedulerConfig, SchedulerOutput, SeqId, StopLimits};
use crate::testing::{FakeOptions, FakeRunner, next_token};

pub(super) const VOCAB: usize = 48;
/// How long a test waits for something that must happen. Only a failing test takes that long.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 512,
        batched_tokens_max: 64,
        prefill_chunk_max: 16,
        running_max: 64,
        context_max: 128,
        logit_rows_max: 32,
        prefix_cache: true,
        speculation: false,
    }
}

pub(super) const WIDE: QueueLimits = QueueLimits { sequences_max: 10_000, tokens_max: 1_000_000 };

/// What a held step does once it is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Run,
    Fail,
    Panic,
    /// Return one row too few.
    LoseRow,
}

/// A [`FakeRunner`] with logits worth sampling from: random ones, seeded with its row, a function of the context. With a gate, every step first reports its sequences and then waits for a verdict.
struct HashModel {
    inner: FakeRunner,
    /// The logits follow from the last token alone, so that greedy outputs repeat themselves.
    repeats: bool,
    gate: Option<(mpsc::Sender<Vec<SeqId>>, mpsc::Receiver<Verdict>)>,
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ x >> 27
}

impl Runner for HashModel {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        let mut verdict = Verdict::Run;
        if let Some((entered, verdicts)) = &self.gate {
            // A gate whose other end is gone stands open.
            let _ = entered.send(step.seqs.iter().map(|seq| seq.id).collect());
            verdict = verdicts.recv().unwrap_or(Verdict::Run);
        }
        match verdict {
            Verdict::Fail => return Err(RunnerError::BadStep("the test wants it to fail")),
            Verdict::Panic => panic!("the test wants it to panic"),
            Verdict::Run | Verdict::LoseRow => {}
        }
        let mut logits = self.inner.execute(step)?;
        for row in logits.rows_mut() {
            let mut hash = if self.repeats {
                let best = (0..).zip(row.iter()).max_by(|a, b| a.1.total_cmp(b.1));
                mix(best.map_or(0, |(token, _)| token))
            } else {
                row.iter().fold(1, |hash, x| mix(hash ^ u64::from(x.to_bits())))
            };
            for logit in row.into_logits() {
                hash = mix(hash);
                *logit = (hash >> 40) as f32 / (1 << 24) as f32 * 9.0 - 5.0;
            }
        }
        if verdict == Verdict::LoseRow {
            logits.data.truncate(logits.data.len() - VOCAB);
        }
        Ok(logits)
    }

    fn vocab(&self) -> usize {
        VOCAB
    }
}

/// The test's side of a gate.
pub(super) struct Gate {
    entered: mpsc::Receiver<Vec<SeqId>>,
    verdicts: mpsc::Sender<Verdict>,
}

impl Gate {
    /// Waits until the engine is inside a step; its sequences, oldest first.
    pub(super) fn entered(&self) -> Vec<SeqId> {
        let mut ids = self.entered.recv_timeout(PATIENCE).expect("the engine runs a step");
        ids.sort_unstable();
        ids
    }

    pub(super) fn give(&self, verdict: Verdict) {
        self.verdicts.send(verdict).expect("the engine is alive");
    }
}

pub(super) fn model(config: &SchedulerConfig) -> Box<dyn Runner> {
    let inner = FakeRunner::new(VOCAB, config.block_size, config.num_blocks);
    Box::new(HashModel { inner, repeats: false, gate: None })
}

/// An engine whose model soon repeats itself.
pub(super) fn repeating_engine(config: SchedulerConfig) -> EngineHandle {
    let next = |context: &[u32]| next_token(&context[context.len() - 1..], VOCAB);
    let options = FakeOptions { next: Some(Box::new(next)), ..FakeOptions::default() };
    let inner = FakeRunner::with_options(VOCAB, config.block_size, config.num_blocks, options);
    let model = HashModel { inner, repeats: true, gate: None };
    EngineHandle::spawn(Box::new(model), config, WIDE).unwrap()
}

pub(super) fn gated_model(config: &SchedulerConfig) -> (Box<dyn Runner>, Gate) {
    let (entered, entries) = mpsc::channel();
    let (verdicts, verdict) = mpsc::channel();
    let inner = FakeRunner::new(VOCAB, config.block_size, config.num_blocks);
    (Box::new(HashModel { inner, repeats: false, gate: Some((entered, verdict)) }), Gate { entered: entries, verdicts })
}

pub(super) fn engine(config: SchedulerConfig) -> EngineHandle {
    EngineHandle::spawn(model(&config), config, WIDE).unwrap()
}

pub(super) fn gated_engine(config: SchedulerConfig, queue: QueueLimits) -> (EngineHandle, Gate) {
    let (runner, gate) = gated_model(&config);
    (EngineHandle::spawn(runner, config, queue).unwrap(), gate)
}

/// A greedy request without stop tokens.
pub(super) fn request(prompt: &[u32], max_new_tokens: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.into(),
        params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        limits: StopLimits { max_new_tokens, stop_tokens: Arc::new([]) },
        salt: CacheSalt(0),
        tenant: 0,
        prompt_logprobs: None,
        grammar: None,
        thoughts: None,
        explain: false,
        embed: None,
    }
}

pub(super) fn submit_one(engine: &EngineHandle, request: GenerationRequest) -> GenerationStream {
    engine.submit(vec![request]).unwrap().remove(0)
}

/// A token's log-probability and its alternatives.
type LogprobBits = (u32, Vec<(u32, u32)>);

/// Everything that a request was told and that must not depend on anything but the request. Floats as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transcript {
    pub(super) prompt: Vec<LogprobBits>,
    pub(super) tokens: Vec<(u32, Option<LogprobBits>)>,
    pub(super) reason: FinishReason,
}

impl Transcript {
    pub(super) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.0).collect()
    }
}

fn bits(logprobs: &TokenLogprobs) -> LogprobBits {
    (logprobs.logprob.to_bits(), logprobs.top.iter().map(|&(id, x)| (id, x.to_bits())).collect())
}

/// Reads a stream to its end and checks the order of its events.
pub(super) async fn read(mut stream: GenerationStream) -> Result<(Transcript, Usage), EngineFailure> {
    let (mut started, mut prompt, mut tokens) = (None, Vec::new(), Vec::new());
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.next()).await.expect("an event comes");
        match event.expect("the last event is Finished or Failed") {
            SeqEvent::Started { cached_tokens, .. } => {
                assert!(started.replace(cached_tokens).is_none() && prompt.is_empty() && tokens.is_empty());
            }
            SeqEvent::PromptLogprobs(logprobs) => {
                assert!(started.is_some() && tokens.is_empty() && !logprobs.is_empty());
                prompt.extend(logprobs.iter().map(bits));
            }
            SeqEvent::Token(SampledToken { id, logprobs }, _) => {
                assert!(started.is_some());
                tokens.push((id, logprobs.as_ref().map(bits)));
            }
            SeqEvent::Embedding(_) => panic!("no request of these embeds"),
            SeqEvent::Finished { reason, usage } => {
                assert!(stream.next().await.is_none());
                assert_eq!(usage.completion_tokens, tokens.len());
                assert_eq!(Some(usage.cached_tokens), started);
                return Ok((Transcript { prompt, tokens, reason }, usage));
            }
            SeqEvent::Failed(failure) => {
                assert!(stream.next().await.is_none());
                return Err(failure);
            }
        }
    }
}

/// Runs the requests at once, as separate submissions, and reads all streams.
pub(super) async fn run_together(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<Transcript> {
    let streams: Vec<_> = requests.iter().map(|r| submit_one(engine, r.clone())).collect();
    let mut transcripts = Vec::new();
    for stream in streams {
        transcripts.push(read(stream).await.unwrap().0);
    }
    transcripts
}

/// Runs each request on an engine of its own with room for everything and no cache.
pub(super) async fn run_alone(requests: &[GenerationRequest]) -> Vec<Transcript> {
    run_each_on(engine, requests).await
}

/// As [`run_alone`], on engines that `engine` makes.
pub(super) async fn run_each_on(
    engine: fn(SchedulerConfig) -> EngineHandle,
    requests: &[GenerationRequest],
) -> Vec<Transcript> {
    let mut transcripts = Vec::new();
    for request in requests {
        let engine = engine(SchedulerConfig { prefix_cache: false, batched_tokens_max: 4096, ..config() });
        transcripts.push(read(submit_one(&engine, request.clone())).await.unwrap().0);
    }
    transcripts
}

pub(super) fn assert_same(expected: &[Transcript], got: &[Transcript], what: &str) {
    assert_eq!(expected.len(), got.len());
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        assert_eq!(expected, got, "request {i} {what}");
    }
}

/// Runs the requests together in several ways, with guesses and without, each cold and warm: every one of them must be as `alone`.
pub(super) async fn assert_same_in_any_company(alone: &[Transcript], requests: &[GenerationRequest]) {
    let longest = requests.iter().map(|r| r.prompt.len() + r.limits.max_new_tokens).max().unwrap();
    let guessing = SchedulerConfig { speculation: true, ..config() };
    let mut accepted = 0;
    for shape in [
        config(),
        SchedulerConfig { batched_tokens_max: 7, prefill_chunk_max: 3, logit_rows_max: 2, running_max: 5, ..config() },
        guessing,
        SchedulerConfig { running_max: 3, ..guessing },
        SchedulerConfig { num_blocks: longest.div_ceil(4), running_max: 4, ..guessing },
    ] {
        let engine = repeating_engine(shape);
        assert_same(alone, &run_together(&engine, requests).await, &format!("{shape:?}"));
        assert_same(alone, &run_together(&engine, requests).await, &format!("cache warm, {shape:?}"));
        let stats = engine.stats();
        assert_eq!((stats.gauges.blocks_used, stats.failed), (0, 0));
        accepted += stats.scheduler.accepted_tokens;
    }
    assert!(accepted > 100, "{accepted} guesses were right");
}

/// Reproducible numbers for building requests.
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// Requests of all kinds: shared prefixes, long and short, greedy and not, every penalty, log-probabilities, stops.
pub(super) fn varied_requests(count: usize) -> Vec<GenerationRequest> {
    let mut dice = Dice(11);
    (0..count)
        .map(|i| {
            let shared: Vec<u32> = (0..24).collect();
            let mut prompt = if i % 3 == 0 { shared[..dice.below(24)].to_vec() } else { Vec::new() };
            prompt.extend((0..=dice.below(40)).map(|_| dice.below(VOCAB) as u32));
            let mut request = request(&prompt, 1 + dice.below(40));
            request.params = Arc::new(SamplingParams {
                temperature: [0.0, 0.7, 1.3][i % 3],
                top_p: [1.0, 0.9][i % 2],
                top_k: [0, 0, 0, 12][i % 4],
                min_p: [0.0, 0.0, 0.05][i % 3],
                presence_penalty: [0.0, 0.4][(i / 2) % 2],
                frequency_penalty: [0.0, 0.3, -0.2][(i / 3) % 3],
                repetition_penalty: [1.0, 1.2][(i / 5) % 2],
                logit_bias: if i % 7 == 0 { [(3, 1.5), (9, -100.0)].into() } else { Arc::default() },
                seed: (i / 2) as u64,
                min_tokens: i % 5,
                logprobs: [None, Some(0), Some(5)][i % 3],
            });
            request.limits.stop_tokens = if i % 4 == 1 { Arc::new([1, 2, 30]) } else { Arc::new([]) };
            request.prompt_logprobs = [None, None, Some(2), None, Some(0)][i % 5];
            request.salt = CacheSalt((i % 2) as u64);
            request.tenant = (i % 3) as u64;
            request
        })
        .collect()
}

/// Collects what the engine says about its steps and may break it on purpose.
#[derive(Default)]
pub(super) struct Watcher {
    pub(super) reports: Mutex<Vec<super::StepReport>>,
    pub(super) panic_at_step: Option<usize>,
}

impl super::StepObserver for Watcher {
    fn observe(&self, step: &super::StepReport) {
        let mut reports = self.reports.lock().unwrap();
        reports.push(*step);
        assert!(self.panic_at_step != Some(reports.len()), "the test breaks the engine");
    }
}
