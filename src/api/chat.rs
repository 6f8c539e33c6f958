//! `POST /v1/chat/completions`.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Map, Value};

use super::body::{Claim, JsonBody};
use super::chat_shape::{ChatChoice, ChatChunks};
use super::choice::Reading;
use super::error::ApiError;
use super::fields::Fields;
use super::fold::fold;
use super::gate::RequestContext;
use super::params::{Common, Truncate, small};
use super::pipeline::{Job, Plan, admit, check_choices, check_length};
use super::stream::{self, Streaming};
use super::structured::Asked;
use super::tools::{Form, ToolUse};
use super::types::Envelope;
use super::{AppState, Model, logprobs, messages, thoughts, turns};
use crate::grammar::{Grammar, GrammarSource};
use crate::text::{ChatInput, Thinking, ToolChoice};

/// How much a model thinks, in OpenAI's words.
pub(crate) const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Names that a template gets from the request itself.
const RESERVED_KWARGS: &[&str] = &["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, ChatRequest::lower).await?;
    let (model, logprobs) = (Arc::clone(&request.model), request.logprobs);
    let (streaming, return_token_ids) = (request.common.stream, request.common.return_token_ids);
    let job = start(&app, &context, request, claim, "messages").await?;
    let prompt_ids = return_token_ids.then(|| job.prompts[0].to_vec());
    let prompt_tokens = Arc::clone(&job.prompts[0]);
    if let Some(options) = streaming {
        let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", &model);
        let chunks = ChatChunks::new(model, job.choices(), logprobs.is_some(), prompt_ids);
        let streaming = Streaming { envelope, options, keep_alive: app.options().keep_alive };
        return Ok(stream::respond(job, chunks, streaming));
    }
    let envelope = Envelope::new("chatcmpl", "chat.completion", &model);
    let (mut choices, usage) = fold(job).await?;
    let tokenizer = &model.served.text.tokenizer;
    let prompt = choices.first_mut().and_then(|first| first.prompt.take());
    let choices = choices.into_iter().enumerate();
    let choices = choices
        .map(|(index, folded)| ChatChoice::new(index, folded, tokenizer, logprobs.is_some(), return_token_ids))
        .collect();
    let mut body = envelope.wrap(choices);
    body.usage = Some(Some(usage.into()));
    body.service_tier = Some("default");
    body.prompt_logprobs = prompt.map(|entries| logprobs::prompt(tokenizer, &prompt_tokens, &entries));
    body.prompt_token_ids = prompt_ids;
    Ok(Json(body).into_response())
}

/// A validated request: what every dialect's comes down to.
pub(crate) struct ChatRequest {
    pub(crate) model: Arc<Model>,
    pub(crate) input: ChatInput,
    pub(crate) tools: ToolUse,
    pub(crate) common: Common,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) logprobs: Option<u8>,
    /// Tokens that the model may think.
    pub(crate) thinking_budget: Option<usize>,
    pub(crate) hide_reasoning: bool,
}

/// Renders and tokenizes a chat, and hands it to the engine. `field`: what holds the messages, for errors.
pub(crate) async fn start(
    app: &AppState,
    context: &RequestContext,
    request: ChatRequest,
    claim: Claim,
    field: &'static str,
) -> Result<Job, ApiError> {
    let ChatRequest { model, mut input, tools, mut common, max_tokens, logprobs, thinking_budget, hide_reasoning } =
        request;
    let continuing = input.continue_final_message;
    let (of, truncate) = (Arc::clone(&model), common.truncate);
    // A call that must be made leaves no room for a form.
    let has_form = common.form.is_some() && matches!(tools.choice, ToolChoice::None | ToolChoice::Auto);
    let encode = move || {
        let text = &of.served.text;
        if truncate == Some(Truncate::Turns) {
            turns::fit(&mut input, &of, max_tokens.unwrap_or(1))?;
        }
        let mut rendered = text.render_chat(&input)?;
        if matches!(truncate, None | Some(Truncate::Turns)) {
            check_length(&of, &rendered.text, field)?;
        }
        let last = input.messages.last().and_then(|message| message["content"].as_str());
        let continued = continuing.then(|| last.unwrap_or_default());
        let mut thinking = text.output.thinking(&rendered, continued);
        if has_form && thinking == Thinking::Open {
            // The form would be that of the thoughts which the template has begun.
            thinking = rendered.end_thoughts();
        }
        Ok((text.tokenizer.encode_prompt(&rendered)?, thinking))
    };
    let (prompt, thinking) = claim.work(app, encode).await.map_err(|error| error.about_prompt(field))?;
    let thoughts = match (thinking_budget, common.form.is_some().then_some(&tools.choice)) {
        (Some(tokens), None | Some(ToolChoice::Required | ToolChoice::Named(_))) => {
            thoughts::bound(&model, tokens, thinking)?
        }
        // The call begins with thoughts, the answer that has the form does not: what ends the one must not stand in the other.
        (Some(_), Some(ToolChoice::Auto)) if thinking != Thinking::Never => {
            let hint = " beside tools that may be called and an answer that must have a form";
            return Err(ApiError::Unsupported { param: "thinking_budget".to_owned(), hint });
        }
        // An answer that must have a form has no thoughts.
        _ => None,
    };
    let grammar = grammar(&model, &tools, common.form.take(), thinking).await?;
    let per_prompt = common.n;
    let prompt_logprobs = common.prompt_logprobs;
    let plan = Plan {
        model,
        common,
        prompts: vec![prompt],
        prompt_field: field,
        max_tokens,
        per_prompt,
        logprobs,
        prompt_logprobs,
        hidden_logprobs: false,
        rank: false,
        // A continued message's text is in the prompt.
        continuing,
        reading: Reading { tools: tools.callable(), parallel: tools.parallel, thinking, hide_reasoning },
        grammar,
        thoughts,
    };
    Ok(admit(app, context, plan)?.explained().await)
}

/// The grammar of an answer that may call tools, or that must have a form.
async fn grammar(
    model: &Model,
    tools: &ToolUse,
    form: Option<Asked>,
    thinking: Thinking,
) -> Result<Option<Arc<Grammar>>, ApiError> {
    let format = &model.served.text.output;
    let Some(asked) = tools.form(format, thinking, form.clone())? else { return Ok(None) };
    let is_of_tools = matches!(asked.source, GrammarSource::Calls(_)) && !tools.tools.is_empty();
    let mut grammar = model.grammars.get(asked).await;
    // Where nobody has asked for the arguments' schemas to be enforced, what of them can not be is not.
    let relaxed = tools.relaxed().filter(|_| is_of_tools && matches!(grammar, Err(ApiError::Schema { .. })));
    let tools = relaxed.as_ref().unwrap_or(tools);
    if relaxed.is_some()
        && let Some(asked) = tools.form(format, thinking, form.clone())?
    {
        grammar = model.grammars.get(asked).await;
    }
    match grammar {
        Err(error @ ApiError::Schema { .. }) if is_of_tools => {
            let parts = form.into_iter().chain(tools.parts());
            Err(model.grammars.first_error(parts).await.unwrap_or(error))
        }
        grammar => grammar.map(Some),
    }
}

impl ChatRequest {
    fn lower(mut fields: Fields, app: &AppState) -> Result<Self, ApiError> {
        let model = app.named(&mut fields)?;
        Self::of(model, fields, Form::Nested)
    }

    /// A request for a model that is known, with tools in this form.
    pub(crate) fn of(model: Arc<Model>, mut fields: Fields, form: Form) -> Result<Self, ApiError> {
        let (mut input, tools) = input(&mut fields, form)?;
        let bound = effort(&mut fields, &model, &mut input.kwargs)?;
        let thinking_budget = thoughts::budget(&mut fields, bound, &input.kwargs, &model)?;
        let hide_reasoning = !fields.bool("include_reasoning")?.unwrap_or(true);
        let common = Common::take(&mut fields, &model)?;
        let max_tokens = max_tokens(&mut fields)?;
        let logprobs = chat_logprobs(&mut fields)?;
        fields.finish()?;
        check_choices(&model, 1, common.n)?;
        Ok(Self { model, input, tools, common, max_tokens, logprobs, thinking_budget, hide_reasoning })
    }
}

/// Messages and what else the template sees; `/tokenize` takes the same.
pub(crate) fn input(fields: &mut Fields, form: Form) -> Result<(ChatInput, ToolUse), ApiError> {
    let tools = ToolUse::take(fields, form)?;
    let messages = messages::lower(fields.require("messages")?)?;
    let continue_final_message = fields.bool("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.bool("add_generation_prompt")?;
    if continue_final_message && add_generation_prompt == Some(true) {
        let message = "`continue_final_message` and `add_generation_prompt` cannot both be true.";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let kwargs = template_kwargs(fields)?;
    let add_generation_prompt = add_generation_prompt.unwrap_or(!continue_final_message);
    let shown = tools.for_template();
    Ok((ChatInput { messages, tools: shown, add_generation_prompt, continue_final_message, kwargs }, tools))
}

/// What the client gives the template besides the conversation.
pub(crate) fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let path = fields.path("chat_template_kwargs");
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    match RESERVED_KWARGS.iter().find(|name| kwargs.contains_key(**name)) {
        None => Ok(kwargs),
        Some(name) => {
            let message = format!("`{path}.{name}` is set by the server; give it as a field of the request.");
            Err(ApiError::invalid(format!("{path}.{name}"), message))
        }
    }
}

/// `reasoning_effort`, or `reasoning: {"effort": …}`. Gives `reasoning.max_tokens`, with its path.
fn effort(
    fields: &mut Fields,
    model: &Model,
    kwargs: &mut Map<String, Value>,
) -> Result<Option<(String, Value)>, ApiError> {
    let mut param = fields.path("reasoning_effort");
    let mut effort = fields.choice("reasoning_effort", EFFORTS)?;
    let mut bound = None;
    if let Some(reasoning) = fields.take("reasoning") {
        let mut reasoning = Fields::at(fields.path("reasoning"), reasoning)?;
        bound = reasoning.take("max_tokens").map(|tokens| (reasoning.path("max_tokens"), tokens));
        if let Some(given) = reasoning.choice("effort", EFFORTS)? {
            param = reasoning.path("effort");
            if effort.is_some_and(|effort| effort != given) {
                let message = format!("`{param}` and `reasoning_effort` differ; give one of them.");
                return Err(ApiError::InvalidValue { param, message });
            }
            effort = Some(given);
        }
        reasoning.finish()?;
    }
    effort.map_or(Ok(()), |effort| set_effort(param, effort, model, kwargs))?;
    Ok(bound)
}

/// Tells the template how much to think, as far as it can say that. A model whose template has but a switch thinks with every
/// effort other than `none`.
pub(crate) fn set_effort(
    param: String,
    effort: &str,
    model: &Model,
    kwargs: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let output = &model.served.text.output;
    let thinks = effort != "none";
    if output.effort {
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    if output.thinking_switch {
        kwargs.entry("enable_thinking").or_insert(thinks.into());
    }
    match (output.effort || output.thinking_switch, thinks, output.thinks) {
        (false, true, false) => {
            Err(ApiError::Unsupported { param, hint: ", except `none`: this model does not think" })
        }
        (false, false, true) => Err(ApiError::Unsupported { param, hint: " as `none`: this model always thinks" }),
        _ => Ok(()),
    }
}

/// `max_completion_tokens`, or its old name. Some clients send both; then they must agree.
pub(crate) fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let new = fields.count("max_completion_tokens", 1..=u32::MAX)?;
    let old = fields.count("max_tokens", 1..=u32::MAX)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(ApiError::invalid(
            "max_tokens",
            format!(
                "`max_tokens` ({old}) and `max_completion_tokens` ({new}) differ; give only `max_completion_tokens`."
            ),
        )),
        (new, old) => Ok(new.or(old)),
    }
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = small(fields, "top_logprobs", 0..=20)?;
    match (wanted, top) {
        (false, Some(1..)) => {
            Err(ApiError::invalid("top_logprobs", "`top_logprobs` is only allowed when `logprobs` is true."))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}
