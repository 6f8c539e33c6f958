//! Runs the HTTP service on a listener until told to stop, then drains.
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use crate::api::{AppState, router};

/// After the last response is done, how long its bytes may take to leave.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);
/// How long to wait when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests that were running when the shutdown began.
    pub running: usize,
    /// Of those (and of none other), requests that were cut off when the budget was spent.
    pub cut_off: usize,
    pub elapsed: Duration,
}

/// Why the service could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the listening socket is broken: {0}")]
    Listener(#[from] std::io::Error),
}

/// Serves until `shutdown` resolves; then new requests get 503, running ones have `drain_budget` to finish, and what is
/// left is cut off with an error. Returns when every connection is closed.
pub async fn run(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()>,
    drain_budget: Duration,
) -> Result<DrainReport, ServerError> {
    // A listener that has no address will not accept either.
    listener.local_addr()?;
    let mut service = Service::new(state.clone());
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = service.accept(&listener) => {}
        }
    }
    let began = Instant::now();
    let mut in_flight = state.in_flight();
    let running = *in_flight.borrow();
    state.drain();
    tracing::info!(running, budget_s = drain_budget.as_secs(), "shutting down: new requests are refused");
    let drained = {
        let mut idle = pin!(tokio::time::timeout(drain_budget, in_flight.wait_for(|count| *count == 0)));
        loop {
            // Who connects now deserves an answer: 503 with Retry-After.
            tokio::select! {
                biased;
                done = &mut idle => break done.is_ok(),
                () = service.accept(&listener) => {}
            }
        }
    };
    let cut_off = if drained { 0 } else { *state.in_flight().borrow() };
    if !drained {
        tracing::warn!(cut_off, "the drain budget is spent: cutting off what still runs");
        state.cut_off();
    }
    drop(listener);
    service.close().await;
    Ok(DrainReport { running, cut_off, elapsed: began.elapsed() })
}

/// Resolves when the flag is up, or its owner is gone.
async fn raised(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|up| *up).await;
}

/// The connections.
struct Service {
    router: axum::Router,
    head_time_max: Duration,
    stalled_max: Duration,
    slots: Arc<Semaphore>,
    connections: JoinSet<()>,
    closing: watch::Sender<bool>,
}

impl Service {
    fn new(state: AppState) -> Self {
        Self {
            head_time_max: state.options().head_time_max,
            stalled_max: state.options().stalled_max,
            slots: Arc::new(Semaphore::new(state.options().connections_max.max(1))),
            connections: JoinSet::new(),
            closing: watch::Sender::new(false),
            router: router(state),
        }
    }

    /// Accepts one connection and serves it in the background. Cancel safe.
    async fn accept(&mut self, listener: &TcpListener) {
        while self.connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // One connection's trouble, or no file handles: either way others go on.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        let connection = self.connection(stream);
        self.connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }

    fn connection(&self, stream: TcpStream) -> impl Future<Output = ()> + Send + use<> {
        // Tokens are small and must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let mut stream = Box::pin(TimeoutStream::new(stream));
        // A body is only asked for more when the socket takes more: nothing above would notice a client that stopped reading.
        stream.as_mut().set_write_timeout_pinned(Some(self.stalled_max));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.head_time_max);
        let service = TowerToHyperService::new(self.router.clone());
        let closing = self.closing.subscribe();
        async move {
            let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
            let mut closing = pin!(raised(closing));
            let served = tokio::select! {
                served = &mut connection => served,
                () = &mut closing => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                // A client that left is no news.
                tracing::debug!(%error, "a connection ended early");
            }
        }
    }

    /// Closes idle connections at once and the others after their response.
    async fn close(&mut self) {
        self.closing.send_replace(true);
        let all = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH_TIME_MAX, all).await.is_err() {
            self.connections.shutdown().await;
        }
    }
}
