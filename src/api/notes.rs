//! What a request and its answer are told apart by, and what became of the request: headers of the response, and fields
//! of the log line.
//!
//! Headers are read leniently: one that is too long or has unusual characters counts as absent, since it must not break a
//! request that would work without it.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::kv::{ClosestPrefix, PrefixEnd};

/// Names a conversation, in requests and responses.
const SESSION: HeaderName = HeaderName::from_static("x-session-affinity");
/// The headers that name a conversation, the most telling first: gateways', OpenCode's, Codex's, Claude Code's, LiteLLM's,
/// Helicone's, Dynamo's; last, the conversation that started this one.
pub(crate) const SESSIONS: [&str; 11] = [
    "x-session-affinity",
    "x-session-id",
    "x-opencode-session",
    "session_id",
    "session-id",
    "thread-id",
    "x-claude-code-session-id",
    "x-litellm-session-id",
    "helicone-session-id",
    "x-dynamo-session-id",
    "x-parent-session-id",
];
/// Longest name of a session.
const SESSION_LEN_MAX: usize = 256;

/// `1` in a request: how much of the prompt was cached, and where the rest begins. The answer is in the response's header.
const EXPLAIN: HeaderName = HeaderName::from_static("x-cache-explain");
/// Milliseconds in the queue.
const QUEUED: HeaderName = HeaderName::from_static("x-queue-ms");
/// Fields of the request that had no effect.
const IGNORED: HeaderName = HeaderName::from_static("x-ignored-params");

/// Shared by a request's handler, its response and its log line.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Noted>>);

/// What is known so far.
#[derive(Clone, Default)]
pub(crate) struct Noted {
    /// The conversation that the request belongs to.
    pub(crate) session: Option<String>,
    pub(crate) trace: Option<TraceParent>,
    explain: bool,
    /// The longest wait of its sequences.
    pub(crate) queued: Option<Duration>,
    ignored: Vec<String>,
    explained: Option<String>,
}

/// The caller's place in a distributed trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) trace_id: String,
    pub(crate) parent_id: String,
}

impl Notes {
    /// What a request's headers say.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let explain = headers.get(&EXPLAIN).is_some_and(|value| value == "1" || value == "true");
        let noted = Noted { session: session(headers), trace: trace_parent(headers), explain, ..Noted::default() };
        Self(Arc::new(Mutex::new(noted)))
    }

    /// Plain values, valid after every statement.
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    pub(crate) fn known(&self) -> Noted {
        self.noted().clone()
    }

    /// The client wants to know how the cache served it.
    pub(crate) fn wants_explanation(&self) -> bool {
        self.noted().explain
    }

    /// The body names the session by its `prompt_cache_key`. A header goes before it.
    pub(crate) fn cache_key(&self, key: &str) {
        if is_harmless(key.as_bytes(), SESSION_LEN_MAX) {
            self.noted().session.get_or_insert_with(|| key.to_owned());
        }
    }

    /// Fields that were accepted and have no effect.
    pub(crate) fn ignored(&self, fields: Vec<String>) {
        self.noted().ignored.extend(fields);
    }

    /// One of the request's sequences waited so long.
    pub(crate) fn queued(&self, queued: Duration) {
        let mut noted = self.noted();
        noted.queued = noted.queued.max(Some(queued));
    }

    /// A prompt of so many tokens found `reused` of them in the cache.
    pub(crate) fn explained(&self, prompt: usize, reused: usize, closest: ClosestPrefix) {
        self.noted().explained = Some(explanation(prompt, reused, closest));
    }

    /// Adds what is known to a response's headers.
    pub(crate) fn stamp(&self, headers: &mut HeaderMap) {
        let noted = self.known();
        let ignored = (!noted.ignored.is_empty()).then(|| noted.ignored.join(", "));
        let texts = [(SESSION, noted.session), (IGNORED, ignored), (EXPLAIN, noted.explained)];
        for (name, text) in texts {
            // Names of fields and sessions are checked; what is no header all the same is left out.
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.insert(name, value);
            }
        }
        if let Some(queued) = noted.queued {
            headers.insert(QUEUED, HeaderValue::from(u64::try_from(queued.as_millis()).unwrap_or(u64::MAX)));
        }
    }
}

/// Short enough, and nothing that a log or a header would have to escape.
pub(crate) fn is_harmless(text: &[u8], len_max: usize) -> bool {
    (1..=len_max).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

fn session(headers: &HeaderMap) -> Option<String> {
    let named = SESSIONS.iter().filter_map(|name| headers.get(*name)?.to_str().ok());
    named.map(str::trim).find(|name| is_harmless(name.as_bytes(), SESSION_LEN_MAX)).map(str::to_owned)
}

/// W3C's `traceparent`: version, trace, parent, flags.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let text = headers.get("traceparent")?.to_str().ok()?.trim();
    let mut parts = text.split('-');
    let mut hex = |len: usize| {
        let is_hex = |part: &&str| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(is_hex)
    };
    let (version, trace_id, parent_id, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // Later versions may say more behind it.
    let is_known = version != "ff" && (version != "00" || parts.next().is_none());
    let is_given = |id: &str| id.bytes().any(|byte| byte != b'0');
    (is_known && is_given(trace_id) && is_given(parent_id))
        .then(|| TraceParent { trace_id: trace_id.to_owned(), parent_id: parent_id.to_owned() })
}

/// As a dictionary of RFC 9651. `closest` says what ends the tokens that the prompt and the closest cached text share:
/// `none` (nothing cached begins like it), `differs`, `ends` (the cached text does) or `whole` (all of the prompt is cached).
fn explanation(prompt: usize, reused: usize, closest: ClosestPrefix) -> String {
    let ClosestPrefix { tokens, end } = closest;
    let (closest, differs_at) = match end {
        PrefixEnd::OfSequence => ("whole", None),
        PrefixEnd::Differs if tokens > 0 => ("differs", Some(tokens)),
        PrefixEnd::OfCached if tokens > 0 => ("ends", Some(tokens)),
        PrefixEnd::Differs | PrefixEnd::OfCached => ("none", Some(0)),
    };
    let differs_at = differs_at.map(|at| format!(", differs_at={at}")).unwrap_or_default();
    format!("prompt={prompt}, reused={reused}{differs_at}, closest={closest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_first_usable_header_names_the_session() {
        let of = |given: &[(&'static str, &str)]| Notes::of(&headers(given)).known().session;
        assert_eq!(of(&[]), None);
        for name in SESSIONS {
            assert_eq!(of(&[(name, "ses_1")]).as_deref(), Some("ses_1"), "{name}");
        }
        assert_eq!(of(&[("x-parent-session-id", "parent"), ("thread-id", "own")]).as_deref(), Some("own"));
        let all: Vec<_> = SESSIONS.iter().rev().map(|name| (*name, *name)).collect();
        assert_eq!(of(&all).as_deref(), Some("x-session-affinity"));
        let long = "x".repeat(SESSION_LEN_MAX + 1);
        for bad in ["", " ", "a b", "a\"b", "<x>", "a,b", &long] {
            assert_eq!(of(&[("x-session-id", bad)]), None, "{bad}");
            assert_eq!(of(&[("x-session-id", bad), ("session-id", "ok")]).as_deref(), Some("ok"), "{bad}");
        }
        let latin = HeaderMap::from_iter([(SESSION, HeaderValue::from_bytes(b"\xe4").unwrap())]);
        assert_eq!(Notes::of(&latin).known().session, None);
    }

    #[test]
    fn a_cache_key_names_the_session_where_no_header_does() {
        let notes = Notes::default();
        notes.cache_key("has spaces");
        assert_eq!(notes.known().session, None);
        notes.cache_key("key");
        assert_eq!(notes.known().session.as_deref(), Some("key"));
        let notes = Notes::of(&headers(&[("x-session-id", "header")]));
        notes.cache_key("key");
        assert_eq!(notes.known().session.as_deref(), Some("header"));
    }

    #[test]
    fn trace_parents_are_w3cs() {
        let of = |value: &str| trace_parent(&headers(&[("traceparent", value)])).map(|t| (t.trace_id, t.parent_id));
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let both = Some((trace.to_owned(), parent.to_owned()));
        assert_eq!(of(&format!("00-{trace}-{parent}-01")), both);
        assert_eq!(of(&format!("01-{trace}-{parent}-01-more")), both, "a later version");
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            format!("00-{trace}-{parent}"),
            format!("00-{trace}-{parent}-01-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{zeros}-{parent}-01"),
            format!("00-{trace}-{}-01", &zeros[..16]),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{trace}x-{parent}-01"),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }

    #[test]
    fn explanations_are_dictionaries() {
        let explain = |tokens, end| explanation(50, 32, ClosestPrefix { tokens, end });
        assert_eq!(explain(37, PrefixEnd::Differs), "prompt=50, reused=32, differs_at=37, closest=differs");
        assert_eq!(explain(48, PrefixEnd::OfCached), "prompt=50, reused=32, differs_at=48, closest=ends");
        assert_eq!(explain(50, PrefixEnd::OfSequence), "prompt=50, reused=32, closest=whole");
        for end in [PrefixEnd::Differs, PrefixEnd::OfCached] {
            assert_eq!(
                explanation(9, 0, ClosestPrefix { tokens: 0, end }),
                "prompt=9, reused=0, differs_at=0, closest=none"
            );
        }
    }

    #[test]
    fn what_is_known_becomes_headers() {
        let notes = Notes::of(&headers(&[("x-session-id", "s"), ("x-cache-explain", "1")]));
        assert!(notes.wants_explanation() && !Notes::of(&headers(&[("x-cache-explain", "0")])).wants_explanation());
        notes.ignored(vec!["metadata".into(), "user".into()]);
        notes.queued(Duration::from_millis(7));
        notes.queued(Duration::from_micros(900));
        let mut stamped = HeaderMap::new();
        notes.stamp(&mut stamped);
        let value = |name: &str| stamped.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(value("x-session-affinity"), Some("s"));
        assert_eq!(value("x-ignored-params"), Some("metadata, user"));
        assert_eq!(value("x-queue-ms"), Some("7"));
        assert_eq!(value("x-cache-explain"), None, "nothing has started");
        let mut empty = HeaderMap::new();
        Notes::default().stamp(&mut empty);
        assert!(empty.is_empty());
    }
}
