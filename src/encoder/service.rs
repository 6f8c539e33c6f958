//! The encoder's public face: submit tokens, wait for vectors. One thread owns the model; handles share the queue with it, so that a
//! request is admitted or refused on the spot.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::config::{EncoderSpec, HeadSpec};
use super::queue::{RoundRobin, Taken};
use super::{EncoderInput, EncoderRunner, Pooling};

/// How much of the measured speed the newest batch makes up.
const SPEED_NEW: f64 = 0.2;
const RETRY_AFTER_MIN_S: f64 = 1.0;
const RETRY_AFTER_MAX_S: f64 = 60.0;

/// Bounds of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderLimits {
    /// Requests admitted and not finished; one more is refused.
    pub requests_max: usize,
    /// Tokens of those that are not computed yet; a request that exceeds them is refused, unless nothing else waits.
    pub tokens_max: usize,
    /// Tokens computed in one batch.
    pub batch_tokens_max: usize,
}

/// Facts about the model that the API needs for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderInfo {
    pub vocab: usize,
    /// Tokens of one input, special ones included.
    pub tokens_max: usize,
    /// Values of a vector; `None`: the model gives scores for pairs.
    pub dimensions: Option<usize>,
    /// How rows become such a vector.
    pub pooling: Option<Pooling>,
}

impl From<&EncoderSpec> for EncoderInfo {
    fn from(spec: &EncoderSpec) -> Self {
        let pooling = match spec.head {
            HeadSpec::Embedding(embedding) => Some(embedding.pooling),
            HeadSpec::Score { .. } => None,
        };
        Self { vocab: spec.vocab, tokens_max: spec.tokens_max, dimensions: pooling.map(|_| spec.hidden), pooling }
    }
}

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeRefusal {
    #[error("{requests} requests and {tokens} tokens are waiting; retry in {} s", retry_after.as_secs())]
    QueueFull { requests: usize, tokens: usize, retry_after: Duration },
    #[error("the encoder has stopped")]
    Stopped,
}

/// Why an admitted request got no result. What exactly failed is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeFailure {
    #[error("a batch failed")]
    Batch,
    #[error("the encoder has stopped")]
    Stopped,
}

/// One result for each input of a request.
pub type Encoded = Result<Vec<Vec<f32>>, EncodeFailure>;

/// A request whose results come in.
struct Pending {
    results: Vec<Option<Vec<f32>>>,
    missing: usize,
    /// Taken when the answer is sent.
    answer: Option<oneshot::Sender<Encoded>>,
}

type Request = Arc<Mutex<Pending>>;

struct State {
    queue: RoundRobin<Request, EncoderInput>,
    requests: usize,
    tokens: usize,
    /// Tokens a second; 0 before the first batch.
    speed: f64,
    /// No handle is left.
    closed: bool,
}

struct Shared {
    info: EncoderInfo,
    limits: EncoderLimits,
    state: Mutex<State>,
    work: Condvar,
    stopped: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cheap to clone; dropping the last handle stops the thread once its queue is empty.
#[derive(Clone)]
pub struct EncoderHandle {
    owner: Arc<Owner>,
}

/// Tells the thread that nobody can submit any more.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.work.notify_all();
    }
}

impl EncoderHandle {
    /// Starts the thread around a model.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn(runner: Box<dyn EncoderRunner>, info: EncoderInfo, limits: EncoderLimits) -> std::io::Result<Self> {
        let state = State { queue: RoundRobin::new(), requests: 0, tokens: 0, speed: 0.0, closed: false };
        let stopped = watch::Sender::new(false);
        let shared = Arc::new(Shared { info, limits, state: Mutex::new(state), work: Condvar::new(), stopped });
        let of = Arc::clone(&shared);
        std::thread::Builder::new().name("wick-encoder".into()).spawn(move || serve(&of, runner))?;
        Ok(Self { owner: Arc::new(Owner(shared)) })
    }

    #[must_use]
    pub fn info(&self) -> &EncoderInfo {
        &self.owner.0.info
    }

    /// Submits the inputs of one request, which are admitted together or not at all; never blocks. Whoever drops the receiver gives the
    /// request up: inputs that no batch has taken are not computed.
    ///
    /// # Errors
    /// The queue is full, or the thread has gone.
    pub fn submit(&self, inputs: Vec<EncoderInput>) -> Result<oneshot::Receiver<Encoded>, EncodeRefusal> {
        let shared = &*self.owner.0;
        let (sender, receiver) = oneshot::channel();
        let count = inputs.len();
        if count == 0 {
            // Nobody waits on the other side yet, so it cannot be gone.
            let _ = sender.send(Ok(Vec::new()));
            return Ok(receiver);
        }
        let tokens: usize = inputs.iter().map(|input| input.ids.len()).sum();
        let mut state = lock(&shared.state);
        if *shared.stopped.borrow() {
            return Err(EncodeRefusal::Stopped);
        }
        let fits = state.requests == 0
            || (state.requests < shared.limits.requests_max && state.tokens + tokens <= shared.limits.tokens_max);
        if !fits {
            let seconds = if state.speed > 0.0 { state.tokens as f64 / state.speed } else { RETRY_AFTER_MIN_S };
            let retry_after = Duration::from_secs_f64(seconds.clamp(RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S));
            return Err(EncodeRefusal::QueueFull { requests: state.requests, tokens: state.tokens, retry_after });
        }
        state.requests += 1;
        state.tokens += tokens;
        let pending = Pending { results: vec![None; count], missing: count, answer: Some(sender) };
        state.queue.push(Arc::new(Mutex::new(pending)), inputs);
        shared.work.notify_one();
        Ok(receiver)
    }

    /// Whether so many tokens would not fit into the next batch beside what waits.
    #[must_use]
    pub fn is_busy(&self, tokens: usize) -> bool {
        let shared = &*self.owner.0;
        let waiting = lock(&shared.state).tokens;
        waiting > 0 && waiting + tokens > shared.limits.batch_tokens_max
    }

    /// False after the thread has ended although handles are left.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !*self.owner.0.stopped.borrow()
    }

    /// Resolves when the service has become unhealthy, never before.
    pub async fn failed(&self) {
        // The sender lives in `self`, so waiting can only end by the value.
        let _ = self.owner.0.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }
}

impl Pending {
    fn is_gone(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Sends the answer, if it was not sent already: whether this ended the request.
    fn end(&mut self, encoded: Encoded) -> bool {
        let Some(answer) = self.answer.take() else { return false };
        // A receiver that has gone wants nothing.
        let _ = answer.send(encoded);
        true
    }
}

/// Says that the thread is gone, however it ends.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.stopped.send_replace(true);
    }
}

/// The thread: takes batches until no handle is left.
fn serve(shared: &Shared, mut runner: Box<dyn EncoderRunner>) {
    let ended = Ended(shared);
    while let Some(batch) = next_batch(shared) {
        let started = Instant::now();
        let tokens: usize = batch.iter().map(|taken| taken.input.ids.len()).sum();
        let (keys, inputs): (Vec<(Request, usize)>, Vec<EncoderInput>) =
            batch.into_iter().map(|Taken { request, index, input }| ((request, index), input)).unzip();
        let results = catch_unwind(AssertUnwindSafe(|| runner.run(&inputs)));
        let finished = match results {
            Ok(Ok(results)) => hand_out(&keys, results),
            Ok(Err(error)) => {
                tracing::error!(%error, tokens, "a batch of the encoder failed");
                fail(&keys)
            }
            Err(_) => {
                tracing::error!(panicked = true, tokens, "a batch of the encoder failed");
                fail(&keys)
            }
        };
        let speed = tokens as f64 / started.elapsed().as_secs_f64().max(1e-6);
        let mut state = lock(&shared.state);
        state.requests -= finished;
        state.tokens -= tokens;
        state.speed = if state.speed == 0.0 { speed } else { state.speed + SPEED_NEW * (speed - state.speed) };
    }
    drop(ended);
}

/// Waits for work; `None`: there will be none.
fn next_batch(shared: &Shared) -> Option<Vec<Taken<Request, EncoderInput>>> {
    let mut state = lock(&shared.state);
    loop {
        if !state.queue.is_empty() {
            // Requests that were given up end here, each once.
            let gone = std::cell::Cell::new(0);
            let is_gone = |request: &Request| {
                let mut pending = lock(request);
                let is_gone = pending.is_gone();
                if is_gone && pending.end(Err(EncodeFailure::Stopped)) {
                    gone.set(gone.get() + 1);
                }
                is_gone
            };
            let (batch, dropped) =
                state.queue.next_batch(shared.limits.batch_tokens_max, |input| input.ids.len(), is_gone);
            state.requests -= gone.get();
            state.tokens -= dropped;
            if !batch.is_empty() {
                return Some(batch);
            }
        } else if state.closed {
            return None;
        } else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Gives the results to their requests; how many ended by it.
fn hand_out(keys: &[(Request, usize)], results: Vec<Vec<f32>>) -> usize {
    let mut finished = 0;
    for ((request, index), result) in keys.iter().zip(results) {
        let mut pending = lock(request);
        pending.results[*index] = Some(result);
        pending.missing -= 1;
        if pending.missing == 0 {
            let all = std::mem::take(&mut pending.results).into_iter().flatten().collect();
            finished += usize::from(pending.end(Ok(all)));
        }
    }
    finished
}

/// Ends the requests of a batch that failed; how many ended by it. What is left of them in the queue is dropped as given up.
fn fail(keys: &[(Request, usize)]) -> usize {
    keys.iter().filter(|(request, _)| lock(request).end(Err(EncodeFailure::Batch))).count()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::encoder::EncodeError;

    /// Answers with the ids; fails on 13, panics on 14; says what it was given, and waits for a go.
    struct Fake {
        batches: mpsc::Sender<Vec<Vec<u32>>>,
        go: mpsc::Receiver<()>,
    }

    impl EncoderRunner for Fake {
        fn run(&mut self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>, EncodeError> {
            self.batches.send(inputs.iter().map(|input| input.ids.clone()).collect()).unwrap();
            self.go.recv().unwrap();
            let has = |id| inputs.iter().any(|input| input.ids.contains(&id));
            assert!(!has(14), "told to panic");
            if has(13) {
                return Err(EncodeError::Forward(candle_core::Error::msg("told to fail")));
            }
            Ok(inputs.iter().map(|input| input.ids.iter().map(|id| *id as f32).collect()).collect())
        }
    }

    struct Setup {
        handle: EncoderHandle,
        batches: mpsc::Receiver<Vec<Vec<u32>>>,
        go: mpsc::Sender<()>,
    }

    fn setup() -> Setup {
        let ((seen, batches), (go, wait)) = (mpsc::channel(), mpsc::channel());
        let info = EncoderInfo { vocab: 100, tokens_max: 10, dimensions: Some(1), pooling: Some(Pooling::Mean) };
        let limits = EncoderLimits { requests_max: 3, tokens_max: 20, batch_tokens_max: 4 };
        let handle = EncoderHandle::spawn(Box::new(Fake { batches: seen, go: wait }), info, limits).unwrap();
        Setup { handle, batches, go }
    }

    fn texts(ids: &[&[u32]]) -> Vec<EncoderInput> {
        ids.iter().map(|ids| EncoderInput::text(ids.to_vec())).collect()
    }

    #[test]
    fn requests_share_batches_and_get_their_own_results() {
        let Setup { handle, batches, go } = setup();
        let first = handle.submit(texts(&[&[1]])).unwrap();
        assert_eq!(batches.recv().unwrap(), [[1]]);
        // While the first is computed:
        let second = handle.submit(texts(&[&[2, 3], &[4], &[5]])).unwrap();
        let third = handle.submit(texts(&[&[6]])).unwrap();
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(batches.recv().unwrap(), [vec![2, 3], vec![6], vec![4]]);
        assert_eq!(first.blocking_recv().unwrap(), Ok(vec![vec![1.0]]));
        assert_eq!(third.blocking_recv().unwrap(), Ok(vec![vec![6.0]]));
        assert_eq!(second.blocking_recv().unwrap(), Ok(vec![vec![2.0, 3.0], vec![4.0], vec![5.0]]));
        assert_eq!(handle.submit(Vec::new()).unwrap().blocking_recv().unwrap(), Ok(Vec::new()));
    }

    #[test]
    fn a_full_queue_refuses_and_a_large_request_alone_is_let_in() {
        let Setup { handle, batches, go } = setup();
        let large = handle.submit(texts(&[&[1; 10], &[2; 10], &[3; 10]])).unwrap();
        batches.recv().unwrap();
        let refused = handle.submit(texts(&[&[1]])).unwrap_err();
        let EncodeRefusal::QueueFull { requests: 1, tokens: 30, retry_after } = refused else { panic!("{refused}") };
        assert_eq!(retry_after, Duration::from_secs(1));
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(large.blocking_recv().unwrap().unwrap().len(), 3);
        // The thread counts it as finished only after it has answered.
        while lock(&handle.owner.0.state).requests > 0 {
            std::thread::yield_now();
        }
        (0..2).for_each(|_| drop(batches.recv().unwrap()));
        let waiting: Vec<_> = (0..3).map(|_| handle.submit(texts(&[&[1]])).unwrap()).collect();
        assert!(matches!(handle.submit(texts(&[&[1]])), Err(EncodeRefusal::QueueFull { requests: 3, .. })));
        for _ in 0..3 {
            // The last one may come when all is done.
            let _ = go.send(());
        }
        waiting.into_iter().for_each(|w| assert!(w.blocking_recv().unwrap().is_ok()));
    }

    #[test]
    fn failures_end_their_requests_only() {
        let Setup { handle, batches, go } = setup();
        for bad in [13, 14] {
            let failing = handle.submit(texts(&[&[bad], &[1; 4], &[1; 4]])).unwrap();
            go.send(()).unwrap();
            assert_eq!(failing.blocking_recv().unwrap(), Err(EncodeFailure::Batch));
            let fine = handle.submit(texts(&[&[7]])).unwrap();
            go.send(()).unwrap();
            assert_eq!(fine.blocking_recv().unwrap(), Ok(vec![vec![7.0]]));
        }
        let seen: Vec<_> = (0..4).map(|_| batches.recv().unwrap()).collect();
        assert_eq!(seen, [[[13]], [[7]], [[14]], [[7]]], "what was left of them is not computed");
        assert!(handle.is_healthy());
    }

    #[test]
    fn who_leaves_is_not_computed() {
        let Setup { handle, batches, go } = setup();
        let first = handle.submit(texts(&[&[1]])).unwrap();
        batches.recv().unwrap();
        drop(handle.submit(texts(&[&[2], &[3]])).unwrap());
        let last = handle.submit(texts(&[&[4]])).unwrap();
        (0..2).for_each(|_| go.send(()).unwrap());
        assert!(first.blocking_recv().unwrap().is_ok() && last.blocking_recv().unwrap().is_ok());
        assert_eq!(batches.recv().unwrap(), [[4]]);
        let shared = Arc::clone(&handle.owner.0);
        drop(handle);
        while !*shared.stopped.borrow() {
            std::thread::yield_now();
        }
        let state = lock(&shared.state);
        assert_eq!((state.requests, state.tokens), (0, 0));
    }
}
