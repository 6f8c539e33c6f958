//! `x-ratelimit-*` headers: how much of the queue is left to the client's tenant, in OpenAI's words.
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};

use crate::engine::QueueLoad;

/// Adds the headers for what may be queued (requests and prompt tokens) and how long emptying the queue takes.
pub(crate) fn stamp(headers: &mut HeaderMap, load: &QueueLoad) {
    let counts = [
        ("x-ratelimit-limit-requests", load.limits.sequences_max),
        ("x-ratelimit-limit-tokens", load.limits.tokens_max),
        ("x-ratelimit-remaining-requests", load.sequences_left),
        ("x-ratelimit-remaining-tokens", load.tokens_left),
    ];
    for (name, count) in counts {
        headers.insert(name, HeaderValue::from(count));
    }
    // Before anything was measured there is no estimate to give.
    let Some(reset) = load.empty_in.and_then(|wait| HeaderValue::try_from(duration(wait)).ok()) else { return };
    headers.insert("x-ratelimit-reset-requests", reset.clone());
    headers.insert("x-ratelimit-reset-tokens", reset);
}

/// As OpenAI writes it: `1s`, `6m0s`, `1h0m0s`; whole seconds, rounded up.
fn duration(wait: Duration) -> String {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        let written = |millis| duration(Duration::from_millis(millis));
        assert_eq!([written(0), written(1), written(59_000)], ["0s", "1s", "59s"]);
        assert_eq!([written(360_000), written(3_661_000)], ["6m0s", "1h1m1s"]);
    }
}
