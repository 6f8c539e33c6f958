//! Figures of a load run: percentiles, throughput, errors; as a table and as JSON.
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::config::{BenchEndpoint, LoadArgs, Workload};

/// What one request experienced. Times in seconds.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// From sending to the first token.
    pub ttft: Option<f64>,
    /// Between tokens.
    pub gaps: Vec<f64>,
    pub total: f64,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// What went wrong, in a few words (`503 overloaded`).
    pub error: Option<String>,
}

/// Percentiles of a set of times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Percentiles {
    /// Nearest-rank percentiles of `seconds`.
    #[must_use]
    pub fn of(mut seconds: Vec<f64>) -> Self {
        if seconds.is_empty() {
            return Self::default();
        }
        seconds.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * seconds.len() as f64).ceil().max(1.0) as usize;
            seconds[rank.min(seconds.len()) - 1] * 1e3
        };
        Self { p50: at(0.50), p95: at(0.95), p99: at(0.99) }
    }
}

/// What was run: with the seed, enough to run it again.
#[derive(Debug, Clone, Serialize)]
pub struct Setup {
    pub url: String,
    pub model: String,
    pub workload: Workload,
    pub endpoint: BenchEndpoint,
    pub seed: u64,
    /// Clients at once; none with `rate`.
    pub clients: Option<usize>,
    /// Requests a second.
    pub rate: Option<f64>,
    /// Requests asked for; conversations of the agent workload.
    pub jobs: usize,
    pub input: Option<usize>,
    pub output: Option<usize>,
    pub shared_prefix: Option<usize>,
    pub turns: Option<usize>,
    pub scale_context: Option<usize>,
    pub ignore_eos: bool,
}

impl Setup {
    /// `context`: what the agent workload is scaled to.
    #[must_use]
    pub fn new(url: &str, model: &str, args: &LoadArgs, context: Option<usize>) -> Self {
        let random = args.workload == Workload::Random;
        Self {
            url: url.to_owned(),
            model: model.to_owned(),
            workload: args.workload,
            endpoint: if random { args.endpoint } else { BenchEndpoint::Chat },
            seed: args.seed,
            clients: args.rate.is_none().then_some(args.clients.get()),
            rate: args.rate,
            jobs: args.requests.get(),
            input: random.then_some(args.input),
            output: random.then_some(args.output),
            shared_prefix: random.then_some(args.shared_prefix),
            turns: (!random).then_some(args.turns.get()),
            scale_context: context.filter(|_| !random),
            ignore_eos: !args.no_ignore_eos,
        }
    }
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub setup: Setup,
    pub requests: usize,
    pub seconds: f64,
    pub ttft_ms: Percentiles,
    pub inter_token_ms: Percentiles,
    pub total_ms: Percentiles,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    /// Of the input tokens, the share the server took from its prefix cache.
    pub cached_share: f64,
    pub input_tokens_per_second: f64,
    pub output_tokens_per_second: f64,
    pub requests_per_second: f64,
    pub errors: BTreeMap<String, usize>,
}

impl Report {
    /// `seconds`: wall time of the run.
    #[must_use]
    pub fn new(setup: Setup, samples: &[Sample], seconds: f64) -> Self {
        let good = || samples.iter().filter(|s| s.error.is_none());
        let sum = |f: fn(&Sample) -> u64| good().map(f).sum::<u64>();
        let (input, output, cached) = (sum(|s| s.input_tokens), sum(|s| s.output_tokens), sum(|s| s.cached_tokens));
        let mut errors = BTreeMap::new();
        for e in samples.iter().filter_map(|s| s.error.clone()) {
            *errors.entry(e).or_insert(0) += 1;
        }
        let seconds = seconds.max(1e-9);
        Self {
            setup,
            requests: samples.len(),
            seconds,
            ttft_ms: Percentiles::of(good().filter_map(|s| s.ttft).collect()),
            inter_token_ms: Percentiles::of(good().flat_map(|s| s.gaps.iter().copied()).collect()),
            total_ms: Percentiles::of(good().map(|s| s.total).collect()),
            input_tokens: input,
            output_tokens: output,
            cached_tokens: cached,
            cached_share: if input == 0 { 0.0 } else { cached as f64 / input as f64 },
            input_tokens_per_second: input as f64 / seconds,
            output_tokens_per_second: output as f64 / seconds,
            requests_per_second: good().count() as f64 / seconds,
            errors,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, p: Percentiles| {
            writeln!(f, "{name:<22}{:>10.1}{:>10.1}{:>10.1}", p.p50, p.p95, p.p99)
        };
        writeln!(f, "{:<22}{:>10}{:>10}{:>10}", "ms", "p50", "p95", "p99")?;
        row(f, "time to first token", self.ttft_ms)?;
        row(f, "between tokens", self.inter_token_ms)?;
        row(f, "whole request", self.total_ms)?;
        writeln!(f)?;
        writeln!(f, "requests  {} in {:.1} s, {:.2}/s", self.requests, self.seconds, self.requests_per_second)?;
        writeln!(f, "output    {} tokens, {:.1}/s", self.output_tokens, self.output_tokens_per_second)?;
        writeln!(
            f,
            "input     {} tokens, {:.1}/s, {:.1}% cached",
            self.input_tokens,
            self.input_tokens_per_second,
            100.0 * self.cached_share
        )?;
        let failed: usize = self.errors.values().sum();
        write!(f, "errors    {failed}")?;
        for (what, n) in &self.errors {
            write!(f, "\n  {n} × {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(more: &[&str]) -> Setup {
        use clap::Parser;
        let words = [&["wick", "bench", "m", "--url", "http://h/v1"], more].concat();
        let crate::config::Command::Bench(args) = crate::config::Cli::try_parse_from(words).unwrap().command else {
            panic!("bench")
        };
        Setup::new("http://h/v1", &args.model, &args.load, Some(4096))
    }

    #[test]
    fn a_report_says_what_was_run() {
        let json = serde_json::to_value(Report::new(setup(&["--seed", "7", "--endpoint", "chat"]), &[], 1.0)).unwrap();
        let setup_of = |key: &str| json["setup"][key].clone();
        assert_eq!(
            (setup_of("model"), setup_of("url"), setup_of("seed")),
            ("m".into(), "http://h/v1".into(), 7.into())
        );
        assert_eq!((setup_of("workload"), setup_of("endpoint")), ("random".into(), "chat".into()));
        assert_eq!((setup_of("clients"), setup_of("rate")), (8.into(), serde_json::Value::Null));
        let open = setup(&["--rate", "2.5", "--workload", "agent"]);
        assert_eq!((open.clients, open.rate, open.scale_context), (None, Some(2.5), Some(4096)));
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let p = Percentiles::of((1..=100).map(|i| f64::from(i) / 1e3).collect());
        assert!((p.p50 - 50.0).abs() < 1e-9 && (p.p95 - 95.0).abs() < 1e-9 && (p.p99 - 99.0).abs() < 1e-9);
        assert_eq!(Percentiles::of(vec![]), Percentiles::default());
    }

    #[test]
    fn failed_requests_are_counted_and_kept_out_of_the_figures() {
        let ok = Sample {
            ttft: Some(0.1),
            total: 1.0,
            input_tokens: 10,
            cached_tokens: 5,
            output_tokens: 4,
            ..Sample::default()
        };
        let bad = Sample { error: Some("503 overloaded".into()), total: 9.0, ..Sample::default() };
        let r = Report::new(setup(&["--rate", "3"]), &[ok, bad], 2.0);
        assert_eq!((r.requests, r.output_tokens, r.errors["503 overloaded"]), (2, 4, 1));
        assert!((r.cached_share - 0.5).abs() < 1e-9 && (r.total_ms.p99 - 1000.0).abs() < 1e-9);
        assert!(r.to_string().contains("1 × 503 overloaded"));
    }
}
