//! Events → server-sent events.
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;

use super::choice::{Delta, Finish};
use super::error::ApiError;
use super::gate::Tokens;
use super::params::StreamOptions;
use super::pipeline::{Event, Job, events, generate};
use super::types::{Envelope, Enveloped};
use crate::sampling::TokenLogprobs;

/// An endpoint's chunks.
pub(crate) trait Chunks: Send + 'static {
    type Choice: Serialize + Send;
    /// Sent just before a choice's first token is.
    fn begin(&mut self, choice: usize, prompt: Option<Vec<TokenLogprobs>>) -> Option<Self::Choice>;
    /// Parts of different kinds come one by one.
    fn delta(&mut self, choice: usize, delta: Delta) -> Vec<Self::Choice>;
    fn finish(&mut self, choice: usize, reason: Finish) -> Self::Choice;
    /// What belongs beside the choices of a choice's first chunk.
    fn prompt_token_ids(&self, choice: usize) -> Option<Vec<u32>>;
}

/// How a response is streamed.
pub(crate) struct Streaming {
    pub(crate) envelope: Envelope,
    pub(crate) options: StreamOptions,
    /// A comment is sent when nothing else was for this long.
    pub(crate) keep_alive: Duration,
}

/// How an API tells the events of a request, in bytes of a `text/event-stream`.
pub(crate) trait Telling: Send + 'static {
    /// Before the first event, which may have to wait for its turn.
    fn begin(&mut self, _out: &mut Vec<u8>) {}
    /// Any event but the failure.
    fn event(&mut self, event: Event, out: &mut Vec<u8>);
    /// All choices have finished.
    fn end(&mut self, out: &mut Vec<u8>);
    /// Nothing follows; the client must see that this is not the end of the answer.
    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>);
}

/// The response to an admitted request, in OpenAI's chunks: `[DONE]` or an error at the end.
pub(crate) fn respond<C: Chunks>(job: Job, chunks: C, streaming: Streaming) -> Response {
    let keep_alive = streaming.keep_alive;
    tell(job, ChunkTelling { chunks, streaming, last: Tokens::default() }, keep_alive)
}

/// The response to an admitted request: headers now, events as they come. A comment is sent when nothing else was for
/// `keep_alive`.
pub(crate) fn tell<T: Telling>(job: Job, telling: T, keep_alive: Duration) -> Response {
    let body = generate(move |out| write(job, telling, keep_alive, out));
    let mut response = Body::from_stream(body.map(Ok::<_, Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn write<T: Telling>(job: Job, mut telling: T, keep_alive: Duration, out: mpsc::Sender<Bytes>) {
    let mut events = pin!(events(job));
    let mut bytes = Vec::new();
    telling.begin(&mut bytes);
    if !bytes.is_empty() && out.send(bytes.into()).await.is_err() {
        return;
    }
    loop {
        let mut bytes = Vec::new();
        let more = match tokio::time::timeout(keep_alive, events.next()).await {
            Err(_) => {
                bytes.extend_from_slice(b": keep-alive\n\n");
                true
            }
            Ok(Some(Event::Failed(error))) => {
                telling.failed(&error, &mut bytes);
                false
            }
            Ok(Some(event)) => {
                telling.event(event, &mut bytes);
                true
            }
            Ok(None) => {
                telling.end(&mut bytes);
                false
            }
        };
        let sent = bytes.is_empty() || out.send(bytes.into()).await.is_ok();
        if !more || !sent {
            return;
        }
    }
}

/// OpenAI's chunks of chat and completions.
struct ChunkTelling<C> {
    chunks: C,
    streaming: Streaming,
    last: Tokens,
}

impl<C: Chunks> Telling for ChunkTelling<C> {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        let Self { chunks, streaming, last } = self;
        match event {
            Event::Begin { choice, prompt, tokens } => {
                if let Some(begin) = chunks.begin(choice, prompt) {
                    let mut chunk = streaming.chunk(begin, tokens);
                    chunk.prompt_token_ids = chunks.prompt_token_ids(choice);
                    data(&chunk, out);
                }
            }
            Event::Delta { choice, delta, tokens } => {
                for chunk in chunks.delta(choice, delta) {
                    data(&streaming.chunk(chunk, tokens), out);
                }
            }
            Event::Finish { choice, reason, tokens, .. } => {
                *last = tokens;
                data(&streaming.chunk(chunks.finish(choice, reason), tokens), out);
            }
            Event::Failed(_) => unreachable!("failures are told apart"),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.streaming.options.include_usage {
            let mut chunk = self.streaming.envelope.wrap(Vec::<C::Choice>::new());
            chunk.usage = Some(Some(self.last.into()));
            data(&chunk, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // No finish_reason and no [DONE].
        data(&error.body(), out);
    }
}

impl Streaming {
    fn chunk<C>(&self, choice: C, tokens: Tokens) -> Enveloped<'_, C> {
        let mut chunk = self.envelope.wrap(vec![choice]);
        chunk.usage = if self.options.continuous_usage {
            Some(Some(tokens.into()))
        } else {
            self.options.include_usage.then_some(None)
        };
        chunk
    }
}

/// One event. JSON has no raw line breaks, so one `data:` line holds it.
pub(crate) fn data(data: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, data).expect("chunks that are not JSON are a bug");
    out.extend_from_slice(b"\n\n");
}

/// One event with a name.
pub(crate) fn named(name: &str, body: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    data(body, out);
}
