//! From a validated request to one stream of events: admission, then the choices' tokens as text.
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};

use super::choice::{Choice, Delta, Finish, Reading, Wanted};
use super::error::ApiError;
use super::gate::{RequestContext, TokenCounts, Tokens};
use super::notes::Notes;
use super::params::{Common, TextRules, Truncate};
use super::{AppState, Model};
use crate::engine::{FinishReason, GenerationRequest, GenerationStream, Guesses, SeqEvent};
use crate::grammar::{Grammar, ThoughtBudget};
use crate::sampling::{SampledToken, TokenLogprobs};
use crate::scheduler::StopLimits;
use crate::telemetry::{Outcome, SequenceTimer};

/// Events that may wait between the pipeline and the response.
const EVENTS_WAITING_MAX: usize = 16;

/// What an endpoint's request comes down to.
pub(crate) struct Plan {
    pub(crate) model: Arc<Model>,
    pub(crate) common: Common,
    /// Tokenized.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// The field that holds the prompt, for messages.
    pub(crate) prompt_field: &'static str,
    /// `None`: as many as the context holds.
    pub(crate) max_tokens: Option<usize>,
    /// Choices generated per prompt: `n`, or `best_of`.
    pub(crate) per_prompt: usize,
    /// Alternatives reported with each generated token.
    pub(crate) logprobs: Option<u8>,
    /// Alternatives reported with each prompt token.
    pub(crate) prompt_logprobs: Option<u8>,
    /// Log-probabilities of hidden tokens are shown, too.
    pub(crate) hidden_logprobs: bool,
    /// The engine should report log-probabilities even if they are not shown.
    pub(crate) rank: bool,
    /// The completion continues the prompt's text.
    pub(crate) continuing: bool,
    pub(crate) reading: Reading,
    /// Of `common.form`.
    pub(crate) grammar: Option<Arc<Grammar>>,
    /// What bounds the thoughts.
    pub(crate) thoughts: Option<Arc<ThoughtBudget>>,
}

/// An admitted request: its sequences are queued or running.
pub(crate) struct Job {
    pub(crate) model: Arc<Model>,
    pub(crate) prompts: Vec<Arc<[u32]>>,
    per_prompt: usize,
    streams: Vec<GenerationStream>,
    /// The first choice's first event, if it was waited for.
    first: Option<SeqEvent>,
    rules: Arc<TextRules>,
    wanted: Wanted,
    reading: Reading,
    want_prompt: bool,
    /// The client asked for no completion: the one token that the engine needs is not shown.
    no_completion: bool,
    tokens: TokenCounts,
    notes: Notes,
    started: Instant,
    cut: watch::Receiver<bool>,
}

impl Job {
    pub(crate) fn choices(&self) -> usize {
        self.streams.len()
    }

    /// Where the client wants to know how the cache served it, which a header of the response says: waits until the first
    /// choice has started. Else there is nothing to wait for.
    pub(crate) async fn explained(mut self) -> Self {
        if self.notes.wants_explanation()
            && let Some(stream) = self.streams.first_mut()
        {
            self.first = tokio::select! {
                event = stream.next() => event,
                () = raised(self.cut.clone()) => None,
            };
        }
        if let Some(SeqEvent::Started { cached_tokens, queued, closest: Some(closest) }) = &self.first {
            self.notes.queued(*queued);
            self.notes.explained(self.prompts[0].len(), *cached_tokens, *closest);
        }
        self
    }
}

/// What happens to a request, in order for each choice: `Begin`, `Delta`*, `Finish`. `Failed` ends everything.
#[derive(Debug)]
pub(crate) enum Event {
    /// The choice's first token is there.
    Begin {
        choice: usize,
        /// Log-probabilities of the prompt from its second token on, if they are wanted of this choice.
        prompt: Option<Vec<TokenLogprobs>>,
        tokens: Tokens,
    },
    Delta {
        choice: usize,
        delta: Delta,
        tokens: Tokens,
    },
    Finish {
        choice: usize,
        reason: Finish,
        /// The stop string that ended it.
        stop: Option<String>,
        mean_logprob: f64,
        tokens: Tokens,
    },
    Failed(ApiError),
}

/// The grammar of the form that a request asks for.
pub(crate) async fn grammar(model: &Model, common: &mut Common) -> Result<Option<Arc<Grammar>>, ApiError> {
    match common.form.take() {
        Some(form) => model.grammars.get(form).await.map(Some),
        None => Ok(None),
    }
}

/// Checks the request against the context and hands it to the engine: from here on it is admitted.
pub(crate) fn admit(app: &AppState, context: &RequestContext, plan: Plan) -> Result<Job, ApiError> {
    let Plan { model, common, prompt_field, max_tokens, per_prompt, .. } = plan;
    let engine = &model.served.engine;
    context.queue_of(engine);
    let sequences = plan.prompts.len() * per_prompt;
    if let Some(max_tokens) = max_tokens
        && common.rules.min_tokens > max_tokens
    {
        let message = format!(
            "`min_tokens` must be at most the token limit of {max_tokens}, but {} was given.",
            common.rules.min_tokens
        );
        return Err(ApiError::invalid("min_tokens", message));
    }
    if common.unless_busy && engine.is_busy(sequences) {
        return Err(ApiError::busy());
    }
    if let Some(key) = &common.cache_key {
        context.notes.cache_key(key);
    }
    context.notes.ignored(common.ignored);
    let rules = Arc::new(common.rules);
    let salt = context.tenant.cache_salt(common.cache_salt.as_deref());
    let mut requests = Vec::with_capacity(sequences);
    let mut prompts = Vec::with_capacity(plan.prompts.len());
    for mut prompt in plan.prompts {
        if let Some(truncate) = common.truncate {
            let keep = match truncate {
                Truncate::To(tokens) => tokens,
                // Done before the chat was tokenized.
                Truncate::Turns => prompt.len(),
                Truncate::ToContext => model.context_max.saturating_sub(max_tokens.unwrap_or(1)).max(1),
            };
            prompt.drain(..prompt.len().saturating_sub(keep));
        }
        let at_least = if common.ends_with_context { max_tokens.map(|most| most.min(1)) } else { max_tokens };
        let room = room(&model, prompt.len(), at_least, prompt_field)?;
        let max_new_tokens = max_tokens.unwrap_or(room).max(1).min(room);
        let prompt: Arc<[u32]> = prompt.into();
        let seed = common.seed.unwrap_or_else(random_seed);
        for index in 0..per_prompt {
            let mut sampling = common.sampling.clone();
            sampling.seed = choice_seed(seed, index);
            sampling.logprobs = plan.logprobs.or(plan.rank.then_some(0));
            requests.push(GenerationRequest {
                prompt: Arc::clone(&prompt),
                params: Arc::new(sampling),
                limits: StopLimits { max_new_tokens, stop_tokens: Arc::clone(&rules.stop_tokens) },
                salt,
                tenant: context.tenant.group(),
                // One choice computes them for all, so that the others share its prompt's KV. In a stream each choice
                // begins by itself and cannot wait for the first.
                prompt_logprobs: plan.prompt_logprobs.filter(|_| index == 0 || common.stream.is_some()),
                grammar: plan.grammar.clone(),
                thoughts: plan.thoughts.clone(),
                explain: requests.is_empty() && context.notes.wants_explanation(),
                embed: None,
            });
        }
        prompts.push(prompt);
    }
    let streams = engine.submit(requests).map_err(|error| match ApiError::from(error) {
        ApiError::InvalidValue { message, .. } => ApiError::invalid(prompt_field, message),
        other => other,
    })?;
    Ok(Job {
        prompts,
        per_prompt,
        streams,
        first: None,
        rules,
        wanted: Wanted {
            logprobs: plan.logprobs.is_some(),
            hidden_logprobs: plan.hidden_logprobs,
            token_ids: common.return_token_ids,
            // A grammar is about the tokens' text as it is, the first space included.
            continuing: plan.continuing || plan.grammar.is_some(),
        },
        reading: plan.reading,
        want_prompt: plan.prompt_logprobs.is_some(),
        no_completion: max_tokens == Some(0),
        tokens: context.tokens.clone(),
        notes: context.notes.clone(),
        started: context.started,
        cut: app.shared.cut.subscribe(),
        model,
    })
}

/// Refuses more choices than the server runs at once: before anything is tokenized for them.
pub(crate) fn check_choices(model: &Model, prompts: usize, per_prompt: usize) -> Result<(), ApiError> {
    let choices = prompts.saturating_mul(per_prompt);
    let most = model.served.engine.info().queue.sequences_max;
    if choices > most {
        let message = format!(
            "The request asks for {choices} choices ({prompts} prompts times {per_prompt}), but this server runs at most {most} at once."
        );
        return Err(ApiError::invalid("n", message));
    }
    Ok(())
}

/// Refuses a text that cannot fit the context whatever its exact tokens are: before the work of finding them.
pub(crate) fn check_length(model: &Model, text: &str, param: &'static str) -> Result<(), ApiError> {
    let context_max = model.context_max;
    if model.served.text.tokenizer.is_far_longer_than(text, context_max)? {
        return Err(ApiError::PromptTooLong { param, context_max, bytes: text.len() });
    }
    Ok(())
}

/// How many tokens the context holds after a prompt of this length, `at_least` so many or else an error.
fn room(model: &Model, prompt: usize, at_least: Option<usize>, param: &'static str) -> Result<usize, ApiError> {
    let context_max = model.context_max;
    if prompt == 0 {
        return Err(ApiError::invalid(param, format!("`{param}` has no tokens; give at least one.")));
    }
    let completion = at_least.unwrap_or(1);
    if prompt.saturating_add(completion) > context_max {
        return Err(ApiError::ContextLength { param, context_max, prompt, completion });
    }
    Ok((context_max - prompt).max(1))
}

fn random_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

/// Choice 0 has the request's seed, so `n = 1` is the first of many; choice `k` has the seed plus `k` odd steps, far from
/// the seeds that people pick for neighbouring requests.
fn choice_seed(seed: u64, index: usize) -> u64 {
    let steps = u64::try_from(index).unwrap_or(u64::MAX);
    seed.wrapping_add(steps.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The events of an admitted request. Dropping the stream drops the engine's streams, which aborts the sequences.
pub(crate) fn events(job: Job) -> impl Stream<Item = Event> + Send {
    generate(move |events| drive(job, events))
}

/// A stream of what an async function sends. The function runs only while the stream is polled, and ends with it.
pub(crate) fn generate<T, F>(body: impl FnOnce(mpsc::Sender<T>) -> F) -> impl Stream<Item = T> + Send
where
    T: Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let driver = stream::once(body(sender)).filter_map(|()| std::future::ready(None));
    stream::select(driver, tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// Resolves when the flag is up, or its owner is gone.
async fn raised(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|up| *up).await;
}

/// A choice while it runs.
struct Lane {
    text: Choice,
    timer: SequenceTimer,
    /// Log-probabilities of the prompt's tokens from the second on.
    prompt_logprobs: Vec<TokenLogprobs>,
    begun: bool,
}

/// The request as a whole, while its choices run.
struct Drive {
    lanes: Vec<Lane>,
    /// Per prompt: what was found in the prefix cache, by the sibling that found least.
    cached: Vec<Option<usize>>,
    prompt_tokens: usize,
    completion: usize,
    reasoning: usize,
    accepted: usize,
    rejected: usize,
    events: mpsc::Sender<Event>,
}

/// The response no longer listens: nothing more to do.
struct Gone;

async fn drive(mut job: Job, events: mpsc::Sender<Event>) {
    let model = Arc::clone(&job.model);
    let lane = |choice: usize| Lane {
        text: Choice::new(Arc::clone(&model.served.text), Arc::clone(&job.rules), job.wanted, job.reading.clone()),
        timer: SequenceTimer::new(&model.metrics, job.started, job.prompts[choice / job.per_prompt].len()),
        prompt_logprobs: Vec::new(),
        begun: false,
    };
    let count = job.prompts.len();
    let mut drive = Drive {
        lanes: (0..job.streams.len()).map(lane).collect(),
        cached: vec![None; count],
        prompt_tokens: job.prompts.iter().map(|prompt| prompt.len()).sum(),
        completion: 0,
        reasoning: 0,
        accepted: 0,
        rejected: 0,
        events,
    };
    let next = async |choice: usize, mut stream: GenerationStream, known: Option<SeqEvent>| {
        let event = if known.is_some() { known } else { stream.next().await };
        (choice, stream, event)
    };
    let streams = std::mem::take(&mut job.streams);
    let mut waiting: FuturesUnordered<_> =
        streams.into_iter().enumerate().map(|(choice, stream)| next(choice, stream, job.first.take())).collect();
    let mut cut = pin!(raised(job.cut.clone()));
    loop {
        let (choice, stream, event) = tokio::select! {
            biased;
            next = waiting.next() => match next { Some(next) => next, None => return },
            () = &mut cut => {
                drive.fail(ApiError::CutOff).await;
                return;
            }
        };
        let ended = match event {
            Some(SeqEvent::Failed(failure)) => Err(ApiError::from(failure)),
            None => Err(ApiError::EngineStopped),
            Some(event) => Ok(drive.take(&job, choice, event).await),
        };
        match ended {
            Err(error) => return drive.fail(error).await,
            Ok(Err(Gone)) => return,
            // Not asking again drops the stream, and so aborts the sequence if it still runs.
            Ok(Ok(true)) => drop(stream),
            Ok(Ok(false)) => waiting.push(next(choice, stream, None)),
        }
    }
}

impl Drive {
    /// Takes one event of a sequence; true when its choice is complete.
    async fn take(&mut self, job: &Job, choice: usize, event: SeqEvent) -> Result<bool, Gone> {
        let prompt = choice / job.per_prompt;
        match event {
            SeqEvent::Started { cached_tokens, queued, .. } => {
                self.lanes[choice].timer.started(queued);
                job.notes.queued(queued);
                let cached = self.cached[prompt].map_or(cached_tokens, |least| least.min(cached_tokens));
                self.cached[prompt] = Some(cached);
                job.tokens.set(self.tokens());
                Ok(false)
            }
            SeqEvent::PromptLogprobs(entries) => {
                self.lanes[choice].prompt_logprobs.extend(entries);
                Ok(false)
            }
            SeqEvent::Token(token, guesses) => self.token(job, choice, &token, guesses).await,
            SeqEvent::Finished { reason, .. } => {
                self.begin(job, choice).await?;
                let reason = match reason {
                    FinishReason::StopToken(_) | FinishReason::Complete => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                };
                let (delta, reason) = self.lanes[choice].text.finish(reason);
                self.delta(choice, delta).await?;
                self.finish(choice, reason).await?;
                Ok(true)
            }
            SeqEvent::Failed(_) | SeqEvent::Embedding(_) => {
                unreachable!("the caller takes failures, and no request here embeds")
            }
        }
    }

    async fn token(&mut self, job: &Job, choice: usize, token: &SampledToken, guesses: Guesses) -> Result<bool, Gone> {
        if job.no_completion {
            self.begin(job, choice).await?;
            self.finish(choice, Finish::Length).await?;
            return Ok(true);
        }
        self.completion += 1;
        self.accepted += guesses.accepted;
        self.rejected += guesses.rejected;
        job.tokens.set(self.tokens());
        self.lanes[choice].timer.token();
        self.begin(job, choice).await?;
        let text = &mut self.lanes[choice].text;
        let was_thinking = text.is_thinking();
        let (delta, stopped) = text.token(token);
        // The tokens of the markers around a thought count as part of it.
        self.reasoning += usize::from(was_thinking || text.is_thinking());
        let reason = text.reason(Finish::Stop);
        self.delta(choice, delta).await?;
        if stopped {
            self.finish(choice, reason).await?;
        }
        Ok(stopped)
    }

    async fn begin(&mut self, job: &Job, choice: usize) -> Result<(), Gone> {
        if std::mem::replace(&mut self.lanes[choice].begun, true) {
            return Ok(());
        }
        let logprobs = std::mem::take(&mut self.lanes[choice].prompt_logprobs);
        let prompt = job.want_prompt.then_some(logprobs);
        let tokens = self.tokens();
        self.send(Event::Begin { choice, prompt, tokens }).await
    }

    async fn delta(&mut self, choice: usize, delta: Delta) -> Result<(), Gone> {
        if delta.is_empty() {
            return Ok(());
        }
        let tokens = self.tokens();
        self.send(Event::Delta { choice, delta, tokens }).await
    }

    async fn finish(&mut self, choice: usize, reason: Finish) -> Result<(), Gone> {
        let tokens = self.tokens();
        let lane = &mut self.lanes[choice];
        let outcome = match reason {
            Finish::Stop | Finish::ToolCalls => Outcome::Stop,
            Finish::Length => Outcome::Length,
        };
        lane.timer.finished(outcome);
        let mean_logprob = lane.text.mean_logprob();
        let stop = lane.text.take_stop();
        self.send(Event::Finish { choice, reason, stop, mean_logprob, tokens }).await
    }

    async fn fail(mut self, error: ApiError) {
        for lane in &mut self.lanes {
            lane.timer.finished(Outcome::Error);
        }
        // If nobody listens, nobody needs to know.
        let _ = self.send(Event::Failed(error)).await;
    }

    fn tokens(&self) -> Tokens {
        Tokens {
            prompt: self.prompt_tokens,
            cached: self.cached.iter().flatten().sum(),
            completion: self.completion,
            reasoning: self.reasoning,
            accepted: self.accepted,
            rejected: self.rejected,
        }
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }
}
