//! A model hub on 127.0.0.1, as far as pulls need one, with the faults that a test asks for.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What `main` stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from this size on are large ones, whose SHA-256 the hub knows.
const LARGE: usize = 1024;
const CHUNK: usize = 64 << 10;

/// How downloads misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The size of the whole file in a header of every answer, as the real hub has it.
    LinkedSize,
    /// Ranges are ignored and no length is given.
    NoRanges,
    /// Nothing comes after this many bytes of an answer.
    StallsAfter(usize),
    /// Another byte in the middle.
    Corrupt,
    /// More than the file, without a length.
    Endless,
    /// Each chunk takes its time.
    Slow,
}

struct Shared {
    repo: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    fault: Mutex<Fault>,
    log: Mutex<Vec<String>>,
}

/// Serves one repository until dropped with its runtime.
pub struct Hub {
    pub endpoint: String,
    shared: Arc<Shared>,
}

impl Hub {
    pub async fn start(repo: &'static str, files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let shared = Arc::new(Shared { repo, files, fault: Mutex::new(Fault::None), log: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { endpoint, shared }
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// What was asked for since the last call: path, range and authorization.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.log.lock().unwrap())
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn git_blob(bytes: &[u8]) -> String {
    hex(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let value = |name| request.headers().get(name).map_or("", |v| v.to_str().unwrap());
    let (range, key) = (value(header::RANGE), value(header::AUTHORIZATION));
    shared.log.lock().unwrap().push(format!("{path} {range} {key}").trim_end().to_owned());
    let api = format!("/api/models/{}", shared.repo);
    if path == format!("{api}/revision/main") {
        return Response::new(json!({ "sha": COMMIT }).to_string().into());
    }
    if [COMMIT, "main"].iter().any(|revision| path == format!("{api}/tree/{revision}")) {
        let entries: Vec<Value> = shared.files.iter().map(|(name, bytes)| entry(name, bytes)).collect();
        return Response::new(Value::from(entries).to_string().into());
    }
    let file = [COMMIT, "main"].iter().find_map(|rev| path.strip_prefix(&format!("/{}/resolve/{rev}/", shared.repo)));
    match file.and_then(|name| shared.files.get(name)) {
        Some(bytes) => download(bytes.clone(), range, *shared.fault.lock().unwrap()),
        None => Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap(),
    }
}

fn entry(name: &str, bytes: &[u8]) -> Value {
    let mut entry = json!({ "type": "file", "path": name, "size": bytes.len(), "oid": git_blob(bytes) });
    if bytes.len() >= LARGE {
        // Git holds a pointer to a large file: its blob id says nothing of the content.
        entry["oid"] = json!(git_blob(b"pointer"));
        entry["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 133 });
    }
    entry
}

fn download(mut bytes: Vec<u8>, range: &str, fault: Fault) -> Response {
    let whole = bytes.len();
    let mut headers = HeaderMap::new();
    let mut status = StatusCode::OK;
    let from = range.strip_prefix("bytes=").and_then(|r| r.split('-').next()?.parse::<usize>().ok());
    match fault {
        Fault::Corrupt => bytes[whole / 2] ^= 1,
        Fault::Endless => bytes.extend(vec![0; 1 << 20]),
        _ => {}
    }
    if let Some(from) = from.filter(|_| fault != Fault::NoRanges) {
        status = StatusCode::PARTIAL_CONTENT;
        bytes.drain(..from);
        headers.insert(header::CONTENT_RANGE, format!("bytes {from}-{}/{whole}", whole - 1).parse().unwrap());
    }
    if !matches!(fault, Fault::NoRanges | Fault::Endless) {
        headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    }
    if fault == Fault::LinkedSize {
        headers.insert("x-linked-size", whole.into());
    }
    let chunks: Vec<Vec<u8>> = bytes.chunks(CHUNK).map(<[u8]>::to_vec).collect();
    let stream = futures_util::stream::unfold((chunks.into_iter(), 0), move |(mut chunks, sent)| async move {
        match fault {
            Fault::StallsAfter(limit) if sent >= limit => std::future::pending().await,
            Fault::Slow => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {}
        }
        let chunk = chunks.next()?;
        let sent = sent + chunk.len();
        Some((Ok::<_, std::io::Error>(chunk), (chunks, sent)))
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}
