//! The engine alone: scheduler, runner and sampler in a loop, without HTTP, channels or text.
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::workload::Rng;
use crate::kv::CacheSalt;
use crate::runner::Runner;
use crate::sampling::{Sampler, SamplingParams};
use crate::scheduler::{NewSequence, Scheduler, SchedulerConfig, SeqId, StopLimits};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Sequences at once.
    pub batch: usize,
    /// Prompt tokens in all, shared out evenly among the sequences.
    pub prefill: usize,
    /// Tokens each sequence generates.
    pub decode: usize,
}

/// Medians over the repetitions.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub batch: usize,
    pub prefill_tokens: usize,
    pub prefill_tokens_per_second: f64,
    pub decode_tokens: usize,
    pub decode_tokens_per_second: f64,
}

/// All cases of a run.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    pub model: String,
    pub runs: String,
    pub rows: Vec<Row>,
}

/// Runs one case `repeat` times. Prompts are random and the prefix cache is off, so nothing is reused; nor is anything
/// guessed, so that a decoded token is one row of one step.
///
/// # Errors
/// The case does not fit the block pool or the context, or a step failed.
pub fn measure(runner: &mut dyn Runner, config: SchedulerConfig, case: Case, repeat: usize) -> anyhow::Result<Row> {
    let (mut prefill, mut decode, mut decode_tokens) = (Vec::new(), Vec::new(), 0);
    for r in 0..repeat {
        let times = once(runner, config, case, r as u64)?;
        prefill.push(times.prefill);
        decode.push(times.decode);
        decode_tokens = times.decode_tokens;
    }
    let prefill_tokens = prompt_tokens(case) * case.batch;
    Ok(Row {
        batch: case.batch,
        prefill_tokens,
        prefill_tokens_per_second: prefill_tokens as f64 / median(prefill),
        decode_tokens,
        decode_tokens_per_second: decode_tokens as f64 / median(decode),
    })
}

/// Seconds of a round's two parts. Sequences that were prefilled first generate while the others are still prefilled:
/// those tokens belong to neither figure's tokens.
struct Times {
    prefill: f64,
    decode: f64,
    decode_tokens: usize,
}

fn prompt_tokens(case: Case) -> usize {
    (case.prefill / case.batch).max(1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2].max(1e-9)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One round: until every sequence has its first token, and from then until the first one ends.
fn once(runner: &mut dyn Runner, config: SchedulerConfig, case: Case, round: u64) -> anyhow::Result<Times> {
    anyhow::ensure!(
        case.batch > 0 && case.decode > 1,
        "a batch needs at least one sequence and two tokens to generate"
    );
    let running_max = config.running_max.max(case.batch);
    let mut scheduler =
        Scheduler::new(SchedulerConfig { prefix_cache: false, speculation: false, running_max, ..config });
    let mut rng = Rng::new(round + 1);
    let vocab = runner.vocab() as u64;
    let params = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let mut samplers = Vec::new();
    for id in 0..case.batch {
        let prompt: Arc<[u32]> = (0..prompt_tokens(case)).map(|_| (rng.next_u64() % vocab) as u32).collect();
        samplers.push(Mutex::new(Sampler::new(params.clone(), &prompt)));
        scheduler.add(NewSequence {
            id: SeqId(id as u64),
            prompt,
            limits: StopLimits { max_new_tokens: case.decode, stop_tokens: Arc::new([]) },
            salt: CacheSalt(0),
            prompt_logits: false,
            tenant: 0,
        })?;
    }
    let mut generated = vec![0; case.batch];
    let started = Instant::now();
    let (mut prefilled, mut ended) = (None, None);
    while !scheduler.is_idle() {
        let step = scheduler.schedule();
        anyhow::ensure!(step.preempted.is_empty(), "the KV cache is too small for this batch: raise --kv-memory");
        let mut logits = runner.execute(&step)?;
        let mut rows = logits.rows_mut();
        // What each sequence samples from, and what it samples: on any thread, as the engine does.
        let draws: Vec<_> =
            step.seqs.iter().map(|s| Mutex::new((s.sample.then(|| rows.next()).flatten(), Vec::new()))).collect();
        runner.spread(draws.len(), &|at| {
            let (row, sampled) = &mut *lock(&draws[at]);
            let Some(row) = row.take() else { return };
            let id = step.seqs[at].id.0 as usize;
            sampled.push(lock(&samplers[id]).sample(row, generated[id], &[]).id);
        });
        let sampled: Vec<Vec<u32>> = draws.iter().map(|draw| std::mem::take(&mut lock(draw).1)).collect();
        drop((draws, rows));
        for (scheduled, tokens) in step.seqs.iter().zip(&sampled) {
            generated[scheduled.id.0 as usize] += tokens.len();
        }
        runner.recycle(logits);
        scheduler.commit(&step, &sampled);
        let now = (started.elapsed().as_secs_f64(), generated.iter().sum::<usize>());
        if prefilled.is_none() && generated.iter().all(|&g| g > 0) {
            prefilled = Some(now);
        }
        if ended.is_none() && generated.contains(&case.decode) {
            ended = Some(now);
        }
    }
    match (prefilled, ended) {
        (Some((prefill, before)), Some((end, after))) if after > before => {
            Ok(Times { prefill, decode: end - prefill, decode_tokens: after - before })
        }
        _ => anyhow::bail!(
            "of {} sequences the first has its {} tokens before the last has one: raise --decode or --prefill-chunk",
            case.batch,
            case.decode
        ),
    }
}

impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.model, self.runs)?;
        write!(f, "{:>6}{:>18}{:>18}", "batch", "prefill tok/s", "decode tok/s")?;
        for r in &self.rows {
            write!(f, "\n{:>6}{:>18.1}{:>18.1}", r.batch, r.prefill_tokens_per_second, r.decode_tokens_per_second)?;
        }
        Ok(())
    }
}
