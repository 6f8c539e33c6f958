//! The whole server around a model that costs nothing, or just as much as one wants.
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use wick::api::{AppState, ServedModel, ServerOptions};
use wick::engine::{EngineHandle, QueueLimits};
use wick::runner::{Logits, Runner, RunnerError};
use wick::scheduler::{SchedulerConfig, SchedulerOutput};
use wick::telemetry::StepMetrics;
use wick::testing::{FakeOptions, FakeRunner};
use wick::text::TextTools;
use wick_kernels::ThreadPool;

pub const MODEL: &str = "fake";

/// What the model says: its tokens, each once, over and over.
pub struct Script {
    pub text: Arc<TextTools>,
    cycle: Vec<u32>,
}

impl Script {
    /// `source`: a GGUF file or a folder with a tokenizer; without one, the test fixture of single bytes.
    pub fn load(source: Option<&Path>) -> Result<Self> {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-tokenizer");
        let text = Arc::new(TextTools::load(source.unwrap_or(&fixture), None)?);
        let mut cycle = Vec::new();
        for id in text.tokenizer.encode(" what the model says is of no consequence", false)? {
            if !cycle.contains(&id) {
                cycle.push(id);
            }
        }
        Ok(Self { text, cycle })
    }

    /// What a request for `tokens` tokens is answered, after a prompt that does not end in one of the script's own.
    pub fn answer(&self, tokens: usize) -> String {
        let ids: Vec<u32> = self.cycle.iter().copied().cycle().take(tokens).collect();
        self.text.tokenizer.decode(&ids, true)
    }

    fn next(&self) -> impl Fn(&[u32]) -> u32 + Send + use<> {
        let first = self.cycle[0];
        let following = self.cycle.iter().copied().zip(self.cycle.iter().copied().cycle().skip(1));
        let next: HashMap<u32, u32> = following.collect();
        move |context| context.last().and_then(|last| next.get(last)).copied().unwrap_or(first)
    }
}

/// What a step costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    None,
    /// All cores are busy for so long, in regions of the kernels' thread pool as a real step has them.
    Busy(Duration),
}

/// Parallel regions of a busy step: about what a small model has.
const REGIONS: u32 = 120;

/// A step as the engine's thread saw it.
#[derive(Clone, Copy)]
pub struct Step {
    pub begin: Instant,
    pub end: Instant,
    /// Tokens computed, over all sequences.
    pub tokens: usize,
    pub sequences: usize,
}

/// What the engine's thread saw.
#[derive(Default)]
pub struct Seen {
    /// Per sequence, in the order of admission: when the logits of each of its tokens were there.
    pub logits_at: BTreeMap<u64, Vec<Instant>>,
    pub steps: Vec<Step>,
}

impl Seen {
    /// From the end of each step to the begin of the next, where both were of `sequences` sequences that decoded.
    pub fn gaps(&self, sequences: usize) -> Vec<Duration> {
        let decodes = |step: &Step| step.tokens == sequences && step.sequences == sequences;
        let pairs = self.steps.windows(2).filter(|pair| pair.iter().all(decodes));
        pairs.map(|pair| pair[1].begin - pair[0].end).collect()
    }

    /// How long the steps took in which so many sequences decoded and nothing else was computed.
    pub fn decode_steps(&self, sequences: usize) -> Vec<Duration> {
        let decodes = self.steps.iter().filter(|step| step.tokens == sequences && step.sequences == sequences);
        decodes.map(|step| step.end - step.begin).collect()
    }
}

/// A runner that notes when its steps begin and end.
struct Watched {
    inner: Box<dyn Runner>,
    burner: Option<Burner>,
    seen: Arc<Mutex<Seen>>,
}

/// Keeps all cores busy.
struct Burner {
    pool: ThreadPool,
    total: Duration,
}

impl Burner {
    fn burn(&self) {
        for _ in 0..REGIONS {
            let until = Instant::now() + self.total / REGIONS;
            self.pool.run(self.pool.threads(), &|_| {
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            });
        }
    }
}

impl Runner for Watched {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        let begin = Instant::now();
        if let Some(burner) = &self.burner {
            burner.burn();
        }
        let logits = self.inner.execute(step)?;
        let end = Instant::now();
        let mut seen = lock(&self.seen);
        seen.steps.push(Step { begin, end, tokens: step.total_tokens(), sequences: step.seqs.len() });
        for seq in step.seqs.iter().filter(|seq| seq.sample) {
            seen.logits_at.entry(seq.id.0).or_default().push(end);
        }
        Ok(logits)
    }

    fn spread(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.inner.spread(tasks, f);
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model to serve.
pub struct Model {
    pub alias: String,
    pub text: Arc<TextTools>,
    pub runner: Box<dyn Runner>,
    pub num_blocks: usize,
    pub context_max: usize,
    pub work: Work,
    /// Threads of the HTTP side.
    pub workers: usize,
}

/// Slots of a block of KV.
pub const BLOCK_SIZE: usize = 16;

impl Model {
    /// One that costs as much as `work` says.
    pub fn fake(script: &Script, work: Work, workers: usize) -> Self {
        let fake = FakeOptions { free_of_cost: true, next: Some(Box::new(script.next())), ..FakeOptions::default() };
        let num_blocks = 1 << 15;
        let vocab = script.text.tokenizer.vocab_size();
        Self {
            alias: MODEL.to_owned(),
            text: Arc::clone(&script.text),
            runner: Box::new(FakeRunner::with_options(vocab, BLOCK_SIZE, num_blocks, fake)),
            num_blocks,
            context_max: 8192,
            work,
            workers,
        }
    }
}

/// A running server with its own runtime, set up as `wick serve` sets it up.
pub struct Server {
    pub address: SocketAddr,
    pub engine: EngineHandle,
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    pub fn start(model: Model) -> Result<Self> {
        let config = SchedulerConfig {
            block_size: BLOCK_SIZE,
            num_blocks: model.num_blocks,
            batched_tokens_max: 512,
            prefill_chunk_max: 128,
            running_max: 64,
            context_max: model.context_max,
            logit_rows_max: 64,
            prefix_cache: true,
            // The script repeats itself: guesses would make steps that a model of zero cost does not need.
            speculation: false,
        };
        let seen = Arc::<Mutex<Seen>>::default();
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let burner = match model.work {
            Work::None => None,
            Work::Busy(total) => Some(Burner { pool: ThreadPool::new(threads), total }),
        };
        let runner = Watched { inner: model.runner, burner, seen: Arc::clone(&seen) };
        let steps = Arc::new(StepMetrics::default());
        let queue = QueueLimits { sequences_max: 1024, tokens_max: 2_000_000 };
        let engine = EngineHandle::spawn_observed(Box::new(runner), config, queue, Some(steps.clone()))?;
        let served = ServedModel {
            alias: model.alias,
            engine: engine.clone(),
            text: model.text,
            created: 0,
            context_max: config.context_max,
            owned_by: "wick".to_owned(),
            steps: Some(steps),
        };
        let state = AppState::new(vec![served], ServerOptions::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(model.workers)
            .thread_name("http")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                wick::server::run(listener, state, shutdown, Duration::from_secs(5)).await?;
                Ok(())
            })
        };
        let thread = std::thread::Builder::new().name("http-main".to_owned()).spawn(serve)?;
        Ok(Self { address, engine, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// What the engine's thread has seen since the last call.
    pub fn take_seen(&self) -> Seen {
        std::mem::take(&mut lock(&self.seen))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let served = thread.join().expect("the server panicked");
            served.expect("the server failed");
        }
    }
}
