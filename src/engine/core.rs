//! The one thread that touches the device: drain commands → drop abandoned sequences → schedule → execute → sample →
//! commit → emit.
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::admission::{Admitted, Shared, Ticket};
use super::masks::{Batch, MaskThread, Masks};
use super::message::{EngineFailure, EngineStats, Guesses, SeqEvent, StepObserver, StepReport, Usage};
use super::pace::Pace;
use crate::grammar::{Constraint, Thoughts};
use crate::runner::{Logits, Pooler, Pooling, Runner};
use crate::sampling::{LogitRow, SampledToken, Sampler, TokenLogprobs, TokenMask, logprobs};
use crate::scheduler::{
    FinishReason, LogitRows, NewSequence, ScheduledSeq, Scheduler, SchedulerConfig, SchedulerOutput, SeqId, StopLimits,
};

/// What the engine knows about a sequence besides what the scheduler keeps.
struct LiveSeq {
    prompt: Arc<[u32]>,
    stop_tokens: Arc<[u32]>,
    sampler: Sampler,
    /// Where the text is in its grammar. Away while its mask is computed; see [`MaskThread`].
    constraint: Option<Box<Constraint>>,
    /// It has a grammar.
    constrained: bool,
    thoughts: Option<Thoughts>,
    /// Alternatives to report for every prompt token.
    prompt_logprobs: Option<u8>,
    /// The prompt position whose log-probability is reported next.
    next_prompt_position: usize,
    /// Of a prompt that becomes a vector.
    pooler: Option<Pooler>,
    cached_tokens: usize,
    generated: usize,
    submitted: Instant,
    events: UnboundedSender<SeqEvent>,
    ticket: Ticket,
}

/// What one sequence got out of a step.
#[derive(Default)]
struct StepResult {
    prompt_logprobs: Vec<TokenLogprobs>,
    /// The guesses that turned out right, then one more token.
    sampled: Vec<SampledToken>,
    /// The last token completed the grammar: the sequence ends.
    complete: bool,
    /// What the prompt has become.
    embedding: Option<Vec<f32>>,
}

/// What became of a sequence in a step that ran: an error is its own, not the step's.
type SeqOutcome = Result<StepResult, EngineFailure>;

/// Events that leave once the step's books are closed.
type Outbox = Vec<(UnboundedSender<SeqEvent>, SeqEvent)>;

pub(super) struct EngineCore {
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    live: HashMap<SeqId, LiveSeq>,
    commands: mpsc::Receiver<Vec<Admitted>>,
    shared: Arc<Shared>,
    observer: Option<Arc<dyn StepObserver>>,
    stats: EngineStats,
    pace: Pace,
    masks: MaskThread,
    /// The bound on prompt tokens beside decodes that was asked for; `pace` stays below it.
    prefill_chunk_max: usize,
    /// Steps in a row in which nothing could run.
    empty_steps: usize,
}

/// So many steps in a row without anything to run mean that the scheduler is stuck.
const EMPTY_STEPS_MAX: usize = 16;

impl EngineCore {
    pub(super) fn new(
        runner: Box<dyn Runner>,
        config: SchedulerConfig,
        commands: mpsc::Receiver<Vec<Admitted>>,
        shared: Arc<Shared>,
        observer: Option<Arc<dyn StepObserver>>,
    ) -> Self {
        let scheduler = Scheduler::new(config);
        let stats = EngineStats { gauges: scheduler.gauges(), ..EngineStats::default() };
        shared.publish(stats);
        Self {
            runner,
            scheduler,
            live: HashMap::new(),
            commands,
            shared,
            observer,
            stats,
            pace: Pace::default(),
            masks: MaskThread::default(),
            prefill_chunk_max: config.prefill_chunk_max,
            empty_steps: 0,
        }
    }

    /// Serves until every handle is gone and nothing is left to do. A panic that reaches this point means that an
    /// invariant broke: everything unfinished fails, and the engine refuses further work and reports itself unhealthy.
    pub(super) fn run(mut self) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve())) else { return };
        tracing::error!(panic = panic_message(&*panic), "the engine stopped: an invariant broke");
        // From here on nothing new is sent, so draining the channel leaves nobody behind.
        self.shared.stop();
        let waiting: Vec<_> = self.commands.try_iter().flatten().map(|a| a.events).collect();
        let running: Vec<_> = self.live.drain().map(|(_, seq)| seq.events).collect();
        for events in waiting.into_iter().chain(running) {
            // An error means that nobody listens any more; here and below.
            let _ = events.send(SeqEvent::Failed(EngineFailure::Stopped));
        }
        self.shared.settle();
    }

    fn serve(&mut self) {
        while self.receive() {
            self.drop_abandoned();
            if !self.live.is_empty() {
                self.step();
            }
            self.shared.settle();
        }
    }

    /// Takes in what was submitted; waits for it when there is nothing else to do. False: all handles are gone and
    /// nothing is left to do.
    fn receive(&mut self) -> bool {
        if self.live.is_empty() {
            match self.commands.recv() {
                Ok(group) => self.take_in(group),
                Err(mpsc::RecvError) => return false,
            }
        }
        while let Ok(group) = self.commands.try_recv() {
            self.take_in(group);
        }
        true
    }

    fn take_in(&mut self, group: Vec<Admitted>) {
        for Admitted { id, request, events, submitted, ticket } in group {
            let limits = StopLimits { max_new_tokens: request.new_tokens(), ..request.limits.clone() };
            // Poolings but the last token's want every row.
            let pools_all = request.embed.is_some_and(|pooling| pooling != Pooling::Last);
            let sequence = NewSequence {
                id,
                prompt: request.prompt.clone(),
                limits,
                salt: request.salt,
                prompt_logits: pools_all || request.prompt_logprobs.is_some(),
                tenant: request.tenant,
            };
            self.scheduler.add(sequence).expect("the handle checked it against the same limits; else it is a bug");
            if request.explain {
                self.scheduler.explain(id);
            }
            let stop_tokens = request.limits.stop_tokens;
            let constraint = request.grammar.map(|grammar| Box::new(Constraint::new(grammar, stop_tokens.clone())));
            let seq = LiveSeq {
                sampler: Sampler::new(request.params, &request.prompt),
                prompt: request.prompt,
                stop_tokens,
                constrained: constraint.is_some(),
                constraint,
                thoughts: request.thoughts.map(Thoughts::new),
                prompt_logprobs: request.prompt_logprobs,
                next_prompt_position: 1,
                pooler: request.embed.map(Pooler::new),
                cached_tokens: 0,
                generated: 0,
                submitted,
                events,
                ticket,
            };
            self.live.insert(id, seq);
        }
        self.publish();
    }

    /// Nobody listens any more: the client is gone or has all it wanted.
    fn drop_abandoned(&mut self) {
        let abandoned: Vec<SeqId> =
            self.live.iter().filter(|(_, seq)| seq.events.is_closed()).map(|(&id, _)| id).collect();
        if abandoned.is_empty() {
            return;
        }
        for id in &abandoned {
            self.scheduler.abort(*id);
            self.live.remove(id);
        }
        self.stats.aborted += abandoned.len() as u64;
        self.publish();
        tracing::debug!(sequences = abandoned.len(), "aborted");
    }

    fn step(&mut self) {
        let waiting = self.live.values().filter(|seq| seq.generated == 0).count();
        let chunk = self.pace.chunk(self.shared.pending_tokens(), waiting, self.prefill_chunk_max);
        self.scheduler.set_prefill_chunk(chunk);
        if let Some(rows) = self.pace.fixed_rows() {
            self.scheduler.set_fixed_rows(rows);
        }
        let step = self.scheduler.schedule();
        if step.is_empty() {
            // Making room may take a step of its own, but not many in a row.
            self.empty_steps += 1;
            let unfinished = self.live.len();
            assert!(self.empty_steps < EMPTY_STEPS_MAX, "{unfinished} sequences and nothing can run: this is a bug");
            return;
        }
        self.empty_steps = 0;
        self.announce(&step);
        let (decodes, guesses, prompt_tokens) = self.parts(&step);
        let begin = Instant::now();
        let outcome = self.compute(&step);
        let failed = outcome.is_err();
        let mut outbox = Outbox::new();
        let sampled = match outcome {
            Ok(results) => self.commit(&step, results, &mut outbox),
            Err(message) => {
                self.fail(&step, &message, &mut outbox);
                0
            }
        };
        let report = StepReport {
            tokens: step.total_tokens(),
            sequences: step.seqs.len(),
            sampled,
            seconds: begin.elapsed().as_secs_f64(),
            failed,
        };
        if !failed {
            self.pace.observe(decodes, guesses, prompt_tokens, report.seconds);
        }
        self.stats.steps += 1;
        self.stats.failed_steps += u64::from(failed);
        self.stats.busy_seconds += report.seconds;
        self.stats.last_step_tokens = report.tokens;
        // Numbers first: whoever has seen the last event finds its blocks and its place in the queue free.
        self.publish();
        for (events, event) in outbox {
            let _ = events.send(event);
        }
        tracing::debug!(
            tokens = report.tokens,
            sequences = report.sequences,
            decodes,
            guesses,
            sampled,
            preempted = step.preempted.len(),
            seconds = report.seconds,
            failed,
            "step"
        );
        if let Some(observer) = &self.observer {
            observer.observe(&report);
        }
    }

    /// Tells the sequences whose first chunk this is.
    fn announce(&mut self, step: &SchedulerOutput) {
        for scheduled in &step.seqs {
            let Some(cached_tokens) = scheduled.cached_tokens else { continue };
            let seq = live(&mut self.live, scheduled.id);
            seq.cached_tokens = cached_tokens;
            seq.ticket.start();
            let closest = self.scheduler.closest(scheduled.id);
            let _ = seq.events.send(SeqEvent::Started { cached_tokens, queued: seq.submitted.elapsed(), closest });
        }
    }

    /// The sequences of a step that decode, guesses of theirs, and the tokens of those that do not decode yet.
    fn parts(&self, step: &SchedulerOutput) -> (usize, usize, usize) {
        let decodes =
            |part: &&ScheduledSeq| part.sample && self.live.get(&part.id).is_some_and(|seq| seq.generated > 0);
        let decoding = step.seqs.iter().filter(decodes);
        let (count, tokens) = decoding.fold((0, 0), |(count, tokens), part| (count + 1, tokens + part.tokens.len()));
        (count, tokens - count, step.total_tokens() - tokens)
    }

    /// Runs the step, with the masks of its grammars beside it, and reads its rows, on the threads of the runner. A panic in
    /// the runner is the step's failure, not the engine's; one in reading a sequence's rows is that sequence's alone. Either
    /// way the scheduler has not been touched since, and the samplers concerned go with their sequences.
    fn compute(&mut self, step: &SchedulerOutput) -> Result<Vec<SeqOutcome>, String> {
        let masks = self.begin_masks(step);
        let executed = catch_unwind(AssertUnwindSafe(|| self.runner.execute(step)));
        self.end_masks(step, masks);
        let Self { runner, live: sequences, .. } = self;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut logits = match executed {
                Ok(result) => result.map_err(|error| error.to_string())?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            check_shape(&logits, step, runner.dimensions().unwrap_or_else(|| runner.vocab()))?;
            let mut rows = logits.rows_mut();
            let parts: Vec<_> = together(sequences, step)
                .into_iter()
                .zip(&step.seqs)
                .map(|(seq, scheduled)| {
                    let rows: Vec<_> = rows.by_ref().take(row_count(scheduled)).collect();
                    let unread = EngineFailure::Step { message: "it was not read".to_owned() };
                    Mutex::new((Some((seq, rows)), Err(unread)))
                })
                .collect();
            // Sequences know nothing of each other, so it does not matter which thread reads whose rows.
            runner.spread(parts.len(), &|index| {
                let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
                let Some((seq, rows)) = part.0.take() else { return };
                let read = catch_unwind(AssertUnwindSafe(|| seq.read_rows(&step.seqs[index], rows)));
                part.1 = read.unwrap_or_else(|panic| {
                    Err(EngineFailure::Step { message: format!("sampling panicked: {}", panic_message(&*panic)) })
                });
            });
            let results =
                parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect();
            drop(rows);
            runner.recycle(logits);
            Ok(results)
        }));
        outcome.unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_message(&*panic))))
    }

    /// Lends the constraints of the sequences that will sample to the thread that computes masks.
    fn begin_masks(&mut self, step: &SchedulerOutput) -> Masks {
        let mut batch = Batch::new();
        for (at, scheduled) in step.seqs.iter().enumerate().filter(|(_, scheduled)| scheduled.sample) {
            let constraint = self.live.get_mut(&scheduled.id).and_then(|seq| seq.constraint.take());
            batch.extend(constraint.map(|constraint| (at, constraint)));
        }
        self.masks.begin(batch)
    }

    fn end_masks(&mut self, step: &SchedulerOutput, masks: Masks) {
        for (at, constraint) in self.masks.end(masks) {
            live(&mut self.live, step.seqs[at].id).constraint = Some(constraint);
        }
    }

    /// Advances the scheduler and turns the results into events. Returns the number of tokens sampled.
    fn commit(&mut self, step: &SchedulerOutput, results: Vec<SeqOutcome>, outbox: &mut Outbox) -> usize {
        for (scheduled, result) in step.seqs.iter().zip(&results) {
            if let Err(failure) = result {
                match failure {
                    EngineFailure::Grammar(error) => tracing::warn!(%error, "a sequence failed"),
                    _ => tracing::error!(error = %failure, "a sequence failed"),
                }
                // What the step computed for it is not published.
                self.scheduler.abort(scheduled.id);
                self.lose(scheduled.id, failure.clone(), outbox);
            }
        }
        let sampled_ids = |result: &SeqOutcome| {
            result.iter().flat_map(|result| &result.sampled).map(|token| token.id).collect::<Vec<u32>>()
        };
        let tokens: Vec<Vec<u32>> = results.iter().map(sampled_ids).collect();
        let updates = self.scheduler.commit(step, &tokens);
        let finished: HashMap<SeqId, FinishReason> =
            updates.into_iter().filter_map(|update| Some((update.id, update.finish?))).collect();
        let mut sampled = 0;
        for (scheduled, result) in step.seqs.iter().zip(results) {
            let Ok(result) = result else { continue };
            let seq = live(&mut self.live, scheduled.id);
            let computed = scheduled.start + scheduled.known();
            seq.ticket.remaining(seq.prompt.len().saturating_sub(computed));
            if !result.prompt_logprobs.is_empty() {
                outbox.push((seq.events.clone(), SeqEvent::PromptLogprobs(result.prompt_logprobs)));
            }
            let count = result.sampled.len();
            sampled += count;
            if count > 0 && seq.generated == count {
                self.stats.prompt_tokens += seq.prompt.len() as u64;
            }
            for (left, token) in (0..count).rev().zip(result.sampled) {
                let guesses = if left > 0 {
                    Guesses { accepted: 1, rejected: 0 }
                } else {
                    Guesses { accepted: 0, rejected: scheduled.drafts + 1 - count }
                };
                outbox.push((seq.events.clone(), SeqEvent::Token(token, guesses)));
            }
            if let Some(vector) = result.embedding {
                self.stats.prompt_tokens += seq.prompt.len() as u64;
                outbox.push((seq.events.clone(), SeqEvent::Embedding(vector)));
            }
            let reason = if result.complete {
                // The scheduler may have ended it for its length.
                self.scheduler.abort(scheduled.id);
                Some(FinishReason::Complete)
            } else {
                finished.get(&scheduled.id).copied()
            };
            if let Some(reason) = reason {
                let usage = Usage {
                    prompt_tokens: seq.prompt.len(),
                    cached_tokens: seq.cached_tokens,
                    completion_tokens: seq.generated,
                };
                outbox.push((seq.events.clone(), SeqEvent::Finished { reason, usage }));
                self.stats.finished += 1;
                self.live.remove(&scheduled.id);
            }
        }
        self.stats.generation_tokens += sampled as u64;
        sampled
    }

    /// The step's sequences are lost; all others go on.
    fn fail(&mut self, step: &SchedulerOutput, message: &str, outbox: &mut Outbox) {
        tracing::error!(sequences = step.seqs.len(), tokens = step.total_tokens(), error = message, "a step failed");
        for id in self.scheduler.fail_step(step) {
            self.lose(id, EngineFailure::Step { message: message.to_owned() }, outbox);
        }
    }

    /// Tells a sequence that it is lost; the scheduler has forgotten it.
    fn lose(&mut self, id: SeqId, failure: EngineFailure, outbox: &mut Outbox) {
        let Some(seq) = self.live.remove(&id) else { return };
        self.stats.failed += 1;
        outbox.push((seq.events, SeqEvent::Failed(failure)));
    }

    fn publish(&mut self) {
        self.stats.scheduler = self.scheduler.counters();
        self.stats.gauges = self.scheduler.gauges();
        self.shared.publish(self.stats);
    }
}

impl LiveSeq {
    /// Reads the logits of the sequence's chunk, `rows`, in order: log-probabilities of the prompt tokens that follow
    /// each position, and a new token from the row of the last known one. If that token had been guessed, the next row
    /// is what it would be had the token come first and been computed then: another token is sampled from it, and so on.
    /// The sampler is asked for every token as it would be without guesses, so its choice cannot depend on them.
    ///
    /// Of a prompt that becomes a vector, the rows are pooled; the scheduler delivers each position's row once and in order.
    fn read_rows(&mut self, scheduled: &ScheduledSeq, rows: Vec<LogitRow<'_>>) -> SeqOutcome {
        #[cfg(test)]
        assert!(self.sampler.params.seed != super::tests::POISON, "the test poisons a request");
        let mut result = StepResult::default();
        let end = scheduled.start + scheduled.tokens.len();
        if let Some(pooler) = &mut self.pooler {
            rows.into_iter().for_each(|row| pooler.add(&row));
            if end == self.prompt.len() {
                result.embedding = self.pooler.take().map(Pooler::finish);
            }
            return Ok(result);
        }
        let first = end - row_count(scheduled);
        let known = end - scheduled.drafts;
        for (position, row) in (first..end).zip(rows) {
            // A row at `position` predicts the token after it. Recomputation after a preemption may bring rows again
            // that were reported before.
            let predicted = position + 1;
            if let Some(top) = self.prompt_logprobs
                && predicted == self.next_prompt_position
                && let Some(&token) = self.prompt.get(predicted)
            {
                result.prompt_logprobs.push(logprobs(&row, token, usize::from(top)));
                self.next_prompt_position += 1;
            }
            if !scheduled.sample || predicted < known {
                continue;
            }
            let token = self.sample(row)?;
            result.complete = match &mut self.constraint {
                Some(constraint) => constraint.accept(token.id)?,
                None => false,
            };
            self.generated += 1;
            let guessed = scheduled.drafted().get(predicted - known) == Some(&token.id);
            result.sampled.push(token);
            if !guessed || result.complete {
                break;
            }
        }
        Ok(result)
    }

    /// The next token, from its row of logits. The grammar's mask is there already, except after a guess that was right.
    fn sample(&mut self, row: LogitRow<'_>) -> Result<SampledToken, EngineFailure> {
        let allowed = match &mut self.constraint {
            Some(constraint) => Some(TokenMask::new(constraint.allowed()?)),
            None if self.constrained => {
                return Err(EngineFailure::Step { message: "computing a grammar's mask panicked".to_owned() });
            }
            None => None,
        };
        let possible = |id: &u32| (*id as usize) < row.len() && allowed.is_none_or(|mask| mask.allows(*id));
        let forced = self.thoughts.as_ref().and_then(Thoughts::forced).filter(possible).map(only);
        let mask = forced.as_deref().map(TokenMask::new).or(allowed);
        let token = self.sampler.sample_within(row, self.generated, &self.stop_tokens, mask);
        if let Some(thoughts) = &mut self.thoughts {
            thoughts.accept(token.id);
        }
        Ok(token)
    }
}

fn live(sequences: &mut HashMap<SeqId, LiveSeq>, id: SeqId) -> &mut LiveSeq {
    sequences.get_mut(&id).expect("a scheduled sequence that the engine does not know is a bug")
}

/// The sequences of a step, in its order, all to be changed at once.
fn together<'l>(sequences: &'l mut HashMap<SeqId, LiveSeq>, step: &SchedulerOutput) -> Vec<&'l mut LiveSeq> {
    let places: HashMap<SeqId, usize> = step.seqs.iter().enumerate().map(|(at, part)| (part.id, at)).collect();
    let mut found: Vec<_> = sequences.iter_mut().filter_map(|(id, seq)| Some((*places.get(id)?, seq))).collect();
    assert_eq!(found.len(), step.seqs.len(), "a scheduled sequence that the engine does not know is a bug");
    found.sort_unstable_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, seq)| seq).collect()
}

/// The words of a mask that allows one token.
fn only(token: u32) -> Vec<u32> {
    let mut words = vec![0; token as usize / 32 + 1];
    words[token as usize / 32] = 1 << (token % 32);
    words
}

/// Rows of logits that belong to a chunk.
fn row_count(scheduled: &ScheduledSeq) -> usize {
    match scheduled.logits {
        LogitRows::None => 0,
        LogitRows::Last => 1,
        LogitRows::All => scheduled.tokens.len(),
    }
}

fn check_shape(logits: &Logits, step: &SchedulerOutput, width: usize) -> Result<(), String> {
    let rows: usize = step.seqs.iter().map(row_count).sum();
    let expected = rows * width;
    if rows > 0 && logits.width != width || logits.data.len() != expected {
        return Err(format!(
            "the runner returned {} values in rows of {}, expected {rows} rows of {width}",
            logits.data.len(),
            logits.width
        ));
    }
    Ok(())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "(no message)",
    }
}
