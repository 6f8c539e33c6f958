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

/// The response to an admitted request: headers now, events as they come, `[DONE]` or an error event at the end.
pub(crate) fn respond<C: Chunks>(job: Job, chunks: C, streaming: Streaming) -> Response {
    let body = generate(move |out| write(job, chunks, streaming, out));
    let mut response = Body::from_stream(body.map(Ok::<_, Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn write<C: Chunks>(job: Job, mut chunks: C, streaming: Streaming, out: mpsc::Sender<Bytes>) {
    let mut events = pin!(events(job));
    let mut last = Tokens::default();
    loop {
        let bytes = match tokio::time::timeout(streaming.keep_alive, events.next()).await {
            Err(_) => Some(Bytes::from_static(b": keep-alive\n\n")),
            Ok(None) => break,
            Ok(Some(Event::Failed(error))) => {
                // No finish_reason and no [DONE]: the client must see that this is not the end of the answer.
                let _ = out.send(event(&error.body())).await;
                return;
            }
            Ok(Some(Event::Begin { choice, prompt, tokens })) => chunks.begin(choice, prompt).map(|begin| {
                let mut chunk = streaming.chunk(begin, tokens);
                chunk.prompt_token_ids = chunks.prompt_token_ids(choice);
                event(&chunk)
            }),
            Ok(Some(Event::Delta { choice, delta, tokens })) => {
                let mut bytes = Vec::new();
                for chunk in chunks.delta(choice, delta) {
                    bytes.extend_from_slice(&event(&streaming.chunk(chunk, tokens)));
                }
                (!bytes.is_empty()).then(|| bytes.into())
            }
            Ok(Some(Event::Finish { choice, reason, tokens, .. })) => {
                last = tokens;
                Some(event(&streaming.chunk(chunks.finish(choice, reason), tokens)))
            }
        };
        if let Some(bytes) = bytes
            && out.send(bytes).await.is_err()
        {
            return;
        }
    }
    if streaming.options.include_usage {
        let mut chunk = streaming.envelope.wrap(Vec::<C::Choice>::new());
        chunk.usage = Some(Some(last.into()));
        if out.send(event(&chunk)).await.is_err() {
            return;
        }
    }
    let _ = out.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
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
fn event(data: &impl Serialize) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    serde_json::to_writer(&mut bytes, data).expect("chunks that are not JSON are a bug");
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}
