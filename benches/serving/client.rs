//! An HTTP client that costs little and believes nothing: it parses every event and compares the text with what the model
//! was made to say.
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

/// One kept-alive connection.
pub struct Connection {
    requests: SendRequest<Body>,
}

/// A stream as its reader saw it.
pub struct Streamed {
    /// When the bytes of each text event were read, in order.
    pub arrivals: Vec<Instant>,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    /// Of a completion.
    text: Option<String>,
    /// Of a chat's chunk.
    delta: Option<Message>,
    /// Of a whole chat answer.
    message: Option<Message>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: usize,
}

impl Choice {
    fn text(self) -> Option<String> {
        self.text.or(self.delta.or(self.message).and_then(|message| message.content))
    }
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { requests })
    }

    async fn post(&mut self, path: &str, body: Bytes) -> Result<axum::body::BodyDataStream> {
        self.requests.ready().await?;
        let request = Request::post(path)
            .header(header::HOST, "127.0.0.1")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))?;
        let response = self.requests.send_request(request).await?;
        ensure!(response.status() == 200, "{path} answered {}", response.status());
        Ok(Body::new(response.into_body()).into_data_stream())
    }

    /// Sends a streaming request and follows it to its end: the text is `expected`, if that is known, it ended by its
    /// length, and the server counted `tokens`.
    pub async fn stream(&mut self, path: &str, body: Bytes, expected: Option<&str>, tokens: usize) -> Result<Streamed> {
        let mut chunks = self.post(path, body).await?;
        let (mut left, mut finished, mut counted, mut done) = (expected, false, None, false);
        let mut arrivals = Vec::with_capacity(tokens);
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let now = Instant::now();
            buffer.extend_from_slice(&chunk?);
            let mut start = 0;
            while let Some(end) = find(&buffer[start..], b"\n\n") {
                let event = &buffer[start..start + end];
                start += end + 2;
                ensure!(!done, "something follows [DONE]");
                if event.starts_with(b":") {
                    continue;
                }
                let data = event.strip_prefix(b"data: ").context("an event without data")?;
                if data == b"[DONE]" {
                    done = true;
                    continue;
                }
                let answer: Answer = serde_json::from_slice(data)?;
                counted = answer.usage.map(|usage| usage.completion_tokens).or(counted);
                for choice in answer.choices {
                    finished |= choice.finish_reason.as_deref() == Some("length");
                    let text = choice.text().unwrap_or_default();
                    if let Some(left) = &mut left {
                        *left = left.strip_prefix(&*text).with_context(|| format!("{text:?} came, not {left:?}"))?;
                    }
                    if !text.is_empty() {
                        arrivals.push(now);
                    }
                }
            }
            buffer.drain(..start);
        }
        ensure!(done && finished && left.is_none_or(str::is_empty) && buffer.is_empty(), "the stream is not complete");
        ensure!(counted == Some(tokens), "the server counted {counted:?} tokens, not {tokens}");
        Ok(Streamed { arrivals })
    }

    /// Sends a request for one JSON answer and checks it as [`Self::stream`] does.
    pub async fn whole(&mut self, path: &str, body: Bytes, expected: &str, tokens: usize) -> Result<()> {
        let mut chunks = self.post(path, body).await?;
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
        }
        let mut answer: Answer = serde_json::from_slice(&buffer)?;
        ensure!(answer.usage.is_some_and(|usage| usage.completion_tokens == tokens), "the server counted other tokens");
        let text = answer.choices.pop().and_then(Choice::text);
        ensure!(text.as_deref() == Some(expected), "the text differs: {text:?}");
        Ok(())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
