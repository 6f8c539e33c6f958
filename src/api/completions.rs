//! `POST /v1/completions`.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::body::JsonBody;
use super::choice::{Delta, Finish, PromptText, Reading, TokenEntry, prompt_entries};
use super::error::ApiError;
use super::fields::{Fields, type_name};
use super::fold::{Folded, fold};
use super::gate::RequestContext;
use super::logprobs::{self, CompletionLogprobs, PromptLogprobs};
use super::params::{Common, small, token_ids};
use super::pipeline::{self, Job, Plan, admit, check_choices, check_length};
use super::stream::{self, Chunks, Streaming};
use super::types::Envelope;
use super::{AppState, Model};
use crate::sampling::TokenLogprobs;

/// OpenAI's default.
pub(crate) const MAX_TOKENS_DEFAULT: usize = 16;
/// OpenAI's limits.
pub(crate) const BEST_OF_MAX: u32 = 20;
pub(crate) const LOGPROBS_MAX: u8 = 5;

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, CompletionRequest::lower).await?;
    let CompletionRequest { model, prompts, add_special, mut common, max_tokens, best_of, logprobs, echo } = request;
    let (n, streaming) = (common.n, common.stream);
    let (of, truncates) = (Arc::clone(&model), common.truncate.is_some());
    let encode = move || {
        let encode = |prompt: &Prompt| match prompt {
            Prompt::Text(prompt) => {
                if !truncates {
                    check_length(&of, prompt, "prompt")?;
                }
                Ok(of.served.text.tokenizer.encode_with_special(prompt, add_special)?)
            }
            Prompt::Ids(ids) => Ok(ids.clone()),
        };
        let ids = prompts.iter().map(encode).collect::<Result<Vec<_>, ApiError>>()?;
        Ok((prompts, ids))
    };
    let (prompts, ids) = claim.work(&app, encode).await?;
    let grammar = pipeline::grammar(&model, &mut common).await?;
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let skip_special = common.rules.skip_special;
    let mut shape = CompletionShape {
        model: Arc::clone(&model),
        n,
        per_prompt: best_of,
        logprobs: logprobs.is_some(),
        prompt_logprobs: common.prompt_logprobs.is_some(),
        return_token_ids: common.return_token_ids,
        echo: Vec::new(),
        echo_text: Vec::new(),
        prompts: Vec::new(),
    };
    let plan = Plan {
        model: Arc::clone(&model),
        prompt_logprobs: common.prompt_logprobs.or(logprobs.filter(|_| echo)),
        common,
        prompts: ids,
        prompt_field: "prompt",
        max_tokens: Some(max_tokens),
        per_prompt: best_of,
        logprobs,
        hidden_logprobs: true,
        rank: best_of > n,
        continuing: true,
        reading: Reading::plain(),
        grammar,
        thoughts: None,
    };
    let job = admit(&app, &context, plan)?.explained().await;
    shape.prompts.clone_from(&job.prompts);
    if echo {
        let tokenizer = &model.served.text.tokenizer;
        let added = if add_special { tokenizer.prefix_len() } else { 0 };
        let echoed = |((prompt, ids), length): ((Prompt, &Arc<[u32]>), usize)| match prompt {
            Prompt::Text(text) if ids.len() == length => (text, PromptText { added, control: true }),
            // A truncated prompt is echoed as far as it was used.
            _ => (tokenizer.decode(ids, skip_special), PromptText { added: 0, control: !skip_special }),
        };
        (shape.echo, shape.echo_text) = prompts.into_iter().zip(&job.prompts).zip(lengths).map(echoed).unzip();
    }
    let envelope = Envelope::new("cmpl", "text_completion", &model);
    match streaming {
        Some(options) => {
            let streaming = Streaming { envelope, options, keep_alive: app.options().keep_alive };
            Ok(stream::respond(job, shape, streaming))
        }
        None => shape.body(job, &envelope).await,
    }
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A validated request.
struct CompletionRequest {
    model: Arc<Model>,
    prompts: Vec<Prompt>,
    add_special: bool,
    common: Common,
    /// 0 with `echo` only.
    max_tokens: usize,
    best_of: usize,
    logprobs: Option<u8>,
    echo: bool,
}

impl CompletionRequest {
    fn lower(mut fields: Fields, app: &AppState) -> Result<Self, ApiError> {
        let model = app.named(&mut fields)?;
        let common = Common::take(&mut fields, &model)?;
        let prompts = prompts(&mut fields, model.served.engine.info().vocab)?;
        let echo = fields.bool("echo")?.unwrap_or(false);
        let max_tokens = fields.count("max_tokens", 0..=u32::MAX)?.unwrap_or(MAX_TOKENS_DEFAULT);
        if max_tokens == 0 && !echo {
            return Err(ApiError::invalid("max_tokens", "`max_tokens` may only be 0 when `echo` is true."));
        }
        let logprobs = small(&mut fields, "logprobs", 0..=LOGPROBS_MAX)?;
        if echo && logprobs.is_some() && common.prompt_logprobs.is_some() {
            let message = "`prompt_logprobs` cannot be combined with `echo` and `logprobs`, which report the same.";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        let best_of = best_of(&mut fields, &common)?;
        check_choices(&model, prompts.len(), best_of)?;
        let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
        fields.finish()?;
        Ok(Self { model, prompts, add_special, common, max_tokens, best_of, logprobs, echo })
    }
}

fn best_of(fields: &mut Fields, common: &Common) -> Result<usize, ApiError> {
    // 0 is within OpenAI's range and means the default there, too.
    let best_of = fields.count("best_of", 0..=BEST_OF_MAX)?.filter(|best_of| *best_of > 0).unwrap_or(common.n);
    if best_of < common.n {
        let message = format!("`best_of` must be at least `n` ({}), but {best_of} was given.", common.n);
        return Err(ApiError::invalid("best_of", message));
    }
    if best_of > common.n && common.stream.is_some() {
        return Err(ApiError::invalid("best_of", "`best_of` greater than `n` is not available with `stream`."));
    }
    Ok(best_of)
}

/// A string, several, token ids, or several lists of token ids.
fn prompts(fields: &mut Fields, vocab: usize) -> Result<Vec<Prompt>, ApiError> {
    let path = fields.path("prompt");
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let wrong = |param: String, value: &Value| ApiError::WrongType { param, expected, found: type_name(value) };
    let items = match fields.require("prompt")? {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong(path, &other)),
    };
    match items.first() {
        None => Err(ApiError::invalid(&path, format!("`{path}` is empty; give at least one prompt."))),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(token_ids(&path, &items, vocab)?)]),
        Some(_) => {
            let prompt = |(index, item)| {
                let path = format!("{path}[{index}]");
                match item {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    Value::Array(ids) => Ok(Prompt::Ids(token_ids(&path, &ids, vocab)?)),
                    other => Err(wrong(path, &other)),
                }
            };
            items.into_iter().enumerate().map(prompt).collect()
        }
    }
}

/// What a completion's choices look like, whole and in chunks.
struct CompletionShape {
    model: Arc<Model>,
    n: usize,
    /// Choices generated per prompt; the best `n` are shown.
    per_prompt: usize,
    logprobs: bool,
    prompt_logprobs: bool,
    return_token_ids: bool,
    /// Per prompt: the text to repeat; empty without `echo`.
    echo: Vec<String>,
    /// Per prompt, with `echo`: which tokens that text shows.
    echo_text: Vec<PromptText>,
    /// As they were run.
    prompts: Vec<Arc<[u32]>>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct CompletionChoice {
    text: String,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    #[schemars(extend("enum" = ["stop", "tool_calls", "length", null]))]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

impl CompletionShape {
    fn echo(&self, prompt: usize) -> &str {
        self.echo.get(prompt).map_or("", String::as_str)
    }

    fn choice(index: usize, text: String, logprobs: Option<CompletionLogprobs>) -> CompletionChoice {
        CompletionChoice {
            text,
            index,
            logprobs,
            finish_reason: None,
            prompt_logprobs: None,
            token_ids: None,
            prompt_token_ids: None,
        }
    }

    /// Tokens of the completion; `text_offset` counts an echoed prompt.
    fn generated(&self, prompt: usize, entries: &[TokenEntry]) -> Option<CompletionLogprobs> {
        let base = self.echo(prompt).chars().count();
        self.logprobs.then(|| logprobs::completion(&self.model.served.text.tokenizer, entries, base))
    }

    /// Tokens of the prompt, if they are to be echoed with log-probabilities.
    fn echoed(&self, prompt: usize, entries: Option<&[TokenLogprobs]>) -> Option<CompletionLogprobs> {
        let (entries, shown) = (entries.filter(|_| self.logprobs)?, self.echo_text.get(prompt)?);
        let tokenizer = &self.model.served.text.tokenizer;
        let entries = prompt_entries(tokenizer, &self.prompts[prompt], entries, *shown);
        Some(logprobs::completion(tokenizer, &entries, 0))
    }

    async fn body(self, job: Job, envelope: &Envelope) -> Result<Response, ApiError> {
        let (choices, usage) = fold(job).await?;
        let mut groups: Vec<Vec<Folded>> = self.prompts.iter().map(|_| Vec::with_capacity(self.per_prompt)).collect();
        for (index, folded) in choices.into_iter().enumerate() {
            groups[index / self.per_prompt].push(folded);
        }
        let mut shown = Vec::with_capacity(groups.len() * self.n);
        for (prompt, mut group) in groups.into_iter().enumerate() {
            // The first choice has them for all.
            let entries = group.first_mut().and_then(|first| first.prompt.take());
            if self.per_prompt > self.n {
                // The sort is stable: of equally likely choices the first stays first.
                group.sort_by(|a, b| b.mean_logprob.total_cmp(&a.mean_logprob));
                group.truncate(self.n);
            }
            for folded in group {
                shown.push(self.whole(prompt, shown.len(), folded, entries.as_deref()));
            }
        }
        let mut body = envelope.wrap(shown);
        body.usage = Some(Some(usage.into()));
        Ok(Json(body).into_response())
    }

    fn whole(
        &self,
        prompt: usize,
        index: usize,
        folded: Folded,
        entries: Option<&[TokenLogprobs]>,
    ) -> CompletionChoice {
        let finish_reason = Some(folded.finish_reason());
        let mut logprobs = self.generated(prompt, &folded.logprobs);
        if let (Some(all), Some(mut echoed)) = (&mut logprobs, self.echoed(prompt, entries)) {
            echoed.append(all);
            *all = echoed;
        }
        let mut choice = Self::choice(index, format!("{}{}", self.echo(prompt), folded.text), logprobs);
        choice.finish_reason = finish_reason;
        if self.prompt_logprobs {
            let tokenizer = &self.model.served.text.tokenizer;
            let ids = &self.prompts[prompt];
            choice.prompt_logprobs = entries.map(|entries| logprobs::prompt(tokenizer, ids, entries));
        }
        if self.return_token_ids {
            choice.token_ids = Some(folded.token_ids);
            choice.prompt_token_ids = Some(self.prompts[prompt].to_vec());
        }
        choice
    }
}

impl Chunks for CompletionShape {
    type Choice = CompletionChoice;

    fn begin(&mut self, choice: usize, entries: Option<Vec<TokenLogprobs>>) -> Option<CompletionChoice> {
        if self.echo.is_empty() && !self.return_token_ids {
            return None;
        }
        let prompt = choice / self.per_prompt;
        let logprobs = self.echoed(prompt, entries.as_deref());
        let mut chunk = Self::choice(choice, self.echo(prompt).to_owned(), logprobs);
        chunk.prompt_token_ids = self.return_token_ids.then(|| self.prompts[prompt].to_vec());
        Some(chunk)
    }

    fn delta(&mut self, choice: usize, delta: Delta) -> Vec<CompletionChoice> {
        let logprobs = self.generated(choice / self.per_prompt, &delta.logprobs);
        let mut chunk = Self::choice(choice, delta.content(), logprobs);
        chunk.token_ids = self.return_token_ids.then_some(delta.token_ids);
        vec![chunk]
    }

    fn finish(&mut self, choice: usize, reason: Finish) -> CompletionChoice {
        let mut chunk = Self::choice(choice, String::new(), None);
        chunk.finish_reason = Some(reason.name());
        chunk
    }

    fn prompt_token_ids(&self, _: usize) -> Option<Vec<u32>> {
        None
    }
}
